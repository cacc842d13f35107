"""Decisions about hosts, for facts that are made up after the systems' own names and versions unless said otherwise."""

import copy
import re

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import host_decisions
from ansible_collections.blackwell.serving.plugins.module_utils.host_decisions import Refusal
from ansible_collections.blackwell.serving.plugins.plugin_utils import host_catalog

GPUS = host_catalog.gpus()
PACKAGES = host_catalog.host_packages()
SYSTEMS = {
    "debian12": ("debian", "12", "bookworm", "6.1.0-41-amd64"),
    "debian13": ("debian", "13", "trixie", "6.12.57+deb13-amd64"),
    "ubuntu2204": ("ubuntu", "22.04", "jammy", "5.15.0-161-generic"),
    "ubuntu2404": ("ubuntu", "24.04", "noble", "6.8.0-88-generic"),
    "ubuntu2604": ("ubuntu", "26.04", "resolute", "7.0.0-12-generic"),
}
MIRROR = {"url": "https://mirror.example/cuda", "key_url": "https://mirror.example/key", "key_fingerprint": "A" * 40}
RTX_5090 = {"address": "0000:01:00.0", "vendor": "10de", "device": "2b85", "class": "030000", "driver": None}


def facts_of(system: str, *devices: str, **changes):
    """Facts of a host without any driver; `devices` are PCI ids."""
    identity, version, codename, release = SYSTEMS.get(system, (system, "9.6", "", "5.14.0-570.el9.x86_64"))
    facts = {
        "os": {
            "id": identity,
            "version_id": version,
            "codename": codename,
            "name": f"{identity} {version}",
            "machine": "x86_64",
            "deb_architecture": "amd64",
        },
        "kernel": {"release": release},
        "secure_boot": "disabled",
        "mok": {"key": None, "enrolled": None, "staged": None},
        "pci": [RTX_5090 | {"device": device} for device in devices or ["2b85"]],
        "driver": {"loaded": None, "installed": None},
        "nouveau_loaded": False,
        "gpus": [],
        "gpu_containers": [],
        "packages": {},
    }
    return copy.deepcopy(facts | changes)


def plan_of(system: str, facts=None, **wishes):
    return host_decisions.driver_plan(facts or facts_of(system), PACKAGES, GPUS, **wishes)


def file_in(repository, part: str) -> dict:
    """The file of the repository that is to be written and has this in its path."""
    (found,) = [file for file in repository["files"] if part in file["path"] and file.get("state") != "absent"]
    return found


def names(plan) -> list[str]:
    return [package["name"] if isinstance(package, dict) else package for package in plan["packages"]]


# Systems


@pytest.mark.parametrize("system", SYSTEMS)
def test_supported_systems_are_known_by_what_os_release_says(system):
    assert host_decisions.system_key(facts_of(system), PACKAGES) == system


@pytest.mark.parametrize("system", ["rhel", "rocky", "arch"])
def test_other_systems_are_refused_with_the_list(system):
    with pytest.raises(Refusal) as refused:
        host_decisions.system_key(facts_of(system), PACKAGES)
    for known in ("Debian 12", "Debian 13", "Ubuntu 22.04", "Ubuntu 24.04", "Ubuntu 26.04"):
        assert known in str(refused.value)
    assert ("fingerprint" in str(refused.value)) == (system != "arch")


def test_an_unsupported_machine_is_refused():
    facts = facts_of("debian13")
    facts["os"] |= {"machine": "ppc64le", "deb_architecture": "ppc64el"}
    with pytest.raises(Refusal, match="ppc64le"):
        host_decisions.system_key(facts, PACKAGES)


# Driver: branch and source


@pytest.mark.parametrize(
    ("system", "branch", "source", "suite"),
    [
        ("debian12", "580", "nvidia", "debian12"),
        ("debian13", "595", "nvidia", "debian13"),
        ("ubuntu2204", "580", "nvidia", "ubuntu2204"),
        ("ubuntu2404", "580", "nvidia", "ubuntu2404"),
        ("ubuntu2604", "580", "distribution", None),
    ],
)
def test_what_a_fresh_host_gets(system, branch, source, suite):
    plan = plan_of(system)
    assert (plan["branch"], plan["source"]) == (branch, source)
    assert (plan["repository"] or {}).get("suite") == suite
    assert bool(plan["notes"]) == (branch != "580")


@pytest.mark.parametrize("system", ["ubuntu2204", "ubuntu2404", "ubuntu2604"])
def test_secure_boot_on_ubuntu_takes_the_signed_modules_of_the_running_kernel(system):
    facts = facts_of(system, secure_boot="enabled")
    plan = plan_of(system, facts)
    release = facts["kernel"]["release"]
    assert f"linux-modules-nvidia-580-server-open-{release}" in names(plan)
    assert "linux-modules-nvidia-580-server-open-generic" in names(plan)
    assert not plan["dkms"]
    assert not [name for name in names(plan) if "dkms" in name and "no-dkms" not in name]


def test_an_hwe_kernel_takes_the_hwe_modules():
    release = "6.14.0-33-generic"
    facts = facts_of(
        "ubuntu2404",
        secure_boot="enabled",
        kernel={"release": release},
        packages={"linux-headers-generic-hwe-24.04": "6.14.0-33.33~24.04.1"},
    )
    assert "linux-modules-nvidia-580-server-open-generic-hwe-24.04" in names(plan_of("ubuntu2404", facts))


def test_names_carry_the_branch_on_ubuntu_up_to_580():
    assert "nvidia-dkms-580-open" in names(plan_of("ubuntu2404"))
    newer = names(plan_of("ubuntu2404", branch="595"))
    assert "nvidia-dkms-open" in newer
    assert not [name for name in newer if "595" in name]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("branch", ["580", "595"])
@pytest.mark.parametrize("secure_boot", ["enabled", "disabled"])
def test_never_a_closed_module_or_a_meta_package(system, branch, secure_boot):
    try:
        plan = plan_of(system, facts_of(system, secure_boot=secure_boot), branch=branch)
    except Refusal:
        assert (system, branch) == ("debian13", "580")
        return
    family = PACKAGES["family"]
    for name in names(plan):
        assert not host_decisions._matches(name, family["closed_modules"])
        assert name not in plan["absent"]
    assert {package["version"] for package in plan["packages"] if isinstance(package, dict)} == {f"{branch}.*"}


def test_580_on_debian_13_needs_consent_or_a_mirror():
    with pytest.raises(Refusal, match=r"SHA-1.*gpu_host_sha1_keys_allowed") as refused:
        plan_of("debian13", branch="580")
    assert "595" in str(refused.value)
    by_consent = plan_of("debian13", branch="580", sha1_allowed=True)
    assert by_consent["repository"]["url"].endswith("/debian12/x86_64/")
    (fingerprint,) = file_in(by_consent["repository"], "/keyrings/")["signing_key"]["fingerprints"]
    assert fingerprint.endswith("3BF863CC")
    mirrored = plan_of("debian13", branch="580", settings=MIRROR)["repository"]
    assert mirrored["url"] == "https://mirror.example/cuda/debian12/x86_64/"
    assert file_in(mirrored, "/keyrings/")["signing_key"] == {
        "url": "https://mirror.example/key",
        "fingerprints": ["A" * 40],
    }


def test_arm_hosts_use_their_own_repository():
    facts = facts_of("ubuntu2404")
    facts["os"] |= {"machine": "aarch64", "deb_architecture": "arm64"}
    repository = plan_of("ubuntu2404", facts)["repository"]
    assert repository["url"].endswith("/ubuntu2404/sbsa/")
    assert "Architectures: arm64\n" in file_in(repository, "/sources.list.d/")["content"]


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({"branch": "470"}, "2b85|GeForce RTX 5090"),
        ({"branch": "600"}, "nvidia_driver_branch may be"),
        ({"branch": "595", "version": "580.173.02"}, "not of nvidia_driver_branch"),
        ({"branch": "595", "source": "distribution"}, "has no open driver"),
    ],
)
def test_wishes_that_cannot_be_met(wishes, why):
    with pytest.raises(Refusal, match=why):
        plan_of("debian12", **wishes)


# Driver: GPUs


@pytest.mark.parametrize("branch", ["580", "595"])
def test_every_gpu_of_the_catalogue_gets_a_driver_that_knows_it_or_a_refusal(branch):
    for device in {device for gpu in GPUS.values() for device in gpu["pci_ids"]}:
        facts = facts_of("debian12", device)
        needed = host_decisions.first_drivers(facts, GPUS)
        if all(host_decisions.drives(f"{branch}.999", first) for first in needed.values()):
            minimum = plan_of("debian12", facts, branch=branch)["minimum"]
            assert all(host_decisions.drives(minimum or f"{branch}.0", first) for first in needed.values()), device
        else:
            with pytest.raises(Refusal, match="needs driver"):
                plan_of("debian12", facts, branch=branch)


@pytest.mark.parametrize(
    ("version", "first", "known"),
    [
        ("580.65.06", ["580.82.07"], False),
        ("580.82.07", ["580.82.07"], True),
        ("580.142", ["580.142"], True),
        ("580.95.05", ["580.94.13", "590.48.01"], True),
        ("590.44.01", ["580.94.13", "590.48.01"], False),
        ("595.45.04", ["580.94.13", "590.48.01"], True),
        ("575.64.05", ["570.190", "580.76.05"], False),
        ("570.86.10", ["570.86.16"], False),
    ],
)
def test_first_driver_of_each_branch(version, first, known):
    assert host_decisions.drives(version, first) == known


def test_an_exact_version_that_is_too_old_for_the_gpu_is_refused():
    facts = facts_of("debian12", "2bb9")
    (product,) = host_decisions.first_drivers(facts, GPUS)
    with pytest.raises(Refusal, match=re.escape(product)):
        plan_of("debian12", facts, version="580.65.06")
    assert plan_of("debian12", facts, version="580.82.07")["version_pattern"] == "580.82.07-*"


def test_unknown_devices_are_named_and_keep_no_one():
    facts = facts_of("debian12", "2b85", "ffff")
    assert host_decisions.unknown_gpus(facts, GPUS) == ["10de:ffff"]
    assert plan_of("debian12", facts)["branch"] == "580"


# Driver: what is in the way


def test_debians_own_closed_driver_is_in_the_way_and_its_libraries_are_upgraded():
    facts = facts_of(
        "debian13",
        packages=dict.fromkeys(
            ("nvidia-driver", "nvidia-kernel-dkms", "nvidia-smi", "libcuda1", "libnvidia-ml1"), "550.163.01-2"
        )
        | {"dkms": "3.2.2-1~deb13u1", "libnvidia-container1": "1.19.1-1", "nvidia-container-toolkit": "1.19.1-1"},
    )
    plan = plan_of("debian13", facts)
    assert plan["in_the_way"] == ["nvidia-driver", "nvidia-kernel-dkms", "nvidia-smi"]
    for kept in (
        "libnvidia-container1",
        "nvidia-container-toolkit",
        "nvidia-container-toolkit-base",
        "docker-ce",
        "dkms",
    ):
        assert not host_decisions._matches(kept, [*plan["absent"], *plan["may_remove"]])
    assert host_decisions._matches("libcuda1", plan["may_remove"])


def test_ubuntus_closed_driver_gives_way_to_nvidias_open_one():
    installed = (
        "nvidia-driver-550",
        "nvidia-dkms-550",
        "nvidia-utils-550",
        "libnvidia-compute-550",
        "linux-modules-nvidia-550-generic",
    )
    facts = facts_of("ubuntu2404", packages=dict.fromkeys(installed, "550.163.01-0ubuntu0.24.04.1"))
    plan = plan_of("ubuntu2404", facts)
    assert plan["in_the_way"] == sorted(set(installed) - {"libnvidia-compute-550"})


def test_signed_open_modules_are_not_taken_for_closed_ones():
    facts = facts_of("ubuntu2404", secure_boot="enabled")
    wanted = names(plan_of("ubuntu2404", facts))
    facts["packages"] = dict.fromkeys(wanted, "580.173.02-0ubuntu0.24.04.1")
    facts["packages"]["linux-modules-nvidia-580-server-generic"] = "6.8.0-88.89"
    assert plan_of("ubuntu2404", facts)["in_the_way"] == ["linux-modules-nvidia-580-server-generic"]


@pytest.mark.parametrize("system", ["debian12", "ubuntu2404"])
def test_a_host_that_has_its_driver_has_nothing_in_the_way(system):
    facts = facts_of(system)
    plan = plan_of(system, facts)
    facts["packages"] = {
        package["name"]: "580.173.02-1" for package in plan["packages"] if isinstance(package, dict)
    } | {"libcuda1": "580.173.02-1", "nvidia-kernel-support": "580.173.02-1"}
    assert plan_of(system, facts)["in_the_way"] == []
    assert host_decisions.changed_under_load(facts | {"gpu_containers": [{"name": "qwen"}]}, plan) == []


def test_containers_are_named_when_the_driver_would_change_under_them():
    facts = facts_of("debian12", gpu_containers=[{"name": "qwen"}])
    facts["packages"] = {"nvidia-driver-cuda": "580.173.02-1"}
    assert host_decisions.changed_under_load(facts, plan_of("debian12", branch="595")) == ["qwen"]


@pytest.mark.parametrize(
    ("loaded", "branch", "said"),
    [
        ({"version": "580.173.02", "flavour": "open"}, "595", "driver 580.173.02 (open) is loaded, 595 (open)"),
        ({"version": "580.173.02", "flavour": "closed"}, "580", "driver 580.173.02 (closed) is loaded, 580 (open)"),
        ({"version": "580.173.02", "flavour": "open"}, "580", None),
        (None, "595", None),
    ],
)
def test_a_driver_that_runs_is_named_before_it_is_replaced(loaded, branch, said):
    facts = facts_of("debian12", driver={"loaded": loaded, "installed": loaded})
    facts["packages"] = {"nvidia-kernel-open-dkms": "580.173.02-1"}
    plan = plan_of("debian12", branch=branch)
    assert (
        host_decisions.replaced_in_use(facts, plan).startswith(said)
        if said
        else (host_decisions.replaced_in_use(facts, plan) == "")
    )
    facts["packages"] = {package["name"]: f"{branch}.9-1" for package in plan["packages"] if isinstance(package, dict)}
    assert host_decisions.replaced_in_use(facts, plan) == ""


# Driver: what is left to do

OPEN_580 = {"version": "580.173.02", "flavour": "open"}
OPEN_595 = {"version": "595.91.07", "flavour": "open"}
CLOSED_550 = {"version": "550.163.01", "flavour": "closed"}


@pytest.mark.parametrize(
    ("loaded", "installed", "nouveau", "action"),
    [
        (None, OPEN_580, False, "load"),
        (None, OPEN_580, True, "reboot"),
        (OPEN_580, OPEN_580, False, "none"),
        ({"version": "580.159.03", "flavour": "open"}, OPEN_580, False, "reboot"),
        (CLOSED_550, OPEN_580, False, "reboot"),
        ({"version": "580.173.02", "flavour": "closed"}, OPEN_580, False, "reboot"),
        (OPEN_580, None, False, "failed"),
        (None, CLOSED_550, False, "failed"),
        (None, OPEN_595, False, "failed"),
        (None, {"version": "580.173.02", "flavour": "closed"}, False, "failed"),
    ],
)
def test_the_loaded_module_decides_and_not_apt(loaded, installed, nouveau, action):
    facts = facts_of("debian12", driver={"loaded": loaded, "installed": installed}, nouveau_loaded=nouveau)
    state = host_decisions.driver_state(facts, plan_of("debian12"))
    assert state["action"] == action
    assert bool(state["problem"]) == (action == "failed")


@pytest.mark.parametrize(
    ("enrolled", "dkms_system", "action"),
    [(True, True, "load"), (False, True, "enrol"), (None, True, "enrol"), (False, False, "load")],
)
def test_secure_boot_waits_for_a_person_where_dkms_signs(enrolled, dkms_system, action):
    system = "debian12" if dkms_system else "ubuntu2404"
    facts = facts_of(
        system,
        secure_boot="enabled",
        mok={"key": "/var/lib/dkms/mok.pub", "enrolled": enrolled, "staged": False},
        driver={"loaded": None, "installed": OPEN_580},
    )
    assert host_decisions.driver_state(facts, plan_of(system, facts))["action"] == action


def test_the_tool_to_enrol_a_key_comes_along_only_where_it_is_needed():
    assert "mokutil" in names(plan_of("debian12", facts_of("debian12", secure_boot="enabled")))
    assert "mokutil" not in names(plan_of("debian12"))
    assert "mokutil" not in names(plan_of("ubuntu2404", facts_of("ubuntu2404", secure_boot="enabled")))


def test_nouveau_on_the_gpu_counts_as_loaded():
    facts = facts_of("debian12", driver={"loaded": None, "installed": OPEN_580})
    facts["pci"][0]["driver"] = "nouveau"
    assert host_decisions.driver_state(facts, plan_of("debian12"))["action"] == "reboot"


@pytest.mark.parametrize(
    ("loaded", "nouveau", "action"), [(None, False, "load"), (None, True, "reboot"), (OPEN_580, False, "reboot")]
)
def test_check_mode_foretells_what_the_installation_will_need(loaded, nouveau, action):
    installed = loaded
    facts = facts_of("debian12", driver={"loaded": loaded, "installed": installed}, nouveau_loaded=nouveau)
    plan = plan_of("debian12", branch="595")
    assert host_decisions.driver_state(facts, plan, changing=True)["action"] == action


@pytest.mark.parametrize(("loaded", "action"), [(None, "load"), (OPEN_580, "none"), (CLOSED_550, "reboot")])
def test_check_mode_foretells_no_reboot_for_packages_that_stay(loaded, action):
    """A hold, or a module that DKMS has yet to build."""
    plan = plan_of("debian12")
    for installed in (OPEN_580, None):
        if loaded == CLOSED_550 and installed is None:
            continue
        facts = facts_of("debian12", driver={"loaded": loaded, "installed": installed})
        facts["packages"] = dict.fromkeys(plan["driver_packages"], "580.173.02-1")
        assert host_decisions.driver_state(facts, plan, changing=True)["action"] == action


@pytest.mark.parametrize(
    ("system", "secure_boot", "package"),
    [
        ("debian13", "enabled", "nvidia-kernel-open-dkms"),
        ("ubuntu2404", "disabled", "nvidia-dkms-580-open"),
        ("ubuntu2404", "enabled", None),
    ],
)
def test_the_package_whose_module_dkms_builds_is_one_of_those_installed(system, secure_boot, package):
    plan = plan_of(system, facts_of(system, secure_boot=secure_boot))
    assert [module["package"] for module in plan["dkms_modules"]] == ([package] if package else [])
    assert package is None or package in names(plan)


def test_an_exact_version_must_be_the_one_on_disk():
    plan = plan_of("debian12", version="580.173.02")
    for version, action in (("580.173.02", "load"), ("580.178.04", "failed"), ("580.173.020", "failed")):
        facts = facts_of("debian12", driver={"loaded": None, "installed": OPEN_580 | {"version": version}})
        assert host_decisions.driver_state(facts, plan)["action"] == action, version


# CUDA toolkit


@pytest.mark.parametrize(
    ("system", "suite", "own"),
    [("debian12", "debian12", True), ("ubuntu2204", "ubuntu2204", True), ("ubuntu2404", "ubuntu2404", True)],
)
def test_toolkit_comes_from_the_systems_own_repository(system, suite, own):
    plan = host_decisions.toolkit_plan(facts_of(system), PACKAGES)
    assert (plan["package"], plan["repository"]["suite"], plan["own_suite"]) == ("cuda-toolkit-12-9", suite, own)
    driver = plan_of(system)["repository"]
    assert plan["repository"]["files"] == driver["files"]


@pytest.mark.parametrize(("system", "suite"), [("debian13", "debian12"), ("ubuntu2604", "ubuntu2404")])
def test_toolkit_from_the_nearest_repository_by_consent_alone(system, suite):
    with pytest.raises(Refusal, match=r"SHA-1.*cuda_toolkit_enabled: false"):
        host_decisions.toolkit_plan(facts_of(system), PACKAGES)
    for consent in ({"sha1_allowed": True}, {"settings": MIRROR}):
        plan = host_decisions.toolkit_plan(facts_of(system), PACKAGES, **consent)
        assert (plan["repository"]["suite"], plan["own_suite"]) == (suite, False)
        assert plan["notes"]


def test_driver_and_toolkit_agree_on_the_files_of_a_shared_repository_and_keep_the_others():
    """On Debian 13 the toolkit comes from debian12, and the driver from either."""
    facts = facts_of("debian13")
    toolkit = host_decisions.toolkit_plan(facts, PACKAGES, sha1_allowed=True)["repository"]["files"]
    for branch in ("580", "595"):
        driver = plan_of("debian13", branch=branch, sha1_allowed=True)["repository"]["files"]
        contents: dict[str, set] = {}
        for file in [*driver, *toolkit]:
            contents.setdefault(file["path"], set()).add(file.get("content"))
        assert all(len(different) == 1 for different in contents.values())
        assert len([path for path, (content,) in contents.items() if content]) == (1 if branch == "580" else 2)


def test_of_equal_versions_the_systems_own_repository_comes_first():
    own = file_in(plan_of("debian13")["repository"], "/sources.list.d/")["path"]
    older = file_in(plan_of("debian13", branch="580", sha1_allowed=True)["repository"], "/sources.list.d/")["path"]
    assert sorted([older, own]) == [own, older]


def test_toolkit_that_no_repository_has():
    with pytest.raises(Refusal, match=r"11\.8"):
        host_decisions.toolkit_plan(facts_of("debian12"), PACKAGES, version="11.8")


@pytest.mark.parametrize(
    ("package", "driver"),
    [
        ("cuda-drivers", True),
        ("nvidia-open", True),
        ("nvidia-kernel-open-dkms", True),
        ("libnvidia-compute-575", True),
        ("libcuda1", True),
        ("cuda-nvcc-12-9", False),
        ("libcublas-12-9", False),
        ("libnvjitlink-12-9", False),
        ("cuda-driver-dev-12-9", False),
        ("nsight-compute-2025.2.1", False),
    ],
)
def test_which_packages_must_not_come_with_the_toolkit(package, driver):
    plan = host_decisions.toolkit_plan(facts_of("debian12"), PACKAGES)
    assert host_decisions._matches(package, plan["drivers"]) == driver


# Serving


def gpu(index: int, name: str, memory: int) -> dict:
    return {"index": index, "name": name, "memory_total_mib": memory}


def test_gpus_are_named_as_the_catalogue_does_in_their_order():
    facts = facts_of(
        "debian12", gpus=[gpu(1, "NVIDIA GeForce RTX 5080", 16303), gpu(0, "NVIDIA GeForce RTX 5090", 32607)]
    )
    assert host_decisions.discovered_gpus(facts, GPUS, []) == ["rtx_5090", "rtx_5080"]
    declared = ["rtx_5090", {"gpu": "rtx_5080", "measured_total_gib": 15.4}]
    assert host_decisions.discovered_gpus(facts, GPUS, declared) == ["rtx_5090", "rtx_5080"]
    with pytest.raises(Refusal, match="rtx_5080, rtx_5090"):
        host_decisions.discovered_gpus(facts, GPUS, ["rtx_5080", "rtx_5090"])


def test_without_a_driver_the_pci_ids_tell():
    assert host_decisions.discovered_gpus(facts_of("debian12", "2b85", "2c02"), GPUS, []) == ["rtx_5090", "rtx_5080"]


def test_a_gpu_that_is_not_in_the_catalogue_is_named():
    with pytest.raises(Refusal, match="RTX 9999"):
        host_decisions.discovered_gpus(facts_of("debian12", gpus=[gpu(0, "NVIDIA GeForce RTX 9999", 1)]), GPUS, [])
