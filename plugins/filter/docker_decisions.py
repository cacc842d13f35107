"""Filter that turns a host's facts into what is to be done with its Docker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import docker_decisions
from ansible_collections.blackwell.serving.plugins.module_utils.host_decisions import Refusal


def docker_plan(facts: dict[str, Any], **wishes: Any) -> dict[str, Any]:
    """The plan of docker_decisions; a refusal is `{refused: why}`, else `refused` is empty."""
    try:
        return docker_decisions.docker_plan(facts, **wishes) | {"refused": ""}
    except Refusal as refusal:
        return {"refused": str(refusal)}


def mirror_address(variables: Mapping[str, Any]) -> str:
    """Where a host of serving_registry_mirrors answers, by its variables."""
    place = variables.get("serving_fleet_address") or variables.get("ansible_host") or variables["inventory_hostname"]
    return f"http://{place}:{variables.get('registry_mirror_port', 5000)}"


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"docker_plan": docker_plan, "mirror_address": mirror_address}
