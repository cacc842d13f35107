#!/usr/bin/python
"""Whether this host reaches others over TCP."""

from __future__ import annotations

DOCUMENTATION = r"""
module: hosts_reachable
short_description: See that other hosts can be reached over TCP
version_added: 0.3.0
description:
  - Opens a connection to each address. That it opens, or that the other host refuses it, shows that the host is there
    and that its packets come back; nothing has to listen.
  - An answer that never comes, as from a firewall that drops, and one that says there is no way, fail.
options:
  addresses:
    description: Addresses of the other hosts.
    type: list
    elements: str
    required: true
  port:
    description: TCP port.
    type: int
    required: true
  timeout:
    description: Seconds to wait for each address; all are asked at the same time.
    type: float
    default: 5
attributes:
  check_mode:
    support: full
    description: Asks the same.
extends_documentation_fragment: blackwell.serving.only_reads
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: See that the hosts of the group reach each other
  blackwell.serving.hosts_reachable:
    addresses: [10.30.0.24, 10.30.0.25]
    port: 20000
"""

RETURN = r"""
unreachable:
  description: By address, why it cannot be reached.
  returned: always
  type: dict
  sample: {10.30.0.25: no answer within 5 s}
"""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

from ansible.module_utils.basic import AnsibleModule


def why_not(address: str, port: int, timeout: float) -> str:
    """Empty where the host is there."""
    started = time.monotonic()
    try:
        socket.create_connection((address, port), timeout).close()
    except ConnectionRefusedError:
        return ""
    except OSError as problem:
        if time.monotonic() - started >= timeout:
            return f"no answer within {timeout:g} s"
        return problem.strerror or str(problem)
    return ""


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "addresses": {"type": "list", "elements": "str", "required": True},
            "port": {"type": "int", "required": True},
            "timeout": {"type": "float", "default": 5},
        },
        supports_check_mode=True,
    )
    addresses, port, timeout = (module.params[name] for name in ("addresses", "port", "timeout"))
    with ThreadPoolExecutor(max_workers=max(1, len(addresses))) as pool:
        reasons = dict(zip(addresses, pool.map(lambda address: why_not(address, port, timeout), addresses)))
    unreachable = {address: reason for address, reason in reasons.items() if reason}
    if unreachable:
        said = "; ".join(f"{address}: {reason}" for address, reason in unreachable.items())
        module.fail_json(
            msg=f"TCP port {port} cannot be reached: {said}. Look at the addresses, the routes and the firewalls of "
            "both sides. Nothing was changed.",
            unreachable=unreachable,
        )
    module.exit_json(unreachable={})


if __name__ == "__main__":
    main()
