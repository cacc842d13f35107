"""Which models a plan's services need on the host, for the module model_cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .units import GIB


def plan_models(plan: Mapping[str, Any], catalogue: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``models`` of model_cache, in start order; ``catalogue`` is catalog/models.yml's ``models``."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for service in sorted(plan["services"], key=lambda service: service["start_order"]):
        name, revision = service["model"], _revision(service)
        mounted = (volume["source"] for volume in service["volumes"] if volume["target"] == name)
        directory = next(mounted, None)
        model = {"name": name, "directory": directory} if directory else _on_the_hub(service, catalogue)
        found.setdefault((name, revision), model)
    return list(found.values())


def _on_the_hub(service: Mapping[str, Any], catalogue: Mapping[str, Any]) -> dict[str, Any]:
    """Published bytes where they are known, else what the weights take on the GPUs."""
    hosts = len(service["nodes"]["hosts"]) if service.get("nodes") else 1
    loaded = int(service["memory"]["weights"] * len(service["gpus"]) * hosts * GIB)
    return {
        "name": service["model"],
        "revision": _revision(service),
        "image": service["image"],
        "size_bytes": catalogue.get(service["model"], {}).get("weights_bytes", loaded),
    }


def _revision(service: Mapping[str, Any]) -> str:
    """The revision that the engine is started with; both engines call the option so."""
    given = (word.partition("=")[2] for word in service["command"] if word.startswith("--revision="))
    return next(given, "main")
