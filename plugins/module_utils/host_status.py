"""What a GPU host is and serves at this moment, read and not changed.

Runs on the host, under its own Python, 3.9 or newer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .host_facts.gather import gather
from .host_facts.host import Host
from .service_verification import services_memory
from .stack_docker import StackDocker
from .stack_releases import Release, Releases
from .stack_steps import ONE_OFF_LABEL, PROJECT_LABEL, SERVICE_LABEL, SPEC_LABEL

OWN_PROJECTS = re.compile(r"blackwell-")
_LONGEST_ANCESTRY = 64


def look(host: Host, docker: StackDocker, releases: Releases) -> dict[str, Any]:
    """Everything that a status tells of this host, in one reading."""
    facts = gather(host, docker_socket=docker.socket)
    inspected = docker.containers()
    containers = [container_view(one) for one in inspected if _ours(one, docker.project)]
    release = releases.current()
    found: dict[str, Any] = {
        "facts": facts,
        "uptime_seconds": float((host.read("/proc/uptime") or "0").split()[0]),
        "containers": containers,
        "gpu_memory": memory_by_container(host, facts, containers),
        "release": None,
        "memory": None,
    }
    if release:
        found["release"] = {
            "name": release.name,
            "status": release.status,
            "plan": release.plan,
            "definition": release.definition,
        }
        found["memory"] = reported_memory(release, containers, facts)
        found["images"] = docker.images(service["image"] for service in release.definition["services"].values())
    return found


def _labels(container: Mapping[str, Any]) -> Mapping[str, str]:
    return (container.get("Config") or {}).get("Labels") or {}


def _ours(container: Mapping[str, Any], project: str) -> bool:
    labels = _labels(container)
    name = labels.get(PROJECT_LABEL, "")
    return labels.get(ONE_OFF_LABEL) != "True" and (name == project or bool(OWN_PROJECTS.match(name)))


def container_view(container: Mapping[str, Any]) -> dict[str, Any]:
    labels, state = _labels(container), container.get("State") or {}
    return {
        "id": container["Id"],
        "project": labels.get(PROJECT_LABEL, ""),
        "service": labels.get(SERVICE_LABEL, ""),
        "name": (container.get("Name") or "").lstrip("/"),
        "spec": labels.get(SPEC_LABEL, ""),
        "image": (container.get("Config") or {}).get("Image") or "",
        "image_id": container.get("Image") or "",
        "status": state.get("Status") or "",
        "health": ((state.get("Health") or {}).get("Status") or "").replace("none", ""),
        "exit_code": state.get("ExitCode") or 0,
        "out_of_memory": bool(state.get("OOMKilled")),
        "restarts": container.get("RestartCount") or 0,
        "started": state.get("StartedAt") or "",
        "pid": state.get("Pid") or 0,
    }


def memory_by_container(
    host: Host, facts: Mapping[str, Any], containers: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, int]]:
    """MiB on each GPU (by index) that processes below a container's first one hold, by container name."""
    first = {container["pid"]: container["name"] for container in containers if container["pid"]}
    indexes = {gpu["uuid"]: str(gpu["index"]) for gpu in facts["gpus"]}
    found: dict[str, dict[str, int]] = {}
    for process in facts["gpu_processes"]:
        name = _owner(host, process["pid"], first)
        if name and process["used_memory_mib"] is not None:
            sizes = found.setdefault(name, {})
            index = indexes.get(process["gpu_uuid"], "")
            sizes[index] = sizes.get(index, 0) + process["used_memory_mib"]
    return found


def _owner(host: Host, pid: int | None, first: Mapping[int, str]) -> str | None:
    for _ in range(_LONGEST_ANCESTRY):
        if not pid or pid in first:
            break
        status = (host.read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
        pid = int(status[1]) if len(status) > 1 else 0
    return first.get(pid or 0)


def reported_memory(
    release: Release, containers: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """What the services that are up report of their memory, beside the plan, and whether a GPU is used beyond it."""
    well = {
        container["service"]
        for container in containers
        if container["status"] == "running" and container["health"] in ("", "healthy")
    }
    services = [service for service in release.plan["services"] if service["name"] in well]
    figures: dict[str, dict[str, Any]] = {service["name"]: {} for service in services}
    finding = services_memory(services, release.plan["gpus"], facts["gpus"], figures)
    return {"status": finding.status, "message": finding.message, "remedy": finding.remedy, "services": figures}
