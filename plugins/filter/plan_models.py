"""Filter that names the models which a plan's services need on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import plan_models as needed
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog


def plan_models(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """``models`` of the module model_cache."""
    return needed.plan_models(plan, load_catalog().models["models"])


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"plan_models": plan_models}
