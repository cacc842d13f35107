"""A model outside of a Hugging Face cache, on its way in a bundle: plain files and the marker of its download.

Runs on hosts, under Python 3.9. Below a directory of models:

    models--Qwen--Qwen2.5-3B-Instruct/main/model.json     the marker that hub_download wrote: commit, files, sizes
    models--Qwen--Qwen2.5-3B-Instruct/main/files/...      the files
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from . import hub_download

MARKER = "model.json"


def place(name: str, revision: str) -> str:
    """Where a model lies below a directory of models."""
    return f"models--{name.replace('/', '--')}/{revision.replace('/', '--')}"


class ModelArchive:
    def __init__(self, directory: str, name: str, revision: str) -> None:
        self.name, self.revision = name, revision
        self.path = Path(directory, place(name, revision))

    def marker(self) -> dict[str, Any]:
        return json.loads((self.path / MARKER).read_text("utf-8"))

    def take_from(self, home: str) -> bool:
        """Lay out what a cache has complete, as links where that is possible; whether anything changed."""
        marker = hub_download.complete(home, self.name, self.revision)
        if marker is None:
            raise ValueError(f"{self.name} ({self.revision}) is not complete in the cache")
        snapshot = os.path.join(hub_download.repository(home, self.name), "snapshots", marker["commit"])
        if (self.path / MARKER).is_file() and self.marker() == marker:
            return False
        shutil.rmtree(self.path, ignore_errors=True)
        for file in marker["files"]:
            _link(os.path.realpath(os.path.join(snapshot, file)), str(self.path / "files" / file))
        (self.path / MARKER).write_text(json.dumps(marker, indent=1, sort_keys=True) + "\n", "utf-8")
        return True

    def move_into(self, home: str) -> dict[str, Any]:
        """Make the cache have the model; the archive is gone afterwards. Returns its marker."""
        marker = self.marker()
        snapshot = os.path.join(hub_download.repository(home, self.name), "snapshots", marker["commit"])
        owner = os.stat(home)
        for file, size in marker["files"].items():
            target = os.path.join(snapshot, file)
            if hub_download.lacking(home, self.name, marker["commit"], {file: size}):
                if os.path.lexists(target):
                    hub_download.discard(target)
                _link(str(self.path / "files" / file), target)
        if not hub_download.is_commit(self.revision):
            reference = os.path.join(hub_download.repository(home, self.name), "refs", self.revision)
            hub_download.write(reference, marker["commit"])
        hub_download.write_marker(home, self.name, self.revision, marker["commit"], marker["files"])
        _give(home, owner.st_uid, owner.st_gid)
        if hub_download.complete(home, self.name, self.revision) is None:
            raise ValueError("its files are not those that its marker names")
        shutil.rmtree(self.path)
        return marker


def of(directory: str, name: str, revision: str) -> ModelArchive | None:
    """The archive of a model below a directory; None where there is none."""
    archive = ModelArchive(directory, name, revision) if directory else None
    return archive if archive and (archive.path / MARKER).is_file() else None


def _link(source: str, target: str) -> None:
    """A second name for a file, or a copy on another disk."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target + ".new")
        os.replace(target + ".new", target)


def _give(home: str, uid: int, gid: int) -> None:
    """Everything in a cache belongs to the owner of the cache, as after a download."""
    for folder, _, files in os.walk(home):
        for path in (folder, *(os.path.join(folder, file) for file in files)):
            status = os.lstat(path)
            if (status.st_uid, status.st_gid) != (uid, gid):
                os.lchown(path, uid, gid)
