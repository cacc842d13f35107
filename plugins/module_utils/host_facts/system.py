"""Readings of the operating system: text in, dictionary out."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

DEB_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def deb_architecture(machine: str) -> str:
    """Debian's name of a machine as uname has it."""
    return DEB_ARCHITECTURES.get(machine, machine)


def os_release(text: str, machine: str) -> dict[str, Any]:
    """The `os` facts from /etc/os-release; a field that it lacks is empty."""
    fields = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator and not name.startswith("#"):
            try:
                fields[name.strip()] = " ".join(shlex.split(value))
            except ValueError:  # an unbalanced quote
                fields[name.strip()] = value.strip("\"'")
    return {
        "id": fields.get("ID", ""),
        "id_like": fields.get("ID_LIKE", "").split(),
        "version_id": fields.get("VERSION_ID", ""),
        "codename": fields.get("VERSION_CODENAME", ""),
        "name": fields.get("PRETTY_NAME", ""),
        "machine": machine,
        "deb_architecture": deb_architecture(machine),
    }


def interfaces(ip_address: str) -> list[dict[str, Any]]:
    """What `ip -json address` says of addresses that others can reach; empty where it says nothing."""
    try:
        links = json.loads(ip_address or "[]")
    except ValueError:
        return []
    found = []
    for link in links:
        told = [entry for entry in link.get("addr_info") or [] if entry.get("scope") != "host" and entry.get("local")]
        if told and "LOOPBACK" not in link.get("flags", []):
            found.append({"interface": link["ifname"], "addresses": [entry["local"] for entry in told]})
    return found


def secure_boot(efi: bool, secure_boot_variable: bytes | None, shim_variable: bytes | None, mokutil: str) -> str:
    """enabled, disabled, unsupported (no UEFI) or unknown.

    The variables are the contents of SecureBoot-* and MokSBStateRT-* in efivars, four bytes of attributes and one of
    value. With MokSBStateRT 1 shim does not validate, and the kernel takes Secure Boot as off.
    """
    if not efi:
        return "unsupported"
    if secure_boot_variable is not None and len(secure_boot_variable) >= 5:
        validated = not (shim_variable is not None and len(shim_variable) >= 5 and shim_variable[4] == 1)
        return "enabled" if secure_boot_variable[4] == 1 and validated else "disabled"
    if "disabled" in mokutil:  # "SecureBoot disabled", "SecureBoot validation is disabled in shim"
        return "disabled"
    if "SecureBoot enabled" in mokutil:
        return "enabled"
    return "unknown"


def mok_state(mokutil_test_key: str) -> dict[str, bool | None]:
    """What `mokutil --test-key` says of a key: enrolled, and staged for the next boot; None where it says neither."""
    if "is already in the enrollment request" in mokutil_test_key:
        return {"enrolled": False, "staged": True}
    if re.search(r"is already (enrolled|in db|in the built-in trusted keyring)", mokutil_test_key):
        return {"enrolled": True, "staged": False}
    if "is not enrolled" in mokutil_test_key:
        return {"enrolled": False, "staged": False}
    return {"enrolled": None, "staged": None}


def listening_sockets(proc_net_tcp: str) -> dict[int, str]:
    """Inode of the socket that listens, by TCP port, from /proc/net/tcp or tcp6."""
    listen = "0A"
    rows = [line.split() for line in proc_net_tcp.splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16): row[9] for row in rows if len(row) > 9 and row[3] == listen}


def pci_display_controllers(devices: Mapping[str, Mapping[str, str | None]]) -> list[dict[str, Any]]:
    """NVIDIA's display controllers among PCI devices.

    `devices`: by address, the contents of the sysfs files vendor, device, class, subsystem_vendor and subsystem_device,
    and as `driver` the name of the bound driver.
    """
    found = []
    for address, raw in sorted(devices.items()):
        ids = {name: (value or "").strip().lower().replace("0x", "", 1) for name, value in raw.items()}
        if ids.get("vendor") != "10de" or not ids.get("class", "").startswith("03"):
            continue
        subsystem = f"{ids.get('subsystem_vendor', '')}:{ids.get('subsystem_device', '')}"
        found.append(
            {
                "address": address,
                "vendor": "10de",
                "device": ids.get("device", ""),
                "subsystem": None if subsystem == ":" else subsystem,
                "class": ids["class"],
                "driver": raw.get("driver"),
            }
        )
    return found


def deb_packages(dpkg_query: str, architecture: str) -> dict[str, Any]:
    """`packages`, `held` and `half_installed` from lines of status abbreviation, name, architecture and version.

    `architecture` is the host's; a package of another one is named `name:architecture`. The abbreviation is dpkg's:
    what is wanted (h: hold), then what is (i: installed; H, U, F, W, t: in between; c: configuration files alone).
    """
    facts: dict[str, Any] = {"packages": {}, "held": [], "half_installed": {}}
    for line in dpkg_query.splitlines():
        status, name, package_architecture, version = line.split("\t")
        if package_architecture not in (architecture, "all"):
            name = f"{name}:{package_architecture}"
        if status[1] == "i":
            facts["packages"][name] = version
        elif status[1] in "HUFWt":
            facts["half_installed"][name] = version
        if status[0] == "h":
            facts["held"].append(name)
    return facts


def python_package_version(directories: list[str], package: str) -> str | None:
    """The version of `package` among names of *.dist-info directories."""
    pattern = re.compile(rf"(?:^|/){re.escape(package)}-([^/-]+)\.dist-info$")
    for directory in directories:
        if match := pattern.search(directory):
            return match[1]
    return None
