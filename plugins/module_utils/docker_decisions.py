"""What is to be done with a host's Docker: adopt it, install it, or refuse. Pure; `facts` are gpu_host_facts' own."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

from ansible_collections.blackwell.serving.plugins.module_utils.host_decisions import Refusal

Facts = dict[str, Any]

PACKAGES = {
    # docs.docker.com/engine/install/debian and /ubuntu
    "docker": ["docker-ce", "docker-ce-cli", "containerd.io", "docker-buildx-plugin", "docker-compose-plugin"],
    # packages.debian.org/trixie: docker.io 26.1.5, docker-compose 2.26.1, docker-buildx 0.13.1
    "distribution": ["docker.io", "docker-cli", "docker-compose", "docker-buildx"],
}
# The file that names Docker's repository, which nobody but the role docker_engine writes.
SOURCES_FILE = "blackwell-docker.sources"
FLAVOURS = {"docker-ce": "docker", "docker.io": "distribution"}
# CDI specifications of version 0.7, which the container toolkit writes since 1.19.1, need Engine 26.1
# (NVIDIA/nvidia-container-toolkit, release notes); Compose 2.26 is what Debian 13 has beside it.
MINIMUM = {"Engine": "26.1", "Compose": "2.26"}
# Distributions that are known to have both; Debian 12 has docker.io 20.10 and no Compose 2.
DISTRIBUTION_SUFFICES = {("debian", "13")}


def version_key(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.match(r"[\d.]*", version)[0].split(".") if number)


def docker_plan(facts: Facts, source: str, version: str, restart_allowed: bool) -> dict[str, Any]:
    """What the host's Docker comes from and which packages it needs.

    `source` is auto, docker or distribution; `version` a pattern for docker-ce and its client, or empty. The plan has
    `source`, `adopted` (nothing is installed), `repository` (whether Docker's is set up), `packages` (for
    apt_package_set), `held` (names to hold) and `note`. Raises Refusal where the host has to be changed by hand first.
    """
    docker, installed = facts["docker"], facts["packages"]
    system = (facts["os"]["id"], facts["os"]["version_id"])
    flavour = FLAVOURS.get(docker["flavour"] or "")
    origin = flavour or _origin(source, system)
    if version and origin != "docker":
        raise Refusal(f"docker_engine_version is for Docker's own packages, and Docker comes from {_name(origin)} here")
    too_old = _too_old(docker)
    pin_differs = bool(version) and not fnmatchcase(installed.get("docker-ce", ""), version)
    if docker["version"] and "Engine" in too_old and not pin_differs:
        raise Refusal(f"Docker {docker['version']} is older than {MINIMUM['Engine']}. {_way_out(flavour)}")
    if docker["version"] and facts["gpu_containers"] and pin_differs and not restart_allowed:
        names = ", ".join(container["name"] for container in facts["gpu_containers"])
        raise Refusal(
            f"Docker's packages have to change, which restarts Docker, while these containers hold a GPU: {names}. "
            "Stop them first, or set docker_engine_restart_allowed: true"
        )
    if docker["version"] and not flavour:
        return _plan("unknown", packages=["python3-venv"], note=_foreign_note(docker, too_old))
    names = PACKAGES[origin]
    if docker["version"] and not too_old:
        names = [name for name in names if name in installed]
    ours = SOURCES_FILE in facts["apt_sources"]
    pinned = {"docker-ce", "docker-ce-cli"} if version else set()
    return _plan(
        origin,
        adopted=bool(docker["version"]) and not too_old and not pin_differs,
        repository=origin == "docker" and (not docker["version"] or bool(version) or source == "docker" or ours),
        packages=[{"name": name, "version": version} if name in pinned else name for name in (*names, "python3-venv")],
        held=names,
    )


def _plan(source: str, **rest: Any) -> dict[str, Any]:
    return {"source": source, "adopted": True, "repository": False, "held": [], "note": ""} | rest


def _origin(source: str, system: tuple[str, str]) -> str:
    if source == "auto":
        return "distribution" if system in DISTRIBUTION_SUFFICES else "docker"
    if source == "distribution" and system not in DISTRIBUTION_SUFFICES:
        raise Refusal(
            f"{system[0]} {system[1]} is not known to have Engine {MINIMUM['Engine']} and Compose "
            f"{MINIMUM['Compose']}; set docker_engine_source: docker"
        )
    return source


def _too_old(docker: dict[str, Any]) -> list[str]:
    """Which of Engine and Compose are older than they may be, or missing."""
    have = {"Engine": docker["version"] or "", "Compose": docker["compose_version"] or ""}
    return [part for part, minimum in MINIMUM.items() if version_key(have[part]) < version_key(minimum)]


def _way_out(flavour: str | None) -> str:
    if flavour == "docker":
        return "Set docker_engine_version to have it upgraded, for example to 5:29.*"
    return (
        "Remove it yourself, without purging it (that would delete its images and volumes), for example with "
        "apt-get remove docker.io, and run this again"
    )


def _foreign_note(docker: dict[str, Any], too_old: list[str]) -> str:
    note = f"Docker {docker['version']} is installed, but not from a package; it is used as it is"
    if too_old:
        raise Refusal(f"{note}, and it lacks Compose {MINIMUM['Compose']} or newer")
    return f"{note}."


def _name(origin: str) -> str:
    return "the distribution" if origin == "distribution" else "Docker's repository"
