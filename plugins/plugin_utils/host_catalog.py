"""The catalogues that decisions about hosts need, read on the control node."""

from __future__ import annotations

import functools
from typing import Any

import yaml
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import COLLECTION_ROOT


@functools.cache
def read_catalog(subject: str) -> dict[str, Any]:
    """catalog/<subject>.yml, read once per process."""
    return yaml.safe_load((COLLECTION_ROOT / f"catalog/{subject}.yml").read_text("utf-8"))


def gpus() -> dict[str, Any]:
    return read_catalog("gpus")["gpus"]


def host_packages() -> dict[str, Any]:
    return read_catalog("host_packages")
