"""What a start-up log says of memory. Sizes in GiB (SGLang prints "GB" and means GiB).

The lines are those of sglang 0.5.15.post1 (srt/model_executor/model_runner.py, model_runner_kv_cache_mixin.py,
srt/mem_cache/memory_pool.py, srt/managers/scheduler.py) and of vllm 0.24.0 (v1/worker/gpu_worker.py,
v1/worker/gpu_model_runner.py, v1/core/kv_cache_utils.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SIZE = r"(-?[\d.]+)"
# figure: (pattern, how its groups become it)
_PATTERNS = {
    "sglang": {
        "distributed": rf"Init torch distributed ends\..*mem usage={_SIZE} GB",
        "free": rf"Load weight begin\. avail mem={_SIZE} GB",
        "free_after": rf"Load weight end\..*avail mem={_SIZE} GB",
        "weights": rf"Load weight end\..*mem usage={_SIZE} GB",
        "kv": rf"KV Cache is allocated\..*K size: {_SIZE} GB, V size: {_SIZE} GB",
        "pool_end": rf"Memory pool end\. avail mem={_SIZE} GB",
        "decode_graphs": rf"Capture target decode .*end\..*mem usage={_SIZE} GB",
        "prefill_graphs": rf"Capture target prefill .*end\..*mem usage={_SIZE} GB",
        "left": rf"max_total_num_tokens=\d+,.*available_gpu_mem={_SIZE} GB",
        "tokens": r"max_total_num_tokens=(\d+)",
    },
    "vllm": {
        "free": rf"Initial free memory {_SIZE} GiB",
        "weights": rf"Model loading took {_SIZE} GiB",
        "kv": rf"(?:reserved|Available KV cache memory:) {_SIZE} GiB",
        "decode_graphs": rf"Graph capturing finished in .* took {_SIZE} GiB",
        "tokens": r"GPU KV cache size: ([\d,]+) tokens",
    },
}
_COMPILED = {
    engine: {figure: re.compile(pattern) for figure, pattern in patterns.items()}
    for engine, patterns in _PATTERNS.items()
}


def figures(engine: str, lines: Iterable[str]) -> dict[str, float | int]:
    """The figures that the log names; the last word counts. Several groups (K and V) are added up."""
    found: dict[str, float | int] = {}
    for line in lines:
        for figure, pattern in _COMPILED[engine].items():
            if match := pattern.search(line):
                groups = [group.replace(",", "") for group in match.groups()]
                found[figure] = int(groups[0]) if figure == "tokens" else round(sum(map(float, groups)), 3)
    return found


def telling(engine: str, lines: Iterable[str]) -> list[str]:
    """The lines that figures are read from: what is worth keeping of a log."""
    return [line for line in lines if any(pattern.search(line) for pattern in _COMPILED[engine].values())]
