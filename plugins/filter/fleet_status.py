"""Filters that turn what hosts said of themselves into a status of the fleet."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import fleet_status
from ansible_collections.blackwell.serving.plugins.plugin_utils.status_page import status_page


def host_status_view(
    seen: Mapping[str, Any] | None, host: str, plan: Mapping[str, Any] | None, problem: str = ""
) -> dict[str, Any]:
    return fleet_status.host_view(host, seen, plan, problem)


def fleet_status_of(views: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`views` by host; an empty one is of a host whose tasks failed."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    failed = "what was read of it could not be judged; the play above says why"
    return fleet_status.fleet_view(
        [view or fleet_status.host_view(host, None, None, failed) for host, view in views.items()], now
    )


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "host_status_view": host_status_view,
            "fleet_status": fleet_status_of,
            "fleet_status_text": fleet_status.fleet_text,
            "fleet_status_page": status_page,
        }
