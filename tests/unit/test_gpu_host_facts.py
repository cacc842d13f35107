"""gpu_host_facts on recorded hosts (tests/fixtures/host_facts/README.md) and on hosts that a test makes up."""

import json
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts import docker, nvidia, system
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.docker import container_of
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.gather import (
    SECURE_BOOT_VARIABLE,
    SHIM_VARIABLE,
    gather,
)

REPO_ROOT = Path(__file__).resolve().parents[2]
OPEN_580 = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)  Tue\n"
ON, OFF = b"\x06\0\0\0\1", b"\x06\0\0\0\0"


def modinfo(version, licence="Dual MIT/GPL"):
    return {
        "modinfo nvidia": (
            0,
            f"filename:       /lib/modules/x/nvidia.ko\nversion:        {version}\nlicense:        {licence}\n",
            "",
        )
    }


def pci_device(address, **ids):
    values = {"vendor": "0x10de", "class": "0x030000", "subsystem_vendor": "0x1043", "subsystem_device": "0x8a5c"} | ids
    return {f"/sys/bus/pci/devices/{address}/{name}": f"{value}\n" for name, value in values.items()}


def test_recorded_h200(h200_host):
    facts = gather(h200_host)
    assert facts["os"] == {
        "id": "ubuntu",
        "id_like": ["debian"],
        "version_id": "24.04",
        "codename": "noble",
        "name": "Ubuntu 24.04.3 LTS",
        "machine": "x86_64",
        "deb_architecture": "amd64",
    }
    assert facts["driver"] == {"loaded": {"version": "580.159.04", "flavour": "open"}, "installed": None}
    assert facts["pci"] == [
        {
            "address": "0000:00:06.0",
            "vendor": "10de",
            "device": "2335",
            "subsystem": "10de:18bf",
            "class": "030200",
            "driver": "nvidia",
        }
    ]
    (gpu,) = facts["gpus"]
    assert gpu["pci_bus_id"] == facts["pci"][0]["address"]
    assert gpu["name"] == "NVIDIA H200"
    assert gpu["compute_capability"] == "9.0"
    assert (gpu["memory_total_mib"], gpu["memory_reserved_mib"], gpu["memory_used_mib"]) == (143771, 616, 0)
    assert gpu["power_limit_watt"] == 700.0
    assert gpu["mig_mode"] == "Disabled"
    assert facts["gpu_processes"] == [
        {"gpu_uuid": gpu["uuid"], "pid": 550, "name": "python3", "used_memory_mib": 1634, "container": None}
    ]
    assert facts["nvidia_smi_error"] is None
    assert facts["cuda"] == [
        {"version": "13.0", "path": "/usr/local/cuda-13.0", "nvcc": "/usr/local/cuda-13.0/bin/nvcc", "default": True}
    ]
    assert facts["packages"]["cuda-nvcc-13-0"] == "13.0.88-1"
    assert "cuda-thrust-13-0" not in facts["packages"], "dpkg knows its name, but it is not installed"
    assert facts["docker"]["running"] is False
    assert facts["docker"]["version"] is None
    assert facts["reboot_required"] is False


def test_bare_host_has_every_fact(fake_host, h200_host):
    """Nothing but a kernel: the same facts as elsewhere, empty."""
    facts = gather(fake_host())
    assert facts.keys() == gather(h200_host).keys()
    assert facts["os"].keys() == gather(h200_host)["os"].keys()
    for name in ("pci", "gpus", "gpu_processes", "gpu_containers", "cuda", "held", "reboot_reasons"):
        assert facts[name] == []
    assert facts["driver"] == {"loaded": None, "installed": None}
    assert facts["secure_boot"] == "unsupported"
    assert facts["virtualisation"] is None
    json.dumps(facts)


def test_gpu_without_driver_is_known_from_the_bus_alone(fake_host):
    files = (
        pci_device("0000:01:00.0", device="0x2b85")
        | pci_device("0000:01:00.1", device="0x22e8", **{"class": "0x040300"})
        | pci_device("0000:02:00.0", vendor="0x1002", device="0x744c")
        | {"/sys/module/nouveau/refcnt": "1\n"}
    )
    links = {"/sys/bus/pci/devices/0000:01:00.0/driver": "/sys/bus/pci/drivers/nouveau"}
    host = fake_host(files, links)
    facts = gather(host)
    assert [(gpu["address"], gpu["device"], gpu["driver"]) for gpu in facts["pci"]] == [
        ("0000:01:00.0", "2b85", "nouveau")
    ]
    assert facts["nouveau_loaded"] is True
    assert not any(line.startswith("nvidia-smi") for line in host.asked), "nvidia-smi would load the driver"


@pytest.mark.parametrize(
    ("installed", "reason"),
    [
        (("580.95.05", "Dual MIT/GPL"), None),
        (("595.91.07", "Dual MIT/GPL"), "580.95.05 (open) is loaded, 595.91.07 (open) is installed"),
        (("580.95.05", "NVIDIA"), "580.95.05 (open) is loaded, 580.95.05 (closed) is installed"),
    ],
)
def test_reboot_is_required_when_another_driver_is_installed_than_loaded(fake_host, installed, reason):
    facts = gather(fake_host({"/proc/driver/nvidia/version": OPEN_580}, commands=modinfo(*installed)))
    assert facts["reboot_required"] is (reason is not None)
    assert [reason in text for text in facts["reboot_reasons"]] == ([] if reason is None else [True])


def test_reboot_that_packages_ask_for(fake_host):
    files = {"/run/reboot-required": "", "/run/reboot-required.pkgs": "linux-image-6.12.57+deb13-amd64\nlibc6\nlibc6\n"}
    facts = gather(fake_host(files))
    assert facts["reboot_reasons"] == ["packages ask for it: libc6, linux-image-6.12.57+deb13-amd64"]


def test_nvidia_smi_that_fails_is_told_and_no_gpu_invented(fake_host):
    mismatch = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.105"
    facts = gather(fake_host({"/proc/driver/nvidia/version": OPEN_580}, commands={"nvidia-smi": (18, mismatch, "")}))
    assert facts["gpus"] == []
    assert facts["nvidia_smi_error"] == mismatch


def test_driver_that_lacks_a_field_is_asked_for_less(fake_host, recording):
    short = f"nvidia-smi --query-gpu={','.join(nvidia.GPU_FIELDS_OF_OLD_DRIVERS)} "
    commands = {
        "nvidia-smi --query-gpu": (2, recording("h200_580.159.04_ubuntu2404/unknown_field.txt"), ""),
        short: (0, "0, GPU-1, NVIDIA T4, 00000000:01:00.0, 450.80.02, 15109, 0, 15109, Disabled\n", ""),
    }
    facts = gather(fake_host({"/proc/driver/nvidia/version": OPEN_580}, commands=commands))
    (gpu,) = facts["gpus"]
    assert gpu["memory_total_mib"] == 15109
    assert gpu["compute_capability"] is None


def test_loaded_driver_flavours():
    # the closed form: download.nvidia.com/XFree86/Linux-x86_64/515.43.04/README/kernel_open.html
    closed = (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  515.76  Mon Sep 12 19:21:56 UTC 2022\nGCC version:  gcc 7\n"
    )
    arm = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.65.06  Release Build  (x@y)\n"
    assert nvidia.loaded_driver(closed) == {"version": "515.76", "flavour": "closed"}
    assert nvidia.loaded_driver(arm) == {"version": "580.65.06", "flavour": "open"}
    assert nvidia.loaded_driver("") is None


def test_installed_driver_flavours(recording):
    assert nvidia.installed_driver(recording("modinfo_open.txt")) == {
        "version": "590.44.01",
        "flavour": "open",
        "path": "/lib/modules/6.8.0-90-generic/updates/dkms/nvidia.ko",
        "signer": None,
    }
    closed = nvidia.installed_driver(recording("modinfo_closed.txt"))
    assert (closed["version"], closed["flavour"]) == ("430.40", "closed")
    assert nvidia.installed_driver("modinfo: ERROR: Module nvidia not found.\n") is None


def test_values_that_nvidia_smi_does_not_have():
    row = ["1", "GPU-2", "NVIDIA GB10", "0000000F:01:00.0", "0x2E1210DE", "[N/A]", "580.95.05", "12.1", "[N/A]"]
    row += ["[N/A]", "[Not Supported]", "[Unknown Error]", "Enabled", "[N/A]", "[N/A]", "[N/A]"]
    (gpu,) = nvidia.gpus(", ".join(row))
    assert gpu["pci_bus_id"] == "000f:01:00.0"
    assert gpu["index"] == 1
    missing = {name for name, value in gpu.items() if value is None}
    assert missing == {
        "pci_sub_device_id",
        "memory_total_mib",
        "memory_reserved_mib",
        "memory_used_mib",
        "memory_free_mib",
        "mig_mode",
        "ecc_mode",
        "power_limit_watt",
    }


@pytest.mark.parametrize(
    ("file", "devices", "driver"),
    [
        ("cdi_written.yml", ["0", "all"], "999.88.77"),
        ("cdi_sorted.yml", ["0", "GPU-00000000-0000-0000-0000-000000000001", "all"], "575.57.08"),
    ],
)
def test_cdi_specification_reads_as_a_yaml_library_reads_it(recording, file, devices, driver):
    text = recording(file)
    spec = nvidia.cdi_spec("/etc/cdi/nvidia.yaml", text)
    assert spec == {
        "path": "/etc/cdi/nvidia.yaml",
        "kind": "nvidia.com/gpu",
        "devices": devices,
        "driver_version": driver,
    }
    parsed = yaml.safe_load(text)
    assert [device["name"] for device in parsed["devices"]] == spec["devices"]
    assert nvidia.cdi_spec("/etc/cdi/nvidia.json", json.dumps(parsed)) == spec | {"path": "/etc/cdi/nvidia.json"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": 1, "devices": 2}', "devices:\n- name: x\n", "\0"])
def test_file_that_is_no_cdi_specification_is_left_out(fake_host, text):
    assert gather(fake_host({"/etc/cdi/broken.yaml": text}))["cdi"]["specs"] == []


def test_cdi_specifications_are_read_where_docker_reads_them(fake_host, recording):
    files = {"/srv/cdi/nvidia.yaml": recording("cdi_written.yml"), "/etc/cdi/old.yaml": recording("cdi_sorted.yml")}
    docker_answers = {"/info": {"ServerVersion": "29.9.0", "CDISpecDirs": ["/srv/cdi"]}}
    specs = gather(fake_host(files, docker=docker_answers))["cdi"]["specs"]
    assert [spec["path"] for spec in specs] == ["/srv/cdi/nvidia.yaml"]


def test_secure_boot(fake_host):
    def state(**content):
        files = {"/sys/firmware/efi/fw_platform_size": "64"} | {
            {"boot": SECURE_BOOT_VARIABLE, "shim": SHIM_VARIABLE}[name]: value for name, value in content.items()
        }
        return gather(fake_host(files))["secure_boot"]

    assert state(boot=ON) == "enabled"
    assert state(boot=OFF) == "disabled"
    assert state(boot=ON, shim=ON) == "disabled", "shim was told not to validate"
    assert state(boot=ON, shim=OFF) == "enabled"
    assert state() == "unknown"
    assert system.secure_boot(True, None, None, "SecureBoot enabled\n") == "enabled"
    assert (
        system.secure_boot(True, None, None, "SecureBoot enabled\nSecureBoot validation is disabled in shim\n")
        == "disabled"
    )
    assert system.secure_boot(True, None, None, "SecureBoot disabled\nPlatform is in Setup Mode\n") == "disabled"


@pytest.mark.parametrize(
    ("said", "enrolled", "staged"),
    [
        ("/var/lib/dkms/mok.pub is already enrolled\n", True, False),
        ("/var/lib/dkms/mok.pub is not enrolled\n", False, False),
        ("/var/lib/dkms/mok.pub is already in the enrollment request\n", False, True),
        ("EFI variables are not supported on this system\n", None, None),
    ],
)
def test_key_that_signs_modules(fake_host, said, enrolled, staged):
    files = {"/sys/firmware/efi/fw_platform_size": "64", SECURE_BOOT_VARIABLE: ON, "/var/lib/dkms/mok.pub": "key"}
    facts = gather(fake_host(files, commands={"mokutil --test-key /var/lib/dkms/mok.pub": (1, said, "")}))
    assert facts["mok"] == {"key": "/var/lib/dkms/mok.pub", "enrolled": enrolled, "staged": staged}


def test_addresses_that_others_can_reach(fake_host):
    """Made up after what ip of iproute2 6.1 prints."""
    links = [
        {"ifname": "lo", "flags": ["LOOPBACK", "UP"], "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
        {"ifname": "eth0", "flags": ["UP"], "addr_info": [
            {"family": "inet", "local": "192.0.2.10", "prefixlen": 24, "scope": "global"},
            {"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"}]},
        {"ifname": "eth1", "flags": ["UP"], "addr_info": []},
    ]  # fmt: skip
    facts = gather(fake_host(commands={"ip -json address": (0, json.dumps(links), "")}))
    assert facts["network"] == [{"interface": "eth0", "addresses": ["192.0.2.10", "fe80::1"]}]
    assert gather(fake_host())["network"] == []
    assert gather(fake_host(commands={"ip -json address": (0, "Option -json is unknown", "")}))["network"] == []


def test_packages_holds_and_halves(fake_host):
    rows = [
        ("hi ", "nvidia-open", "amd64", "580.95.05-1"),
        ("ii ", "libnvidia-compute", "i386", "580.95.05-1"),
        ("ii ", "libnvidia-compute", "amd64", "580.95.05-1"),
        ("iF ", "nvidia-kernel-open-dkms", "amd64", "580.95.05-1"),
        ("iHR", "dkms", "all", "3.2.2"),
        ("rc ", "docker.io", "amd64", "26.1.5"),
        ("un ", "nvidia-driver", "", ""),
    ]
    output = "".join("\t".join(row) + "\n" for row in rows)
    facts = gather(fake_host(commands={"dpkg-query": (1, output, "")}))
    assert facts["packages"] == {
        "nvidia-open": "580.95.05-1",
        "libnvidia-compute:i386": "580.95.05-1",
        "libnvidia-compute": "580.95.05-1",
    }
    assert facts["held"] == ["nvidia-open"]
    assert facts["half_installed"] == {"nvidia-kernel-open-dkms": "580.95.05-1", "dkms": "3.2.2"}
    assert facts["docker"]["flavour"] is None


@pytest.mark.parametrize(
    ("version", "engine", "cdi_directories", "gpu_containers"),
    [
        ("20.10.24", "20.10.24+dfsg1", [], [("gpus", None), ("device", "serving")]),
        ("26.1.5", "26.1.5+dfsg1", ["/etc/cdi", "/var/run/cdi"], [("cdi", "serving")]),
    ],
)
def test_recorded_docker_and_the_containers_that_hold_a_gpu(
    fake_host, recording, version, engine, cdi_directories, gpu_containers
):
    recorded = yaml.safe_load(recording(f"docker_{version}.yml"))
    containers = recorded["containers"]
    answers = {"/info": recorded["info"], "/containers/json": [{"Id": name} for name in containers]}
    answers |= {f"/containers/{name}/json": container for name, container in containers.items()}
    facts = gather(fake_host(docker=answers, commands={"docker compose version": (0, "2.26.1-4\n", "")}))
    assert facts["docker"]["running"] is True
    assert facts["docker"]["version"] == engine
    assert facts["docker"]["compose_version"] == "2.26.1-4"
    assert facts["docker"]["runtimes"] == sorted(recorded["info"]["Runtimes"])
    assert facts["docker"]["cdi_dirs"] == cdi_directories
    assert [(found["name"], found["project"]) for found in facts["gpu_containers"]] == gpu_containers


@pytest.mark.parametrize(
    ("host_config", "environment", "holds"),
    [
        ({"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=all"]}]}, [], True),
        ({"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": ["vendor.com/nic=0"]}]}, [], False),
        ({"DeviceRequests": [{"Driver": "nvidia", "DeviceIDs": ["GPU-1"], "Capabilities": [["gpu"]]}]}, [], True),
        ({"Runtime": "nvidia"}, ["NVIDIA_VISIBLE_DEVICES=all"], True),
        ({"Runtime": "nvidia"}, ["NVIDIA_VISIBLE_DEVICES=void"], False),
        ({"Runtime": "nvidia"}, None, False),
        ({"Runtime": "runc"}, ["NVIDIA_VISIBLE_DEVICES=all"], False),
        ({"Devices": [{"PathOnHost": "/dev/nvidia0"}]}, [], True),
    ],
)
def test_ways_to_give_a_container_a_gpu(host_config, environment, holds):
    assert docker.holds_gpu({"HostConfig": host_config, "Config": {"Env": environment}}) is holds


@pytest.mark.parametrize(
    ("said", "enabled"), [("enabled\n", True), ("disabled\n", False), ("masked\n", False), ("", False)]
)
def test_docker_that_starts_at_boot(fake_host, said, enabled):
    commands = {"systemctl is-enabled docker.service": (0 if enabled else 1, said, "")}
    assert gather(fake_host(commands=commands))["docker"]["enabled"] is enabled


def test_docker_that_does_not_run_tells_its_installed_version(fake_host):
    commands = {
        "dockerd --version": (0, "Docker version 29.9.0, build 4cecce0\n", ""),
        "docker compose": (125, "", "unknown"),
    }
    facts = gather(fake_host(commands=commands))
    assert (facts["docker"]["running"], facts["docker"]["version"]) == (False, "29.9.0")
    assert facts["docker"]["compose_version"] is None


def test_cuda_version_comes_from_the_best_source(fake_host):
    files = {
        "/usr/local/cuda-12.9/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.9.1"}}',
        "/usr/local/cuda-12.9/bin/nvcc": "",
        "/usr/local/cuda-13.0/bin/nvcc": "",
        "/usr/local/cuda-11.8/lib64/libcudart.so": "",
    }
    links = {"/usr/local/cuda": "/usr/local/cuda-12.9"}
    commands = {"dpkg-query": (1, "ii \tcuda-toolkit-13-0\tamd64\t13.0.2-1\n", "")}
    found = gather(fake_host(files, links, commands))["cuda"]
    assert [(toolkit["version"], toolkit["default"], bool(toolkit["nvcc"])) for toolkit in found] == [
        ("11.8", False, False),
        ("12.9.1", True, True),
        ("13.0.2", False, True),
    ]


def test_disk_of_a_path_that_does_not_exist_yet_is_that_of_its_parent(fake_host):
    file_systems = {"/": {"size": 100, "available": 40}, "/var": {"size": 50, "available": 20}}
    mounts = {mount["path"]: mount for mount in gather(fake_host(file_systems=file_systems))["mounts"]}
    assert mounts["/var/lib/docker"] == {
        "path": "/var/lib/docker",
        "mount": "/var",
        "size_bytes": 50,
        "available_bytes": 20,
    }
    assert mounts["/boot"]["mount"] == "/"


def test_engine_data_directory_elsewhere_is_measured_too(fake_host):
    host = fake_host(
        docker={"/info": {"ServerVersion": "29.9.0", "DockerRootDir": "/srv/docker"}},
        file_systems={"/": {"size": 100, "available": 40}, "/srv": {"size": 50, "available": 20}},
    )
    mounts = {mount["path"]: mount["mount"] for mount in gather(host)["mounts"]}
    assert mounts["/srv/docker"] == "/srv"


def test_python_on_whales_in_the_virtual_environment(fake_host):
    files = {"/opt/venv/lib/python3.13/site-packages/python_on_whales-0.81.0.dist-info/METADATA": ""}
    assert gather(fake_host(files), venv="/opt/venv")["python_on_whales"] == "0.81.0"
    assert gather(fake_host(files), venv="/opt/other")["python_on_whales"] is None


def test_toolkit(fake_host):
    commands = {
        "nvidia-ctk --version": (0, "NVIDIA Container Toolkit CLI version 1.20.0\ncommit: f202b80a9b9d\n", ""),
        "nvidia-container-runtime": (0, "", ""),
    }
    facts = gather(fake_host(commands=commands))
    toolkit = {"version": "1.20.0", "runtime_path": "/usr/bin/nvidia-container-runtime", "runtime_version": None}
    assert facts["toolkit"] == toolkit
    # As github.com/OE4T/meta-tegra/pull/1475 shows it, with another version, and what runc says of itself below.
    said = "NVIDIA Container Runtime version 1.19.1\ncommit: 670+d9de4a0\n\nrunc version 1.3.0\nspec: 1.2.1\n"
    facts = gather(fake_host(commands=commands | {"nvidia-container-runtime": (0, said, "")}))
    assert facts["toolkit"] == toolkit | {"runtime_version": "1.19.1"}


def test_module_reads_this_machine(run_tool, tmp_path):
    """The module itself, under Ansible, in check mode and not."""
    command = ["ansible", "localhost", "-m", "blackwell.serving.gpu_host_facts", "-a", f"venv={tmp_path}"]
    results = []
    for mode in ([], ["--check"]):
        done = run_tool(*command, *mode, env={"ANSIBLE_CALLBACK_RESULT_FORMAT": "json"})
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(json.loads(done.stdout.partition("=>")[2]))
    changed, facts = results[0]["changed"], results[0]["ansible_facts"]["gpu_host"]
    assert changed is False
    assert facts["kernel"]["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert facts["os"]["id"]
    assert results[1]["ansible_facts"]["gpu_host"].keys() == facts.keys()


def test_documentation_names_every_fact(fake_host, run_tool):
    shown = run_tool("ansible-doc", "--json", "blackwell.serving.gpu_host_facts")
    documented = json.loads(shown.stdout)["blackwell.serving.gpu_host_facts"]["return"]
    contents = documented["ansible_facts"]["contains"]["gpu_host"]["contains"]
    assert contents.keys() == gather(fake_host()).keys()


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        ("0::/system.slice/docker-{0}.scope\n", True),  # cgroup v2 under systemd
        ("11:devices:/docker/{0}\n0::/\n", True),  # cgroupfs
        ("0::/docker/{1}/docker/{0}\n", True),  # Docker in Docker: the inner one is this host's
        ("0::/user.slice/user-1000.slice/session-3.scope\n", False),
        ("0::/machine.slice/libpod-{0}.scope\n", False),  # Podman's
        ("", False),
    ],
)
def test_the_container_of_a_process_is_in_its_cgroup(cgroup, container):
    assert container_of(cgroup.format("a" * 64, "b" * 64)) == ("a" * 64 if container else None)
