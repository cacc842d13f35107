"""What is to be done with a GPU host: which packages, from where, what is in the way, whether it must be rebooted.

Pure functions: facts are those of the module gpu_host_facts, `packages` and `gpus` are catalog/host_packages.yml and
the entries of catalog/gpus.yml.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

Facts = dict[str, Any]
Catalog = dict[str, Any]


class Refusal(ValueError):
    """The host cannot be brought to what is wanted; the message says why and what would help."""


# Systems


def system_key(facts: Facts, packages: Catalog) -> str:
    """Key of the host's system in the catalogue; raises Refusal with the list of those that are supported."""
    system = facts["os"]
    for key, known in packages["systems"].items():
        if (system["id"], system["version_id"]) == (known["id"], known["version"]):
            if system["deb_architecture"] not in packages["architectures"]:
                raise Refusal(
                    f"{system['name']} on {system['machine']} is not supported; supported machines are "
                    f"{', '.join(packages['architectures'])}."
                )
            return key
    supported = ", ".join(known["name"] for known in packages["systems"].values())
    reason = packages["refused_systems"].get(system["id"])
    raise Refusal(
        f"{system['name'] or system['id']} is not supported"
        + (f": {reason}" if reason else "")
        + f". Supported systems are {supported}."
    )


def version_key(version: str) -> tuple[int, ...]:
    """Driver and CUDA versions in their order."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


# GPUs


def unknown_gpus(facts: Facts, gpus: Catalog) -> list[str]:
    """PCI ids (vendor:device) of the host's NVIDIA display controllers that the catalogue does not know."""
    known = {pci_id for gpu in gpus.values() for pci_id in gpu["pci_ids"]}
    return sorted(
        {f"{device['vendor']}:{device['device']}" for device in facts["pci"] if device["device"] not in known}
    )


def first_drivers(facts: Facts, gpus: Catalog) -> dict[str, list[str]]:
    """Product names of the host's GPUs with the first driver of each branch that knows them.

    Where products share a PCI id, the one that needs the newest driver counts. Unknown devices are left out, and those
    that every branch knows.
    """
    needed: dict[str, list[str]] = {}
    for device in facts["pci"]:
        candidates = [gpu for gpu in gpus.values() if device["device"] in gpu["pci_ids"] and gpu.get("first_drivers")]
        if candidates:
            newest = max(candidates, key=lambda gpu: min(map(version_key, gpu["first_drivers"])))
            needed[newest["product"]] = sorted(newest["first_drivers"], key=version_key)
    return needed


def drives(version: str, first: list[str]) -> bool:
    """Whether a driver of this version drives a GPU that these drivers were the first of their branches to know.

    A branch that is not listed knows it if it is newer than all that are.
    """
    same_branch = [known for known in first if version_key(known)[0] == version_key(version)[0]]
    if same_branch:
        return version_key(version) >= min(map(version_key, same_branch))
    return version_key(version)[0] > max(version_key(known)[0] for known in first)


def _check_branch_drives(branch: str, version: str, needed: dict[str, list[str]]) -> str:
    """The oldest driver of the branch that will do, empty if any; raises Refusal if none will."""
    minimum = ""
    for product, first in needed.items():
        in_branch = [known for known in first if known.startswith(f"{branch}.")]
        if (version and not drives(version, first)) or (not in_branch and not drives(f"{branch}.0", first)):
            raise Refusal(
                f"{product} needs driver {' or '.join(first)} or newer; nvidia_driver_branch {branch}"
                f"{f', nvidia_driver_version {version}' if version else ''} does not know it."
            )
        minimum = max([minimum, *in_branch], key=version_key)
    return minimum


# NVIDIA's repositories


def repository(suite: str, facts: Facts, packages: Catalog, settings: dict[str, str]) -> dict[str, Any]:
    """A suite of NVIDIA's as {suite, url, key_file, files}.

    `settings` has `url` (base of the repositories), `key_url` and `key_fingerprint`; empty ones mean NVIDIA's own.
    `files` are for the module managed_files: the signing key, the source, and those that name the same suite with
    another key, absent.
    """
    system_suites = packages["systems"][system_key(facts, packages)]["suites"]
    own = packages["suites"][suite]["key"]
    architecture = packages["architectures"][facts["os"]["deb_architecture"]]
    url = f"{(settings.get('url') or packages['repository_base']).rstrip('/')}/{suite}/{architecture}/"
    key_path = f"/etc/apt/keyrings/nvidia-cuda-{suite}.gpg"
    source = (
        "# Written by blackwell.serving.\n"
        f"Types: deb\nURIs: {url}\nSuites: /\nArchitectures: {facts['os']['deb_architecture']}\n"
        f"Signed-By: {key_path}\n"
    )
    signing_key = {
        "url": settings.get("key_url") or f"{url}{own['file']}",
        "fingerprints": [settings.get("key_fingerprint") or own["fingerprint"]],
    }
    others = [f"/etc/apt/sources.list.d/cuda-{suite}-{architecture}.{suffix}" for suffix in ("list", "sources")]
    return {
        "suite": suite,
        "url": url,
        "key_file": own["file"],
        "files": [
            {"path": key_path, "signing_key": signing_key},
            {"path": _source_path(suite, system_suites), "content": source},
            *({"path": path, "state": "absent"} for path in others),
        ],
    }


def _source_path(suite: str, system_suites: list[str]) -> str:
    """Of equal versions apt takes the source whose file sorts first: the system's own."""
    own = suite == system_suites[0]
    return f"/etc/apt/sources.list.d/nvidia-cuda-{'' if own else 'older-'}{suite}.sources"


def sha1_problem(suite: str, system: str, packages: Catalog, settings: dict[str, str], allowed: bool) -> str:
    """Why this system's apt would not read this suite; empty if it would. `allowed`: SHA-1 is accepted by consent."""
    if allowed or settings.get("key_fingerprint") or not packages["suites"][suite]["key"]["sha1"]:
        return ""
    if not packages["systems"][system]["refuses_sha1"]:
        return ""
    return (
        f"NVIDIA's repository {suite} is signed with a key that is bound with SHA-1, which apt on "
        f"{packages['systems'][system]['name']} does not accept since 2026-02-01"
    )


WAYS_AROUND_SHA1 = (
    "set gpu_host_sha1_keys_allowed: true (apt then accepts SHA-1 from every repository), or use a mirror that signs "
    "itself (gpu_host_cuda_repository_url, _key_url and _key_fingerprint)"
)


# Driver


def driver_plan(
    facts: Facts,
    packages: Catalog,
    gpus: Catalog,
    branch: str = "auto",
    version: str = "",
    source: str = "auto",
    settings: dict[str, str] | None = None,
    sha1_allowed: bool = False,
    default_branch: str = "580",
    newer_branch: str = "595",
) -> dict[str, Any]:
    """Which driver a host gets, and what that takes.

    Returns {system, branch, version_pattern, minimum, source, repository, packages, driver_packages, absent,
    may_remove, in_the_way, preferences, dkms, dkms_modules, notes}. `source` is `nvidia` or `distribution`. Raises
    Refusal.
    """
    settings = settings or {}
    system = system_key(facts, packages)
    known = packages["systems"][system]
    notes = []
    if branch == "auto":
        branch = version.split(".")[0] if version else default_branch
        if not version and not _offers(known, branch, packages):
            notes.append(
                f"Neither {known['name']} nor NVIDIA's repository for it has driver {branch}: taking {newer_branch}."
            )
            branch = newer_branch
    if version and not version.startswith(f"{branch}."):
        raise Refusal(f"nvidia_driver_version {version} is not of nvidia_driver_branch {branch}.")
    minimum = _check_branch_drives(branch, version, first_drivers(facts, gpus))

    suite = None
    chosen = _chosen_source(facts, known, branch, source, packages)
    if chosen == "nvidia":
        suite = _driver_suite(system, branch, packages, settings, sha1_allowed)
        if suite != known["suites"][0]:
            notes.append(
                f"Driver branch {branch} comes from NVIDIA's repository {suite}, which was made for another release."
            )
    naming = _naming(chosen, suite, branch, packages)
    words = {"branch": branch, "release": facts["kernel"]["release"], "flavour": kernel_flavour(facts)}
    pattern = f"{version}-*" if version else f"{branch}.*"
    driver_packages = [name.format(**words) for name in naming["versioned"]]
    build = [name.format(**words) for name in naming["build"]]
    if naming["dkms"] and facts["secure_boot"] == "enabled":
        build += packages["enrolment_packages"]
    held = driver_packages if naming["dkms"] else [*driver_packages, *build]
    in_the_way = packages_in_the_way(facts["packages"], {*driver_packages, *build}, branch, chosen, packages)
    return {
        "system": system,
        "branch": branch,
        "version_pattern": pattern,
        "minimum": minimum,
        "source": chosen,
        "repository": _driver_repository(suite, facts, packages, settings) if suite else None,
        "packages": [{"name": name, "version": pattern} for name in driver_packages] + build,
        "driver_packages": held,
        "absent": [*in_the_way, *packages["family"]["pins"]],
        "in_the_way": in_the_way,
        "may_remove": [
            *packages["family"]["closed_modules"],
            *packages["family"]["drivers"],
            *packages["family"]["libraries"],
        ],
        "preferences": driver_preferences(pattern, chosen, packages),
        "dkms": bool(naming["dkms"]),
        "dkms_modules": [{"name": "nvidia", "package": naming["dkms"].format(**words)}] if naming["dkms"] else [],
        "notes": notes,
    }


def _offers(known: Catalog, branch: str, packages: Catalog) -> bool:
    own = packages["suites"][known["suites"][0]]["branches"]
    return branch in own or branch in packages["distribution_branches"].get(known["distribution"], [])


def _chosen_source(facts: Facts, known: Catalog, branch: str, source: str, packages: Catalog) -> str:
    """Signed modules where Secure Boot asks for them, else NVIDIA's repository, else the distribution's."""
    by_distribution = branch in packages["distribution_branches"].get(known["distribution"], [])
    if source == "distribution":
        if not by_distribution:
            raise Refusal(f"{known['name']} itself has no open driver of branch {branch}.")
        return source
    if source == "auto" and by_distribution:
        if facts["secure_boot"] == "enabled":
            return "distribution"
        if branch not in packages["suites"][known["suites"][0]]["branches"]:
            return "distribution"
    return "nvidia"


def _driver_suite(system: str, branch: str, packages: Catalog, settings: dict[str, str], sha1_allowed: bool) -> str:
    known = packages["systems"][system]
    naming = packages["suites"][known["suites"][0]]["naming"]
    offering = [suite for suite in known["suites"] if branch in packages["suites"][suite]["branches"]]
    offering = [suite for suite in offering if packages["suites"][suite]["naming"] == naming]
    if not offering:
        offered = sorted({each for suite in known["suites"] for each in packages["suites"][suite]["branches"]})
        raise Refusal(
            f"No repository for {known['name']} has driver {branch}; nvidia_driver_branch may be {', '.join(offered)}."
        )
    problems = []
    for suite in offering:
        problem = sha1_problem(suite, system, packages, settings, sha1_allowed)
        if not problem:
            return suite
        problems.append(problem)
    own = packages["suites"][known["suites"][0]]["branches"]
    raise Refusal(
        f"Driver branch {branch} on {known['name']}: {'; '.join(problems)}. Set nvidia_driver_branch to "
        f"{' or '.join(own)}, {WAYS_AROUND_SHA1}."
    )


def _driver_repository(suite: str, facts: Facts, packages: Catalog, settings: dict[str, str]) -> dict[str, Any]:
    """The driver's repository; the system's own goes where it is used neither for the driver nor for a toolkit."""
    chosen = repository(suite, facts, packages, settings)
    suites = packages["systems"][system_key(facts, packages)]["suites"]
    if suite != suites[0] and not packages["suites"][suites[0]]["toolkits"]:
        chosen["files"].append({"path": _source_path(suites[0], suites), "state": "absent"})
    return chosen


def _naming(source: str, suite: str | None, branch: str, packages: Catalog) -> Catalog:
    if source == "distribution" or suite is None:
        return packages["naming"]["ubuntu_archive"]
    naming = packages["suites"][suite]["naming"]
    if naming == "ubuntu" and version_key(branch) < (590,):
        naming = "ubuntu_with_branch"
    return packages["naming"][naming]


def kernel_flavour(facts: Facts) -> str:
    """Name of the meta package series of the running Ubuntu kernel, such as generic, generic-hwe-24.04 or aws."""
    match = re.fullmatch(r"[\d.]+-\d+-(.+)", facts["kernel"]["release"])
    flavour = match[1] if match else "generic"
    hardware_enablement = f"linux-headers-{flavour}-hwe-{facts['os']['version_id']}"
    return hardware_enablement.removeprefix("linux-headers-") if hardware_enablement in facts["packages"] else flavour


def packages_in_the_way(
    installed: dict[str, str], wanted: set[str], branch: str, source: str, packages: Catalog
) -> list[str]:
    """Installed driver packages that would keep the wanted ones from being installed, or the open modules from loading.

    Closed kernel modules always; other drivers if they are of another branch and not upgraded in place.
    """
    family = packages["family"]
    found = []
    for name, version in sorted(installed.items()):
        if name in wanted:
            continue
        closed = _matches(name, family["closed_modules"])
        driver = _matches(name, family["drivers"])
        if closed or (driver and not _of_branch(name, version, branch, source)):
            found.append(name)
    return found


def _of_branch(name: str, version: str, branch: str, source: str) -> bool:
    in_name = re.search(r"-(\d{3})(-|$)", name)
    if in_name:
        return in_name[1] == branch and ("-server" in name) == (source == "distribution")
    return version.startswith(f"{branch}.")


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def driver_preferences(pattern: str, source: str, packages: Catalog) -> str:
    """The apt preferences that keep all driver packages at one version, downgrades included."""
    family = packages["family"]
    names = " ".join([*family["drivers"], *family["libraries"]])
    head = "# Written by blackwell.serving: the driver's packages are one set.\n"
    by_version = f"Package: {names}\nPin: version {pattern}\nPin-Priority: 1001\n"
    if source == "nvidia":
        return head + by_version
    never = f"Package: {names} {' '.join(family['closed_modules'])}\nPin: release l={packages['repository_label']}\n"
    return f"{head}{never}Pin-Priority: -1\n"


def driver_state(facts: Facts, plan: dict[str, Any], changing: bool = False) -> dict[str, Any]:
    """What is left to do until the driver that the plan names is the one that runs.

    Returns {action, problem, reasons}: action is `none`, `load`, `reboot`, `enrol` (Secure Boot waits for a person) or
    `failed`. With `changing`, the packages are still to be installed (check mode), and what will be is foretold.
    """
    loaded, installed = facts["driver"]["loaded"], facts["driver"]["installed"]
    if not changing:
        problem = _module_problem(facts, plan)
        if problem:
            return {"action": "failed", "problem": problem, "reasons": []}
    if plan["dkms"] and facts["secure_boot"] == "enabled" and not facts["mok"]["enrolled"]:
        return {"action": "enrol", "problem": "", "reasons": ["Secure Boot does not know the key of the modules"]}
    reasons = []
    if facts["nouveau_loaded"] or any(device["driver"] == "nouveau" for device in facts["pci"]):
        reasons.append("nouveau is loaded")
    replaced = changing and not packages_fit(facts, plan)
    differs = installed and loaded and (loaded["version"] != installed["version"] or loaded["flavour"] != "open")
    if loaded and (replaced or differs):
        after = f"{plan['branch']}" if replaced else installed["version"]
        reasons.append(f"driver {loaded['version']} ({loaded['flavour']}) is loaded, {after} (open) installed")
    if reasons:
        return {"action": "reboot", "problem": "", "reasons": reasons}
    if not loaded:
        return {"action": "load", "problem": "", "reasons": ["no driver is loaded"]}
    return {"action": "none", "problem": "", "reasons": []}


def changed_under_load(facts: Facts, plan: dict[str, Any]) -> list[str]:
    """Names of the running containers that hold a GPU while the driver's packages have to change."""
    return [] if packages_fit(facts, plan) else [container["name"] for container in facts["gpu_containers"]]


def replaced_in_use(facts: Facts, plan: dict[str, Any]) -> str:
    """The loaded driver that the plan replaces, and by what; empty if it replaces none.

    nvidia-smi and new containers fail from the moment that its packages change until the host is rebooted.
    """
    loaded = facts["driver"]["loaded"]
    if not loaded or packages_fit(facts, plan):
        return ""
    if loaded["flavour"] == "open" and fnmatchcase(f"{loaded['version']}-", plan["version_pattern"]):
        return ""
    wanted = plan["version_pattern"].removesuffix("-*").removesuffix(".*")
    return f"driver {loaded['version']} ({loaded['flavour']}) is loaded, {wanted} (open) is to replace it"


def packages_fit(facts: Facts, plan: dict[str, Any]) -> bool:
    """Whether the driver's packages are installed in the versions that the plan names."""
    return all(
        fnmatchcase(facts["packages"].get(package["name"], ""), package["version"])
        for package in plan["packages"]
        if isinstance(package, dict)
    )


def _module_problem(facts: Facts, plan: dict[str, Any]) -> str:
    """Why the module on disk is not the one that was asked for; empty if it is. apt's word is not taken for it."""
    installed, release = facts["driver"]["installed"], facts["kernel"]["release"]
    if not installed:
        where = (
            "/var/lib/dkms/nvidia/*/build/make.log tells why DKMS built none" if plan["dkms"] else "modinfo finds none"
        )
        return f"the packages are installed, but there is no nvidia module for the running kernel {release}: {where}"
    if installed["flavour"] != "open":
        return f"the module for {release} is the {installed['flavour']} one; Blackwell needs the open one"
    if not fnmatchcase(f"{installed['version']}-", plan["version_pattern"].removesuffix("*") + "*"):
        return f"the module for {release} is {installed['version']}, not {plan['version_pattern'].removesuffix('-*')}"
    if plan["minimum"] and version_key(installed["version"]) < version_key(plan["minimum"]):
        return f"the module for {release} is {installed['version']}; this host's GPU needs {plan['minimum']} or newer"
    return ""


# CUDA toolkit


def toolkit_plan(
    facts: Facts,
    packages: Catalog,
    version: str = "12.9",
    settings: dict[str, str] | None = None,
    sha1_allowed: bool = False,
) -> dict[str, Any]:
    """Where the toolkit comes from: {package, version, path, repository, own_suite, preferences, drivers, notes}.

    `drivers` are patterns of packages that must not come with it. Raises Refusal.
    """
    settings = settings or {}
    system = system_key(facts, packages)
    known = packages["systems"][system]
    offering = [suite for suite in known["suites"] if version in packages["suites"][suite]["toolkits"]]
    if not offering:
        raise Refusal(f"No repository for {known['name']} is known to have CUDA toolkit {version}.")
    problems = []
    for suite in offering:
        problem = sha1_problem(suite, system, packages, settings, sha1_allowed)
        if problem:
            problems.append(problem)
            continue
        own, family = suite == known["suites"][0], packages["family"]
        dashed, major = version.replace(".", "-"), version.split(".")[0]
        names = [name.format(dashed=dashed, major=major) for name in packages["toolkit_packages"]]
        return {
            "package": f"cuda-toolkit-{dashed}",
            "version": version,
            "path": f"/usr/local/cuda-{version}",
            "repository": repository(suite, facts, packages, settings),
            "own_suite": own,
            "preferences": toolkit_preferences(names, major, packages),
            "drivers": [*family["closed_modules"], *family["drivers"], "libcuda1", "libnvidia-compute*"],
            "notes": [] if own else [f"CUDA toolkit {version} comes from {suite}: no nearer repository has it."],
        }
    raise Refusal(
        f"CUDA toolkit {version} on {known['name']}: {'; '.join(problems)}. Set cuda_toolkit_enabled: false ("
        f"containers have their own CUDA), {WAYS_AROUND_SHA1}."
    )


def toolkit_preferences(names: list[str], major: str, packages: Catalog) -> str:
    """Apt preferences: the toolkit's packages are taken from NVIDIA, anything else only if no one else has it."""
    label = packages["repository_label"]
    return (
        "# Written by blackwell.serving: of NVIDIA's repository, the toolkit alone.\n"
        f"Package: cuda-toolkit-config-common cuda-toolkit-{major}-config-common\n"
        f"Pin: version {major}.*\nPin-Priority: 990\n\n"
        f"Package: {' '.join(names)}\nPin: release l={label}\nPin-Priority: 600\n\n"
        f"Package: *\nPin: release l={label}\nPin-Priority: 100\n"
    )


# Serving


def discovered_gpus(facts: Facts, gpus: Catalog, declared: list[Any]) -> list[str]:
    """Keys of the catalogue for the host's GPUs, in the order of their index.

    nvidia-smi's product name, and memory where a product has several sizes, tell which one it is. Without nvidia-smi
    (check mode before the driver is there) the PCI ids do. Raises Refusal for a GPU that the catalogue does not know,
    and where `declared` (items of serving_gpus), if not empty, says otherwise.
    """
    if facts["gpus"]:
        ordered = sorted(facts["gpus"], key=lambda gpu: gpu["index"])
        found = [_named(gpu, gpus) for gpu in ordered]
    else:
        found = [_by_pci_id(device, gpus) for device in facts["pci"]]
    wanted = [item["gpu"] if isinstance(item, dict) else item for item in declared]
    if wanted and wanted != found:
        raise Refusal(
            f"serving_gpus declares {', '.join(wanted)}; there are {', '.join(found)}, in the order of their index."
        )
    return found


def _named(gpu: dict[str, Any], gpus: Catalog) -> str:
    keys = [key for key, known in gpus.items() if known["product"] == gpu["name"]]
    exact = [key for key in keys if gpus[key]["memory_mib"] == gpu["memory_total_mib"]]
    if not keys:
        raise Refusal(f"GPU {gpu['index']}, {gpu['name']}, is not in catalog/gpus.yml.")
    return (exact or keys)[0]


def _by_pci_id(device: dict[str, Any], gpus: Catalog) -> str:
    keys = [key for key, known in gpus.items() if device["device"] in known["pci_ids"]]
    if not keys:
        identity = f"{device['vendor']}:{device['device']}"
        raise Refusal(f"The GPU at {device['address']} ({identity}) is not in catalog/gpus.yml.")
    return keys[0]
