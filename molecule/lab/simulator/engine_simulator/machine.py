"""What a simulated engine sees of its container: GPUs, the code in its image, its pace, the faults asked for.

Tests without a container set SIMULATOR_ROOT to a directory that stands for /.
"""

import csv
import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(os.environ.get("SIMULATOR_ROOT", "/"))
LAB = ROOT / "run/lab"
SHARE = ROOT / "usr/local/share/engine-simulator"
LEDGER = LAB / "gpu"


@dataclass(frozen=True)
class Gpu:
    index: int
    name: str
    capability: str  # "12.0"
    total: int  # bytes, as CUDA sees them: nvidia-smi's total less what the driver reserves
    total_mib: int  # nvidia-smi's total


def visible_gpus() -> list[Gpu]:
    """The GPUs whose device nodes the container has."""
    if not (LAB / "gpus.csv").exists() or not is_device(ROOT / "dev/nvidiactl"):
        return []
    with (LAB / "gpus.csv").open() as file:
        rows = list(csv.DictReader(file, skipinitialspace=True))
    return [
        Gpu(
            int(row["index"]),
            row["name"],
            row["compute_cap"],
            (int(row["memory.total"]) - int(row["memory.reserved"])) * 2**20,
            int(row["memory.total"]),
        )
        for row in rows
        if is_device(ROOT / f"dev/nvidia{row['index']}")
    ]


def is_device(path: Path) -> bool:
    """A test's stand-in for / has plain files, a container device nodes."""
    return path.exists() and (Path("/") != ROOT or stat.S_ISCHR(path.stat().st_mode))


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def image() -> dict:
    """What the image plays: engine, version, GPU code by library, flags, sizes (written by simulator/image.py)."""
    return json.loads((SHARE / "image.json").read_text())


def pace() -> float:
    """SIMULATOR_PACE in the file `environment` beside the ledger: 0.1 makes all phases ten times faster."""
    try:
        lines = (LEDGER / "environment").read_text().splitlines()
    except FileNotFoundError:
        return 1.0
    return float(dict(line.split("=", 1) for line in lines if "=" in line).get("SIMULATOR_PACE", 1))


def rest(seconds: float) -> None:
    time.sleep(seconds * pace())


def faults(*names: object) -> dict:
    """What faults.json beside the ledger asks of the service of that name or port."""
    asked = read_json(LEDGER / "faults.json")
    return {key: value for name in names for key, value in asked.get(str(name), {}).items()}


def runs_on(code: str, capability: str) -> bool:
    """CUDA's rule: machine code runs within its major version, from its minor version on (suffix a: exactly there; f:
    its family); PTX runs everywhere from its version on."""
    kind, _, number = code.partition("_")
    suffix = number.lstrip("0123456789")
    digits = number.removesuffix(suffix) if suffix else number
    have, want = tuple(map(int, capability.split("."))), (int(digits[:-1]), int(digits[-1]))
    if kind == "compute":
        return have >= want
    if suffix == "a":
        return have == want
    return have[0] == want[0] and have[1] >= want[1]


def lacking(codes: list[str], capability: str) -> bool:
    return not any(runs_on(code, capability) for code in codes)


def pytorch_warning(gpu: Gpu, codes: list[str]) -> str:
    """torch/cuda/__init__.py, _check_cubins"""
    supported = " ".join(code for code in codes if code.startswith("sm_"))
    return (
        f"/usr/local/lib/python3.12/dist-packages/torch/cuda/__init__.py:287: UserWarning: \n{gpu.name} with CUDA "
        "capability "
        f"sm_{gpu.capability.replace('.', '')} is not compatible with the current PyTorch installation.\n"
        f"The current PyTorch install supports CUDA capabilities {supported}.\n"
        f"If you want to use the {gpu.name} GPU with PyTorch, please check the instructions at "
        "https://pytorch.org/get-started/locally/\n\n  warnings.warn("
    )


NO_KERNEL = (
    "CUDA error: no kernel image is available for execution on the device\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\n"
    "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
ILLEGAL_ACCESS = NO_KERNEL.replace(
    "no kernel image is available for execution on the device", "an illegal memory access was encountered"
)
