#!/usr/bin/python
"""Let only gateways and monitoring reach the ports of a host's services."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_firewall
short_description: Let only some addresses reach the ports of a host's services and exporters
version_added: 0.4.0
description:
  - Keeps an nftables table of its own, C(inet blackwell_serving), that drops what comes to O(ports) from elsewhere than
    O(sources) and this host itself, and to O(monitored_ports) from elsewhere than O(monitors). It works for ports that
    Docker publishes, which rules for INPUT do not see, and is not touched when Docker starts anew.
  - A unit, C(blackwell-firewall.service), loads it at boot before the network is up.
  - Compares what the kernel has with what was loaded, so that a table which somebody flushed or edited comes back.
  - Needs the program nft. Where it is missing nothing is changed, and RV(missing) says so.
options:
  state:
    description: Whether the firewall is there.
    type: str
    choices: [present, absent]
    default: present
  ports:
    description: TCP ports that are closed to others.
    type: list
    elements: int
    default: []
  sources:
    description: Addresses and networks that may reach O(ports).
    type: list
    elements: str
    default: []
  local_containers:
    description: Whether containers of this host may reach O(ports) at its addresses.
    type: bool
    default: false
  monitored_ports:
    description: TCP ports that are closed to all but O(monitors), to O(sources) too.
    type: list
    elements: int
    default: []
  monitors:
    description: Addresses and networks that may reach O(monitored_ports).
    type: list
    elements: str
    default: []
  path:
    description: The file that nft reads.
    type: path
    default: /etc/blackwell-serving/firewall.nft
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Let the gateway alone reach the services, and the monitor alone the exporters
  blackwell.serving.fleet_firewall:
    ports: [30001, 30002]
    sources: [10.0.0.10]
    monitored_ports: [9100, 9835]
    monitors: [10.0.0.20]
"""

RETURN = r"""
missing:
  description: Packages that have to be installed first.
  returned: success
  type: list
  elements: str
  sample: [nftables]
"""

import contextlib
import hashlib
import os
import shutil
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.fleet_firewall import TABLE, rules

UNIT = "blackwell-firewall.service"
UNIT_PATH = f"/etc/systemd/system/{UNIT}"
# The digest of what nft listed after the table was loaded; nft prints it in another form than it was written.
LOADED = "/var/lib/blackwell-serving/firewall.loaded"
UNIT_TEXT = """# Written by blackwell.serving. Loads the firewall of the services before the network is up.
[Unit]
Description=Firewall of the LLM services
DefaultDependencies=no
Wants=network-pre.target
After=nftables.service
PartOf=nftables.service
ReloadPropagatedFrom=nftables.service
Before=network-pre.target docker.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={nft} -f {path}
ExecReload={nft} -f {path}
ExecStop={nft} delete table {table}

[Install]
WantedBy=sysinit.target
"""


def text_of(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return None


def write(module: AnsibleModule, path: str, content: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(content)
    os.chmod(temporary, 0o644)
    module.atomic_move(temporary, path)


def run(module: AnsibleModule, *command: str) -> None:
    code, out, err = module.run_command(list(command))
    if code:
        module.fail_json(msg=f"{' '.join(command)} failed: {(err or out).strip()}", changed=True)


def listed(module: AnsibleModule, nft: str) -> str:
    """Digest of the table as the kernel has it, without its counters; empty where there is none."""
    code, out, _ = module.run_command([nft, "--stateless", "list", "table", *TABLE.split()])
    return hashlib.sha256(out.encode()).hexdigest() if code == 0 else ""


def unit_runs(module: AnsibleModule) -> bool:
    code, out, _ = module.run_command(["systemctl", "show", "--property=ActiveState,UnitFileState", UNIT])
    return code == 0 and set(out.split()) == {"ActiveState=active", "UnitFileState=enabled"}


def bring(module: AnsibleModule, nft: str) -> dict:
    parameters = module.params
    path = parameters["path"]
    try:
        wanted = rules(
            *(parameters[name] for name in ("ports", "sources", "local_containers", "monitored_ports", "monitors"))
        )
    except ValueError as problem:
        module.fail_json(msg=f"sources, monitors: {problem}. Nothing was changed.")
    unit = UNIT_TEXT.format(nft=nft, path=path, table=TABLE)
    before, kernel = text_of(path), listed(module, nft)
    reasons = []
    if before != wanted:
        reasons.append("rules")
    elif not kernel or kernel != (text_of(LOADED) or "").strip():
        reasons.append("what the kernel has")
    if text_of(UNIT_PATH) != unit or not unit_runs(module):
        reasons.append("unit")
    result = {"changed": bool(reasons), "missing": [], "diff": {"before": before or "", "after": wanted}}
    if module.check_mode or not reasons:
        return result
    trial = f"{path}.new"
    write(module, trial, wanted)
    code, _, err = module.run_command([nft, "--check", "--file", trial])
    if code:
        os.unlink(trial)
        module.fail_json(msg=f"nft refuses the rules. Nothing was changed.\n{err.strip()}")
    os.replace(trial, path)
    run(module, nft, "--file", path)
    write(module, UNIT_PATH, unit)
    run(module, "systemctl", "daemon-reload")
    run(module, "systemctl", "enable", "--now", UNIT)
    write(module, LOADED, listed(module, nft) + "\n")
    return result


def remove(module: AnsibleModule, nft: str | None) -> dict:
    there = [path for path in (UNIT_PATH, module.params["path"], LOADED) if os.path.exists(path)]
    kernel = bool(nft) and bool(listed(module, nft))
    before = text_of(module.params["path"]) or ""
    result = {"changed": bool(there) or kernel, "missing": [], "diff": {"before": before, "after": ""}}
    if module.check_mode or not result["changed"]:
        return result
    if os.path.exists(UNIT_PATH):
        run(module, "systemctl", "disable", "--now", UNIT)
    for path in there:
        os.unlink(path)
    with contextlib.suppress(OSError):  # it holds something else, or is gone
        os.rmdir(os.path.dirname(module.params["path"]))
    run(module, "systemctl", "daemon-reload")
    if nft and listed(module, nft):
        run(module, nft, "delete", "table", *TABLE.split())
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "ports": {"type": "list", "elements": "int", "default": []},
            "sources": {"type": "list", "elements": "str", "default": []},
            "local_containers": {"type": "bool", "default": False},
            "monitored_ports": {"type": "list", "elements": "int", "default": []},
            "monitors": {"type": "list", "elements": "str", "default": []},
            "path": {"type": "path", "default": "/etc/blackwell-serving/firewall.nft"},
        },
        required_if=[("state", "present", ["ports", "sources"])],
        supports_check_mode=True,
    )
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if module.params["state"] == "absent":
        module.exit_json(**remove(module, nft))
    if nft is None:
        module.exit_json(changed=True, missing=["nftables"])
    module.exit_json(**bring(module, nft))


if __name__ == "__main__":
    main()
