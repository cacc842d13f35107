"""What each part of a service takes, from what its start-up log and nvidia-smi say; beside it what the plan says. GiB.

SGLang logs free memory at each step, so each part is the difference of two lines. vLLM logs sizes; what it does not log
is the rest of its process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def parts(service: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """{part: {planned, measured}} of one service of a plan, from {start, process_peak} of its run."""
    start, planned = found["start"], service["memory"]
    measured = _PARTS[service["engine"]](start)
    measured |= {"resident": start["resident"], "peak": found["process_peak"]}
    measured["under_load"] = found["process_peak"] - start["resident"]
    foreseen = {
        "context": planned["context"],
        "weights": planned["weights"],
        "kv": planned["kv"],
        "tables": planned["tables"],
        "workspaces": planned["workspaces"],
        "graphs": planned["graphs"],
        "rest": planned["workspaces"] + planned["tables"] + planned.get("compilation", 0.0),
        "resident": planned["resident"],
        "peak": planned["peak"],
        "under_load": planned["peak"] - planned["resident"],
    }
    return {
        part: {"planned": round(foreseen[part], 3), "measured": round(size, 3)}
        for part, size in measured.items()
        if size is not None
    }


def _sglang(start: Mapping[str, float]) -> dict[str, float | None]:
    graphs = start.get("decode_graphs", 0.0) + start.get("prefill_graphs", 0.0)
    return {
        "context": start["device_free_before"] - start["free"],
        "weights": start["weights"],
        "kv": start["kv"],
        "tables": start["free_after"] - start["kv"] - start["pool_end"],
        # kernels and workspaces up to the end of the log, and what the first request adds
        "workspaces": start["pool_end"] - graphs - start["device_free_after"],
        "graphs": graphs,
    }


def _vllm(start: Mapping[str, float]) -> dict[str, float | None]:
    context, graphs = start["device_free_before"] - start["free"], start.get("decode_graphs", 0.0)
    return {
        "context": context,
        "weights": start["weights"],
        "kv": start["kv"],
        "graphs": graphs,
        "rest": start["resident"] - context - start["weights"] - start["kv"] - graphs,
    }


_PARTS = {"sglang": _sglang, "vllm": _vllm}
