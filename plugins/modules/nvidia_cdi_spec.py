#!/usr/bin/python
"""Keep the CDI specification of a host's NVIDIA GPUs true."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_cdi_spec
short_description: Keep the CDI specification of NVIDIA's GPUs in step with the driver
version_added: 0.2.0
description:
  - Compares the specification of kind C(nvidia.com/gpu) that is in force with the loaded driver and the GPUs that
    C(nvidia-smi) lists, and writes it anew where it is missing, of another driver, or lacks a GPU.
  - Enables NVIDIA's units that refresh it, where the container toolkit has them. That never makes systemd reload its
    units, which would take the GPU away from running containers that were not given it by CDI.
  - Fails where the specification is still not right afterwards.
options:
  path:
    description: The specification to write where there is no unit that does it.
    type: path
    default: /var/run/cdi/nvidia.yaml
  directories:
    description: Where specifications are looked for, the one that counts most last.
    type: list
    elements: path
    default: [/etc/cdi, /var/run/cdi]
  units:
    description: The units that refresh the specification, the service that writes it last.
    type: list
    elements: str
    default: [nvidia-cdi-refresh.path, nvidia-cdi-refresh.service]
attributes:
  check_mode:
    support: full
    description:
      - Where the container toolkit is not installed yet no change is foretold, because its package enables the units
        and starts them itself.
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Keep the CDI specification in step with the driver
  blackwell.serving.nvidia_cdi_spec:
"""

RETURN = r"""
devices:
  description: Names of the devices of the specification that is in force, for C(nvidia.com/gpu=<name>).
  returned: success
  type: list
  elements: str
  sample: ["0", GPU-5d4c2c08-0b1d-4c6a-9f3e-2f3d0a6a9f10, all]
driver_version:
  description: The driver that the specification describes.
  returned: success
  type: str
problems:
  description: What was wrong with the specification before.
  returned: success
  type: list
  elements: str
enabled:
  description: Units that were, or would be, enabled or started.
  returned: success
  type: list
  elements: str
"""

from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts import nvidia

STATES = {"enable": "enabled", "start": "active"}
PROC_VERSION = Path("/proc/driver/nvidia/version")
KIND = "nvidia.com/gpu"
QUERY = ["nvidia-smi", "--query-gpu=index,uuid,mig.mode.current", "--format=csv,noheader"]


def specifications(directories: list[str]) -> list[dict[str, Any]]:
    """The specifications of NVIDIA's GPUs, the one in force last."""
    found = []
    for directory in dict.fromkeys(str(Path(name).resolve()) for name in directories):
        for path in sorted(Path(directory).glob("*")):
            if path.suffix in (".yaml", ".yml", ".json"):
                found.append(nvidia.cdi_spec(str(path), path.read_text("utf-8", "replace")))
    return [spec for spec in found if spec and spec["kind"] == KIND]


def problems(spec: dict[str, Any] | None, driver: str, gpus: list[tuple[str, str]]) -> list[str]:
    """What `spec` lacks for the loaded `driver` and its `gpus` (index and UUID)."""
    if spec is None:
        return [f"there is no specification of {KIND}"]
    found = []
    if spec["driver_version"] != driver:
        found.append(f"{spec['path']} is of driver {spec['driver_version']}, and {driver} is loaded")
    devices = set(spec["devices"])
    found += [f"{spec['path']} lacks GPU {index} ({uuid})" for index, uuid in gpus if not {index, uuid} & devices]
    if "all" not in devices:
        found.append(f"{spec['path']} lacks the device all")
    return found


class CdiSpec:
    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def succeeds(self, *command: str) -> bool:
        return self.module.run_command(list(command), handle_exceptions=False)[0] == 0

    def disabled_units(self) -> dict[str, list[str]]:
        """The commands that each unit needs, for those that the toolkit has."""
        needed: dict[str, list[str]] = {}
        for unit in self.units():
            state = self.module.run_command(["systemctl", "is-enabled", unit])[1].strip()
            if state == "disabled":
                needed.setdefault(unit, []).append("enable")
            if unit.endswith(".path") and state != "masked" and not self.succeeds("systemctl", "is-active", unit):
                needed.setdefault(unit, []).append("start")
        return needed

    def units(self) -> list[str]:
        if self.module.get_bin_path("systemctl") is None:
            return []
        return [unit for unit in self.module.params["units"] if self.succeeds("systemctl", "cat", unit)]

    def driver_and_gpus(self) -> tuple[str | None, list[tuple[str, str]]]:
        """Version of the loaded driver, and index and UUID of the GPUs that are not split into instances."""
        try:
            loaded = nvidia.loaded_driver(PROC_VERSION.read_text("utf-8"))
        except OSError:
            loaded = None
        if loaded is None:
            return None, []
        code, out, err = self.module.run_command(QUERY)
        if code:
            self.module.fail_json(msg=f"nvidia-smi fails: {(err or out).strip()}")
        rows = ([field.strip() for field in line.split(",")] for line in out.splitlines() if line.strip())
        return loaded["version"], [(index, uuid) for index, uuid, mig in rows if mig != "Enabled"]

    def current(self) -> dict[str, Any] | None:
        return next(reversed(specifications(self.module.params["directories"])), None)

    def write(self, still: list[str], driver: str, gpus: list[tuple[str, str]]) -> list[str]:
        """Have the specification written; what is wrong with it then."""
        service = next((unit for unit in self.units() if unit.endswith(".service")), None)
        if service and self.succeeds("systemctl", "restart", service):
            still = problems(self.current(), driver, gpus)
        if still:
            Path(self.module.params["path"]).parent.mkdir(parents=True, exist_ok=True)
            command = ["nvidia-ctk", "cdi", "generate", f"--output={self.module.params['path']}"]
            code, out, err = self.module.run_command(command)
            if code:
                self.module.fail_json(msg=f"{' '.join(command)} fails: {(err or out).strip()}")
            still = problems(self.current(), driver, gpus)
        return still

    def run(self) -> None:
        check_mode = self.module.check_mode
        if self.module.get_bin_path("nvidia-ctk") is None:
            if not check_mode:
                self.module.fail_json(msg="nvidia-ctk is not installed.")
            self.exit(changed=False, why="nvidia-ctk is not installed yet; its package writes the specification")
        driver, gpus = self.driver_and_gpus()
        if driver is None:
            if not check_mode:
                self.module.fail_json(msg="NVIDIA's driver is not loaded, so there are no GPUs to describe.")
            self.exit(changed=False, why="NVIDIA's driver is not loaded yet")
        units = self.disabled_units()
        before = self.current()
        wrong = problems(before, driver, gpus)
        if not check_mode:
            for unit, verbs in units.items():
                for verb in verbs:
                    self.module.run_command(["systemctl", "--no-reload", verb, unit], check_rc=True)
            still = self.write(wrong, driver, gpus) if wrong else []
            if still:
                self.module.fail_json(msg=f"The CDI specification was written, and still: {'; '.join(still)}.")
        for spec in specifications(self.module.params["directories"])[:-1]:
            if spec["driver_version"] != driver:
                self.module.warn(f"{spec['path']} is of driver {spec['driver_version']}; another file has precedence.")
        self.exit(changed=bool(units or wrong), before=before, wrong=wrong, units=units)

    def exit(
        self,
        changed: bool,
        why: str = "",
        before: dict[str, Any] | None = None,
        wrong: list[str] | None = None,
        units: dict[str, list[str]] | None = None,
    ) -> None:
        spec = self.current() or {"devices": [], "driver_version": None}
        told = [
            *(wrong or []),
            *(f"{unit} is not {STATES[verb]}" for unit, verbs in (units or {}).items() for verb in verbs),
        ]
        self.module.exit_json(
            changed=changed,
            devices=spec["devices"],
            driver_version=spec["driver_version"],
            problems=wrong or [],
            enabled=sorted(units or {}),
            diff={"before": "".join(f"{line}\n" for line in told), "after": ""},
            **({"msg": why} if why else {}),
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/var/run/cdi/nvidia.yaml"},
            "directories": {"type": "list", "elements": "path", "default": ["/etc/cdi", "/var/run/cdi"]},
            "units": {
                "type": "list",
                "elements": "str",
                "default": ["nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service"],
            },
        },
        supports_check_mode=True,
    )
    CdiSpec(module).run()


if __name__ == "__main__":
    main()
