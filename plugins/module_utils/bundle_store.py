"""The files of a bundle in a directory: which are whole, and how they come and go in pieces.

Runs on hosts (Python 3.9) and on the control node.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

INDEX = ".verified.json"
PART = ".part"
CHUNK = 1 << 22


class BundleError(Exception):
    """Says which file of a bundle is not as it should be, and what to do."""


def checked_path(path: str) -> str:
    """A path inside a bundle; BundleError for one that leads out of it."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or str(PurePosixPath(path)) != path:
        raise BundleError(f"{path!r} is no path inside a bundle")
    return path


def digest_of(path: Path, seen: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file; `seen` is told the bytes of each chunk."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            total.update(chunk)
            if seen:
                seen(len(chunk))
    return total.hexdigest()


def files_below(directory: Path) -> dict[str, Path]:
    """Every file below a directory by its relative path; what is neither file nor directory counts as a file."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder, name)
            found[path.relative_to(directory).as_posix()] = path
        for name in os.listdir(folder):
            path = Path(folder, name)
            if path.is_symlink():
                found[path.relative_to(directory).as_posix()] = path
    return dict(sorted(found.items()))


class Store:
    """A directory with files of bundles. What was hashed once is known by its size and time of change."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self.known: dict[str, list[Any]] = {}
        with contextlib.suppress(OSError, ValueError):
            self.known = dict(json.loads((self.directory / INDEX).read_text("utf-8")))

    def digest(self, path: str) -> str | None:
        """SHA-256 of a file of the directory; None where it is no file."""
        place = self.directory / checked_path(path)
        try:
            status = place.lstat()
        except OSError:
            return None
        if place.is_symlink() or not place.is_file():
            return None
        seen = self.known.get(path)
        if not seen or seen[:2] != [status.st_size, status.st_mtime_ns]:
            self.known[path] = [status.st_size, status.st_mtime_ns, digest_of(place)]
        return str(self.known[path][2])

    def missing(self, files: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Those files that are not there whole, each with the bytes of it that have arrived (`have`)."""
        found = []
        for file in files:
            place = self.directory / checked_path(file["path"])
            right_size = place.is_file() and place.stat().st_size == file["size"]
            if right_size and self.digest(file["path"]) == file["sha256"]:
                continue
            part = place.with_name(place.name + PART)
            have = part.stat().st_size if part.is_file() else 0
            found.append({**file, "have": have if have <= file["size"] else 0})
        return found

    def stale(self, wanted: Iterable[str]) -> list[str]:
        """Files of the directory that are none of these."""
        keep = set(wanted)
        kept_parts = {path + PART for path in keep}
        return [path for path in files_below(self.directory) if path not in keep | kept_parts | {INDEX}]

    def remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            (self.directory / path).unlink()
            self.known.pop(path, None)
        for folder, _, _ in os.walk(self.directory, topdown=False):
            if folder != str(self.directory) and not os.listdir(folder):
                os.rmdir(folder)

    def write_piece(self, piece: str, segments: Sequence[Mapping[str, Any]]) -> None:
        """Put the bytes of a piece where they belong. A file that is whole is taken if it is right."""
        with open(piece, "rb") as stream:
            for segment in segments:
                place = self.directory / checked_path(segment["path"])
                place.parent.mkdir(parents=True, exist_ok=True)
                part = place.with_name(place.name + PART)
                with open(part, "r+b" if segment["offset"] else "wb") as target:
                    target.seek(segment["offset"])
                    _copy(stream, target, segment["length"], segment["path"])
                    target.truncate()
                    target.flush()
                    os.fsync(target.fileno())
                if segment["offset"] + segment["length"] == segment["size"]:
                    self._finish(part, place, segment)

    def _finish(self, part: Path, place: Path, segment: Mapping[str, Any]) -> None:
        found = digest_of(part)
        if found != segment["sha256"]:
            part.unlink()
            raise BundleError(
                f"{segment['path']} arrived damaged: expected SHA-256 {segment['sha256']}, found {found}. It was "
                "removed; run again"
            )
        os.chmod(part, 0o644)
        os.replace(part, place)
        status = place.lstat()
        self.known[segment["path"]] = [status.st_size, status.st_mtime_ns, found]

    def read_piece(self, piece: str, segments: Sequence[Mapping[str, Any]]) -> None:
        """Gather the bytes of these segments in one file, for the owner of its directory."""
        with open(piece, "wb") as target:
            for segment in segments:
                with open(self.directory / checked_path(segment["path"]), "rb") as stream:
                    stream.seek(segment["offset"])
                    _copy(stream, target, segment["length"], segment["path"])
        owner = os.stat(os.path.dirname(piece))
        os.chmod(piece, 0o600)
        os.chown(piece, owner.st_uid, owner.st_gid)

    def save(self) -> None:
        """Remember what was hashed; the directory is made where it is missing."""
        self.directory.mkdir(parents=True, exist_ok=True)
        known = {path: seen for path, seen in self.known.items() if (self.directory / path).is_file()}
        beside = self.directory / f"{INDEX}.new"
        beside.write_text(json.dumps(known), "utf-8")
        os.replace(beside, self.directory / INDEX)


def _copy(source: Any, target: Any, length: int, path: str) -> None:
    while length:
        chunk = source.read(min(CHUNK, length))
        if not chunk:
            raise BundleError(f"{path} is shorter than it should be")
        target.write(chunk)
        length -= len(chunk)


def pieces(files: Iterable[Mapping[str, Any]], most: int) -> list[list[dict[str, Any]]]:
    """The rest of these files (from `have` on) as pieces of at most so many bytes; a piece is a list of segments."""
    found: list[list[dict[str, Any]]] = []
    room = 0
    for file in files:
        offset = file.get("have", 0)
        while True:
            if room == 0:
                found.append([])
                room = most
            length = min(room, file["size"] - offset)
            found[-1].append(
                {
                    "path": file["path"],
                    "offset": offset,
                    "length": length,
                    "size": file["size"],
                    "sha256": file["sha256"],
                }
            )
            offset += length
            room -= length
            if offset == file["size"]:
                break
    return found
