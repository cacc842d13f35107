"""Filters for services that run on several hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import node_groups
from ansible_collections.blackwell.serving.plugins.plugin_utils.named_groups import group_names


def _plan_of(hostvars: Mapping[str, Any], host: str) -> Mapping[str, Any]:
    """Its plan of this run, if it has one; without a run, as for --syntax-check, nobody has."""
    planned = hostvars[host].get("__serving_plan") if host in hostvars else None
    return (planned or {}).get("plan") or {"services": []}


def node_group_problems(host: str, hostvars: Mapping[str, Any], together: Sequence[str], forks: int) -> list[str]:
    """Why what this host shares with others would not come up; see module_utils/node_groups.py."""
    plans = {other: _plan_of(hostvars, other) for other in together}
    facts = {other: hostvars[other]["ansible_facts"].get("gpu_host") or {} for other in together}
    return node_groups.group_problems(host, plans, facts, together, int(forks))


def whole_batches(
    sizes: Sequence[Any], hosts: Sequence[str], hostvars: Mapping[str, Any], inventory: Mapping[str, Sequence[str]]
) -> list[int]:
    """``serial`` for these hosts, in their order, with the hosts of a group always in one batch.

    The groups are those of the plans of this run, or, where nothing was planned, those that the services declare.
    """
    plans = [_plan_of(hostvars, host) for host in hosts]
    shared = (service["nodes"]["hosts"] for plan in plans for service in node_groups.shared_services(plan))
    groups = {tuple(members) for members in shared}
    if not any(plan["services"] for plan in plans):
        declared = (hostvars[host].get("serving_services") for host in hosts if host in hostvars)
        names = {name for services in declared for name in group_names(services, {})}
        groups = {tuple(inventory[name]) for name in names if name in inventory}
    told = list(sizes) if isinstance(sizes, (list, tuple)) else [sizes]
    return node_groups.batch_sizes(told, list(hosts), sorted(groups))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "addresses_of_others": node_groups.addresses_of_others,
            "interface_of": node_groups.interface_of,
            "node_group_problems": node_group_problems,
            "shared_services": node_groups.shared_services,
            "whole_batches": whole_batches,
        }
