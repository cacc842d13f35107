"""Filter that turns a host's facts into what is to be done with its Docker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import docker_decisions
from ansible_collections.blackwell.serving.plugins.module_utils.host_decisions import Refusal


def docker_plan(facts: dict[str, Any], **wishes: Any) -> dict[str, Any]:
    """The plan of docker_decisions; a refusal is `{refused: why}`, else `refused` is empty."""
    try:
        return docker_decisions.docker_plan(facts, **wishes) | {"refused": ""}
    except Refusal as refusal:
        return {"refused": str(refusal)}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"docker_plan": docker_plan}
