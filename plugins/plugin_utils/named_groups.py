"""The groups of the inventory that services name in their key ``nodes``, with the addresses of their hosts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def named_groups(services: Any, overrides: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Any]:
    """By group a list of {host, address}, in the order of the inventory; a group that is not there is left out."""
    groups, hostvars = variables["groups"], variables["hostvars"]
    return {
        name: [
            {"host": host, "address": str(hostvars[host].get("serving_fleet_address") or "")} for host in groups[name]
        ]
        for name in sorted(set(group_names(services, overrides)))
        if name in groups
    }


def group_names(services: Any, overrides: Mapping[str, Any]) -> Iterator[str]:
    """What services, or overrides of them, say in their key ``nodes``."""
    declared = list(services) if isinstance(services, (list, tuple)) else []
    for layer in overrides.values():
        declared += layer.values() if isinstance(layer, Mapping) else []
    for item in declared:
        if isinstance(item, Mapping) and isinstance(item.get("nodes"), str):
            yield str(item["nodes"])
