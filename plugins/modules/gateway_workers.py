#!/usr/bin/python
"""Take services of a GPU host out of a gateway's work, and put them back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_workers
short_description: Drain services of a GPU host at a gateway, and give them work again
version_added: 0.4.0
description:
  - Runs on a gateway. It changes the manifest of workers that the gateway's smg reads, also after a restart.
  - With O(state=drained) no new request goes to the services, and the module returns when none is in flight.
  - With O(state=present) the services of the host are what O(services) says, and the module returns when the gateway
    sends requests to all of them.
  - Where no gateway runs yet nothing happens, with a warning for V(present).
options:
  state:
    description: Whether the services take requests.
    type: str
    choices: [present, drained]
    required: true
  host:
    description: The GPU host, by its name in the inventory.
    type: str
    required: true
  names:
    description: Only these services; by default all of the host.
    type: list
    elements: str
    default: []
  services:
    description: With V(present), all services of the host.
    type: list
    elements: dict
    default: []
    suboptions:
      service:
        description: Its name.
        type: str
        required: true
      url:
        description: Where the gateway reaches it.
        type: str
        required: true
      model:
        description: The name of the model that it serves.
        type: str
        required: true
  directory:
    description: Directory of the gateway.
    type: path
    default: /opt/blackwell-serving/gateway
  address:
    description: Where smg listens on this host.
    type: str
    default: http://127.0.0.1:29100
  timeout:
    description: Seconds until requests have to be answered, with V(drained), or services be ready, with V(present).
    type: int
    default: 600
  force:
    description:
      - With V(drained), go on when O(timeout) is over and requests are still in flight. Without it the module fails
        then, and the services take requests again.
    type: bool
    default: false
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Send no more requests to box1
  blackwell.serving.gateway_workers:
    state: drained
    host: box1
  delegate_to: gateway1

- name: Give box1 work again
  blackwell.serving.gateway_workers:
    state: present
    host: box1
    services:
      - {service: qwen, url: "http://10.0.0.11:30002", model: Qwen/Qwen2.5-3B-Instruct}
  delegate_to: gateway1
"""

RETURN = r"""
drained:
  description: The services that took no requests any more, as host/service.
  returned: with V(drained)
  type: list
  elements: str
  sample: [box1/qwen]
cut:
  description: How many requests were still in flight, with O(force).
  returned: with V(drained)
  type: int
alone:
  description: Models of these services that no other service of the gateway serves. Requests for them fail meanwhile.
  returned: with V(drained)
  type: list
  elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_workers import (
    GatewayError,
    Manifest,
    Smg,
    chosen,
    drain,
    entry,
    merged,
    shown,
    wait_until_ready,
    worker_id,
)


def run_drained(module: AnsibleModule, manifest: Manifest, smg: Smg) -> dict:
    parameters = module.params
    before = manifest.workers()
    ids = chosen(before, parameters["host"], parameters["names"])
    after = [worker for worker in before if worker["id"] not in ids]
    still = {worker["model_id"] for worker in after}
    result = {
        "changed": bool(ids),
        "drained": sorted(ids),
        "cut": 0,
        "alone": sorted({worker["model_id"] for worker in before if worker["id"] in ids} - still),
        "diff": {"before": shown(before), "after": shown(after)},
    }
    if module.check_mode or not ids:
        return result
    return result | drain(
        manifest, smg, parameters["host"], parameters["names"], parameters["timeout"], parameters["force"]
    )


def run_present(module: AnsibleModule, manifest: Manifest, smg: Smg) -> dict:
    parameters = module.params
    host, names = parameters["host"], parameters["names"]
    services = [service for service in parameters["services"] if not names or service["service"] in names]

    def restored(workers: list) -> list:
        there = {worker["id"] for worker in workers} | {worker_id(host, service["service"]) for service in services}
        all_ = [service for service in parameters["services"] if worker_id(host, service["service"]) in there]
        return merged(workers, {host: all_})

    before = manifest.workers()
    after = restored(before)
    result = {"changed": before != after, "diff": {"before": shown(before), "after": shown(after)}}
    if module.check_mode:
        return result
    changed = manifest.change(restored)
    wait_until_ready(smg, [entry(host, service) for service in services], parameters["timeout"])
    return result | {"changed": changed}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "drained"], "required": True},
            "host": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "services": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "service": {"type": "str", "required": True},
                    "url": {"type": "str", "required": True},
                    "model": {"type": "str", "required": True},
                },
            },
            "directory": {"type": "path", "default": "/opt/blackwell-serving/gateway"},
            "address": {"type": "str", "default": "http://127.0.0.1:29100"},
            "timeout": {"type": "int", "default": 600},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    folder = os.path.join(module.params["directory"], "workers")
    if not os.path.isdir(folder):
        # Nothing in flight, and nothing to give work to: the gateway's first run gives it all services.
        if module.params["state"] == "present":
            module.warn(
                f"{folder} is not there, so no gateway runs here yet: playbooks/gateway.yml and site.yml run it."
            )
        module.exit_json(changed=False, drained=[], cut=0, alone=[])
    manifest, smg = Manifest(os.path.join(folder, "workers.json")), Smg(module.params["address"])
    run = {"present": run_present, "drained": run_drained}[module.params["state"]]
    try:
        result = run(module, manifest, smg)
    except GatewayError as problem:
        module.fail_json(msg=f"{module.params['host']}: {problem}", changed=True)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
