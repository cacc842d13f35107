#!/usr/bin/python
"""Bring engine images to a host and say what they are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_images
short_description: Have exactly the wanted images on a host, and say what they hold
version_added: 0.3.0
description:
  - Brings all O(images) to the host's Docker in one call, by digest where one is locked, and reads which GPU code their
    libraries hold. What is there already costs no network.
  - A pull that breaks off is tried again, and goes on with the layers that it lacks. An image that does not exist or
    wants a login is not tried again.
  - Disk space is looked at before anything is pulled.
  - Where a lock names an image, its tag points to that image afterwards, so that C(docker image prune) leaves it alone.
options:
  images:
    description: The images.
    type: list
    elements: dict
    required: true
    suboptions:
      reference:
        description: Its name with a tag, a digest or both.
        type: str
        required: true
      source:
        description:
          - Where it comes from. V(pull), a registry; V(load), an archive of C(docker save); V(build), a Dockerfile;
            V(present), it must be there.
        type: str
        choices: [pull, load, build, present]
        default: pull
      lock:
        description:
          - What it must be, C(digest) for one that is pulled or C(id) for one that is loaded or must be there. Empty,
            what is found is returned in RV(locked).
        type: dict
        default: {}
      archive:
        description: Path of the archive on the host.
        type: path
        default: ""
      archive_kept:
        description: Whether the archive stays on the host once it is loaded.
        type: bool
        default: true
      archive_follows:
        description: Whether an archive that is not there is reported in RV(awaited) instead of an error.
        type: bool
        default: false
      build:
        description:
          - C(dockerfile), its text; C(files), further files of the context with their text; C(inputs), a digest of
            all that goes in; C(recipe), a name. An image whose label says the same inputs is not built again.
        type: dict
        default: {}
      estimated_gib:
        description: Its size on disk where the registry does not tell.
        type: float
        default: 0
      libraries:
        description: The libraries whose GPU code is read, C(name) and C(files) as in C(catalog/start_path.yml).
        type: list
        elements: dict
        default: []
  refresh:
    description: Whether images without a lock are pulled even where an image of that name is there.
    type: bool
    default: false
  registry:
    description: The registry that O(registry_username) belongs to.
    type: str
    default: docker.io
  registry_username:
    description: User of the registry. Empty, Docker's own configuration of the calling user is used.
    type: str
    default: ""
  registry_password:
    description:
      - Password or token. It is handed over on standard input, and kept in a temporary configuration that is removed.
    type: str
    default: ""
  check_disk:
    description: Whether free disk space is looked at before a pull.
    type: bool
    default: true
  keep_free_gib:
    description: Disk space that must be left after the pulls.
    type: int
    default: 10
  retries:
    description: How often a pull that broke off is tried again.
    type: int
    default: 4
  retry_delay:
    description: Seconds before the second attempt; they double with each further one.
    type: int
    default: 10
  timeout:
    description: Seconds that one attempt of a pull, a load or a build may take.
    type: int
    default: 7200
  progress_path:
    description: The file on the host to which progress is appended, for C(tail -f).
    type: path
    default: /run/blackwell-serving/images.log
  cache_path:
    description: Where it is remembered, by the image's id, which GPU code was found.
    type: path
    default: /var/lib/blackwell-serving/image_code.json
  prune:
    description:
      - Which images are removed that nothing needs. Images that a container has, stopped ones included, that a kept
        release names, or that are in O(images), always stay. Without it, none is removed.
    type: dict
    suboptions:
      repositories:
        description: The repositories whose images may go. So may images that were built by this module.
        type: list
        elements: str
        required: true
      keep:
        description: How many more images of each repository stay, those that came last.
        type: int
        default: 1
      older_than_days:
        description: Days since an image came, before it may go.
        type: int
        default: 14
      releases:
        description: The directory with the releases of the stack.
        type: path
        default: /opt/blackwell-serving/stack/releases
attributes:
  check_mode:
    support: full
    description:
      - Without Docker, all images are foretold to be brought. GPU code is then returned only of images that are there.
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Have an image by its digest
  blackwell.serving.engine_images:
    images:
      - reference: lmsysorg/sglang:v0.5.19-cu129
        lock:
          digest: sha256:0d1f5d1f3a9e6f6b6d2b4f4a1c0e7c9b8a7d6e5f4c3b2a190817263544536271

- name: Load an image on a host without a network
  blackwell.serving.engine_images:
    images:
      - reference: vllm/vllm-openai:v0.33.0
        source: load
        archive: /srv/images/vllm-0.33.0.tar
"""

RETURN = r"""
images:
  description: What each image is, or would be, in the order of O(images).
  returned: success
  type: list
  elements: dict
  contains:
    reference:
      description: As it was given.
      type: str
    present:
      description: Whether it is there now.
      type: bool
    action:
      description: What was, or would be, done for it.
      type: str
      sample: none, pull, load, build, tag
    id:
      description: Docker's id of the image.
      type: str
    digest:
      description: Its digest in the registry, where it came from one.
      type: str
    digests:
      description: All digests under which registries know it.
      type: list
      elements: str
    architecture:
      description: Such as C(amd64).
      type: str
    size_bytes:
      description: Its size on disk, as Docker tells it.
      type: int
    cuda:
      description: CUDA version of its torch, else the one that its environment names.
      type: str
    torch:
      description: Version of its torch.
      type: str
    libraries:
      description: The libraries that were found, with their GPU code.
      type: list
      elements: dict
locked:
  description: What was found for references without a lock, C(digest) or C(id) by reference.
  returned: success
  type: dict
awaited:
  description: References whose archive is not there yet.
  returned: success
  type: list
  elements: str
pruned:
  description: Images that were, or would be, removed; C(id), C(names), C(size_bytes), C(age_days).
  returned: success
  type: list
  elements: dict
progress:
  description: Downloaded C(bytes), as far as the registry tells sizes, and C(seconds).
  returned: always
  type: dict
"""

import datetime
import os
import shutil
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.blackwell.serving.plugins.module_utils import image_store
from ansible_collections.blackwell.serving.plugins.module_utils.image_code import ImageUnreadable, read_image
from ansible_collections.blackwell.serving.plugins.module_utils.image_reference import Reference, parse
from ansible_collections.blackwell.serving.plugins.module_utils.image_store import GIB, ImageError

NOTHING = {"id": None, "digest": None, "digests": [], "architecture": None, "size_bytes": None}
UNREAD = {"cuda": None, "torch": None, "libraries": []}


class Wanted:
    """One image: what is asked for, what is there, and what has to be done."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.reference: str = options["reference"]
        self.name: Reference = parse(self.reference)
        self.source: str = options["source"]
        self.lock_digest: str | None = options["lock"].get("digest") or self.name.digest
        self.lock_id: str | None = options["lock"].get("id")
        self.action = "none"
        self.before: dict[str, Any] | None = None
        self.digest: str | None = None
        if self.source == "load" and self.lock_digest:
            raise ImageError(
                f"{self.reference} is loaded from an archive, and an archive keeps no digest. Lock it by its id: "
                f"serving_image_locks: {{{self.name.tagged or self.name.name}: {{id: 'sha256:...'}}}}."
            )
        if self.source == "build" and not {"dockerfile", "inputs"} <= set(options["build"]):
            raise ImageError(f"{self.reference} is to be built, and its build lacks dockerfile or inputs")

    @property
    def pinned(self) -> str:
        """The name under which exactly the wanted content is found."""
        return self.name.pinned(self.lock_digest) if self.lock_digest else self.reference

    @property
    def pull_name(self) -> str:
        tag = f":{self.name.tag}" if self.name.tag else ""
        return f"{self.name.name}{tag}@{self.lock_digest}" if self.lock_digest else self.reference

    def decide(self, docker: image_store.Docker, refresh: bool) -> None:
        image = image_store.inspect(docker, self.pinned)
        self.before = image
        if self.source == "pull":
            self.digest = self.lock_digest or (image_store.digest_of(image, self.name.name) if image else None)
            if image is None or self.digest is None or (refresh and not self.lock_digest):
                self.action = "pull"
            elif self.lock_digest and self.name.tagged:
                tagged = image_store.inspect(docker, self.name.tagged)
                self.action = "none" if tagged and tagged["Id"] == image["Id"] else "tag"
        elif self.source == "build":
            same = image and image_store.label(image, image_store.INPUTS_LABEL) == self.options["build"]["inputs"]
            self.action = "none" if same else "build"
        else:
            right = image and self.lock_id in (None, image["Id"])
            self.action = "none" if right else self.source

    def wrong_or_missing(self) -> str:
        """Why an image that must be there is not."""
        if self.before:
            return (
                f"{self.reference} is {self.before['Id']} on this host, and {self.lock_id} is locked in "
                "serving_image_locks. Bring the locked one, or correct the lock."
            )
        return (
            f"{self.reference} is not on this host, and it is locked by an id, so it cannot be pulled. Its archive "
            "belongs in engine_image_archives, or its recipe in engine_image_builds."
        )


class EngineImages:
    """One run of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.options = module.params
        self.progress = image_store.Progress(self.options["progress_path"])
        self.awaited: list[str] = []
        self.done: list[str] = []

    def run(self) -> None:
        try:
            wanted = [Wanted(options) for options in self.options["images"]]
            try:
                info = image_store.engine_info(image_store.Docker())
            except ImageError:
                if not self.module.check_mode:
                    raise
                self._foretell_all(wanted)
            own = image_store.Docker()
            for image in wanted:
                image.decide(own, self.options["refresh"])
            self._bring(wanted, info)
            found = [self._describe(own, image) for image in wanted]
            pruned = self._prune(own, found) if self.options["prune"] else []
        except (ImageError, ValueError, ImageUnreadable) as error:
            brought = f" Brought before that: {', '.join(self.done)}." if self.done else ""
            self.module.fail_json(msg=f"{error}{brought}", progress=self._summary(), changed=bool(self.done))
        self._exit(wanted, found, pruned)

    def _foretell_all(self, wanted: list[Wanted]) -> None:
        """Check mode on a host without Docker."""
        for image in wanted:
            image.action = "pull" if image.source == "present" else image.source
        found = [
            {"reference": image.reference, "present": False, "action": image.action, **NOTHING, **UNREAD}
            for image in wanted
        ]
        self._exit(wanted, found, [])

    def _bring(self, wanted: list[Wanted], info: dict[str, Any]) -> None:
        for image in wanted:
            if image.action == "present":
                raise ImageError(image.wrong_or_missing())
            if image.action == "load" and not os.path.exists(image.options["archive"]):
                if not image.options["archive_follows"]:
                    raise ImageError(f"{image.reference}: there is no archive {image.options['archive']} on this host")
                self.awaited.append(image.reference)
        pulls = [image for image in wanted if image.action == "pull"]
        with image_store.logged_in(
            self.options["registry"],
            self.options["registry_username"] if pulls and not self.module.check_mode else "",
            self.options["registry_password"],
            self.module.tmpdir,
        ) as docker:
            sizes = self._sizes(docker, pulls, info) if pulls else {}
            if self.module.check_mode:
                return
            for image in wanted:
                self._carry_out(docker, image, sizes)

    def _sizes(
        self, docker: image_store.Docker, pulls: list[Wanted], info: dict[str, Any]
    ) -> dict[str, dict[str, int]]:
        """Bytes of the layers by reference, once it is sure that they fit."""
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(info.get("Architecture", ""), "amd64")
        sizes = {image.reference: image_store.layers(docker, image.pinned, architecture) for image in pulls}
        needed = {}
        for image in pulls:
            if download := sum(sizes[image.reference].values()):
                how = f"{download / GIB:.1f} GiB to download"
                needed[image.reference] = (int(download * image_store.UNPACK_FACTOR), how)
            elif image.options["estimated_gib"]:
                needed[image.reference] = (int(image.options["estimated_gib"] * GIB), "estimated")
        if self.options["check_disk"]:
            try:
                image_store.refuse_small_disk(
                    image_store.storage_root(info), needed, self.options["keep_free_gib"] * GIB
                )
            except ImageError as error:
                if not self.module.check_mode:
                    raise
                self.module.warn(f"{error} Outside check mode this fails.")
        return sizes

    def _carry_out(self, docker: image_store.Docker, image: Wanted, sizes: dict[str, dict[str, int]]) -> None:
        timeout = self.options["timeout"]
        if image.reference in self.awaited:
            return
        if image.action == "pull":
            pull = image_store.Pull(docker, image.pull_name, sizes[image.reference], self.progress)
            pull.run([], self.options["retries"], self.options["retry_delay"], timeout)
            image.digest = image.lock_digest or pull.digest
        elif image.action == "load":
            image_store.load(docker, image.reference, image.options["archive"], image.lock_id, self.progress, timeout)
            if not image.options["archive_kept"]:
                os.unlink(image.options["archive"])
        elif image.action == "build":
            image_store.build(docker, image.reference, image.options["build"], self.progress, timeout)
        if image.action in ("pull", "tag") and image.lock_digest and image.name.tagged:
            tagged = docker(["tag", image.pinned, image.name.tagged])
            if tagged.status != 0:
                raise ImageError(f"{image.name.tagged} cannot be pointed to {image.pinned}: {tagged.stderr.strip()}")
        if image.action != "none":
            self.done.append(image.reference)

    def _describe(self, docker: image_store.Docker, image: Wanted) -> dict[str, Any]:
        known = {"reference": image.reference, "present": False, "action": image.action, **NOTHING, **UNREAD}
        bringing = image.action in ("pull", "load", "build")
        if image.reference in self.awaited or (self.module.check_mode and bringing):
            return known
        found = image_store.inspect(docker, image.pinned)
        if found is None:
            raise ImageError(f"Docker ended without an error, but {image.pinned} is not there")
        known |= {
            "present": True,
            "id": found["Id"],
            "digest": image.digest or image_store.digest_of(found, image.name.name),
            "digests": sorted({name.partition("@")[2] for name in found.get("RepoDigests") or []}),
            "architecture": found.get("Architecture"),
            "size_bytes": found.get("Size"),
        }
        if image.options["libraries"]:
            read = read_image(docker, image.pinned, image.options["libraries"], self._cache())
            known |= {key: read[key] for key in UNREAD}
        return known

    def _cache(self) -> str:
        """The file that remembers GPU code; in check mode a copy of it."""
        path = self.options["cache_path"]
        if not self.module.check_mode:
            return path
        copy = os.path.join(self.module.tmpdir, "image_code.json")
        if os.path.exists(path):
            shutil.copyfile(path, copy)
        return copy

    def _prune(self, docker: image_store.Docker, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        policy = self.options["prune"]
        used = image_store.ids_in_containers(docker) | {image["id"] for image in found if image["id"]}
        for name in image_store.released_references(policy["releases"]):
            kept = image_store.inspect(docker, name)
            used |= {kept["Id"]} if kept else set()
        candidates = image_store.prunable(
            image_store.local_images(docker),
            used,
            [parse(name).name for name in policy["repositories"]],
            policy["keep"],
            policy["older_than_days"],
            datetime.datetime.now(datetime.timezone.utc),
        )
        if self.module.check_mode:
            return candidates
        removed = []
        for image in candidates:
            refused = image_store.remove(docker, image)
            if refused:
                self.module.warn(f"{' '.join(image['names']) or image['id']} stays: {refused}")
            else:
                removed.append(image)
        return removed

    def _summary(self) -> dict[str, Any]:
        return {"bytes": self.progress.bytes, "seconds": self.progress.seconds}

    def _exit(self, wanted: list[Wanted], found: list[dict[str, Any]], pruned: list[dict[str, Any]]) -> None:
        locked = {}
        for image, known in zip(wanted, found):
            if not (image.lock_digest or image.lock_id) and known["present"]:
                if image.source == "pull" and known["digest"]:
                    locked[image.reference] = {"digest": known["digest"]}
                elif image.source in ("load", "present"):
                    locked[image.reference] = {"id": known["id"]}
        self.module.exit_json(
            changed=any(image.action != "none" for image in wanted if image.reference not in self.awaited)
            or bool(pruned),
            images=found,
            locked=locked,
            awaited=self.awaited,
            pruned=pruned,
            progress=self._summary(),
            diff=self._diff(wanted, found, pruned),
        )

    def _diff(self, wanted: list[Wanted], found: list[dict[str, Any]], pruned: list[dict[str, Any]]) -> dict[str, str]:
        before = [f"{image.reference} {image.before['Id']}\n" for image in wanted if image.before]
        gone = [f"{' '.join(image['names']) or image['id']} {image['id']}\n" for image in pruned]
        after = []
        for image, known in zip(wanted, found):
            to_come = image.lock_digest or image.lock_id or f"({image.action}, not known yet)"
            after.append(f"{image.reference} {known['id'] or to_come}\n")
        return {
            "before_header": "images",
            "after_header": "images",
            "before": "".join([*before, *gone]),
            "after": "".join(after),
        }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "images": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "reference": {"type": "str", "required": True},
                    "source": {"type": "str", "choices": ["pull", "load", "build", "present"], "default": "pull"},
                    "lock": {"type": "dict", "default": {}},
                    "archive": {"type": "path", "default": ""},
                    "archive_kept": {"type": "bool", "default": True},
                    "archive_follows": {"type": "bool", "default": False},
                    "build": {"type": "dict", "default": {}},
                    "estimated_gib": {"type": "float", "default": 0},
                    "libraries": {"type": "list", "elements": "dict", "default": []},
                },
            },
            "refresh": {"type": "bool", "default": False},
            "registry": {"type": "str", "default": "docker.io"},
            "registry_username": {"type": "str", "default": ""},
            "registry_password": {"type": "str", "default": "", "no_log": True},
            "check_disk": {"type": "bool", "default": True},
            "keep_free_gib": {"type": "int", "default": 10},
            "retries": {"type": "int", "default": 4},
            "retry_delay": {"type": "int", "default": 10},
            "timeout": {"type": "int", "default": 7200},
            "progress_path": {"type": "path", "default": "/run/blackwell-serving/images.log"},
            "cache_path": {"type": "path", "default": "/var/lib/blackwell-serving/image_code.json"},
            "prune": {
                "type": "dict",
                "options": {
                    "repositories": {"type": "list", "elements": "str", "required": True},
                    "keep": {"type": "int", "default": 1},
                    "older_than_days": {"type": "int", "default": 14},
                    "releases": {"type": "path", "default": "/opt/blackwell-serving/stack/releases"},
                },
            },
        },
        supports_check_mode=True,
    )
    EngineImages(module).run()


if __name__ == "__main__":
    main()
