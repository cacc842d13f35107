#!/usr/bin/python
"""Documentation of the action plugin of the same name; the work is done on the control node."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_manifest
short_description: Write or verify the manifest of a bundle, on the control node
version_added: 0.4.0
description:
  - V(verified) reads every byte of a bundle and compares it with C(manifest.json). A file that is missing, foreign or
    not as it was is named, with what was expected and found, and the task fails.
  - The host is never contacted.
options:
  directory:
    description: The bundle.
    type: path
    required: true
  state:
    description: V(begun) removes the manifest, so that an unfinished bundle is none; V(written) writes it.
    type: str
    choices: [verified, begun, written]
    default: verified
  sha256:
    description: SHA-256 that the manifest must have. Empty, any manifest that its files agree with.
    type: str
    default: ""
  parts:
    description: What the manifest says besides files, C(systems), C(images), C(models) and C(control).
    type: dict
    default: {}
  files:
    description: The files that were gathered, with C(path) and C(sha256); others below O(directory) are removed.
    type: list
    elements: dict
    default: []
  kept:
    description: Further files and directories that belong to the bundle.
    type: list
    elements: str
    default: []
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Verify a bundle
  blackwell.serving.bundle_manifest:
    directory: /media/stick/bundle
  run_once: true
"""

RETURN = r"""
manifest:
  description: What C(manifest.json) holds.
  returned: success
  type: dict
sha256:
  description: Its SHA-256.
  returned: success
  type: str
bytes:
  description: The size of all files.
  returned: with O(state=written)
  type: int
"""
