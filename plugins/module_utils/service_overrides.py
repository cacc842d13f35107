"""``serving_service_overrides`` laid over ``serving_services``: what one host changes of what is declared for many.

Ansible replaces a list or a dictionary of a group by that of a host and merges neither, so a host could only change a
service of its group by declaring all of them again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from .declaration import SERVICE_KEYS
from .plan_error import PlanError, PlanErrors, did_you_mean

# Keys that are merged entry by entry; every other key is replaced.
MERGED_KEYS = ("environment", "extra_args", "pinned")
ABSENT = "absent"
# The variable that is a host's own, or its group's; others are layers, for hosts of which not all have the service.
OWN = "serving_service_overrides"


def with_overrides(declared: Any, layers: Mapping[str, Any], warnings: list[str]) -> Any:
    """The services with each layer laid over them, in this order. Raises PlanErrors with one entry per problem.

    ``layers``: for each variable its dictionary of overrides by the name of a service: keys of the service, or None or
    ``{absent: true}`` where the host does not run it. A ``declared`` that is no list of services is returned as it is.
    """
    if not isinstance(declared, (list, tuple)):
        return declared
    names = {str(item.get("name")) for item in declared if isinstance(item, Mapping)}
    errors = [error for variable, overrides in layers.items() for error in _problems(variable, overrides, names)]
    if errors:
        raise PlanErrors(errors)
    changes: dict[str, Mapping[str, Any]] = {}
    for variable, overrides in layers.items():
        for name, change in overrides.items():
            if name not in names:
                warnings.append(f"{variable} changes '{name}', which is no service of this host")
            changes[name] = _laid_over(changes.get(name, {}), {ABSENT: True} if change is None else change)
    services = []
    for item in declared:
        change = changes.get(str(item.get("name"))) if isinstance(item, Mapping) else None
        if change is None:
            services.append(item)
        elif not change.get(ABSENT):
            services.append(_changed(item, change))
    return services


def _changed(item: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    service = _laid_over(item, {key: value for key, value in change.items() if key != ABSENT})
    for key in MERGED_KEYS:
        if isinstance(service.get(key), Mapping):
            service[key] = {name: value for name, value in service[key].items() if value is not None}
    return service


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {**below, **above}
    for key in MERGED_KEYS:
        if isinstance(below.get(key), Mapping) and isinstance(above.get(key), Mapping):
            both[key] = {**below[key], **above[key]}
    return both


def _problems(variable: str, overrides: Any, names: Collection[str]) -> Iterator[PlanError]:
    if not isinstance(overrides, Mapping):
        yield PlanError(
            f"{overrides!r} is no dictionary",
            key=variable,
            value=overrides,
            allowed="{name of a service: {key: value, ...}}, or {name of a service: {absent: true}}",
        )
        return
    for name, change in overrides.items():
        where = f"{variable}.{name}"
        if name not in names and variable == OWN:
            yield PlanError(
                "no service of this host has that name", key=where, value=name, allowed=did_you_mean(name, names)
            )
        elif change is not None and not isinstance(change, Mapping):
            yield PlanError(
                f"{change!r} is no dictionary", key=where, value=change, allowed="keys of the service, or absent: true"
            )
        else:
            yield from _problems_of_keys(where, change or {})


def _problems_of_keys(where: str, change: Mapping[str, Any]) -> Iterator[PlanError]:
    for key, value in change.items():
        problem, allowed = "", ""
        if key == "name":
            problem, allowed = "a service keeps its name", "other keys"
        elif key == ABSENT:
            if not isinstance(value, bool) or (value and len(change) > 1):
                problem, allowed = f"{value!r} with {len(change) - 1} other keys", "true alone, or false"
        elif key not in SERVICE_KEYS:
            problem, allowed = "there is no such key", did_you_mean(key, {ABSENT, *SERVICE_KEYS} - {"name"}, 30)
        elif key in MERGED_KEYS and not isinstance(value, (Mapping, type(None))):
            problem, allowed = f"{value!r} is no dictionary", "a mapping"
        if problem:
            yield PlanError(problem, key=f"{where}.{key}", value=value, allowed=allowed)
