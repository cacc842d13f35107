#!/usr/bin/python
"""Read which services the current release of a host serves."""

from __future__ import annotations

DOCUMENTATION = r"""
module: stack_services
short_description: Read which services the current release of a host serves
version_added: 0.4.0
description:
  - Reads C(plan.json) of the release that C(compose_stack) made current. Where there is none, the list is empty.
options:
  directory:
    description: Directory of the stack.
    type: path
    default: /opt/blackwell-serving/stack
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Read what the host serves
  blackwell.serving.stack_services:
  register: served
"""

RETURN = r"""
release:
  description: Name of the release; empty where there is none.
  returned: success
  type: str
services:
  description: Its services, each with C(name), C(served_name), C(bind_address) and C(port).
  returned: success
  type: list
  elements: dict
  sample:
    - {name: qwen, served_name: Qwen/Qwen2.5-3B-Instruct, bind_address: 10.0.0.11, port: 30002}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import Releases

KEYS = ("name", "served_name", "bind_address", "port")


def main() -> None:
    module = AnsibleModule(
        argument_spec={"directory": {"type": "path", "default": "/opt/blackwell-serving/stack"}},
        supports_check_mode=True,
    )
    release = Releases(module.params["directory"]).current()
    services = release.plan.get("services", []) if release else []
    module.exit_json(
        changed=False,
        release=release.name if release else "",
        services=[{key: service[key] for key in KEYS} for service in services],
    )


if __name__ == "__main__":
    main()
