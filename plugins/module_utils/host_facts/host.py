"""What is read of a host: its files and what its commands print. Nothing here writes or raises.

Runs under the host's own Python, 3.9 or newer.
"""

from __future__ import annotations

import concurrent.futures
import glob
import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Output(NamedTuple):
    """What a command left: `status` is None where it is not installed, could not start or outran its time."""

    status: int | None
    stdout: str = ""
    stderr: str = ""


class FileSystem(NamedTuple):
    """The file system under a path; sizes in bytes, `available` as an ordinary user sees it."""

    mount: str
    size: int
    available: int


class Host:
    """This machine."""

    def read_bytes(self, path: str) -> bytes | None:
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            return None

    def read(self, path: str) -> str | None:
        content = self.read_bytes(path)
        return None if content is None else content.decode("utf-8", "replace")

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def glob(self, pattern: str) -> list[str]:
        return sorted(glob.glob(pattern))

    def real_path(self, path: str) -> str:
        return os.path.realpath(path)

    def which(self, command: str) -> str | None:
        return shutil.which(command, path=SEARCH_PATH)

    def kernel_release(self) -> str:
        return os.uname().release

    def machine(self) -> str:
        return os.uname().machine

    def file_system(self, path: str) -> FileSystem | None:
        """The file system of `path`, or of the nearest directory above it that exists."""
        while not os.path.exists(path):
            path = os.path.dirname(path)
        mount = os.path.realpath(path)
        while not os.path.ismount(mount):
            mount = os.path.dirname(mount)
        try:
            numbers = os.statvfs(path)
        except OSError:
            return None
        return FileSystem(mount, numbers.f_blocks * numbers.f_frsize, numbers.f_bavail * numbers.f_frsize)

    def run(self, command: Sequence[str], timeout: float = 20) -> Output:
        """Run a command in the locale C; at most `timeout` seconds."""
        program = self.which(command[0])
        if program is None:
            return Output(None, "", f"{command[0]} is not installed")
        environment = {"LC_ALL": "C", "PATH": SEARCH_PATH, "HOME": os.environ.get("HOME", "/")}
        try:
            done = subprocess.run(
                [program, *command[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=environment,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Output(None, "", f"{command[0]} gave no answer in {timeout:g} s")
        except OSError as error:
            return Output(None, "", f"{command[0]}: {error.strerror}")
        return Output(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    def run_all(self, commands: Mapping[str, Sequence[str]]) -> dict[str, Output]:
        """Run several commands at the same time."""
        with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
            running = {name: pool.submit(self.run, command) for name, command in commands.items()}
        return {name: future.result() for name, future in running.items()}

    def socket_owners(self, inodes: Iterable[str]) -> dict[str, str]:
        """Name and id of the process that holds a socket, by the socket's inode; of other users' only for root."""
        wanted = {f"socket:[{inode}]": inode for inode in inodes}
        owners = {}
        for link in glob.glob("/proc/[0-9]*/fd/*"):
            try:
                inode = wanted.get(os.readlink(link))
            except OSError:
                continue
            if inode is not None:
                process = link.split("/")[2]
                owners[inode] = f"{(self.read(f'/proc/{process}/comm') or '').strip()}, process {process}"
        return owners

    def docker_api(self, socket_path: str, paths: Sequence[str], timeout: float = 10) -> list[Any]:
        """Answers of the Docker engine to GET requests, read over one connection; None for each without an answer."""
        connection = _UnixConnection(socket_path, timeout)
        answers: list[Any] = []
        try:
            for path in paths:
                connection.request("GET", path)
                response = connection.getresponse()
                content = response.read()
                answers.append(json.loads(content) if response.status == 200 else None)
        except (OSError, http.client.HTTPException, ValueError):
            pass
        finally:
            connection.close()
        return answers + [None] * (len(paths) - len(answers))


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, socket_path: str, timeout: float):
        super().__init__("localhost", timeout=timeout)
        self._socket_path = socket_path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._socket_path)
