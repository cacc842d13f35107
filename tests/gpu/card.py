"""One GPU of the box, made to show the memory of a smaller card, and watched all the time through nvidia-smi."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAMPLE_MS = 100
PROCESS_SAMPLE_MS = 250


def query(gpu: int, *fields: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", f"--id={gpu}"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [field.strip() for field in answer.strip().split(",")]


class Card:
    """Enter it to hold memory back until `shown_gib` are free; `out` takes the ballast's log."""

    def __init__(self, gpu: int, shown_gib: float, out: Path) -> None:
        self.gpu, self.shown_gib, self.out = gpu, shown_gib, out
        self.product, self.driver = query(gpu, "name", "driver_version")
        self._free: list[tuple[float, float]] = []
        self._processes: dict[int, list[tuple[float, float]]] = {}
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Card:
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": str(self.gpu)}
        ballast = [sys.executable, str(HERE / "ballast.py"), str(self.gpu), str(self.shown_gib)]
        self._ballast = subprocess.Popen(
            ballast, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._children.append(self._ballast)
        said = self._ballast.stdout.readline()
        if not said.startswith("free:"):
            raise RuntimeError(f"the ballast of GPU {self.gpu} did not start")
        format_ = "--format=csv,noheader,nounits"
        self._follow(["--query-gpu=memory.free", format_, f"--id={self.gpu}", f"-lms={SAMPLE_MS}"], self._note_free)
        self._follow(
            ["--query-compute-apps=pid,used_memory", format_, f"--id={self.gpu}", f"-lms={PROCESS_SAMPLE_MS}"],
            self._note_process,
        )
        time.sleep(3 * SAMPLE_MS / 1000)
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.terminate()
            child.wait()

    def _follow(self, arguments: list[str], note) -> None:
        child = subprocess.Popen(["nvidia-smi", *arguments], stdout=subprocess.PIPE, text=True, bufsize=1)
        self._children.append(child)

        def read() -> None:
            for line in child.stdout:
                note(line)

        threading.Thread(target=read, daemon=True).start()

    def _note_free(self, line: str) -> None:
        if line.strip().isdigit():
            self._free.append((time.time(), int(line) / 1024))

    def _note_process(self, line: str) -> None:
        pid, _, used = line.partition(",")
        if pid.strip().isdigit() and used.strip().isdigit():
            self._processes.setdefault(int(pid), []).append((time.time(), int(used) / 1024))

    def free(self) -> float:
        """GiB free now."""
        return int(query(self.gpu, "memory.free")[0]) / 1024

    def peak_used(self, since: float, until: float | None = None) -> float:
        """The most that was in use between two moments, of what the card shows."""
        return self.shown_gib - least(self._free, since, until)

    def process_now(self, pids: Iterable[int]) -> float:
        """GiB of these processes, as last seen."""
        return sum(self._processes[pid][-1][1] for pid in pids if pid in self._processes)

    def process_peak(self, pids: Iterable[int], since: float) -> float:
        """The most that these processes had since a moment."""
        return sum(largest(self._processes[pid], since) for pid in pids if pid in self._processes)

    def settled(self, wanted_gib: float, timeout: float = 30) -> bool:
        """Wait until at least `wanted_gib` are free."""
        end = time.monotonic() + timeout
        while self.free() < wanted_gib:
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True


def least(samples: list[tuple[float, float]], since: float, until: float | None = None) -> float:
    return min(size for moment, size in samples if moment >= since and (until is None or moment <= until))


def largest(samples: list[tuple[float, float]], since: float) -> float:
    return max((size for moment, size in samples if moment >= since), default=0.0)


def group_members(group: int) -> list[int]:
    """Processes of a process group."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getpgid(int(entry.name)) == group:
                    members.append(int(entry.name))
            except ProcessLookupError:
                continue
    return members


def versions(sites: Mapping[str, Path]) -> dict[str, str]:
    """Versions of the engines that are unpacked, from their packages' folders, and of torch."""
    found = {}
    for engine, site in sites.items():
        folders = sorted(site.glob(f"{engine}-*.dist-info"))
        found[engine] = folders[0].name.removeprefix(f"{engine}-").removesuffix(".dist-info") if folders else "absent"
    said = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=False
    )
    return {**found, "torch": said.stdout.strip()}
