"""Filters for making and using a bundle; the catalogues stay on the control node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.blackwell.serving.plugins.module_utils import bundle_fit, host_decisions
from ansible_collections.blackwell.serving.plugins.module_utils.plan_error import PlanError
from ansible_collections.blackwell.serving.plugins.plugin_utils import host_catalog
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog

NO_DOCKER = {"running": False, "enabled": False, "version": None, "compose_version": None, "flavour": None}


def bundle_needs(services: Any, also: Iterable[str] = ()) -> dict[str, Any]:
    try:
        return bundle_fit.needs(services, load_catalog(), also)
    except (PlanError, ValueError) as error:
        raise AnsibleFilterError(str(error)) from error


def all_bundle_needs(needs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The needs of several hosts as those of one, each thing once."""
    images, models = {}, {}
    for each in needs:
        images |= {image["reference"]: image for image in each["images"]}
        models |= {(model["name"], model["revision"]): model for model in each["models"]}
    return {"images": list(images.values()), "models": list(models.values())}


def bundle_system(facts: Mapping[str, Any]) -> str:
    """Name of the host's system and architecture in a bundle; of an unsupported one, what it calls itself."""
    try:
        key = host_decisions.system_key(dict(facts), host_catalog.host_packages())
    except host_decisions.Refusal:
        key = f"{facts['os']['id']}{facts['os']['version_id']}"
    return bundle_fit.system_name(key, facts)


def bare_facts(facts: Mapping[str, Any], kernel: str, secure_boot: bool, gpus: Iterable[Any] = ()) -> dict[str, Any]:
    """The facts of a bare host of this system, with that kernel and those GPUs (items of serving_gpus)."""
    known = host_catalog.gpus()
    keys = [item["gpu"] if isinstance(item, Mapping) else item for item in gpus]
    devices = [known[key]["pci_ids"][0] for key in keys if key in known]
    return {
        **facts,
        "kernel": {**facts["kernel"], "release": kernel},
        "secure_boot": "enabled" if secure_boot else "disabled",
        "packages": {name: version for name, version in facts["packages"].items() if name.startswith("linux-headers-")},
        "docker": {**facts["docker"], **NO_DOCKER},
        "driver": {"loaded": None, "installed": None},
        "pci": [{"vendor": "10de", "device": device} for device in devices],
        "gpus": [],
        "gpu_containers": [],
        "apt_sources": [],
    }


def below_root(files: Iterable[Mapping[str, Any]], root: str) -> list[dict[str, Any]]:
    """Files of /etc/apt (for managed_files) as files of the same place below another root; others are left out."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        if file["path"].startswith("/etc/apt/"):
            moved = {**file, "path": f"{root}{file['path']}"}
            if moved.get("content"):
                moved["content"] = moved["content"].replace("/etc/apt/keyrings/", f"{root}/etc/apt/keyrings/")
            found[moved["path"]] = moved
    return list(found.values())


def bundled_suite(repository: Mapping[str, Any]) -> dict[str, str]:
    """Where a bundle has one of NVIDIA's suites (a repository of driver_plan or toolkit_plan), by its address."""
    if not repository:
        return {}
    return {repository["url"]: "nvidia/" + "/".join(repository["url"].rstrip("/").split("/")[-2:])}


def bundled_suite_key(repository: Mapping[str, Any]) -> dict[str, str]:
    """Where a bundle has that suite's key, named as NVIDIA names it, and which file of a host it is."""
    return {
        f"{place}/{repository['key_file']}": file["path"]
        for place in bundled_suite(repository).values()
        for file in repository["files"]
        if file.get("signing_key")
    }


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "bundle_needs": bundle_needs,
            "all_bundle_needs": all_bundle_needs,
            "bundle_system": bundle_system,
            "bare_facts": bare_facts,
            "below_root": below_root,
            "bundled_suite": bundled_suite,
            "bundled_suite_key": bundled_suite_key,
            "bundle_lacks": bundle_fit.lacking,
            "bundle_groups": bundle_fit.groups,
            "bundle_apt_source": bundle_fit.apt_source,
            "bundle_images": bundle_fit.loaded_images,
        }
