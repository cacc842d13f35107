"""From what Ubuntu hosts printed (tests/fixtures/host_facts/README.md) to facts and decisions.

No such host was provisioned. The GPU and the kernel of these hosts are made up.
"""

from fnmatch import fnmatchcase

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import host_decisions
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.gather import gather
from ansible_collections.blackwell.serving.plugins.plugin_utils import host_catalog

RTX_5090 = {"vendor": "0x10de", "device": "0x2b85", "class": "0x030000"}
KERNELS = {"2204": "5.15.0-52-generic", "2404": "6.8.0-51-generic"}
OS_RELEASES = {"2204": "os-release_ubuntu2204.txt", "2404": "h200_580.159.04_ubuntu2404/os-release"}


@pytest.fixture
def ubuntu_facts(fake_host, recording):
    """Facts of a host of that release with the packages of that recording of `dpkg -l`."""

    def facts(release: str, dpkg: str):
        rows = (line.split()[:4] for line in recording(dpkg).splitlines())
        queried = "".join(
            f"{state} \t{name.partition(':')[0]}\t{arch}\t{version}\n".replace("<none>", "")
            for state, name, version, arch in rows
        )
        files = {"/etc/os-release": recording(OS_RELEASES[release])}
        files |= {f"/sys/bus/pci/devices/0000:01:00.0/{name}": f"{value}\n" for name, value in RTX_5090.items()}
        return gather(fake_host(files, commands={"dpkg-query": (0, queried, "")}, kernel_release=KERNELS[release]))

    return facts


def plan_of(facts, **wishes):
    return host_decisions.driver_plan(facts, host_catalog.host_packages(), host_catalog.gpus(), **wishes)


def matched(names, patterns):
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


@pytest.mark.parametrize(
    ("release", "dpkg", "in_the_way"),
    [
        ("2204", "dpkg_ubuntu2204_515.txt", []),
        ("2204", "dpkg_ubuntu2204_525.txt", []),
        (
            "2404",
            "dpkg_ubuntu2404_550_server.txt",
            ["linux-modules-nvidia-550-server-6.8.0-51-generic", "nvidia-compute-utils-550-server"],
        ),
    ],
)
def test_another_branch_gives_way_and_nothing_but_the_driver_does(ubuntu_facts, release, dpkg, in_the_way):
    facts = ubuntu_facts(release, dpkg)
    plan = plan_of(facts)
    assert (plan["system"], plan["branch"], plan["source"]) == (f"ubuntu{release}", "580", "nvidia")
    assert plan["in_the_way"] == in_the_way
    of_the_driver = {name for name in facts["packages"] if not name.startswith("libnvidia-container")}
    assert of_the_driver
    assert matched(facts["packages"], [*plan["absent"], *plan["may_remove"]]) == of_the_driver


def test_with_secure_boot_signed_closed_modules_give_way_to_signed_open_ones(ubuntu_facts):
    facts = ubuntu_facts("2404", "dpkg_ubuntu2404_550_server.txt") | {"secure_boot": "enabled"}
    plan = plan_of(facts)
    assert plan["source"] == "distribution"
    assert "linux-modules-nvidia-550-server-6.8.0-51-generic" in plan["in_the_way"]
    wanted = [package if isinstance(package, str) else package["name"] for package in plan["packages"]]
    assert "linux-modules-nvidia-580-server-open-6.8.0-51-generic" in wanted
    assert not matched(wanted, plan["absent"])


def test_removed_packages_and_those_of_another_architecture_are_told_apart(ubuntu_facts):
    removed = ubuntu_facts("2204", "dpkg_ubuntu2204_525.txt")["packages"]
    assert not [name for name in removed if name.startswith("linux-modules-nvidia-515")]
    both = ubuntu_facts("2204", "dpkg_ubuntu2204_515.txt")["packages"]
    assert both["libnvidia-compute-515"] == both["libnvidia-compute-515:i386"] == "515.48.07-0ubuntu0.22.04.2"
    assert "libnvidia-common" not in both
