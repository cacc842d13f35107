"""Whether a host's driver may be replaced while its services are stopped for it. Pure functions.

`facts` are those of gpu_host_facts, `wanted` is what host_decisions.driver_plan gave, `services` are those of the
deployed plan, `drivers` is catalog/drivers.yml.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .catalog_view import version_tuple
from .host_decisions import driver_state, packages_fit


def driver_upgrade(
    facts: Mapping[str, Any],
    wanted: Mapping[str, Any],
    services: Sequence[Mapping[str, Any]],
    projects: Sequence[str],
    drivers: Mapping[str, Any],
) -> dict[str, Any]:
    """{needed, loaded, wanted, refusals}: whether anything is to be done, from which driver to which, and what is
    against it.
    """
    loaded = facts["driver"]["loaded"] or {}
    version = wanted["version_pattern"].removesuffix("-*")
    needed = not packages_fit(facts, wanted) or driver_state(facts, wanted)["action"] != "none"
    refusals = []
    if needed:
        refusals += [f"a GPU is held by {holder}: end that first" for holder in foreign_holders(facts, projects)]
        refusals += out_of_reach(services, version, drivers)
    return {
        "needed": needed,
        "loaded": " ".join(filter(None, (loaded.get("version"), loaded.get("flavour")))) or "none",
        "wanted": version,
        "refusals": refusals,
    }


def foreign_holders(facts: Mapping[str, Any], projects: Sequence[str]) -> list[str]:
    """Containers that hold a GPU and are of none of the Compose projects, and processes that are in no container."""
    containers = facts["gpu_containers"]
    known = {container["id"] for container in containers}
    found = [f"container {container['name']}" for container in containers if container["project"] not in projects]
    found += [
        f"process {process['pid']} ({process['name']})"
        for process in facts["gpu_processes"]
        if process["container"] not in known
    ]
    return found


def out_of_reach(services: Sequence[Mapping[str, Any]], version: str, drivers: Mapping[str, Any]) -> list[str]:
    """Images whose CUDA a driver cannot run. `version` is exact, or a branch as in 595.*, of which the newest comes."""
    refusals = []
    for cuda, names in _by_cuda(services).items():
        bounds = [
            known["min_driver"]
            for known in (
                drivers["cuda_min_driver"].get(cuda),
                drivers["minor_version_compatibility"].get(cuda.partition(".")[0]),
            )
            if known
        ]
        lowest = min(bounds, key=version_tuple, default=None)
        if lowest is None:
            refusals.append(f"{names}: CUDA {cuda} is not in catalog/drivers.yml")
        elif not _reaches(version, lowest):
            refusals.append(f"{names}: CUDA {cuda} needs driver {lowest} or later, and {version} is to be installed")
    return refusals


def _by_cuda(services: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for service in services:
        if service["image_cuda"]:
            found.setdefault(service["image_cuda"], []).append(f"{service['name']} ({service['image']})")
    return {cuda: ", ".join(names) for cuda, names in found.items()}


def _reaches(version: str, lowest: str) -> bool:
    if version.endswith(".*"):
        return int(version.partition(".")[0]) >= int(lowest.partition(".")[0])
    return version_tuple(version) >= version_tuple(lowest)
