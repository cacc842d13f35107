"""What the collection put on a host, remembered on that host, so that it can be taken away again and nothing else.

    files      by path: `part`, whose it is; `digest` of what was written last (none: the file was removed); `before`,
               what was there first: none, or {content, mode}
    packages   `installed` and `held`: what was not installed, or not held, before; `removed`: what is gone
    images     references of images that no service on the host names: what stayed of services that are gone, and
               what was pulled to look at the host

Runs on the host, under its own Python, 3.9 or newer.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from typing import Any

PATH = "/var/lib/blackwell-serving/put_there.json"
SERVICES, PROVISIONING = "services", "provisioning"


def digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


class Record:
    def __init__(self, path: str) -> None:
        self.path = path
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as stream:
                self.content = json.load(stream)
        except FileNotFoundError:
            self.content = {"version": 1, "files": {}, "packages": {"installed": [], "held": [], "removed": []}}
        self.content.setdefault("images", [])
        self._saved = json.dumps(self.content)

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        return self.content["files"]

    @property
    def packages(self) -> dict[str, list[str]]:
        return self.content["packages"]

    @property
    def images(self) -> list[str]:
        return self.content["images"]

    def file(self, path: str, part: str, before: str | None, mode: int, after: str | None) -> None:
        """A file is about to be written, or removed (`after` none). What was there first is kept only once."""
        known = self.files.get(path, {"before": None if before is None else {"content": before, "mode": mode}})
        known.update(part=part, digest=None if after is None else digest(after))
        self.files[path] = known
        if after is None and known["before"] is None:
            del self.files[path]

    def image(self, reference: str) -> None:
        if reference not in self.images:
            self.images.append(reference)

    def package_changes(self, installed: Iterable[str], held: Iterable[str], removed: Iterable[str]) -> None:
        """Names. What was ours and goes is forgotten; what others had and goes is kept."""
        installed, removed = set(installed), set(removed)
        ours = {*self.packages["installed"]}
        came_back = installed & {*self.packages["removed"]}
        self.packages["removed"] = sorted(({*self.packages["removed"]} | (removed - ours)) - installed)
        self.packages["installed"] = sorted((ours | (installed - came_back)) - removed)
        self.packages["held"] = sorted(({*self.packages["held"]} | {*held}) - removed)

    def save(self) -> None:
        """In one step; without a change, nothing is written."""
        content = json.dumps(self.content)
        if content == self._saved:
            return
        directory = os.path.dirname(self.path)
        os.makedirs(directory, mode=0o755, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=directory, prefix=".")
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(json.dumps(self.content, indent=2) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, self.path)
        self._saved = content
