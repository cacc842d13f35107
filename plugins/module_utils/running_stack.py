"""The stack that runs on this host: what was planned for it, and the state of its containers.

Runs on the host, under its own Python, 3.9 or newer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from .host_facts.host import Host


class ContainerState(NamedTuple):
    """What Docker says of a container; `health` is empty where it has no health check or does not run."""

    name: str
    status: str
    health: str
    exit_code: int
    restarts: int
    out_of_memory: bool
    error: str
    started: str

    @property
    def well(self) -> bool:
        return self.status == "running" and self.health in ("", "healthy")

    def __str__(self) -> str:
        """As in a sentence: is running and healthy; has exited with status 1 after 3 restarts."""
        if self.status == "running":
            text = "is running" + {"": "", "healthy": " and healthy"}.get(self.health, f" and {self.health}")
        elif self.status in ("exited", "dead", "restarting"):
            text = f"has {'exited' if self.status != 'restarting' else 'ended'} with status {self.exit_code}"
        elif self.status == "missing":
            text = "does not exist"
        else:
            text = f"is {self.status}"
        if self.out_of_memory:
            text += ", out of the host's memory"
        return text + (f", {self.restarts} restart{'s' if self.restarts != 1 else ''}" if self.restarts else "")


def plan_path(stack_dir: str) -> str:
    return f"{stack_dir.rstrip('/')}/current/plan.json"


def read_plan(host: Host, stack_dir: str) -> dict[str, Any] | None:
    """The plan that is deployed; None where there is none, or none that can be read."""
    try:
        plan = json.loads(host.read(plan_path(stack_dir)) or "")
    except ValueError:
        return None
    return plan if isinstance(plan, dict) and isinstance(plan.get("services"), list) else None


def container_states(host: Host, docker_socket: str, names: Sequence[str]) -> list[ContainerState]:
    """The states of these containers, in their order."""
    answers = host.docker_api(docker_socket, [f"/containers/{name}/json" for name in names])
    return [_state(name, answer) for name, answer in zip(names, answers)]


def _state(name: str, answer: Any) -> ContainerState:
    container: Mapping[str, Any] = answer if isinstance(answer, dict) else {}
    state = container.get("State") or {}
    return ContainerState(
        name=name,
        status=state.get("Status") or "missing",
        health=(state.get("Health") or {}).get("Status", "").replace("none", ""),
        exit_code=state.get("ExitCode") or 0,
        restarts=container.get("RestartCount") or 0,
        out_of_memory=bool(state.get("OOMKilled")),
        error=state.get("Error") or "",
        started=state.get("StartedAt") or "",
    )
