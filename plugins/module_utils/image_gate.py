"""Whether a container image may start on a GPU: what was read of it against what GPU, driver and lock ask.

Pure. `image` is what image_code.read_image gives. `wanted`:

    key            the image's key in the catalogue, or its reference
    engine         sglang or vllm
    capabilities   compute capabilities of the GPUs that it is to start on: ["12.0"]
    start_path     the engine's entries of catalog/start_path.yml
    driver         version of the host's driver
    drivers        catalog/drivers.yml
    lock           {digest: sha256:...} or {id: sha256:...}; None: not locked
    architecture   the host's, as Docker calls it: amd64, arm64; None: not known
    images         the entries of catalog/images.yml, to name those that would do
"""

from __future__ import annotations

from typing import Any

from .catalog_view import version_tuple
from .gpu_code import any_runs_on, capability


def judge_image(image: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """One message per reason for which the image may not start; none: it may."""
    return [
        *_not_as_locked(image, wanted),
        *_other_architecture(image, wanted),
        *_without_code(image, wanted),
        *_to_be_compiled(image, wanted),
        *_out_of_reach(image, wanted),
    ]


def _name(image: dict[str, Any], wanted: dict[str, Any]) -> str:
    key, reference = wanted["key"], image["reference"]
    return reference if key == reference else f"{key} ({reference})"


def _not_as_locked(image: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    lock = wanted.get("lock") or {}
    if lock.get("digest") and lock["digest"] not in image["digests"]:
        found = ", ".join(image["digests"]) or "no digest, so it did not come from a registry"
        kind, locked = "digest", lock["digest"]
    elif lock.get("id") and lock["id"] != image["id"]:
        found = image["id"]
        kind, locked = "image id", lock["id"]
    else:
        return []
    return [
        f"{_name(image, wanted)} is not the image that was locked: the lock has {kind} {locked}, and this host has "
        f"{found}; pull, build or load the locked one, or remove its entry in serving_image_locks to lock another"
    ]


def _other_architecture(image: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    host = wanted.get("architecture")
    if not host or image["architecture"] == host:
        return []
    return [f"{_name(image, wanted)} is built for {image['architecture']} processors, and this host has {host}"]


def judged_on(library: dict[str, Any], target: str, architecture: str) -> bool:
    """Whether a library of the start path is used on that capability by images for that processor architecture."""
    return target in library.get("only_on", [target]) and architecture in library.get("only_for", [architecture])


def _used(image: dict[str, Any], wanted: dict[str, Any], target: str) -> list[tuple[dict[str, Any], list[Any]]]:
    """The libraries that a start on that capability uses, each with those of its files that the image has."""
    return [
        (library, [each for each in image["libraries"] if each["name"] == library["name"] and each["path"]])
        for library in wanted["start_path"]
        if judged_on(library, target, image["architecture"])
    ]


def _without_code(image: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    problems = []
    for target in wanted["capabilities"]:
        told = []
        for library, present in _used(image, wanted, target):
            if not present:
                told.append(
                    f"{_name(image, wanted)} has no {library['name']}, which {wanted['engine']} needs on compute "
                    f"capability {target}; none of {', '.join(library['files'])} is in its Python packages"
                )
            told += [
                f"{_name(image, wanted)}: {each['name']} ({each['path']}) has no code for {_sm(target)}; it was built "
                f"for {', '.join(each['codes']) or 'no GPU at all'}, so its kernels would fail with 'no kernel image "
                "is available for execution on the device'"
                for each in present
                if not any_runs_on(each["codes"], capability(target))
            ]
        if told:
            told[-1] += f"; catalogued images that run there: {_fitting(target, wanted)}"
        problems += told
    return problems


def _to_be_compiled(image: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Minor version compatibility is for machine code: a driver that is older than the CUDA compiles no PTX of it."""
    needed, driver = _min_driver(image["cuda"], wanted["drivers"]), wanted.get("driver")
    if not needed or not driver or version_tuple(driver) >= version_tuple(needed) or _out_of_reach(image, wanted):
        return []
    return [
        f"{_name(image, wanted)}: {each['name']} ({each['path']}) has no machine code for {_sm(target)}, only PTX "
        f"({', '.join(each['codes'])}), and PTX of CUDA {image['cuda']} needs driver {needed} or later; {driver} is "
        "loaded, so its kernels would fail with 'the provided PTX was compiled with an unsupported toolchain'"
        for target in wanted["capabilities"]
        for _, present in _used(image, wanted, target)
        for each in present
        if any_runs_on(each["codes"], capability(target))
        and not any_runs_on([code for code in each["codes"] if code.startswith("sm_")], capability(target))
    ]


def _sm(target: str) -> str:
    return f"sm_{target.replace('.', '')}"


def _out_of_reach(image: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    cuda, driver = image["cuda"], wanted.get("driver")
    if cuda is None:
        return [
            f"{_name(image, wanted)} does not tell its CUDA version, neither by torch/version.py nor by "
            "CUDA_VERSION in its environment, so that no driver can be judged"
        ]
    if driver is None:
        return [f"{_name(image, wanted)} needs a driver for CUDA {cuda}, and no driver is loaded on this host"]
    drivers = wanted["drivers"]
    own = _min_driver(cuda, drivers)
    compatible = drivers["minor_version_compatibility"].get(cuda.partition(".")[0], {}).get("min_driver")
    bounds = [bound for bound in (own, compatible) if bound]
    if not bounds:
        known = ", ".join(drivers["cuda_min_driver"])
        return [f"{_name(image, wanted)} has CUDA {cuda}, which is not in catalog/drivers.yml; it knows {known}"]
    lowest = min(bounds, key=version_tuple)
    if version_tuple(driver) >= version_tuple(lowest):
        return []
    return [
        f"{_name(image, wanted)} has CUDA {cuda}, which needs driver {lowest} or later, and {driver} is loaded; "
        f"a newer driver, or an image with an older CUDA: {_older_cuda(driver, wanted)}"
    ]


def _min_driver(cuda: str | None, drivers: dict[str, Any]) -> str | None:
    return drivers["cuda_min_driver"].get(cuda, {}).get("min_driver")


def _usable(wanted: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The engine's catalogued images that can be had, but the judged one."""
    return {
        key: entry
        for key, entry in wanted["images"].items()
        if entry["engine"] == wanted["engine"] and not entry.get("blocked") and key != wanted["key"]
    }


def _codes(entry: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return entry.get("gpu_code_arm64", []) if wanted.get("architecture") == "arm64" else entry["gpu_code"]


def _fitting(target: str, wanted: dict[str, Any]) -> str:
    fitting = [key for key, entry in _usable(wanted).items() if any_runs_on(_codes(entry, wanted), capability(target))]
    return ", ".join(fitting) or "none"


def _older_cuda(driver: str, wanted: dict[str, Any]) -> str:
    able = [
        key
        for key, entry in _usable(wanted).items()
        if version_tuple(driver) >= version_tuple(str(entry["min_driver"]))
        and all(any_runs_on(_codes(entry, wanted), capability(target)) for target in wanted["capabilities"])
    ]
    return ", ".join(able) or "none is catalogued that runs on these GPUs"
