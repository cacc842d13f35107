"""Ranks on several hosts that find each other, as with torch.distributed's TCPStore and Gloo; no tensor goes anywhere.

Rank 0 listens at --dist-init-addr until all have come (torch/csrc/distributed/c10d/TCPStore.cpp), the others try until
then. Afterwards each pair stays connected: when one process ends, the others' next collective fails, and they end too.
"""

import json
import socket
import threading
import time
from collections.abc import Callable

TIMEOUT = 600  # torch's default for NCCL process groups
RETRY = 0.2


class RanksLost(Exception):
    """`kind` is the exception that torch raises."""

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class Ranks:
    """All hosts of one service, seen from one of them; `meet` comes first."""

    def __init__(self, address: str, hosts: int, rank: int, timeout: float = TIMEOUT) -> None:
        self.host, _, port = address.rpartition(":")
        self.port, self.hosts, self.rank, self.timeout = int(port), hosts, rank, timeout
        self.links: list[tuple[str, socket.socket]] = []

    def meet(self) -> None:
        end = time.monotonic() + self.timeout
        if self.rank == 0:
            self._wait_for_all(end)
        else:
            self._join(end)
        self.smallest(0)

    def _wait_for_all(self, end: float) -> None:
        with socket.create_server((self.host, self.port)) as server:
            while len(self.links) < self.hosts - 1:
                server.settimeout(max(0.01, end - time.monotonic()))
                try:
                    link, (peer, _) = server.accept()
                except TimeoutError:
                    raise RanksLost(
                        f"Timed out after {self.timeout + 1:.0f} seconds waiting for clients. "
                        f"{len(self.links) + 1}/{self.hosts} clients joined.",
                        "torch.distributed.DistStoreError",
                    ) from None
                self.links.append((peer, link))

    def _join(self, end: float) -> None:
        while True:
            try:
                link = socket.create_connection((self.host, self.port), max(0.01, end - time.monotonic()))
            except OSError:
                if time.monotonic() + RETRY < end:
                    time.sleep(RETRY)
                    continue
                raise RanksLost(
                    f"The client socket has timed out after {self.timeout * 1000:.0f}ms while trying to connect to "
                    f"({self.host}, {self.port}).",
                    "torch.distributed.DistNetworkError",
                ) from None
            link.settimeout(None)
            self.links.append((self.host, link))
            return

    def smallest(self, value: int) -> int:
        """The smallest value of all ranks, as an all-reduce with MIN."""
        if self.rank == 0:
            value = min([value, *(self._receive(peer, link) for peer, link in self.links)])
        for peer, link in self.links:
            self._send(peer, link, value)
        if self.rank:
            ((peer, link),) = self.links
            value = self._receive(peer, link)
        return value

    def _send(self, peer: str, link: socket.socket, value: int) -> None:
        try:
            link.sendall(json.dumps(value).encode() + b"\n")
        except OSError:
            raise self._closed(peer) from None

    def _receive(self, peer: str, link: socket.socket) -> int:
        text = b""
        while not text.endswith(b"\n"):
            try:
                got = link.recv(1)
            except OSError:
                got = b""
            if not got:
                raise self._closed(peer)
            text += got
        return json.loads(text)

    def _closed(self, peer: str) -> RanksLost:
        where = f"[{peer}]:{self.port}"
        return RanksLost(
            f"[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer {where}",
            "RuntimeError",
        )

    def watch(self, lost: Callable[[RanksLost], None]) -> None:
        """Tell when another rank has ended."""

        def wait(peer: str, link: socket.socket) -> None:
            try:
                self._receive(peer, link)
            except RanksLost as problem:
                lost(problem)

        for peer, link in self.links:
            threading.Thread(target=wait, args=(peer, link), daemon=True).start()
