"""Simulated GPU memory of a test host: one file per process in a directory that all its containers share.

A process holds a lock on its own file for as long as it lives: whoever finds a file without a lock knows that its
process is gone, killed or not, and that its memory is free. A second lock makes "measure, then take" one step.

    line 1     pid and name of the process
    others     GPU, part, bytes
"""

import contextlib
import fcntl
import os
import time
import uuid
from pathlib import Path

GIB = 2**30


class OutOfMemory(Exception):
    """What torch.OutOfMemoryError says."""


class Ledger:
    """This process's memory on some GPUs (`totals`: bytes by index, as CUDA sees them), and all that is taken there."""

    def __init__(self, directory: Path, totals: dict[int, int], name: str) -> None:
        self.directory, self.totals, self.name = directory, totals, name
        self.parts: dict[str, int] = {}
        self._file = None

    @contextlib.contextmanager
    def _locked(self):
        descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _write(self) -> None:
        if self._file is None:
            descriptor = os.open(
                self.directory / f"{uuid.uuid4().hex}.process", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666
            )
            os.fchmod(descriptor, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self._file = descriptor
        lines = [f"{os.getpid()} {self.name}\n"]
        lines += [f"{gpu} {part} {size}\n" for gpu in self.totals for part, size in self.parts.items()]
        text = "".join(lines).encode()
        os.pwrite(self._file, text, 0)
        os.ftruncate(self._file, len(text))

    def _taken(self, gpu: int) -> int:
        return sum(size for _, gpus in processes(self.directory) for size in [gpus.get(gpu, 0)])

    def free(self) -> int:
        """Free bytes, the least of the process's GPUs."""
        with self._locked():
            return min(total - self._taken(gpu) for gpu, total in self.totals.items())

    def own(self) -> int:
        return sum(self.parts.values())

    def take(self, part: str, size: float) -> None:
        """Add to a part, on every GPU of the process, or raise OutOfMemory and take nothing."""
        size = int(size)
        with self._locked():
            for gpu, total in self.totals.items():
                free = total - self._taken(gpu)
                if size > free:
                    raise OutOfMemory(self._out_of_memory(gpu, size, total, free))
            self.parts[part] = self.parts.get(part, 0) + size
            self._write()

    def take_slowly(self, part: str, size: float, seconds: float) -> None:
        """Take a part in ten steps, as weights arrive."""
        for _ in range(10):
            time.sleep(seconds / 10)
            self.take(part, size / 10)

    def release(self, part: str) -> None:
        with self._locked():
            self.parts.pop(part, None)
            self._write()

    def _out_of_memory(self, gpu: int, size: int, total: int, free: int) -> str:
        """The text of PyTorch's allocator (c10/cuda/CUDACachingAllocator.cpp)."""
        own = self.own()
        torch = own - self.parts.get("context", 0)
        return (
            f"CUDA out of memory. Tried to allocate {human(size)}. GPU {gpu} has a total capacity of {human(total)} of "
            "which "
            f"{human(max(free, 0))} is free. Including non-PyTorch memory, this process has {human(own)} memory in "
            "use. Of the "
            f"allocated memory {human(torch)} is allocated by PyTorch, and 0 bytes is reserved by PyTorch but "
            "unallocated. If "
            "reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to "
            "avoid "
            "fragmentation.  See documentation for Memory Management  "
            "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
        )


def human(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.2f} MiB"


def processes(directory: Path) -> list[tuple[Path, dict[int, int]]]:
    """The files of living processes and what each takes per GPU; those of dead ones are removed."""
    found = []
    for path in sorted(directory.glob("*.process")):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            if not _is_held(descriptor):
                with contextlib.suppress(OSError):
                    path.unlink()
                continue
            gpus: dict[int, int] = {}
            for line in os.read(descriptor, 2**16).decode().splitlines()[1:]:
                gpu, _, size = line.split()
                gpus[int(gpu)] = gpus.get(int(gpu), 0) + int(size)
            found.append((path, gpus))
        finally:
            os.close(descriptor)
    return found


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
