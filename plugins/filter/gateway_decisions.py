"""Filters of the role gateway."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.blackwell.serving.plugins.module_utils import gateway_decisions


def _refusable(decide: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(decide)
    def filter_(*arguments: Any, **options: Any) -> Any:
        try:
            return decide(*arguments, **options)
        except gateway_decisions.GatewayRefused as refusal:
            raise AnsibleFilterError(f"{refusal}. Nothing was changed.") from refusal

    return filter_


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "gateway_services": _refusable(gateway_decisions.gateway_services),
            "firewall_sources": _refusable(gateway_decisions.firewall_sources),
            "gateway_keys": _refusable(gateway_decisions.gateway_keys),
        }
