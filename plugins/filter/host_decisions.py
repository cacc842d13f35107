"""Filters that turn a host's facts into decisions; the catalogues stay on the control node."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import driver_upgrade as upgrade
from ansible_collections.blackwell.serving.plugins.module_utils import host_decisions
from ansible_collections.blackwell.serving.plugins.plugin_utils import host_catalog


def _refusable(decide: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A refusal becomes `{refused: why}`, for a task that says it in plain words; else `refused` is empty."""

    @functools.wraps(decide)
    def filter_(*arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return decide(*arguments, **options) | {"refused": ""}
        except host_decisions.Refusal as refusal:
            return {"refused": str(refusal)}

    return filter_


def gpu_host_problems(facts: dict[str, Any]) -> dict[str, Any]:
    """Whether the roles can work on this host: {unsupported, unknown_gpus, without_gpu}."""
    try:
        host_decisions.system_key(facts, host_catalog.host_packages())
        unsupported = ""
    except host_decisions.Refusal as refusal:
        unsupported = str(refusal)
    return {
        "unsupported": unsupported,
        "unknown_gpus": host_decisions.unknown_gpus(facts, host_catalog.gpus()),
        "without_gpu": not facts["pci"],
    }


@_refusable
def driver_plan(facts: dict[str, Any], **wishes: Any) -> dict[str, Any]:
    return host_decisions.driver_plan(facts, host_catalog.host_packages(), host_catalog.gpus(), **wishes)


def driver_upgrade(
    facts: dict[str, Any], wanted: dict[str, Any], services: list[dict[str, Any]], projects: list[str]
) -> dict[str, Any]:
    return upgrade.driver_upgrade(facts, wanted, services, projects, host_catalog.read_catalog("drivers"))


@_refusable
def toolkit_plan(facts: dict[str, Any], **wishes: Any) -> dict[str, Any]:
    return host_decisions.toolkit_plan(facts, host_catalog.host_packages(), **wishes)


@_refusable
def discovered_gpus(facts: dict[str, Any], declared: list[Any]) -> dict[str, Any]:
    return {"gpus": host_decisions.discovered_gpus(facts, host_catalog.gpus(), declared)}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "gpu_host_problems": gpu_host_problems,
            "driver_plan": driver_plan,
            "driver_state": host_decisions.driver_state,
            "driver_upgrade": driver_upgrade,
            "changed_under_load": host_decisions.changed_under_load,
            "replaced_in_use": host_decisions.replaced_in_use,
            "toolkit_plan": toolkit_plan,
            "discovered_gpus": discovered_gpus,
        }
