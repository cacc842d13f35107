#!/usr/bin/python
"""What is wrong with the stack of a host, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stack_diagnosis
short_description: Say from the logs of a host what is wrong with its stack
version_added: 0.2.0
description:
  - Reads the logs of the stack's containers, also of those that ended, their states, the journals of Docker and of the
    CDI refresh, the kernel's lines about GPUs and memory, what C(nvidia-smi) says, and how full the disk is. Each line
    that a signature knows is reported with its cause and with what to do.
  - Changes nothing, and does not fail because something is wrong.
options:
  signatures:
    description: The entries of C(catalog/failures.yml).
    type: list
    elements: dict
    required: true
  project:
    description: Name of our Compose project.
    type: str
    required: true
  stack_dir:
    description: Directory in which the stack is deployed. The services are those of C(current/plan.json) there.
    type: path
    default: /opt/blackwell-serving/stack
  tail:
    description: How many lines of each container's log are read, from its end.
    type: int
    default: 400
  since:
    description: From when on the journals of Docker and of the CDI refresh are read, as C(journalctl --since) takes it.
    type: str
    default: -2h
  disk:
    description: GiB that must be available, by path.
    type: dict
    default: {}
  docker_socket:
    description: Socket of the Docker engine.
    type: path
    default: /var/run/docker.sock
attributes:
  check_mode:
    support: full
    description: Does the same.
extends_documentation_fragment: blackwell.serving.only_reads
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Find out why a service does not start
  blackwell.serving.stack_diagnosis:
    signatures: "{{ (lookup('ansible.builtin.file', 'catalog/failures.yml') | from_yaml).failures }}"
    project: serving
  register: diagnosis

- name: Show it
  ansible.builtin.debug:
    msg: "{{ diagnosis.text }}"
"""

RETURN = r"""
findings:
  description:
    - What was found, per container or place (C(driver), C(docker), C(kernel), C(disk)), the most likely cause first. A
      container that does not run, and whose log nobody knows, has C(id=unknown) and C(last_lines).
  returned: always
  type: list
  elements: dict
  sample:
    - place: qwen
      state: has exited with status 1, 3 restarts
      id: no_kernel_image
      cause: a library of the image has no code for this GPU; no flag and no variable can change that
      remedy: Declare an image that has it.
      line: "RuntimeError: CUDA error: no kernel image is available for execution on the device"
      count: 1
containers:
  description: The stack's containers, those of the plan first, with C(status), C(health), C(exit_code) and C(restarts).
  returned: always
  type: list
  elements: dict
  sample:
    - {name: qwen, status: exited, health: "", exit_code: 1, restarts: 3}
text:
  description: The findings for people.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.diagnosis import signatures
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.stack_diagnosis import StackDiagnosis, report


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "signatures": {"type": "list", "elements": "dict", "required": True},
            "project": {"type": "str", "required": True},
            "stack_dir": {"type": "path", "default": "/opt/blackwell-serving/stack"},
            "tail": {"type": "int", "default": 400},
            "since": {"type": "str", "default": "-2h"},
            "disk": {"type": "dict", "default": {}},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    diagnosis = StackDiagnosis(
        Host(),
        signatures(parameters["signatures"]),
        stack_dir=parameters["stack_dir"],
        project=parameters["project"],
        docker_socket=parameters["docker_socket"],
        tail=parameters["tail"],
        since=parameters["since"],
        disk={path: float(gib) for path, gib in parameters["disk"].items()},
    )
    findings = diagnosis.findings()
    module.exit_json(
        changed=False,
        findings=findings,
        containers=[
            {
                "name": state.name,
                "status": state.status,
                "health": state.health,
                "exit_code": state.exit_code,
                "restarts": state.restarts,
            }
            for state in diagnosis.states
        ],
        text=report(findings, diagnosis.states),
    )


if __name__ == "__main__":
    main()
