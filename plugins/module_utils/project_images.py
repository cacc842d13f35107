"""Which images a small Compose project runs: what is locked decides; what is not is had by its tag and gets a lock.

Runs on the host, under its own Python, 3.9 or newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import image_reference
from .compose_runner import Refused, need_docker, pull
from .stack_docker import StackDocker

Lock = Mapping[str, str]


class ProjectImages:
    """`locks`: `digest` or `id` by reference, as in serving_image_locks; `locked`: those that came in this run."""

    def __init__(self, docker: StackDocker, locks: Mapping[str, Lock]) -> None:
        self.docker, self.locks = docker, locks
        self.locked: dict[str, dict[str, str]] = {}

    def pin(self, definition: Mapping[str, Any], check_mode: bool, venv: str) -> dict[str, str]:
        """By service, what runs in place of the image that the Compose file names. Raises Refused or DockerProblem."""
        references = {name: service["image"] for name, service in definition["services"].items()}
        unlocked = [reference for reference in dict.fromkeys(references.values()) if not self._lock(reference)]
        if unlocked and not check_mode:
            self.docker.answers_again()
            need_docker(self.docker, venv)
            for reference in unlocked:
                self.locked[reference] = self._found(reference)
        self._refuse_others(references.values())
        return {name: self._pinned(reference) for name, reference in references.items()}

    def _lock(self, reference: str) -> Lock:
        digest = image_reference.parse(reference).digest
        known = self.locked.get(reference) or self.locks.get(reference) or {}
        return {"digest": digest} if digest else {key: known[key] for key in ("id", "digest") if known.get(key)}

    def _found(self, reference: str) -> dict[str, str]:
        """What the host has under that tag, or else the registry."""
        if self.docker.images([reference])[reference] is None:
            pull(self.docker, reference)
        (image,) = self.docker.host.docker_api(self.docker.socket, [f"/images/{reference}/json"])
        digests = [name.partition("@")[2] for name in (image or {}).get("RepoDigests") or []]
        return {"digest": digests[0]} if digests else {"id": (image or {}).get("Id")}

    def _refuse_others(self, references: Any) -> None:
        """An image that was loaded from a file has no digest to run it by, so its id is compared."""
        by_id = {name: self._lock(name)["id"] for name in references if "id" in self._lock(name)}
        for name, identity in self.docker.images(by_id).items():
            if identity not in (None, by_id[name]):
                raise Refused(f"{name} is another image on this host ({identity}) than the locked one ({by_id[name]})")

    def _pinned(self, reference: str) -> str:
        lock = self._lock(reference)
        parsed = image_reference.parse(reference)
        return reference if parsed.digest or "id" in lock or not lock else parsed.pinned(lock["digest"])
