"""The configuration of a gateway's front on its host: tried before it is used, replaced file by file, never half used.

    front/            what nginx reads
    front.next/       what is being tried
    front.applied     digest of what nginx runs with; another one than that of front/ means that it has to reload

Runs on the gateway's host, Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import NamedTuple


class FrontFile(NamedTuple):
    content: str
    mode: int


def digest_of(files: Mapping[str, FrontFile]) -> str:
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{name}\0{files[name].mode}\0{len(files[name].content)}\0{files[name].content}".encode())
    return total.hexdigest()


def read_file(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (OSError, UnicodeDecodeError):
        return None


def replace_file(path: str, content: str, mode: int) -> None:
    """In one step; at no moment readable for more than `mode` says."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=f".{os.path.basename(path)}.")
    try:
        os.fchmod(handle, mode)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


class Front:
    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, "front")
        self.trial = os.path.join(directory, "front.next")
        self.mark = os.path.join(directory, "front.applied")

    def files(self) -> dict[str, FrontFile]:
        """What is there now."""
        found = {}
        try:
            names = os.listdir(self.path)
        except OSError:
            return {}
        for name in names:
            path = os.path.join(self.path, name)
            content = read_file(path)
            if content is not None:
                found[name] = FrontFile(content, os.stat(path).st_mode & 0o777)
        return found

    def applied(self) -> str:
        return (read_file(self.mark) or "").strip()

    def write_trial(self, files: Mapping[str, FrontFile]) -> None:
        self.drop_trial()
        os.makedirs(self.trial, mode=0o700)
        for name, file in files.items():
            replace_file(os.path.join(self.trial, name), file.content, file.mode)

    def drop_trial(self) -> None:
        shutil.rmtree(self.trial, ignore_errors=True)

    def write(self, files: Mapping[str, FrontFile]) -> None:
        """Make the directory hold these files and no others. It stays the same directory: nginx has it mounted."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        there = self.files()
        for name, file in files.items():
            if there.get(name) != file:
                replace_file(os.path.join(self.path, name), file.content, file.mode)
        for name in set(os.listdir(self.path)) - set(files):
            os.unlink(os.path.join(self.path, name))

    def set_applied(self, digest: str) -> None:
        replace_file(self.mark, f"{digest}\n", 0o600)
