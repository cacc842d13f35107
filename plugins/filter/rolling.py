"""Filters for plays that go through the hosts batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import rolling


def rolling_states(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """By host how far its turn came; see module_utils/rolling.py."""
    return {host: hostvars[host].get("rolling_state", {}) for host in hosts}


def rolling_hosts(groups: Mapping[str, Sequence[str]], group: str) -> list[str]:
    """The hosts of a group that a play made, in the inventory's order."""
    members = set(groups.get(group, ()))
    return [host for host in groups["all"] if host in members]


def rolling_batches(hostvars: Mapping[str, Any], hosts: Sequence[str], variable: str, otherwise: Any) -> Any:
    """What the first host's variable says of batches: `serial` itself sees no host's variables."""
    return hostvars[hosts[0]].get(variable, otherwise) if hosts and hostvars else otherwise


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "rolling_hosts": rolling_hosts,
            "rolling_batches": rolling_batches,
            "rolling_states": rolling_states,
            "rolling_may_go_on": rolling.may_go_on,
            "rolling_report": rolling.report,
        }
