#!/usr/bin/python
"""Lay out images and models of this host as files of a bundle, and tell what a directory holds."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bundle_contents
short_description: Lay out images and models of a host as files of a bundle
version_added: 0.4.0
description:
  - Saves images to archives, and links a cache's models, below O(directory). What is there already stays.
  - Returns the files below O(directory) with their SHA-256. One that was hashed before is known by its size and time.
options:
  directory:
    description: Where the files are laid out. What else is below it belongs to the bundle as well.
    type: path
    required: true
  images:
    description: References of images that this host has.
    type: list
    elements: str
    default: []
  archives:
    description: The directory of the archives, below O(directory).
    type: str
    default: images
  models:
    description: Models that O(volume) has complete.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Name on the Hub.
        type: str
        required: true
      revision:
        description: Branch, tag or commit.
        type: str
        default: main
  volume:
    description: The Docker volume with the Hugging Face cache.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: Lays out nothing, and returns what is there.
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Lay out an engine's image and a model
  blackwell.serving.bundle_contents:
    directory: /var/lib/blackwell-serving/bundle-making/contents
    images: [lmsysorg/sglang:v0.5.19-cu129]
    models: [{name: Qwen/Qwen2.5-3B-Instruct}]
    volume: blackwell-bundle_huggingface-cache
"""

RETURN = r"""
files:
  description: The files, each with C(path), C(size) and C(sha256).
  returned: success
  type: list
  elements: dict
images:
  description: For each image its C(id), C(archive), and the C(digest) that a registry knows it by.
  returned: success
  type: dict
models:
  description: For each model C(name), C(revision), C(commit), C(directory) and C(bytes).
  returned: success
  type: list
  elements: dict
"""

import json
import os
import re
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import image_store, model_archive
from ansible_collections.blackwell.serving.plugins.module_utils.bundle_store import INDEX, PART, Store, files_below
from ansible_collections.blackwell.serving.plugins.module_utils.image_reference import parse


def archive_name(reference: str, identity: str) -> str:
    """With the id in it, so that an archive of other content has another name."""
    return f"{re.sub('[^A-Za-z0-9.-]', '_', reference)}-{identity.partition(':')[2][:12]}.tar"


class Contents:
    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.directory: str = module.params["directory"]
        self.changed = False

    def fail(self, text: str) -> None:
        self.module.fail_json(msg=text, changed=self.changed)

    def docker(self, *words: str) -> str:
        code, out, err = self.module.run_command(["docker", *words])
        if code:
            self.fail(f"docker {words[0]} {words[1]} failed: {(err or out).strip()}")
        return out

    def save(self, reference: str) -> dict[str, Any]:
        image = json.loads(self.docker("image", "inspect", reference))[0]
        path = f"{self.module.params['archives']}/{archive_name(reference, image['Id'])}"
        place = os.path.join(self.directory, path)
        if not os.path.exists(place) and not self.module.check_mode:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            self.docker("image", "save", "--output", place + PART, reference)
            os.replace(place + PART, place)
            self.changed = True
        return {
            "id": image["Id"],
            "archive": path,
            "digest": image_store.digest_of(image, parse(reference).name) or "",
            "size_bytes": image.get("Size") or 0,
        }

    def forget(self, kind: str, kept: set[str]) -> None:
        """Remove what an earlier bundle had below `kind`."""
        for path, place in files_below(Path(self.directory, kind)).items():
            if not self.module.check_mode and not any(f"{kind}/{path}".startswith(keep) for keep in kept):
                place.unlink()
                self.changed = True

    def take(self, model: dict[str, Any]) -> dict[str, Any]:
        home = json.loads(self.docker("volume", "inspect", self.module.params["volume"]))[0]["Mountpoint"]
        archive = model_archive.ModelArchive(os.path.join(self.directory, "models"), model["name"], model["revision"])
        try:
            if not self.module.check_mode and archive.take_from(home):
                self.changed = True
            marker = archive.marker()
        except (OSError, ValueError) as error:
            self.fail(f"{model['name']}: {error}")
        return {
            "name": model["name"],
            "revision": model["revision"],
            "commit": marker["commit"],
            "directory": f"models/{model_archive.place(model['name'], model['revision'])}",
            "bytes": sum(marker["files"].values()),
        }

    def files(self) -> list[dict[str, Any]]:
        store = Store(self.directory)
        found = []
        for path, place in files_below(store.directory).items():
            if path == INDEX or path.endswith(PART):
                continue
            digest = store.digest(path)
            if digest is None:
                self.fail(f"{place} is no plain file")
            found.append({"path": path, "size": place.stat().st_size, "sha256": digest})
        if not self.module.check_mode:
            store.save()
        return found


def main() -> None:
    model_options = {"name": {"type": "str", "required": True}, "revision": {"type": "str", "default": "main"}}
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "images": {"type": "list", "elements": "str", "default": []},
            "archives": {"type": "str", "default": "images"},
            "models": {"type": "list", "elements": "dict", "default": [], "options": model_options},
            "volume": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    contents = Contents(module)
    images = {reference: contents.save(reference) for reference in module.params["images"]}
    models = [contents.take(model) for model in module.params["models"]]
    contents.forget(module.params["archives"], {image["archive"] for image in images.values()})
    contents.forget("models", {f"{model['directory']}/" for model in models})
    files = contents.files()
    module.exit_json(changed=contents.changed, files=files, images=images, models=models)


if __name__ == "__main__":
    main()
