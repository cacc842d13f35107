"""Filters for plays that go through the hosts batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import rolling


def rolling_states(hosts: Sequence[str], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """By host how far its turn came; see module_utils/rolling.py."""
    return {host: hostvars[host].get("rolling_state", {}) for host in hosts}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "rolling_states": rolling_states,
            "rolling_may_go_on": rolling.may_go_on,
            "rolling_report": rolling.report,
        }
