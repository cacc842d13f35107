"""Readings of the Docker engine's answers: dictionaries of its API in, facts out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def engine(info: Mapping[str, Any] | None, installed: str, compose: str, packages: Mapping[str, str]) -> dict[str, Any]:
    """The `docker` facts.

    `info` is GET /info (None: no running engine), `installed` what `dockerd --version` prints, `compose` what
    `docker compose version --short` prints, `packages` the installed deb packages.
    """
    info = info or {}
    version = re.search(r"version (\d[\w.+~-]*)", installed)
    compose_version = re.match(r"v?(\d+\.\d[\w.+~-]*)", compose.strip())
    flavour = next((name for name in ("docker-ce", "docker.io") if name in packages), None)
    return {
        "running": bool(info),
        "version": info.get("ServerVersion") or (version[1] if version else None),
        "compose_version": compose_version[1] if compose_version else None,
        "runtimes": sorted(info.get("Runtimes") or {}),
        "default_runtime": info.get("DefaultRuntime"),
        "root_dir": info.get("DockerRootDir"),
        "live_restore": info.get("LiveRestoreEnabled"),
        "cdi_dirs": info.get("CDISpecDirs") or [],
        "cdi_devices": sorted(device.get("ID", "") for device in info.get("DiscoveredDevices") or []),
        "storage_driver": info.get("Driver"),
        "cgroup_driver": info.get("CgroupDriver"),
        "cgroup_version": info.get("CgroupVersion"),
        "flavour": flavour,
    }


def holds_gpu(container: Mapping[str, Any]) -> bool:
    """Whether a container, as GET /containers/<id>/json tells it, was given an NVIDIA GPU."""
    host = container.get("HostConfig") or {}
    if any(_asks_for_gpu(request) for request in host.get("DeviceRequests") or []):
        return True
    if any("/dev/nvidia" in (device.get("PathOnHost") or "") for device in host.get("Devices") or []):
        return True
    if "nvidia" not in (host.get("Runtime") or ""):
        return False
    environment = (container.get("Config") or {}).get("Env") or []
    visible = dict(entry.partition("=")[::2] for entry in environment).get("NVIDIA_VISIBLE_DEVICES", "")
    return visible not in ("", "void", "none")


def _asks_for_gpu(request: Mapping[str, Any]) -> bool:
    if request.get("Driver") == "cdi":
        return any(str(device).startswith("nvidia.com/") for device in request.get("DeviceIDs") or [])
    return request.get("Driver") == "nvidia" or any("gpu" in options for options in request.get("Capabilities") or [])


def container_of(cgroup: str) -> str | None:
    """Id of the Docker container that a process is in, from its /proc/<pid>/cgroup; None where it is in none."""
    found = re.findall(r"docker[-/]([0-9a-f]{64})", cgroup)
    return found[-1] if found else None


def gpu_containers(containers: Sequence[Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Id, name and Compose project of those that hold a GPU."""
    return [
        {
            "id": container.get("Id"),
            "name": (container.get("Name") or "").lstrip("/"),
            "project": ((container.get("Config") or {}).get("Labels") or {}).get("com.docker.compose.project"),
        }
        for container in containers
        if container and holds_gpu(container)
    ]
