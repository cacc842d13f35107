#!/usr/bin/python
"""Checks of a GPU host in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_verification_checks
short_description: Check that a GPU host does what it was provisioned for
version_added: 0.2.0
description:
  - Looks at what the host does, not at what a role wrote. Is the driver loaded, open and the installed one, does each
    GPU answer with the compute capability of its PCI id, does C(nvcc) compile a program that calculates right on each
    GPU, does a container get the GPUs, are ports and disk space free.
  - Changes nothing. It works in a temporary directory, which it removes, and in containers that are removed. An image
    that is pulled stays.
  - A check that fails does not make the module fail.
options:
  checks:
    description: The checks to do.
    type: list
    elements: str
    required: true
    choices:
      - gpu_present
      - driver_loaded
      - driver_open
      - driver_installed
      - gpu_capability
      - cuda_on_path
      - cuda_compiles
      - cuda_runs
      - docker_runs
      - container_toolkit
      - docker_cdi
      - docker_runtime
      - packages_whole
      - ports
      - disk_space
      - services_up
      - services_answer
      - services_memory
  gpu_required:
    description: Whether a host without an NVIDIA GPU fails. If not, the checks that need one are left out there.
    type: bool
    default: true
  capabilities:
    description: Compute capability by PCI device id.
    type: dict
    required: true
  capability_without_gpu:
    description: Compute capability to compile for where there is no GPU.
    type: str
    required: true
  cuda_version:
    description: Version of CUDA, major and minor.
    type: str
    required: true
  source:
    description: Source of the CUDA program that is compiled and run.
    type: str
    required: true
  container_image:
    description: Image with a shell in which C(nvidia-smi) and the program are run.
    type: str
    required: true
  pull:
    description: Whether to pull the image where it is missing. It is never pulled in check mode.
    type: bool
    default: true
  minimum:
    description: Least versions, C(docker), C(compose) and C(toolkit).
    type: dict
    required: true
  ports:
    description: TCP ports of the host that must be free, or published by a container of O(project).
    type: list
    elements: int
    default: []
  project:
    description: Name of our Compose project.
    type: str
    required: true
  disk:
    description: GiB that must be available, by path.
    type: dict
    default: {}
  stack_dir:
    description:
      - Directory in which the stack is deployed. Its services are those of C(current/plan.json) there; they are asked
        for a completion of a few tokens.
    type: path
    default: /opt/blackwell-serving/stack
  stack_required:
    description: Whether a stack must be deployed. If not, the checks of its services are left out where there is none.
    type: bool
    default: false
  docker_socket:
    description: Socket of the Docker engine.
    type: path
    default: /var/run/docker.sock
attributes:
  check_mode:
    support: full
    description: Does the same, but pulls no image.
extends_documentation_fragment: blackwell.serving.only_reads
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Check driver and disk
  blackwell.serving.host_verification_checks:
    checks: [driver_loaded, driver_open, disk_space]
    capabilities: {2b85: "12.0"}
    capability_without_gpu: "12.0"
    cuda_version: "12.9"
    source: "{{ lookup('ansible.builtin.file', 'vector_add.cu') }}"
    container_image: debian:trixie-slim
    minimum: {docker: "26.1", compose: "2.26", toolkit: 1.19.1}
    project: serving
    disk: {/var/lib/docker: 50}
  register: verification
"""

RETURN = r"""
checks:
  description: One entry per check, in a fixed order. C(remedy) says what to do; it is empty where the check is ok.
  returned: always
  type: list
  elements: dict
  sample:
    - {id: driver_open, status: ok, message: the open kernel modules are loaded, remedy: ""}
exit_code:
  description: V(0) where all are ok, V(1) where one failed, V(2) where none failed but one could not be checked.
  returned: always
  type: int
text:
  description: The checks as a table.
  returned: always
  type: str
measured:
  description: GPU memory in GiB as CUDA sees it, total and free, where the program ran.
  returned: always
  type: list
  elements: dict
  sample:
    - {index: 0, name: NVIDIA GeForce RTX 5090, pci_bus_id: "0000:01:00.0", total_gib: 31.36, free_gib: 30.86}
services:
  description:
    - What was found of each service of the deployed plan - state, restarts, the answer to the test prompt and its time,
      and what the engine reports of its memory, beside what was planned.
  returned: always
  type: list
  elements: dict
  sample:
    - name: qwen
      engine: sglang
      state: running
      health: healthy
      restarts: 0
      answer: " Paris."
      completion_seconds: 0.081
      kv_tokens: 65536
      planned_kv_tokens: 65536
      weights_gib: 5.88
      planned_weights_gib: 5.87
driver:
  description: The driver, as in C(ansible_facts['gpu_host']['driver']).
  returned: always
  type: dict
"""

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import put_there
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.gather import gather
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.host_verification import (
    CHECKS,
    SOURCE_NAME,
    Verification,
    Wanted,
    exit_code,
    table,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "checks": {"type": "list", "elements": "str", "required": True, "choices": list(CHECKS)},
            "gpu_required": {"type": "bool", "default": True},
            "capabilities": {"type": "dict", "required": True},
            "capability_without_gpu": {"type": "str", "required": True},
            "cuda_version": {"type": "str", "required": True},
            "source": {"type": "str", "required": True},
            "container_image": {"type": "str", "required": True},
            "pull": {"type": "bool", "default": True},
            "minimum": {"type": "dict", "required": True},
            "ports": {"type": "list", "elements": "int", "default": []},
            "project": {"type": "str", "required": True},
            "disk": {"type": "dict", "default": {}},
            "stack_dir": {"type": "path", "default": "/opt/blackwell-serving/stack"},
            "stack_required": {"type": "bool", "default": False},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    parameters = module.params
    wanted = Wanted(
        gpu_required=parameters["gpu_required"],
        capabilities={str(pci_id): str(capability) for pci_id, capability in parameters["capabilities"].items()},
        capability_without_gpu=parameters["capability_without_gpu"],
        cuda_version=parameters["cuda_version"],
        container_image=parameters["container_image"],
        pull=parameters["pull"] and not module.check_mode,
        minimum={name: str(version) for name, version in parameters["minimum"].items()},
        ports=parameters["ports"],
        project=parameters["project"],
        disk={path: float(gib) for path, gib in parameters["disk"].items()},
        stack_dir=parameters["stack_dir"],
        stack_required=parameters["stack_required"],
    )
    host = Host()
    facts = gather(host, docker_socket=parameters["docker_socket"])
    with tempfile.TemporaryDirectory(prefix="host-verification-", dir=module.tmpdir) as directory:
        os.chmod(directory, 0o755)  # containers read it
        with open(os.path.join(directory, SOURCE_NAME), "w", encoding="utf-8") as file:
            file.write(parameters["source"])
        verification = Verification(host, facts, wanted, directory, parameters["docker_socket"])
        checks = verification.run(parameters["checks"])
    if verification.pulled:
        record = put_there.Record(put_there.PATH)
        for image in verification.pulled:
            record.image(image)
        record.save()
    module.exit_json(
        changed=False,
        checks=checks,
        exit_code=exit_code(checks),
        text=table(checks),
        measured=verification.measured,
        services=verification.services,
        driver=facts["driver"],
    )


if __name__ == "__main__":
    main()
