"""Filters for services that run on several hosts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import node_groups


def _plan_of(hostvars: Mapping[str, Any], host: str) -> Mapping[str, Any]:
    planned = hostvars[host].get("__serving_plan") or {}
    return planned.get("plan") or {"services": []}


def node_group_problems(host: str, hostvars: Mapping[str, Any], together: Sequence[str], forks: int) -> list[str]:
    """Why what this host shares with others would not come up; see module_utils/node_groups.py."""
    plans = {other: _plan_of(hostvars, other) for other in together}
    facts = {other: hostvars[other]["ansible_facts"].get("gpu_host") or {} for other in together}
    return node_groups.group_problems(host, plans, facts, together, int(forks))


def whole_batches(sizes: Sequence[Any], hosts: Sequence[str], hostvars: Mapping[str, Any]) -> list[int]:
    """``serial`` for these hosts, in their order, with the hosts of a group always in one batch."""
    shared = (service for host in hosts for service in node_groups.shared_services(_plan_of(hostvars, host)))
    groups = {tuple(service["nodes"]["hosts"]) for service in shared}
    return node_groups.batch_sizes(
        list(sizes) if isinstance(sizes, (list, tuple)) else [sizes], list(hosts), list(groups)
    )


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "addresses_of_others": node_groups.addresses_of_others,
            "interface_of": node_groups.interface_of,
            "node_group_problems": node_group_problems,
            "shared_services": node_groups.shared_services,
            "whole_batches": whole_batches,
        }
