"""Readings of NVIDIA's driver, tools and toolkits: text in, dictionary out."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from typing import Any

# Known to nvidia-smi since driver 510; the short list to every driver.
GPU_FIELDS = (
    "index",
    "uuid",
    "name",
    "pci.bus_id",
    "pci.device_id",
    "pci.sub_device_id",
    "driver_version",
    "compute_cap",
    "memory.total",
    "memory.reserved",
    "memory.used",
    "memory.free",
    "persistence_mode",
    "mig.mode.current",
    "ecc.mode.current",
    "power.limit",
)
GPU_FIELDS_OF_OLD_DRIVERS = (
    "index",
    "uuid",
    "name",
    "pci.bus_id",
    "driver_version",
    "memory.total",
    "memory.used",
    "memory.free",
    "persistence_mode",
)
PROCESS_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")

_FACT_NAMES = {
    "pci.bus_id": "pci_bus_id",
    "pci.device_id": "pci_device_id",
    "pci.sub_device_id": "pci_sub_device_id",
    "compute_cap": "compute_capability",
    "memory.total": "memory_total_mib",
    "memory.reserved": "memory_reserved_mib",
    "memory.used": "memory_used_mib",
    "memory.free": "memory_free_mib",
    "mig.mode.current": "mig_mode",
    "ecc.mode.current": "ecc_mode",
    "power.limit": "power_limit_watt",
    "used_memory": "used_memory_mib",
    "process_name": "name",
}
_WHOLE_NUMBERS = {"index", "pid", "memory.total", "memory.reserved", "memory.used", "memory.free", "used_memory"}
_FRACTIONS = {"power.limit"}
_VERSION = r"(\d+\.\d+(?:\.\d+)?)"


def loaded_driver(proc_version: str) -> dict[str, str] | None:
    """Version and flavour of the loaded module, from /proc/driver/nvidia/version."""
    match = re.search(rf"^NVRM version:.*?\s{_VERSION}\s", proc_version, re.MULTILINE)
    if not match:
        return None
    return {"version": match[1], "flavour": "open" if "Open Kernel Module" in match[0] else "closed"}


def installed_driver(modinfo: str) -> dict[str, Any] | None:
    """Version, flavour, file and signer of the module on disk, from `modinfo nvidia`."""
    fields: dict[str, str] = {}
    for line in modinfo.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip(), value.strip())
    if not fields.get("version"):
        return None
    return {
        "version": fields["version"],
        "flavour": "open" if "GPL" in fields.get("license", "") else "closed",  # Dual MIT/GPL; NVIDIA
        "path": fields.get("filename") or None,
        "signer": fields.get("signer") or None,
    }


def gpus(text: str, fields: Sequence[str] = GPU_FIELDS) -> list[dict[str, Any]]:
    """GPUs from `nvidia-smi --query-gpu=<fields> --format=csv,noheader,nounits`.

    Memory in MiB, power in watts, `pci_bus_id` as sysfs has it (0000:01:00.0); None where nvidia-smi has no value.
    """
    found = _rows(text, fields)
    for gpu in found:
        gpu["pci_bus_id"] = _sysfs_address(gpu["pci_bus_id"])
        gpu.update({_FACT_NAMES.get(name, name): None for name in GPU_FIELDS if name not in fields})
    return found


def processes(text: str) -> list[dict[str, Any]]:
    """Processes that compute, from `nvidia-smi --query-compute-apps=<PROCESS_FIELDS> --format=csv,noheader,nounits`."""
    return _rows(text, PROCESS_FIELDS)


def _rows(text: str, fields: Sequence[str]) -> list[dict[str, Any]]:
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [
        {_FACT_NAMES.get(name, name): _value(name, row[position].strip()) for position, name in enumerate(fields)}
        for row in rows
        if len(row) == len(fields)
    ]


def _value(field: str, text: str) -> Any:
    if text.strip("[]") in {"", "N/A", "Not Supported", "Unknown Error", "Insufficient Permissions", "Not Found"}:
        return None
    try:
        if field in _WHOLE_NUMBERS:
            return int(text)
        if field in _FRACTIONS:
            return float(text)
    except ValueError:
        return None
    return text


def _sysfs_address(bus_id: str | None) -> str | None:
    """00000000:0A:00.0 as 0000:0a:00.0."""
    if not bus_id:
        return None
    domain, _, rest = bus_id.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"


def toolkit_version(text: str) -> str | None:
    """The version in what `nvidia-ctk --version` prints."""
    match = re.search(r"version (\d[\w.+~-]*)", text)
    return match[1] if match else None


def cdi_spec(path: str, text: str) -> dict[str, Any] | None:
    """Kind, device names and driver version of a CDI specification in JSON or YAML; None for what is neither.

    YAML is read line by line, because the host's Python may have no YAML library: `kind` and the `name` of each item of
    `devices` stand at the least indentation that they can have. The driver version is that of libcuda's file name, or
    else what the hook for compatibility libraries is told.
    """
    kind, devices = _cdi_json(text) if text.lstrip().startswith("{") else _cdi_yaml(text)
    if not kind:
        return None
    driver = re.search(rf"/libcuda\.so\.{_VERSION}\b", text) or re.search(rf"--host-driver-version={_VERSION}\b", text)
    return {"path": path, "kind": kind, "devices": devices, "driver_version": driver[1] if driver else None}


def _cdi_json(text: str) -> tuple[str, list[str]]:
    try:
        spec = json.loads(text)
        return str(spec.get("kind", "")), [str(device["name"]) for device in spec.get("devices") or []]
    except (ValueError, TypeError, KeyError, AttributeError):
        return "", []


def _cdi_yaml(text: str) -> tuple[str, list[str]]:
    kind, devices, in_devices, item_indent = "", [], False, -1
    for line in text.splitlines():
        content = line.lstrip(" ")
        indent = len(line) - len(content)
        if not content or content.startswith(("#", "---")):
            continue
        if indent == 0 and not content.startswith("-"):
            in_devices = content.startswith("devices:")
            if content.startswith("kind:"):
                kind = _scalar(content)
            continue
        if not in_devices:
            continue
        if content.startswith("- ") and item_indent in (-1, indent):
            item_indent = indent
            indent, content = indent + 2, content[2:].lstrip(" ")
        if indent == item_indent + 2 and content.startswith("name:"):
            devices.append(_scalar(content))
    return kind, devices


def _scalar(line: str) -> str:
    return line.partition(":")[2].strip().strip("\"'")


def cuda_version(version_json: str) -> str | None:
    """The version of a CUDA toolkit in its version.json."""
    try:
        return str(json.loads(version_json)["cuda"]["version"])
    except (ValueError, KeyError, TypeError):
        return None
