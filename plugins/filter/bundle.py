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


def suite_wish(plan: Mapping[str, Any], role: str) -> dict[str, Any]:
    """What a driver_plan or toolkit_plan wants of a bundle: packages, files of apt, where its suite and key belong."""
    wish = {"role": role, "refused": plan["refused"], "packages": [], "files": [], "repositories": {}, "key_files": {}}
    if plan["refused"] or not {"packages", "package"} & set(plan):
        return wish
    wish["packages"] = plan["packages"] if "packages" in plan else [plan["package"]]
    wish["files"] = [{"path": f"/etc/apt/preferences.d/{role}", "content": plan["preferences"]}]
    repository = plan["repository"]
    if repository:
        place = "nvidia/" + "/".join(repository["url"].rstrip("/").split("/")[-2:])
        (key,) = (file["path"] for file in repository["files"] if file.get("signing_key"))
        wish["files"] += repository["files"]
        wish["repositories"] = {repository["url"]: place}
        wish["key_files"] = {f"{place}/{repository['key_file']}": key}
    return wish


def bundle_sets(wishes: Iterable[Mapping[str, Any]], also: Iterable[str] = ()) -> list[dict[str, Any]]:
    """What roles want as the sets of bundle_packages, and `also` as one more, each once."""
    found: list[dict[str, Any]] = []
    for name, packages in [
        *((wish["role"], wish.get("packages")) for wish in wishes),
        ("serving_bundle_packages", [*also]),
    ]:
        if packages and packages not in [each["packages"] for each in found]:
            found.append({"name": name, "packages": packages})
    return found


def bundle_pulls(images: Iterable[Mapping[str, Any]], locks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Images that are needed as engine_images takes them; a lock by id is one of a loaded image, and no digest."""
    return [
        {
            "reference": image["reference"],
            "lock": {key: value for key, value in locks.get(image["reference"], {}).items() if key == "digest"},
        }
        for image in images
    ]


def bundle_downloads(models: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Models that are needed as model_cache takes them."""
    published = load_catalog().models["models"]
    return [
        {
            "name": model["name"],
            "revision": model["revision"],
            "image": model["reference"],
            "size_bytes": published.get(model["name"], {}).get("weights_bytes", 0),
        }
        for model in models
    ]


def bundle_parts(makers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a manifest says besides files, from the variables of the hosts that gathered them."""
    systems, images, models = {}, {}, []
    for maker in makers:
        facts, laid_out = maker["ansible_facts"]["gpu_host"], maker["__serving_bundle_laid_out"]
        gathered = maker["__serving_bundle_gathered"]
        systems[bundle_system(facts)] = {
            "name": facts["os"]["name"],
            "kernels": maker.get("serving_bundle_kernels") or [facts["kernel"]["release"]],
            "packages": gathered["packages"],
            "sources": gathered["sources"],
        }
        if laid_out["images"]:
            images[facts["os"]["deb_architecture"]] = laid_out["images"]
        models += laid_out["models"]
    return {"systems": systems, "images": images, "models": models}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "bundle_needs": bundle_needs,
            "all_bundle_needs": all_bundle_needs,
            "bundle_system": bundle_system,
            "bare_facts": bare_facts,
            "below_root": below_root,
            "suite_wish": suite_wish,
            "bundle_sets": bundle_sets,
            "bundle_pulls": bundle_pulls,
            "bundle_downloads": bundle_downloads,
            "bundle_parts": bundle_parts,
            "bundle_lacks": bundle_fit.lacking,
            "bundle_groups": bundle_fit.groups,
            "bundle_apt_source": bundle_fit.apt_source,
            "bundle_images": bundle_fit.loaded_images,
        }
