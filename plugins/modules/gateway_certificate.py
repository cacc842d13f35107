#!/usr/bin/python
"""Documentation of the action plugin of the same name; the work is done on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gateway_certificate
short_description: Give a gateway a certificate of a private authority
version_added: 0.4.0
description:
  - Keeps a private certificate authority in a directory of the control node, and in it a key and a certificate for each
    gateway. The certificate is made anew 30 days before it ends, or when O(names) change.
  - The host is never contacted.
options:
  state:
    description:
      - With V(absent) the gateway's key and certificate go, and with those of the last gateway the authority too,
        unless somebody put another one there. Clients that trust it have to be given a new one then.
    type: str
    choices: [present, absent]
    default: present
  directory:
    description: The directory. Who can read C(ca.key) in it can make certificates that clients trust.
    type: path
    required: true
  name:
    description: Name of the gateway's files in it.
    type: str
    required: true
  names:
    description: Names and addresses by which clients reach the gateway. Required for V(present).
    type: list
    elements: str
    default: []
attributes:
  diff_mode:
    support: partial
    description: With V(absent), the files that go.
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Have a certificate for the gateway
  blackwell.serving.gateway_certificate:
    directory: "{{ inventory_dir }}/gateway_ca"
    name: gateway1
    names: [llm.example.internal, 10.0.0.10]
"""

RETURN = r"""
authority:
  description: Path of the authority's certificate, which clients have to trust.
  returned: with O(state=present)
  type: str
certificate:
  description: Path of the gateway's certificate.
  returned: with O(state=present)
  type: str
key:
  description: Path of its key.
  returned: with O(state=present)
  type: str
"""
