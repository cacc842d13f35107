#!/usr/bin/python
"""Documentation of the action plugin of the same name; the work is done on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: image_locks
short_description: Keep in the inventory which content each image's tag stands for
version_added: 0.3.0
description:
  - Reads the lock file of an inventory on the control node, and adds O(locks) to it. The file defines the variable
    C(serving_image_locks), so that every host and every later run gets the same images.
  - The host is never contacted.
options:
  path:
    description: The lock file. C(group_vars/all/) beside the inventory is where Ansible reads it.
    type: path
    required: true
  locks:
    description: What is added or replaced, C(digest) or C(id) by reference. Empty, the file is only read.
    type: dict
    default: {}
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Lock an image
  blackwell.serving.image_locks:
    path: "{{ inventory_dir }}/group_vars/all/images.lock.yml"
    locks:
      vllm/vllm-openai:v0.33.0:
        digest: sha256:0d1f5d1f3a9e6f6b6d2b4f4a1c0e7c9b8a7d6e5f4c3b2a190817263544536271
  run_once: true
"""

RETURN = r"""
locks:
  description: What the file holds afterwards.
  returned: success
  type: dict
problem:
  description: Why the file could not be written there; empty where it could.
  returned: success
  type: str
"""
