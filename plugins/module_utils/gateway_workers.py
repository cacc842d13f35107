"""The workers of a gateway: the manifest that smg reads, and what smg says of them.

The manifest is the one place where workers are set: smg reads it anew as soon as it changes, and after its own restart.
What smg does was tried with smg 1.13.0; catalog/gateway.yml tells it. Runs on the gateway's host, Python 3.9 or newer.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

# github.com/smg-project/smg model_gateway/src/service_discovery/file.rs: version, workers; id, url, model_id of each.
MANIFEST_VERSION = 1
ID_LABEL = "smg.ai/discovery-id"
# A worker that drains serves this model, which nobody asks for. smg goes on counting its requests, which it would not
# do for a worker that left the manifest.
DRAINING = "draining"
POLL_SECONDS = 0.5


class GatewayError(Exception):
    """The gateway did not do what it was told; the message says what, and what to do."""


class Worker(NamedTuple):
    """A service as smg has it. `load`: requests that it runs for this gateway."""

    id: str
    url: str
    model: str
    status: str
    load: int


def worker_id(host: str, service: str) -> str:
    return f"{host}/{service}"


def entry(host: str, service: Mapping[str, Any]) -> dict[str, str]:
    """A service's entry in the manifest."""
    return {"id": worker_id(host, service["service"]), "url": service["url"], "model_id": service["model"]}


def host_of(worker: Mapping[str, Any]) -> str:
    return str(worker.get("id", "")).partition("/")[0]


def merged(
    before: Iterable[Mapping[str, str]],
    hosts: Mapping[str, Iterable[Mapping[str, Any]]],
    known_hosts: Iterable[str] | None = None,
) -> list[dict[str, str]]:
    """The manifest's workers with those of `hosts` replaced; those of other hosts stay, if such a host is known."""
    kept = [
        dict(worker)
        for worker in before
        if host_of(worker) not in hosts and (known_hosts is None or host_of(worker) in set(known_hosts))
    ]
    new = [entry(host, service) for host, services in hosts.items() for service in services]
    return sorted([*kept, *new], key=lambda worker: worker["id"])


def shown(workers: Iterable[Mapping[str, str]]) -> str:
    """As `--diff` shows them."""
    return "".join(f"{worker['id']}  {worker['model_id']}  {worker['url']}\n" for worker in workers)


def chosen(workers: Iterable[Mapping[str, str]], host: str, services: Iterable[str]) -> list[str]:
    """Ids of a host's workers, of these services or of all."""
    wanted = {worker_id(host, service) for service in services}
    return [worker["id"] for worker in workers if host_of(worker) == host and (not wanted or worker["id"] in wanted)]


class Manifest:
    """The file, which one at a time may change."""

    def __init__(self, path: str) -> None:
        self.path = path

    def workers(self) -> list[dict[str, str]]:
        try:
            with open(self.path, encoding="utf-8") as stream:
                return list(json.load(stream)["workers"])
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as problem:
            raise GatewayError(
                f"{self.path} is no manifest of workers ({problem}): delete it and run playbooks/gateway.yml."
            ) from None

    def write(self, workers: Iterable[Mapping[str, str]]) -> None:
        content = {"version": MANIFEST_VERSION, "workers": list(workers)}
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(self.path), prefix=".workers.")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Several hosts drain at the same time."""
        with open(os.path.join(os.path.dirname(self.path), ".lock"), "a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def change(self, to: Callable[[list[dict[str, str]]], list[dict[str, str]]], create: bool = False) -> bool:
        """Whether the file changed. With `create` it is written also where it would be empty."""
        with self.locked():
            before = self.workers()
            after = to(before)
            if after == before and not (create and not os.path.exists(self.path)):
                return False
            self.write(after)
            return True


class Smg:
    """smg's own interface, which listens on the gateway's loopback."""

    def __init__(self, address: str) -> None:
        self.address = address

    def workers(self) -> dict[str, Worker] | None:
        """By id; None where smg does not run. Raises GatewayError where it runs and gives no answer."""
        try:
            with urllib.request.urlopen(f"{self.address}/workers", timeout=10) as answer:
                listed = json.load(answer)["workers"]
        except urllib.error.URLError as problem:
            if isinstance(problem.reason, ConnectionRefusedError):
                return None
            raise GatewayError(f"{self.address}/workers: {problem.reason}") from None
        except (OSError, ValueError, KeyError) as problem:
            raise GatewayError(f"{self.address}/workers: {problem}") from None
        found = {}
        for worker in listed:
            identity = worker.get("labels", {}).get(ID_LABEL)
            if identity:
                load = int(worker.get("load") or 0)
                found[identity] = Worker(identity, worker["url"], worker["model_id"], worker["status"], load)
        return found


def _until(reached: Callable[[], bool], timeout: float) -> bool:
    end = time.monotonic() + timeout
    while not reached():
        if time.monotonic() >= end:
            return False
        time.sleep(POLL_SECONDS)
    return True


def drain(
    manifest: Manifest, smg: Smg, host: str, services: Iterable[str], timeout: float, force: bool
) -> dict[str, Any]:
    """Send nothing more to the services of a host, and return when nothing is in flight: {changed, drained, cut}.

    Raises GatewayError after `timeout` seconds, with the services back in their place, or with `force` goes on and says
    in `cut` how many requests were in flight.
    """
    before = manifest.workers()
    ids = chosen(before, host, services)
    if not ids:
        return {"changed": False, "drained": [], "cut": 0}
    running = smg.workers()
    # smg looks at a worker before it takes its new model, so one that does not answer can only leave.
    able = {identity for identity in ids if running and identity in running and running[identity].status == "ready"}

    def marked(workers: list[dict[str, str]]) -> list[dict[str, str]]:
        return [
            {**worker, "model_id": DRAINING} if worker["id"] in able else worker
            for worker in workers
            if worker["id"] not in ids or worker["id"] in able
        ]

    manifest.change(marked)
    left = {}
    quiet = 0

    def empty() -> bool:
        nonlocal left, quiet
        workers = smg.workers() or {}  # where it ended, so did everything that went through it
        left = {
            identity: worker.load
            for identity, worker in workers.items()
            if identity in ids and (worker.load or (worker.status == "ready" and worker.model != DRAINING))
        }
        quiet = 0 if left else quiet + 1
        return quiet >= 2  # a request that was being handed over is counted the second time

    done = _until(empty, timeout)
    if not done and not force:
        manifest.change(lambda workers: _put_back(workers, before, ids))
        busy = ", ".join(f"{load} on {identity}" for identity, load in sorted(left.items()))
        raise GatewayError(
            f"After {timeout:g} s requests are still in flight: {busy}. The services take requests again. Raise "
            "gateway_drain_timeout, or set gateway_drain_force: true to cut such requests off."
        )
    manifest.change(lambda workers: [worker for worker in workers if worker["id"] not in ids])
    return {"changed": True, "drained": sorted(ids), "cut": 0 if done else sum(left.values())}


def _put_back(
    workers: list[dict[str, str]], before: Iterable[Mapping[str, str]], ids: Iterable[str]
) -> list[dict[str, str]]:
    old = {worker["id"]: dict(worker) for worker in before if worker["id"] in set(ids)}
    return sorted(
        [*[worker for worker in workers if worker["id"] not in old], *old.values()], key=lambda worker: worker["id"]
    )


def unready(smg: Smg, wanted: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Why each of these workers takes no requests yet, by id; empty where all do."""
    workers = smg.workers()
    if workers is None:
        return {worker["id"]: "smg does not answer" for worker in wanted}
    reasons = {}
    for worker in wanted:
        there = workers.get(worker["id"])
        if there is None or there.model != worker["model_id"]:
            reasons[worker["id"]] = f"smg has not reached {worker['url']} yet"
        elif there.status != "ready":
            reasons[worker["id"]] = f"smg says {there.status} of {worker['url']}"
    return reasons


def wait_until_ready(smg: Smg, wanted: Iterable[Mapping[str, str]], timeout: float) -> None:
    """Raises GatewayError where one of the workers takes no requests after `timeout` seconds."""
    wanted = list(wanted)
    reasons: dict[str, str] = {}

    def ready() -> bool:
        nonlocal reasons
        try:
            reasons = unready(smg, wanted)
        except GatewayError as problem:
            reasons = {"smg": str(problem)}
        return not reasons

    if not _until(ready, timeout):
        said = "; ".join(f"{identity}: {reason}" for identity, reason in sorted(reasons.items()))
        raise GatewayError(
            f"After {timeout:g} s the gateway does not send requests to all services: {said}. It will as soon as they "
            "answer there. Is the service up, and does the firewall let the gateway in?"
        )
