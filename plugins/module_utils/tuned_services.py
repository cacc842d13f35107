"""What was found by measuring (``serving_tuned``), laid under what the services themselves say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .catalog_view import Catalog
from .engine_flags import EngineFlags
from .plan_error import PlanError, PlanErrors

KEYS = frozenset({"engine", "engine_version", "extra_args", "because"})
FORM = "{<service>: {engine: sglang, engine_version: 0.5.19, extra_args: {attention-backend: triton}}}"


def flags_of(service: Mapping[str, Any], catalog: Catalog) -> EngineFlags:
    """The options of the engine version that a declared service runs. Raises PlanError where it cannot be told."""
    engine = service.get("engine")
    if engine not in catalog.profiles["engines"]:
        raise PlanError("there is no such engine", key="engine", value=engine)
    settings = catalog.engine(engine)
    image = catalog.image(service.get("image") or settings["default_image"], engine)
    return EngineFlags(catalog.engine_flags(image), settings, f"{engine} {image.engine_version}")


def with_tuned(services: Any, tuned: Any, catalog: Catalog) -> tuple[Any, list[str]]:
    """The declared services with the tuned options of each, and warnings about those that do not count.

    A service's own ``extra_args`` win, and options count only for the engine version that they were measured on.
    """
    if not tuned:
        return services, []
    _check(tuned)
    if not isinstance(services, (list, tuple)):
        return services, []
    left, warnings, result = dict(tuned), [], []
    for service in services:
        found = left.pop(service["name"], None) if isinstance(service, Mapping) and "name" in service else None
        if found:
            service, warning = _laid_under(service, found, catalog)
            warnings += warning
        result.append(service)
    warnings += [f"serving_tuned: there is no service {name}" for name in left]
    return result, warnings


def _check(tuned: Any) -> None:
    entries = tuned.values() if isinstance(tuned, Mapping) else [None]
    for entry in entries:
        whole = isinstance(entry, Mapping) and KEYS >= set(entry) >= KEYS - {"because"}
        if not whole or not isinstance(entry["extra_args"], Mapping):
            raise PlanErrors(
                [PlanError(f"{entry!r} is no tuned service", key="serving_tuned", value=tuned, allowed=FORM)]
            )


def _laid_under(
    service: Mapping[str, Any], found: Mapping[str, Any], catalog: Catalog
) -> tuple[Mapping[str, Any], list[str]]:
    name, measured = service["name"], f"{found['engine']} {found['engine_version']}"
    try:
        flags = flags_of(service, catalog)
    except PlanError:
        return service, []  # the planner says it better
    if flags.version != measured:
        return service, [
            f"{name}: serving_tuned was measured on {measured} and does not count for {flags.version}; tune it again"
        ]
    own = service.get("extra_args") or {}
    if not isinstance(own, Mapping):
        return service, []
    decided = {flags.canonical(spelled(flag)) for flag in own}
    kept = {flag: value for flag, value in found["extra_args"].items() if flags.canonical(spelled(flag)) not in decided}
    return {**service, "extra_args": {**kept, **own}}, []


def spelled(flag: str) -> str:
    """The flag as on a command line."""
    return "--" + str(flag).lstrip("-").replace("_", "-")
