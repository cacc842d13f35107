#!/usr/bin/python
"""Load kernel modules, enable and start units, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: activation
short_description: Load kernel modules, and enable and start systemd units, in one call
version_added: 0.2.0
description:
  - Loads kernel modules that are not loaded, and enables and starts units that are not.
  - In check mode, a module or unit that is not on the host yet is foretold as a change.
options:
  kernel_modules:
    description: Kernel modules that must be loaded now. This does not make them load at boot.
    type: list
    elements: str
    default: []
  units:
    description: Units that must be enabled, started, or both.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name of the unit with its suffix.
        type: str
        required: true
      enabled:
        description: Whether it is enabled; left alone if unset.
        type: bool
      started:
        description: Whether it runs; left alone if unset.
        type: bool
  daemon_reload:
    description: Make systemd read its unit files again first. Counts as no change.
    type: bool
    default: false
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Load the driver and keep it loaded
  blackwell.serving.activation:
    kernel_modules: [nvidia]
    units:
      - {name: nvidia-persistenced.service, enabled: true, started: true}
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, such as V(start nvidia-persistenced.service).
  returned: success
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule


def run(module: AnsibleModule, *command: str) -> None:
    code, out, err = module.run_command(list(command))
    if code:
        reason = "\n".join((out + err).strip().splitlines()[-10:])
        module.fail_json(msg=f"{' '.join(command)} failed:\n{reason}")


def unit_properties(module: AnsibleModule, name: str) -> dict[str, str]:
    _, out, _ = module.run_command(
        ["systemctl", "show", "--property=LoadState,ActiveState,UnitFileState", name], environ_update={"LC_ALL": "C"}
    )
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def wanted_verbs(unit: dict, properties: dict[str, str]) -> list[str]:
    """systemctl's verbs that bring the unit to its state."""
    verbs = []
    enabled = properties.get("UnitFileState") in ("enabled", "static", "indirect", "generated", "alias")
    active = properties.get("ActiveState") in ("active", "activating", "reloading")
    if unit["enabled"] is not None and unit["enabled"] != enabled:
        verbs.append("enable" if unit["enabled"] else "disable")
    if unit["started"] is not None and unit["started"] != active:
        verbs.append("start" if unit["started"] else "stop")
    return verbs


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kernel_modules": {"type": "list", "elements": "str", "default": []},
            "units": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "enabled": {"type": "bool"},
                    "started": {"type": "bool"},
                },
            },
            "daemon_reload": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    commands = [
        ("modprobe", name)
        for name in module.params["kernel_modules"]
        if not os.path.isdir(f"/sys/module/{name.replace('-', '_')}")
    ]
    if not module.check_mode:
        if module.params["daemon_reload"]:
            run(module, "systemctl", "daemon-reload")
        for command in commands:
            run(module, *command)
    actions = [f"load {name}" for _, name in commands]
    for unit in module.params["units"]:
        properties = unit_properties(module, unit["name"])
        if properties.get("LoadState") != "loaded" and not module.check_mode:
            module.fail_json(msg=f"{unit['name']} is not on this host (systemd says: {properties.get('LoadState')}).")
        for verb in wanted_verbs(unit, properties):
            if not module.check_mode:
                run(module, "systemctl", verb, unit["name"])
            actions.append(f"{verb} {unit['name']}")
    module.exit_json(
        changed=bool(actions),
        actions=actions,
        diff={"before": "", "after": "".join(f"{action}\n" for action in actions)},
    )


if __name__ == "__main__":
    main()
