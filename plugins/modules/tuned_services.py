#!/usr/bin/python
"""Documentation of the action plugin of the same name; the work is done on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: tuned_services
short_description: Keep in the inventory which options were faster when measured
version_added: 0.4.0
description:
  - Writes the variable C(serving_tuned) of a host into a file of its inventory on the control node.
  - Refuses a file that would hide the host's other variables from Ansible, and one that holds something else than the
    variable does. Without O(tuned) it only looks whether the file may be written.
  - The host is never contacted.
options:
  path:
    description: The file.
    type: path
    required: true
  known:
    description: The variable as this run knows it.
    type: dict
    default: {}
  tuned:
    description: What the variable becomes.
    type: dict
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Keep what was found
  blackwell.serving.tuned_services:
    path: inventory/mine/host_vars/box1/tuned.yml
    tuned:
      qwen: {engine: sglang, engine_version: 0.5.19, extra_args: {attention-backend: triton}}
"""

RETURN = r"""
path:
  description: The file.
  returned: always
  type: str
"""
