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
  directory:
    description: The directory. Who can read C(ca.key) in it can make certificates that clients trust.
    type: path
    required: true
  name:
    description: Name of the gateway's files in it.
    type: str
    required: true
  names:
    description: Names and addresses by which clients reach the gateway.
    type: list
    elements: str
    required: true
attributes:
  diff_mode:
    support: none
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
  returned: success
  type: str
certificate:
  description: Path of the gateway's certificate.
  returned: success
  type: str
key:
  description: Path of its key.
  returned: success
  type: str
"""
