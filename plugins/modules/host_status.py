#!/usr/bin/python
"""What a GPU host is and serves at this moment."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_status
short_description: Read what a GPU host is and serves, in one call
version_added: 0.3.0
description:
  - Reads the facts of M(blackwell.serving.gpu_host_facts), the release that serves with its plan, the containers of the
    stack and of the collection's other projects, how much GPU memory each container holds, and what the engines that
    are up report of their memory.
  - Changes nothing, and asks no engine for a completion.
options:
  project:
    description: Name of the Compose project.
    type: str
    required: true
  stack_dir:
    description: Directory in which the stack is deployed.
    type: path
    default: /opt/blackwell-serving/stack
  docker_socket:
    description: Socket of the Docker engine.
    type: path
    default: /var/run/docker.sock
extends_documentation_fragment: blackwell.serving.only_reads
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Look at the host
  blackwell.serving.host_status:
    project: serving
  register: seen
"""

RETURN = r"""
status:
  description:
    - C(facts) as in C(ansible_facts['gpu_host']); C(release) that serves, with C(plan) and C(definition), or V(null);
      C(containers); C(gpu_memory), MiB by container and GPU; C(images), ids by reference; C(memory), what the engines
      report beside the plan; C(uptime_seconds) of the host.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Host
from ansible_collections.blackwell.serving.plugins.module_utils.host_status import look
from ansible_collections.blackwell.serving.plugins.module_utils.stack_docker import StackDocker
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import Releases


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "stack_dir": {"type": "path", "default": "/opt/blackwell-serving/stack"},
            "docker_socket": {"type": "path", "default": "/var/run/docker.sock"},
        },
        supports_check_mode=True,
    )
    host = Host()
    docker = StackDocker(host, module.params["project"], module.params["docker_socket"])
    module.exit_json(changed=False, status=look(host, docker, Releases(module.params["stack_dir"])))


if __name__ == "__main__":
    main()
