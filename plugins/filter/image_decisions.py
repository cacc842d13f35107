"""Filters that decide about container images; the catalogues stay on the control node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils import image_gate
from ansible_collections.blackwell.serving.plugins.plugin_utils import host_catalog

DOCKER_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def start_path(engine: str) -> list[dict[str, Any]]:
    """The libraries that every start of the engine uses, as the module image_gpu_archs takes them."""
    return [
        {"name": each["name"], "files": each["files"]}
        for each in host_catalog.read_catalog("start_path")["start_path"][engine]
    ]


def image_refusals(
    image: dict[str, Any],
    *,
    key: str,
    engine: str,
    capabilities: list[str],
    driver: str | None,
    lock: dict[str, str] | None = None,
    machine: str | None = None,
) -> list[str]:
    """Why an image that image_gpu_archs read may not start on GPUs of these compute capabilities; see image_gate.

    `machine` is the host's, as `uname -m` or Docker calls it.
    """
    return image_gate.judge_image(
        image,
        {
            "key": key,
            "engine": engine,
            "capabilities": sorted({str(each) for each in capabilities}, key=image_gate.capability),
            "start_path": host_catalog.read_catalog("start_path")["start_path"][engine],
            "driver": driver,
            "drivers": host_catalog.read_catalog("drivers"),
            "lock": lock,
            "architecture": DOCKER_ARCHITECTURES.get(machine, machine),
            "images": host_catalog.read_catalog("images")["images"],
        },
    )


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"image_refusals": image_refusals, "engine_start_path": start_path}
