"""Whether compiled GPU code runs on a GPU. Source: CUDA C++ Programming Guide, "Compute Capability" and
"Application Compatibility"; NVIDIA, "Family-specific and architecture-specific features" (suffixes ``f`` and ``a``).

``sm_XY`` is machine code (a cubin): same major, minor at most the GPU's. ``compute_XY`` is PTX: that capability and
any later one. The suffix ``a`` binds either to exactly that capability, ``f`` to its family (same major, that minor
or later).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

CODE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


def capability(text: str) -> tuple[int, int]:
    """``"12.0"`` as (12, 0). ValueError for anything else."""
    match = re.fullmatch(r"(\d+)\.(\d)", str(text))
    if not match:
        raise ValueError(f"{text!r} is no compute capability such as 12.0")
    return int(match[1]), int(match[2])


def runs_on(code: str, target: tuple[int, int]) -> bool:
    """Whether one piece of code, such as ``sm_120a`` or ``compute_90``, runs on capability ``target``."""
    match = CODE.fullmatch(code)
    if not match:
        raise ValueError(f"{code!r} is no GPU code such as sm_120, sm_100f, sm_90a or compute_120")
    built = int(match[2]), int(match[3])
    if match[4] == "a":
        return built == target
    if match[4] == "f" or match[1] == "sm":
        return built[0] == target[0] and built[1] <= target[1]
    return built <= target


def any_runs_on(codes: Iterable[str], target: tuple[int, int]) -> bool:
    return any(runs_on(code, target) for code in codes)
