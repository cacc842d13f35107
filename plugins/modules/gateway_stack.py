#!/usr/bin/python
"""Run a gateway: smg, the front with TLS and keys, and the workers that smg has."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_stack
short_description: Run smg and its front as a Compose project, and tell smg its workers
version_added: 0.4.0
description:
  - Brings the gateway's containers, its configuration and its list of workers to what is asked for, in one call, as
    M(blackwell.serving.compose_project) does it, which also takes the gateway away. What is as it should be stays
    untouched.
  - A new configuration of the front is tried by the front's own program first. One that it refuses changes nothing. A
    new one is taken over without losing a request, and so are new workers; neither restarts a container.
  - A container that does not come up gives way to the one before it, with its configuration, and the module fails.
  - Changes need python-on-whales, see O(venv).
options:
  project:
    description: Name of the Compose project.
    type: str
    default: blackwell-gateway
  directory:
    description: Directory of the gateway on its host.
    type: path
    default: /opt/blackwell-serving/gateway
  compose:
    description: The text of C(compose.yaml).
    type: str
    required: true
  definition:
    description: The same Compose file as a dictionary.
    type: dict
    required: true
  images:
    description: What is locked, C(digest) or C(id) by reference, as in C(serving_image_locks).
    type: dict
    default: {}
  front:
    description: Files that the front reads, by name. Empty for a gateway without a front.
    type: dict
    default: {}
  secrets:
    description: Further files that the front reads, of mode 0600, by name. No output shows them.
    type: dict
    default: {}
  workers:
    description:
      - The services of each GPU host, as a list of C(service), C(url) and C(model) by host. Hosts that are not named
        here keep the workers they have.
    type: dict
    default: {}
  known_hosts:
    description: All GPU hosts. Workers of other hosts are removed.
    type: list
    elements: str
    default: []
  check_url:
    description: What answers 200 once the gateway works. A certificate is not verified.
    type: str
    default: ""
  timeout:
    description: Seconds in which the containers have to come up.
    type: int
    default: 60
  lock_timeout:
    description: Seconds to wait for another run on the same directory to end.
    type: int
    default: 300
  venv:
    description: Virtual environment on the host with python-on-whales.
    type: path
    default: /opt/blackwell-serving/venv
  docker_socket:
    description: Socket of the Docker engine.
    type: path
    default: /var/run/docker.sock
attributes:
  check_mode:
    support: full
    description: Says what would be done. A new configuration of the front is not tried.
  diff_mode:
    support: full
    description: The steps, the workers, and the files that hold no secrets.
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Run the gateway
  blackwell.serving.gateway_stack:
    compose: "{{ gateway_compose_text }}"
    definition: "{{ gateway_compose_text | from_yaml }}"
    workers:
      box1:
        - {service: qwen, url: "http://10.0.0.11:30002", model: Qwen/Qwen2.5-3B-Instruct}
    known_hosts: [box1]
"""

RETURN = r"""
steps:
  description: What was done, in this order, or would be done in check mode.
  returned: success
  type: list
  elements: str
  sample: ["smg: recreate, changed: image", "nginx: reads its files again"]
locked:
  description: Images that had no lock and were had by their tag, C(digest) or C(id) by reference.
  returned: success
  type: dict
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.compose_project import (
    Change,
    File,
    Project,
    Reload,
    make_directory,
)
from ansible_collections.blackwell.serving.plugins.module_utils.compose_runner import Runner, answer
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_workers import (
    GatewayError,
    Manifest,
    merged,
    shown,
)
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.project_images import ProjectImages
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import StackDocker

FRONT = "nginx"


class Workers:
    """The manifest of workers, which others change as well: hosts that drain."""

    def __init__(self, parameters: dict) -> None:
        self.directory = os.path.join(parameters["directory"], "workers")
        self.manifest = Manifest(os.path.join(self.directory, "workers.json"))
        self.hosts, self.known_hosts = parameters["workers"], parameters["known_hosts"]

    def wanted(self, before: list) -> list:
        return merged(before, self.hosts, self.known_hosts)

    def differ(self) -> bool:
        before = self.manifest.workers()
        return before != self.wanted(before) or not os.path.exists(self.manifest.path)

    def set(self) -> None:
        make_directory(self.directory)
        self.manifest.change(self.wanted, create=True)

    def diff(self) -> dict:
        before = self.manifest.workers()
        header = {"before_header": "workers", "after_header": "workers"}
        return {**header, "before": shown(before), "after": shown(self.wanted(before))}


class GatewayRunner(Runner):
    """smg reads its workers when it starts, so they are there before."""

    def __init__(self, workers: Workers, *what: object) -> None:
        super().__init__(*what)
        self.workers = workers

    def bring(self, change: Change) -> None:
        self.workers.set()
        super().bring(change)


def project_of(parameters: dict, images: dict) -> Project:
    """nginx reads what is in front/ again on a signal, and no request is lost."""
    services = parameters["definition"]["services"]
    files = [File(f"front/{name}", content) for name, content in parameters["front"].items()]
    files += [File(f"front/{name}", content, "0600", secret=True) for name, content in parameters["secrets"].items()]
    check = [*(services.get(FRONT) or {}).get("command", []), "-t", "-q"]
    return Project(
        name=parameters["project"],
        definition=parameters["definition"],
        compose=parameters["compose"],
        files=files,
        reloads=[Reload(FRONT, ["front/*"], check=check, signal="HUP")] if FRONT in services else [],
        images=images,
    )


def run(module: AnsibleModule) -> dict:
    parameters = module.params
    docker = StackDocker(Host(), parameters["project"], parameters["docker_socket"])
    images, workers = ProjectImages(docker, parameters["images"]), Workers(parameters)
    pinned = images.pin(parameters["definition"], module.check_mode, parameters["venv"])
    what = (docker, parameters["directory"], parameters["timeout"], parameters["check_url"])
    runner = GatewayRunner(workers, project_of(parameters, pinned), *what)
    differ, diff = workers.differ(), workers.diff()
    done = runner.run(module.check_mode, parameters["venv"], parameters["lock_timeout"])
    if differ and not module.check_mode:
        workers.set()
    return {
        "changed": done["changed"] or differ,
        "steps": [f"{step['service']}: {step['action']}, {step['reason']}" for step in done["steps"]]
        + [f"{service}: reads its files again" for service in done["reloaded"]],
        "locked": images.locked,
        "diff": done["diff"] + ([diff] if differ else []),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "default": "blackwell-gateway"},
            "directory": {"type": "path", "default": "/opt/blackwell-serving/gateway"},
            "compose": {"type": "str", "required": True},
            "definition": {"type": "dict", "required": True},
            "images": {"type": "dict", "default": {}},
            "front": {"type": "dict", "default": {}},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "workers": {"type": "dict", "default": {}},
            "known_hosts": {"type": "list", "elements": "str", "default": []},
            "check_url": {"type": "str", "default": ""},
            "timeout": {"type": "int", "default": 60},
            "lock_timeout": {"type": "int", "default": 300},
            "venv": {"type": "path", "default": "/opt/blackwell-serving/venv"},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    try:
        answer(module, lambda: run(module))
    except GatewayError as problem:
        module.fail_json(msg=str(problem))


if __name__ == "__main__":
    main()
