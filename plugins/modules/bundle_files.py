#!/usr/bin/python
"""The host's side of bringing files of a bundle; the action plugin of the same name is the control node's side."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_files
short_description: Bring the files of a bundle to a host, or fetch a host's files for one
version_added: 0.4.0
description:
  - The control node's side compares O(groups) with what the host has, and sends what is missing, in pieces, over the
    connection that Ansible has anyway. What was interrupted goes on with the piece that was cut off.
  - Each file is checked against its SHA-256 when its last byte has arrived. On a host that has everything this is one
    call, which compares sizes and times with those of files that were hashed before.
  - A group whose image Docker has, or whose model is complete in the cache, is not needed, and nothing of it is sent.
  - Files in O(directory) that belong to no group, those of an older bundle, are removed.
options:
  state:
    description:
      - V(present) brings the files of O(groups) from O(source) to O(directory) on the host.
      - V(fetched) brings O(files) from O(directory) on the host to O(source) on the control node.
    type: str
    choices: [present, fetched]
    default: present
  directory:
    description: The directory on the host.
    type: path
    required: true
  source:
    description: The bundle on the control node.
    type: path
  groups:
    description: What the host is to have.
    type: list
    elements: dict
    default: []
    suboptions:
      files:
        description: Each with C(path) (in the bundle, and below O(directory)), C(size) and C(sha256).
        type: list
        elements: dict
        required: true
      image:
        description: The files are an archive of this image; C(reference) and C(id).
        type: dict
      model:
        description: The files are a model; C(name), C(revision) and C(volume), the cache that would have it.
        type: dict
  files:
    description: What is fetched, each with C(path), C(size) and C(sha256).
    type: list
    elements: dict
    default: []
  piece_mib:
    description: The largest piece.
    type: int
    default: 128
  keep_free_gib:
    description: Disk space that must be left on the host.
    type: int
    default: 2
  operation:
    description: What the action plugin asks the host for.
    type: str
    choices: [compare, write, read]
    default: compare
  piece:
    description: Path of a piece on the host, set by the action plugin.
    type: path
  segments:
    description: What a piece consists of, set by the action plugin.
    type: list
    elements: dict
    default: []
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Bring an archive
  blackwell.serving.bundle_files:
    source: /media/stick/bundle
    directory: /var/lib/blackwell-serving/bundle
    groups:
      - files:
          - path: images/amd64/engine.tar
            size: 4
            sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
        image:
          reference: example/engine:1
          id: sha256:0d1f5d1f3a9e6f6b6d2b4f4a1c0e7c9b8a7d6e5f4c3b2a190817263544536271
"""

RETURN = r"""
missing:
  description: Files that the host lacked, with C(have), the bytes of them that had arrived before.
  returned: success
  type: list
  elements: dict
removed:
  description: Files of an older bundle that were, or in check mode would be, removed.
  returned: success
  type: list
  elements: str
bytes:
  description: How much was, or would be, brought.
  returned: success
  type: int
"""

import json
import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import hub_download
from ansible_collections.blackwell.serving.plugins.module_utils.bundle_store import BundleError, Store

GIB = 2**30


class Host:
    """What the host has already, besides files."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.docker = module.get_bin_path("docker")

    def has(self, group: dict[str, Any]) -> bool:
        return bool(
            (group["image"] and self.has_image(**group["image"]))
            or (group["model"] and self.has_model(**group["model"]))
        )

    def inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        if not self.docker:
            return None
        code, out, _ = self.module.run_command([self.docker, kind, "inspect", name])
        return json.loads(out)[0] if code == 0 else None

    def has_image(self, reference: str, id: str) -> bool:
        image = self.inspect("image", reference)
        return bool(image) and image["Id"] == id

    def has_model(self, name: str, revision: str, volume: str) -> bool:
        found = self.inspect("volume", volume)
        return bool(found) and hub_download.complete(found["Mountpoint"], name, revision) is not None


def free_bytes(path: str) -> int:
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def compare(module: AnsibleModule, store: Store) -> dict[str, Any]:
    options = module.params
    host = Host(module)
    needed = [file for group in options["groups"] if not host.has(group) for file in group["files"]]
    missing = store.missing(needed)
    stale = store.stale(file["path"] for group in options["groups"] for file in group["files"])
    size = sum(file["size"] - file["have"] for file in missing)
    least = options["keep_free_gib"] * GIB
    free = free_bytes(options["directory"])
    if size and size + least > free:
        raise BundleError(
            f"{size / GIB:.1f} GiB of the bundle are to come to {options['directory']}, and {free / GIB:.1f} GiB are "
            f"free there, of which {options['keep_free_gib']} GiB must stay free. Nothing was sent"
        )
    if not module.check_mode:
        if stale:
            store.remove(stale)
        if needed or stale:
            store.save()
    return {"changed": bool(missing or stale), "missing": missing, "removed": stale, "bytes": size}


def main() -> None:
    group_options = {
        "files": {"type": "list", "elements": "dict", "required": True},
        "image": {"type": "dict"},
        "model": {"type": "dict"},
    }
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "fetched"], "default": "present"},
            "directory": {"type": "path", "required": True},
            "source": {"type": "path"},
            "groups": {"type": "list", "elements": "dict", "default": [], "options": group_options},
            "files": {"type": "list", "elements": "dict", "default": []},
            "piece_mib": {"type": "int", "default": 128},
            "keep_free_gib": {"type": "int", "default": 2},
            "operation": {"type": "str", "choices": ["compare", "write", "read"], "default": "compare"},
            "piece": {"type": "path"},
            "segments": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    operation, store = module.params["operation"], Store(module.params["directory"])
    try:
        if operation == "compare":
            module.exit_json(**compare(module, store))
        if operation == "read":
            store.read_piece(module.params["piece"], module.params["segments"])
        else:
            store.write_piece(module.params["piece"], module.params["segments"])
            store.save()
    except BundleError as error:
        module.fail_json(msg=f"{error}.")
    except OSError as error:
        module.fail_json(msg=f"{error.filename or module.params['directory']}: {error.strerror or error}.")
    module.exit_json(changed=operation == "write")


if __name__ == "__main__":
    main()
