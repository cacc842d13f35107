"""All facts of a GPU host, in one reading that changes nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from . import docker, nvidia, system
from .host import Host, Output

SECURE_BOOT_VARIABLE = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
SHIM_VARIABLE = "/sys/firmware/efi/efivars/MokSBStateRT-605dab50-e046-4300-abb6-3dd810dd8b23"
MODULE_SIGNING_KEYS = ("/var/lib/shim-signed/mok/MOK.der", "/var/lib/dkms/mok.pub")
CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
DOCKER_DATA = "/var/lib/docker"
DISK_PATHS = ("/", "/boot", "/usr", "/var", "/tmp", DOCKER_DATA, "/var/lib/containerd")
PACKAGE_PATTERNS = (
    "nvidia*",
    "libnvidia*",
    "xserver-xorg-video-nvidia*",
    "cuda*",
    "libcuda*",
    "docker*",
    "containerd*",
    "runc",
    "podman-docker",
    "linux-image*",
    "linux-headers*",
    "linux-modules-nvidia*",
    "dkms",
    "mokutil",
    "shim-signed",
    "unattended-upgrades",
    "python3-venv",
)
_PCI_FILES = ("vendor", "device", "class", "subsystem_vendor", "subsystem_device")
_NO_OUTPUT = Output(None)


def gather(host: Host, venv: str | None = None, docker_socket: str = "/var/run/docker.sock") -> dict[str, Any]:
    """The facts `gpu_host`, described in the module gpu_host_facts.

    `venv` is the virtual environment whose python-on-whales is asked for. Commands run at the same time, each with a
    time limit; nvidia-smi only when the driver is loaded, because it would load it.
    """
    loaded = nvidia.loaded_driver(host.read("/proc/driver/nvidia/version") or "")
    efi = host.exists("/sys/firmware/efi")
    key = next((path for path in MODULE_SIGNING_KEYS if host.exists(path)), None)
    outputs = host.run_all(_commands(loaded is not None, efi, key))

    deb = system.deb_packages(outputs["packages"].stdout, system.deb_architecture(host.machine()))
    installed = nvidia.installed_driver(outputs["modinfo"].stdout)
    engine, containers = _docker(host, docker_socket, outputs, deb["packages"])
    mokutil = outputs.get("secure_boot", _NO_OUTPUT).stdout
    test_key = outputs.get("key", _NO_OUTPUT)
    reboot_reasons = _reboot_reasons(host, loaded, installed)
    return {
        "os": system.os_release(host.read("/etc/os-release") or "", host.machine()),
        "kernel": {
            "release": host.kernel_release(),
            "boot_id": (host.read("/proc/sys/kernel/random/boot_id") or "").strip() or None,
            "installed": [os.path.basename(path) for path in host.glob("/lib/modules/*")],
        },
        "virtualisation": outputs["virtualisation"].stdout.strip() or None,
        "secure_boot": system.secure_boot(
            efi, host.read_bytes(SECURE_BOOT_VARIABLE), host.read_bytes(SHIM_VARIABLE), mokutil
        ),
        "mok": {"key": key, **system.mok_state(test_key.stdout + test_key.stderr)},
        "network": system.interfaces(outputs["addresses"].stdout),
        "pci": _pci(host),
        "driver": {"loaded": loaded, "installed": installed},
        "nouveau_loaded": host.exists("/sys/module/nouveau"),
        **_gpus(host, outputs),
        "gpu_containers": containers,
        "docker": engine,
        "toolkit": {
            "version": nvidia.toolkit_version(outputs["toolkit"].stdout),
            "runtime_path": host.which("nvidia-container-runtime"),
            "runtime_version": nvidia.toolkit_version(outputs["runtime"].stdout),
        },
        "cdi": {"specs": _cdi_specs(host, engine["cdi_dirs"] or CDI_DIRECTORIES)},
        "cuda": _cuda(host, deb["packages"]),
        **deb,
        "apt_sources": [os.path.basename(path) for path in host.glob("/etc/apt/sources.list.d/*")],
        "mounts": _mounts(host, engine["root_dir"]),
        "reboot_required": bool(reboot_reasons),
        "reboot_reasons": reboot_reasons,
        "python_on_whales": _python_on_whales(host, venv),
    }


def _commands(driver_loaded: bool, efi: bool, key: str | None) -> dict[str, list[str]]:
    package_format = r"${db:Status-Abbrev}\t${Package}\t${Architecture}\t${Version}\n"
    commands = {
        "packages": ["dpkg-query", "--show", f"--showformat={package_format}", *PACKAGE_PATTERNS],
        "modinfo": ["modinfo", "nvidia"],
        "virtualisation": ["systemd-detect-virt"],
        "compose": ["docker", "compose", "version", "--short"],
        "docker_enabled": ["systemctl", "is-enabled", "docker.service"],
        "toolkit": ["nvidia-ctk", "--version"],
        "runtime": ["nvidia-container-runtime", "--version"],
        "addresses": ["ip", "-json", "address"],
    }
    if driver_loaded:
        commands["gpus"] = _nvidia_smi("--query-gpu", nvidia.GPU_FIELDS)
        commands["processes"] = _nvidia_smi("--query-compute-apps", nvidia.PROCESS_FIELDS)
    if efi:
        commands["secure_boot"] = ["mokutil", "--sb-state"]
        if key:
            commands["key"] = ["mokutil", "--test-key", key]
    return commands


def _nvidia_smi(query: str, fields: Sequence[str]) -> list[str]:
    return ["nvidia-smi", f"{query}={','.join(fields)}", "--format=csv,noheader,nounits"]


def _pci(host: Host) -> list[dict[str, Any]]:
    devices = {}
    for directory in host.glob("/sys/bus/pci/devices/*"):
        files: dict[str, str | None] = {name: host.read(f"{directory}/{name}") for name in _PCI_FILES}
        driver = f"{directory}/driver"
        files["driver"] = os.path.basename(host.real_path(driver)) if host.exists(driver) else None
        devices[os.path.basename(directory)] = files
    return system.pci_display_controllers(devices)


def _gpus(host: Host, outputs: Mapping[str, Output]) -> dict[str, Any]:
    answer = outputs.get("gpus")
    if answer is None:
        return {"gpus": [], "gpu_processes": [], "nvidia_smi_error": None}
    fields = nvidia.GPU_FIELDS
    if answer.status == 2 and "not a valid field" in answer.stdout + answer.stderr:
        fields = nvidia.GPU_FIELDS_OF_OLD_DRIVERS
        answer = host.run(_nvidia_smi("--query-gpu", fields))
    failed = answer.status != 0
    return {
        "gpus": [] if failed else nvidia.gpus(answer.stdout, fields),
        "gpu_processes": [] if failed else _processes(host, outputs["processes"].stdout),
        "nvidia_smi_error": (answer.stdout + answer.stderr).strip() if failed else None,
    }


def _processes(host: Host, text: str) -> list[dict[str, Any]]:
    found = nvidia.processes(text)
    for process in found:
        process["container"] = docker.container_of(host.read(f"/proc/{process['pid']}/cgroup") or "")
    return found


def _docker(
    host: Host, socket: str, outputs: Mapping[str, Output], packages: Mapping[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    info, running = host.docker_api(socket, ["/info", "/containers/json"])
    containers = host.docker_api(socket, [f"/containers/{container['Id']}/json" for container in running or []])
    installed = "" if info else host.run(["dockerd", "--version"]).stdout
    engine = docker.engine(info, installed, outputs["compose"].stdout, packages)
    engine["enabled"] = outputs["docker_enabled"].stdout.strip() == "enabled"
    return engine, docker.gpu_containers(containers)


def _cdi_specs(host: Host, directories: Sequence[str]) -> list[dict[str, Any]]:
    files = {
        host.real_path(path): path
        for directory in directories
        for suffix in ("yaml", "yml", "json")
        for path in host.glob(f"{directory}/*.{suffix}")
    }
    specs = (nvidia.cdi_spec(path, host.read(path) or "") for path in files.values())
    return [spec for spec in specs if spec]


def _cuda(host: Host, packages: Mapping[str, str]) -> list[dict[str, Any]]:
    """The toolkits /usr/local/cuda-X.Y; one without version.json has the version of its package or its directory."""
    default = host.real_path("/usr/local/cuda")
    found = []
    for path in host.glob("/usr/local/cuda-*.*"):
        release = path.rpartition("-")[2]
        package = packages.get(f"cuda-toolkit-{release.replace('.', '-')}", "").partition("-")[0]
        nvcc = f"{path}/bin/nvcc"
        found.append(
            {
                "version": nvidia.cuda_version(host.read(f"{path}/version.json") or "") or package or release,
                "path": path,
                "nvcc": nvcc if host.exists(nvcc) else None,
                "default": path == default,
            }
        )
    return found


def _mounts(host: Host, docker_root: str | None) -> list[dict[str, Any]]:
    mounts = []
    for path in dict.fromkeys([*DISK_PATHS, docker_root or "/"]):
        if file_system := host.file_system(path):
            mounts.append(
                {
                    "path": path,
                    "mount": file_system.mount,
                    "size_bytes": file_system.size,
                    "available_bytes": file_system.available,
                }
            )
    return mounts


def _reboot_reasons(host: Host, loaded: Mapping[str, Any] | None, installed: Mapping[str, Any] | None) -> list[str]:
    reasons = []
    if host.exists("/run/reboot-required"):
        packages = (host.read("/run/reboot-required.pkgs") or "").split()
        reasons.append(f"packages ask for it: {', '.join(sorted(set(packages))) or '/run/reboot-required'}")
    if loaded and installed and (loaded["version"], loaded["flavour"]) != (installed["version"], installed["flavour"]):
        reasons.append(
            f"driver {loaded['version']} ({loaded['flavour']}) is loaded, "
            f"{installed['version']} ({installed['flavour']}) is installed"
        )
    return reasons


def _python_on_whales(host: Host, venv: str | None) -> str | None:
    if not venv:
        return None
    directories = host.glob(f"{venv}/lib/python3*/site-packages/python_on_whales-*.dist-info")
    return system.python_package_version(directories, "python_on_whales")
