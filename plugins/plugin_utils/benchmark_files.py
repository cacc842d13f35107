"""The files of benchmarks on the control node: records under results/, and what report.html shows of the last ones."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import COLLECTION_ROOT
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import replace_file

RECORD = re.compile(r"\d{8}T\d{6}Z\.json")


@functools.lru_cache(maxsize=1)
def generators() -> list[dict[str, Any]]:
    text = (COLLECTION_ROOT / "catalog/load_generators.yml").read_text("utf-8")
    return yaml.safe_load(text)["generators"]


@functools.cache
def generator_flags(engine: str, version: str) -> dict[str, Any] | None:
    """The recorded options of the generator of that version; None where they are not recorded."""
    path = COLLECTION_ROOT / f"catalog/generator_flags/{engine}-{version}.yml"
    return yaml.safe_load(path.read_text("utf-8")) if path.exists() else None


@functools.lru_cache(maxsize=1)
def tuning() -> dict[str, Any]:
    return yaml.safe_load((COLLECTION_ROOT / "catalog/tuning.yml").read_text("utf-8"))


def record_name(date: str, suffix: str = "") -> str:
    """2026-11-25T01:02:03Z as 20261125T010203Z.json: names sort as their times do."""
    return f"{re.sub('[-:]', '', date)}{suffix}.json"


def last_record(directory: Path) -> dict[str, Any] | None:
    """The newest whole record of a host; None where there is none."""
    names = sorted(path.name for path in directory.glob("*.json") if RECORD.fullmatch(path.name))
    for name in reversed(names):
        try:
            found = json.loads((directory / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and found.get("schema") == 1:
            return found
    return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
