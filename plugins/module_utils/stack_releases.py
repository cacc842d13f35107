"""The releases of a stack on its host: a directory each, a link to the one that serves, a lock for whoever changes it.

    current -> releases/<UTC time>   the release that serves
    releases/<UTC time>/             compose.yaml, compose.override.yaml, plan.json, release.json, deploy.log
    lock                             held while the stack is changed, also by the unit that starts it at boot

A release becomes current only after all its services are healthy and answer. Runs on the host, Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

DEPLOYING, SERVING, FAILED = "deploying", "serving", "failed"
KEPT = 5


class Release(NamedTuple):
    """One release. `definition` is its Compose file as a dictionary, `plan` its plan.json."""

    path: str
    status: str
    definition: dict[str, Any]
    plan: dict[str, Any]

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def compose_files(self) -> list[str]:
        return [os.path.join(self.path, name) for name in ("compose.yaml", "compose.override.yaml")]

    def text(self, name: str) -> str | None:
        """A file of the release; None where it has none of that name."""
        try:
            with open(os.path.join(self.path, name), encoding="utf-8") as stream:
                return stream.read()
        except FileNotFoundError:
            return None


class Locked(Exception):
    """Somebody else changes the stack; the message says who."""


class Releases:
    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.folder = os.path.join(directory, "releases")
        self.link = os.path.join(directory, "current")

    @contextlib.contextmanager
    def locked(self, timeout: float) -> Iterator[None]:
        """Be the only one that changes the stack. Raises Locked where another one is still at it after `timeout` s."""
        os.makedirs(self.directory, mode=0o755, exist_ok=True)
        end = time.monotonic() + timeout
        with open(os.path.join(self.directory, "lock"), "a+", encoding="utf-8") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        lock.seek(0)
                        raise Locked(_holder(lock.read())) from None
                    time.sleep(0.5)
            lock.truncate(0)
            with contextlib.suppress(OSError):  # a full disk
                os.write(lock.fileno(), f"process {os.getpid()}, since {utc_now()}\n".encode())
            try:
                yield
            finally:
                lock.truncate(0)

    def read(self, name: str) -> Release | None:
        """The release of that name; None where it is not there or not whole."""
        path = os.path.join(self.folder, name)
        try:
            with open(os.path.join(path, "release.json"), encoding="utf-8") as stream:
                known = json.load(stream)
            with open(os.path.join(path, "plan.json"), encoding="utf-8") as stream:
                plan = json.load(stream)
        except (OSError, ValueError):
            return None
        return Release(path, known["status"], known["definition"], plan)

    def current(self) -> Release | None:
        try:
            target = os.readlink(self.link)
        except OSError:
            return None
        return self.read(os.path.basename(target))

    def names(self) -> list[str]:
        """Oldest first."""
        try:
            return sorted(name for name in os.listdir(self.folder) if not name.startswith("."))
        except OSError:
            return []

    def previous(self) -> Release | None:
        """The newest release before the current one that has served."""
        current = self.current()
        for name in reversed(self.names()):
            if current is None or name < current.name:
                release = self.read(name)
                if release and release.status == SERVING:
                    return release
        return None

    def add(self, files: Mapping[str, str], definition: Mapping[str, Any]) -> Release:
        """Write a new release; it does not serve yet. What an interrupted deployment left is removed first."""
        self.forget_unfinished()
        name = unused(utc_now().replace("-", "").replace(":", ""), self.names())
        path = os.path.join(self.folder, name)
        os.makedirs(path, mode=0o755)
        for file_name, content in files.items():
            replace(os.path.join(path, file_name), content)
        self.mark(path, DEPLOYING, definition)
        return self.read(name)

    def mark(self, path: str, status: str, definition: Mapping[str, Any]) -> None:
        content = {"schema": 1, "status": status, "changed": utc_now(), "definition": definition}
        replace(os.path.join(path, "release.json"), json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def make_current(self, release: Release) -> None:
        """In one step, so that there is always one that serves."""
        self.mark(release.path, SERVING, release.definition)
        temporary = os.path.join(self.directory, f".current.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(os.path.join("releases", release.name), temporary)
        os.replace(temporary, self.link)

    def forget_unfinished(self) -> None:
        current = self.current()
        for name in self.names():
            release = self.read(name)
            if (release is None or release.status == DEPLOYING) and (current is None or name != current.name):
                shutil.rmtree(os.path.join(self.folder, name))

    def prune(self) -> list[str]:
        """Remove all but the newest ones, of those that failed all but the last; the current one stays."""
        current = self.current()
        found = [release for name in self.names() if (release := self.read(name))]
        served = [release.name for release in found if release.status == SERVING]
        failed = [release.name for release in found if release.status == FAILED]
        keep = {*served[-KEPT:], *failed[-1:]} | ({current.name} if current else set())
        gone = [release.name for release in found if release.name not in keep]
        for name in gone:
            shutil.rmtree(os.path.join(self.folder, name))
        return gone

    def forget_all(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.link)
        shutil.rmtree(self.folder, ignore_errors=True)


def _holder(text: str) -> str:
    """Who wrote itself into the lock. Where that process is gone, it is the unit, which writes nothing."""
    process = text.removeprefix("process ").partition(",")[0]
    alive = process.isdigit() and os.path.exists(f"/proc/{process}")
    return text.strip() if alive else "the unit that starts the stack at boot"


def unused(name: str, taken: list[str]) -> str:
    """The name, or with a number behind it where two releases are of the same second."""
    names = [name, *(f"{name}-{number:02}" for number in range(2, 100))]
    return next(candidate for candidate in names if candidate not in taken)


def utc_now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def replace(path: str, content: str) -> None:
    """Write a file in one step."""
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
