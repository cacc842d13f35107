"""Start a planned service as a process, wait for it as the deployment does, stop it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from card import Card, group_members
from commands import ENVIRONMENT, adapted
from engine_log import figures

POLL_SECONDS = 0.5
PROBE_SECONDS = 120
STOP_SECONDS = 20
LONGEST_START = 300  # the plan's own limit counts the reading of weights, and there are none

_PATH = Path(__file__).resolve().parents[2] / "plugins/module_utils/diagnosis.py"
_SPEC = importlib.util.spec_from_file_location("diagnosis", _PATH)
diagnosis = importlib.util.module_from_spec(_SPEC)
sys.modules["diagnosis"] = diagnosis
_SPEC.loader.exec_module(diagnosis)


class NotUp(Exception):
    """A service did not come up; the message says why."""


class Box:
    """Where things are on this box: sites of the engines, models by name, signatures of failures."""

    def __init__(self, sites: Path, prepared: Path, port_base: int) -> None:
        self.sites = {engine: sites / engine for engine in ("sglang", "vllm")}
        self.models = json.loads((prepared / "models.json").read_text())
        self.prepared, self.port_base = prepared, port_base
        self.signatures = diagnosis.signatures(json.loads((prepared / "failures.json").read_text()))

    def model(self, name: str) -> str:
        return str(self.prepared / "models" / self.models[name])


class Running:
    """One service of a plan on one card."""

    def __init__(self, service: Mapping[str, Any], box: Box, card: Card, log: Path) -> None:
        self.service, self.box, self.card, self.log = service, box, card, log
        self.port = box.port_base + service["start_order"]
        self.model = box.model(service["model"])
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = adapted(service, self.model, "127.0.0.1", self.port)
        self.process: subprocess.Popen[bytes] | None = None
        self.fatal_lines: list[str] = []

    def start(self) -> dict[str, Any]:
        """Start it and wait until it is healthy and has answered one request. What its log and nvidia-smi say."""
        engine = self.service["engine"]
        environment = {
            **os.environ,
            **self.service["environment"],
            **ENVIRONMENT[engine],
            "CUDA_VISIBLE_DEVICES": str(self.card.gpu),
            "PYTHONPATH": str(self.box.sites[engine]),
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable if word == "python3" else word for word in self.command]
        before, begin = self.card.free(), time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._watch()
        seconds = time.monotonic() - begin
        self._probe()
        time.sleep(0.6)  # two samples of nvidia-smi
        measured = figures(engine, self.lines())
        measured |= {
            "device_free_before": round(before, 3),
            "device_free_after": round(self.card.free(), 3),
            "resident": round(self.card.process_now(self.members()), 3),
            "start_s": round(seconds, 1),
        }
        if self.fatal_lines:
            measured["false_alarms"] = self.fatal_lines
        return measured

    def members(self) -> list[int]:
        return group_members(self.process.pid)

    def lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines()

    def stop(self) -> None:
        if self.process is None:
            return
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, how)
            except ProcessLookupError:
                break
            end = time.monotonic() + STOP_SECONDS
            while time.monotonic() < end and any(map(_alive, self.members())):
                self.process.poll()
                time.sleep(0.2)
        self.process.wait()

    def _watch(self) -> None:
        """As the deployment: healthy, or at once why not. A line that is fatal by the catalogue is noted; the real
        deployment would stop there, so a service that comes up all the same is a false alarm."""
        health, read = self.service["healthcheck"], 0
        limit = health["start_period_s"] + health["retries"] * (health["interval_s"] + health["timeout_s"])
        end = time.monotonic() + min(limit, LONGEST_START)
        while True:
            lines = self.lines()
            for line in lines[read:]:
                if diagnosis.first_fatal(line, self.box.signatures, self.service["engine"]):
                    self.fatal_lines.append(line[:300])
            read = len(lines)
            if self.process.poll() is not None:
                raise NotUp(f"it ended with status {self.process.returncode}: {self._why()}")
            if self._healthy(health["timeout_s"]):
                return
            if time.monotonic() > end:
                raise NotUp(f"not healthy after {min(limit, LONGEST_START)} s: {self._why()}")
            time.sleep(POLL_SECONDS)

    def _healthy(self, timeout: float) -> bool:
        path = self.service["healthcheck"]["url"].rsplit("/", 1)[1]
        try:
            with urllib.request.urlopen(f"{self.url}/{path}", timeout=timeout) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _probe(self) -> None:
        body = {"model": self.model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as answer:
                tokens = (json.loads(answer.read()).get("usage") or {}).get("completion_tokens")
        except (OSError, ValueError) as error:
            raise NotUp(f"healthy, but does not answer one request: {error}") from error
        if not tokens:
            raise NotUp("healthy, but its answer to one request has no token")

    def _why(self) -> str:
        found = diagnosis.diagnose(self.lines(), self.box.signatures, self.service["engine"])
        return found[0]["line"][:300] if found else " / ".join(self.lines()[-3:])[:600]


def _alive(pid: int) -> bool:
    """Neither gone nor only waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Load:
    """load.py against one service, in a process of its own."""

    def __init__(self, running: Running, wanted: Mapping[str, Any], until: Path | None = None, seed: int = 1) -> None:
        self.name = running.service["name"]
        command = [sys.executable, str(Path(__file__).with_name("load.py")), running.url, running.model]
        command += [
            f"--prompts={','.join(map(str, wanted['prompts']))}",
            f"--output={wanted['output']}",
            f"--requests={wanted['requests']}",
            f"--concurrency={wanted['concurrency']}",
            f"--seed={seed}",
        ]
        command += [f"--until={until}"] if until else []
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def result(self) -> dict[str, Any]:
        said, _ = self.process.communicate()
        return json.loads(said) if said.strip() else {"requests": 0, "failed": 1, "problems": ["load.py ended"]}


def all_at_once(services: Sequence[Running], wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    loads = [Load(running, wanted[running.service["name"]]) for running in services]
    return {load.name: load.result() for load in loads}
