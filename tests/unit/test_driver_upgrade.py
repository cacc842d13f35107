"""Which drivers may not replace the one that runs."""

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.driver_upgrade import (
    driver_upgrade,
    foreign_holders,
    out_of_reach,
)
from ansible_collections.blackwell.serving.plugins.plugin_utils.host_catalog import read_catalog

OURS, OTHERS = "a" * 64, "b" * 64
PROJECTS = ["serving", "exporters"]


def facts(containers=(), processes=(), installed="580.178.04-1", loaded="580.178.04"):
    """Facts of a made-up host with one driver package."""
    return {
        "driver": {
            "loaded": {"version": loaded, "flavour": "open"} if loaded else None,
            "installed": {"version": installed.split("-")[0], "flavour": "open"},
        },
        "packages": {"nvidia-driver-cuda": installed},
        "gpu_containers": [{"id": id_, "name": name, "project": project} for id_, name, project in containers],
        "gpu_processes": [{"pid": pid, "name": "python3", "container": container} for pid, container in processes],
        "kernel": {"release": "6.12"},
        "secure_boot": "disabled",
        "mok": {},
        "nouveau_loaded": False,
        "pci": [],
    }


def wanted(pattern):
    return {
        "version_pattern": pattern,
        "packages": [{"name": "nvidia-driver-cuda", "version": pattern}],
        "branch": pattern.split(".")[0],
        "dkms": True,
        "minimum": None,
    }


def service(cuda, name="qwen"):
    return {"name": name, "image": f"engine:{cuda}", "image_cuda": cuda}


def refused(services, pattern, host=None):
    return driver_upgrade(host or facts(), wanted(pattern), services, PROJECTS, read_catalog("drivers"))


def test_a_host_that_has_the_driver_needs_nothing_and_is_refused_nothing():
    decided = refused([service("13.0")], "580.*", facts([(OTHERS, "holder", None)]))
    assert not decided["needed"]
    assert decided["refusals"] == []


def test_a_driver_that_is_installed_and_not_loaded_is_still_to_come():
    assert refused([], "595.*", facts(installed="595.91.07-1"))["needed"]


def test_containers_of_others_and_processes_outside_of_containers_hold_a_gpu():
    containers = [(OURS, "qwen", "serving"), (OTHERS, "holder", "others"), ("e" * 64, "gpu-exporter", "exporters")]
    host = facts(containers, [(11, OURS), (12, OTHERS), (13, None), (14, "c" * 64)])
    assert foreign_holders(host, PROJECTS) == ["container holder", "process 13 (python3)", "process 14 (python3)"]
    refusals = refused([], "595.*", host)["refusals"]
    assert len(refusals) == 3
    assert all("end that first" in refusal for refusal in refusals)


@pytest.mark.parametrize(
    ("cuda", "version", "refused"),
    [
        ("12.9", "595.*", False),
        ("12.9", "570.*", False),  # below 575, but minor version compatibility reaches from 525
        ("13.0", "570.*", True),
        ("13.0", "580.*", False),
        ("13.0", "580.65.05", True),  # one below the first driver for CUDA 13
        ("13.0", "580.65.06", False),
        ("13.2", "580.*", False),  # minor version compatibility of CUDA 13
        ("99.1", "595.*", True),
    ],
)
def test_a_driver_that_cannot_run_the_cuda_of_an_image_is_refused(cuda, version, refused):
    found = out_of_reach([service(cuda), service(cuda, "yi")], version, read_catalog("drivers"))
    assert bool(found) is refused
    if refused:
        (message,) = found
        assert "qwen (engine:" in message
        assert "yi" in message
        assert cuda in message
