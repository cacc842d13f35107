"""The page of a fleet's status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import fleet_status
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import templates


def status_page(fleet: Mapping[str, Any]) -> str:
    """One self-contained page of HTML."""
    helpers = {name: getattr(fleet_status, name) for name in ("duration", "since", "gpu_names", "short_image", "is_up")}
    return templates().get_template("status.html.j2").render(fleet=fleet, **helpers)
