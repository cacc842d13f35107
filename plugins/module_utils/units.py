"""Units and rounding. Sizes are bytes inside the planner and GiB (2**30) wherever people read them."""

from __future__ import annotations

import math
from collections.abc import Callable

MIB = 1 << 20
GIB = 1 << 30


def gib(size: float, digits: int = 3) -> float:
    """Bytes as GiB, rounded for display."""
    return round(size / GIB, digits)


def from_gib(size: float) -> int:
    """GiB as whole bytes, rounded up."""
    return math.ceil(size * GIB)


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def round_down(value: int, step: int) -> int:
    return value // step * step


def ceil3(fraction: float) -> float:
    """Three decimals, never smaller than ``fraction`` (a value already at three decimals stays)."""
    return math.ceil(fraction * 1000 - 1e-9) / 1000


def largest(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The largest number from ``low`` to ``high`` that ``holds``: ``low`` does, and once false it stays false."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
