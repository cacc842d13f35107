"""Conversion of declared values: ValueError says what is allowed; strings from ``-e key=value`` are fine."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
SHM_SIZE = re.compile(r"[1-9][0-9]{0,5}[kmg]b?", re.IGNORECASE)
SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL|PRIVATE_KEY")


def integer(low: int, high: int) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return convert


def number(low: float, high: float) -> Callable[[Any], float]:
    """A number above ``low`` and at most ``high``."""

    def convert(value: Any) -> float:
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
            raise ValueError(f"a number above {low:g}, at most {high:g}")
        return float(value)

    return convert


def boolean(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or any(ord(letter) < 32 for letter in value):
        raise ValueError("a non-empty line of text")
    return str(value)


def name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise ValueError("lower-case letters, digits, '_', '.' and '-', at most 63 of them")
    return str(value)


def shm_size(value: Any) -> str:
    if not isinstance(value, str) or not SHM_SIZE.fullmatch(value):
        raise ValueError("a size such as 8g or 512m")
    return str(value)


def one_of(*words: str) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        if value not in words:
            raise ValueError(", ".join(words))
        return str(value)

    return convert


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError("a mapping")
    return dict(value)


def gpu_indices(value: Any) -> tuple[int, ...] | None:
    """``auto`` is None; else a list of distinct GPU indices."""
    if value == "auto":
        return None
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("auto, or a list of GPU indices such as [0]")
    indices = tuple(integer(0, 63)(index) for index in value)
    if len(set(indices)) != len(indices):
        raise ValueError("a list of distinct GPU indices")
    return indices


def environment(value: Any) -> dict[str, str]:
    variables = mapping(value)
    for key, content in variables.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            raise ValueError(f"names of environment variables; {key!r} is none")
        if isinstance(content, (Mapping, list, tuple)) or content is None:
            raise ValueError(f"text or numbers; {key} holds neither")
        if SECRET_NAME.search(key.upper()):
            raise ValueError(
                f"nothing secret: {key} would be readable in compose.yaml and in `docker inspect`; "
                "download a gated model beforehand and give its directory as the model"
            )
    return {
        key: str(content).lower() if isinstance(content, bool) else str(content) for key, content in variables.items()
    }
