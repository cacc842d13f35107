"""The plan's own commands on a box without containers and model downloads: what has to differ, and only that.

A planned option is one word, `--flag=value` or `--switch`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MODEL_FLAGS = {"sglang": "--model-path", "vllm": "--model"}
# Options that acceptance adds or replaces, by engine: the value, and why.
SUBSTITUTED = {
    "sglang": {
        "--load-format": ("dummy", "no weights can be downloaded"),
        "--grammar-backend": ("none", "its compiled grammars are not asked for"),
        "--skip-server-warmup": (None, "the one request that follows a start does that"),
    },
    "vllm": {"--load-format": ("dummy", "no weights can be downloaded")},
}
ENVIRONMENT = {
    "sglang": {"HF_HUB_OFFLINE": "1"},
    "vllm": {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"},
}
_ABSENT = object()


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Options by flag: the value, or None for a switch."""
    return {flag: value if given else None for flag, given, value in (word.partition("=") for word in words)}


def adapted(service: Mapping[str, Any], model_directory: str, host: str, port: int) -> list[str]:
    """The planned command with this box's model, host and port, and the substitutions of its engine."""
    engine = service["engine"]
    options = _options(service["command"])
    options |= {MODEL_FLAGS[engine]: model_directory, "--host": host, "--port": str(port)}
    options |= {flag: value for flag, (value, _) in SUBSTITUTED[engine].items()}
    words = [flag if value is None else f"{flag}={value}" for flag, value in options.items()]
    return [*service["entrypoint"], *words]


def differences(service: Mapping[str, Any], command: Sequence[str]) -> list[dict[str, Any]]:
    """Options in which `command` differs from the plan: {flag, planned, used, allowed}; None: not given."""
    engine = service["engine"]
    planned, used = _options(service["command"]), _options(command[len(service["entrypoint"]) :])
    allowed = {MODEL_FLAGS[engine], "--host", "--port", *SUBSTITUTED[engine]}
    return [
        {
            "flag": flag,
            "planned": _shown(planned.get(flag, _ABSENT)),
            "used": _shown(used.get(flag, _ABSENT)),
            "allowed": flag in allowed,
        }
        for flag in dict.fromkeys([*planned, *used])
        if planned.get(flag, _ABSENT) != used.get(flag, _ABSENT)
    ]


def _shown(value: Any) -> str | None:
    if value is _ABSENT:
        return None
    return "given" if value is None else value
