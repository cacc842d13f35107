"""SGLang's start and memory law, from its sources: sglang/srt/model_executor/model_runner.py, distributed/bootstrap.py,
mem_cache/kv_cache_configurator.py, arg_groups/{memory_hook,cuda_graph_hook}.py, managers/scheduler.py (0.5.19), and
model_executor/model_runner.py of 0.5.2 for the older form of its lines.
"""

import contextlib
import math
import os
import sys
import time

from . import machine
from .engine import Engine, EngineError, Refused
from .ledger import GIB, OutOfMemory
from .ranks import Ranks, RanksLost

CAPTURE_FAILED = (
    "Possible solutions:\n"
    "1. set --mem-fraction-static to a smaller value (e.g., 0.8 or 0.7)\n"
    "2. set --cuda-graph-max-bs-decode to a smaller value (e.g., 16)\n"
    "3. disable decode CUDA graph by --cuda-graph-backend-decode=disabled. (Not recommended. Huge performance loss)\n"
    "Open an issue on GitHub https://github.com/sgl-project/sglang/issues/new/choose \n"
)
# arg_groups/memory_hook.py: GPU memory below this many MiB -> chunked prefill size, largest decode graph
# (before 0.5.20 the second tier had 2048 and 24)
TIERS = ((20480, 2048, 8), (35840, 4096, 48), (61440, 4096, 32), (163840, 8192, 256), (math.inf, 16384, 512))


class SGLang(Engine):
    default_port = 30000
    process_name = "sglang::scheduler"

    def model_name(self) -> tuple[str, str]:
        path = self.words["model_path"]
        return path, self.words.get("served_model_name") or path

    def log(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        prefix = f" TP{self.host_rank * self.local_tp}" if self.tp > 1 else ""
        print(f"[{stamp}{prefix}] {text}", file=sys.stderr, flush=True)

    @property
    def release(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split(".")[:3])

    def first(self, *names: str):
        return next((self.words[name] for name in names if self.words.get(name) is not None), None)

    def no_gpu(self) -> EngineError:
        if self.release < (0, 5, 10):
            return EngineError("No accelerator (CUDA, XPU, HPU) is available.")
        return EngineError("No accelerator (CUDA, XPU, HPU, NPU, MUSA, MPS) or platform plugin is available.")

    # ---- settings ----

    def settle(self) -> None:
        words = self.words
        memory = min(gpu.total_mib for gpu in self.gpus[: self.local_tp])
        _, chunk, graphs = next(tier for tier in TIERS if memory < tier[0])
        if (chunk, graphs) == (4096, 48) and self.release < (0, 5, 20):
            chunk, graphs = 2048, 24
        given = words.get("chunked_prefill_size")
        self.chunk = given if given and given > 0 else chunk
        self.context_length = words.get("context_length") or self.model["max_context"]
        if (
            self.context_length > self.model["max_context"]
            and "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN" not in os.environ
        ):
            raise EngineError(
                f"User-specified context_length ({self.context_length}) is greater than the derived context_length "
                f"({self.model['max_context']}). This may lead to incorrect model outputs or CUDA errors. To allow "
                "overriding "
                "this maximum, set the env var SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1",
                "ValueError",
            )
        self.backend = words.get("attention_backend") or "flashinfer"
        plain = self.backend in ("torch_native", "flex_attention")
        self.decode_graphs: list[int] = []
        if not (plain or words.get("disable_cuda_graph") or self.first("cuda_graph_backend_decode") == "disabled"):
            wanted = self.first("cuda_graph_max_bs_decode", "cuda_graph_max_bs")
            largest = wanted or min(graphs, words.get("max_running_requests") or graphs)
            self.decode_graphs = decode_sizes(largest)
        self.prefill_graphs: list[int] = []
        off = ("disable_prefill_cuda_graph", "disable_piecewise_cuda_graph", "disable_cuda_graph")
        if self.release >= (0, 5, 10) and not (plain or any(words.get(name) for name in off)):
            self.prefill_graphs = prefill_sizes(self.chunk)
        self.fraction = words.get("mem_fraction_static") or self.default_fraction(memory)

    def default_fraction(self, memory: int) -> float:
        reserved = 512 + 1.5 * max(self.chunk, 2048) + self.tp / 8 * 1024
        reserved += 2 * max(self.decode_graphs, default=0) + 8 * len(self.prefill_graphs)
        if memory > 60 * 1024:
            reserved = max(reserved, 10240)
        return round((memory - reserved) / memory, 3)

    # ---- start ----

    def phases(self) -> None:
        self.settle()
        self.log(
            f"server_args=ServerArgs({', '.join(f'{key}={value!r}' for key, value in self.words.items() if value)})"
        )
        self.log("Init torch distributed begin.")
        self.ranks = self.meet()
        before = self.free_gib()
        self.take_context()
        machine.rest(0.4)
        free_before = self.least_free()  # F
        used = min(0.09, before - free_before / GIB)  # what NCCL takes of the context; 0.09 alone on an H100
        if self.release >= (0, 5, 21):
            self.log(f"Memory baseline taken. mem usage={used:.2f} GB")
            self.log("Init parallel ends. elapsed=0.40 s")
        else:
            elapsed = "" if self.release < (0, 5, 10) else "elapsed=0.40 s, "
            self.log(f"Init torch distributed ends. {elapsed}mem usage={used:.2f} GB")
        self.load_weights(free_before)
        self.make_pool(free_before)
        self.set_up_attention()
        self.capture()
        self.ledger.take("runtime", self.gib("runtime"))
        self.startup_available = self.free_gib()
        self.max_running = self.words.get("max_running_requests") or min(max(2048, self.tokens // 2), 4096)
        self.log(
            f"max_total_num_tokens={self.tokens}, "
            f"chunked_prefill_size={self.words.get('chunked_prefill_size') or self.chunk}, "
            f"max_prefill_tokens={self.words.get('max_prefill_tokens') or 16384}, "
            f"max_running_requests={self.max_running}, "
            f"context_len={self.context_length}, available_gpu_mem={self.startup_available:.2f} GB"
        )
        self.ledger.take("settled", self.gib("settled"))
        if self.ranks:
            self.least_free()  # all are up
            self.ranks.watch(lambda problem: self.die(EngineError(str(problem), problem.kind)))

    def meet(self) -> Ranks | None:
        """With --nnodes: wait for the other hosts. The service ends on all of them when it ends on one."""
        if self.hosts == 1:
            return None
        ranks = Ranks(self.words["dist_init_addr"], self.hosts, self.host_rank)
        with rank_errors():
            ranks.meet()
        return ranks

    def least_free(self) -> int:
        """get_available_gpu_memory(distributed=True): the least of all ranks."""
        free = self.ledger.free()
        with rank_errors():
            return self.ranks.smallest(free) if self.ranks else free

    def load_weights(self, free_before: int) -> None:
        self.log(f"Load weight begin. avail mem={free_before / GIB:.2f} GB")
        self.hang_fault()
        self.oom_fault()
        self.take_weights()
        dtype = "dtype=torch.bfloat16, " if self.release < (0, 5, 10) else ""
        elapsed = "" if self.release < (0, 5, 10) else "elapsed=1.00 s, "
        free = self.free_gib()
        self.log(
            f"Load weight end. {elapsed}type={self.model['architecture']}, {dtype}avail mem={free:.2f} GB, "
            f"mem usage={free_before / GIB - free:.2f} GB."
        )

    def make_pool(self, free_before: int) -> None:
        """floor((free after weights - F x (1 - fraction)) / bytes per token), capped by --max-total-tokens."""
        machine.rest(0.2)
        free_after = self.least_free()
        rest = free_after - free_before * (1 - self.fraction)
        if rest <= 0:
            raise self.no_room(free_before, free_after)
        page = self.words.get("page_size") or 1
        tokens = math.floor(rest / self.cell)
        cap = self.words.get("max_total_tokens")
        if cap is not None and cap > tokens:
            self.log(
                f"max_total_tokens={cap} is larger than the profiled value {tokens}. Use the profiled value instead."
            )
        self.tokens = min(tokens, cap or tokens) // page * page
        if self.tokens <= 0:
            raise self.no_tokens()
        self.kv_bytes = (self.tokens + page) * self.cell
        self.ledger.take("kv", self.kv_bytes)
        requests = self.words.get("max_running_requests") or min(max(2048, self.tokens // 2), 4096)
        self.ledger.take("tables", (requests + 1) * (self.context_length + 4) * 4)
        half = self.kv_bytes / 2 / GIB
        dtype = "" if self.release < (0, 5, 14) else " dtype: torch.bfloat16,"
        self.log(f"KV Cache is allocated.{dtype} #tokens: {self.tokens}, K size: {half:.2f} GB, V size: {half:.2f} GB")
        self.ledger.take("pool_extra", self.gib("pool_extra"))
        self.log(f"Memory pool end. avail mem={self.free_gib():.2f} GB")

    def no_room(self, before: int, after: int) -> EngineError:
        least = 1 - after / before
        if self.release < (0, 5, 14):
            return self.no_tokens()
        return EngineError(
            f"Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static={self.fraction}. Raise "
            f"--mem-fraction-static above {math.ceil(least * 1000) / 1000:.3f} (minimum viable = 1 - available/pre = "
            f"{least:.4f}). If using speculative decoding, draft weights are now counted.",
            "ValueError",
        )

    def no_tokens(self) -> EngineError:
        more = "" if self.release < (0, 5, 10) else f" Current value: mem_fraction_static={self.fraction}"
        return EngineError(f"Not enough memory. Please try to increase --mem-fraction-static.{more}")

    def set_up_attention(self) -> None:
        sizes = self.table["workspaces"].get(self.backend)
        if sizes:
            self.ledger.take("workspace", sizes.get(self.model["architecture"], sizes["default"]) * GIB)

    def capture(self) -> None:
        """Prefill graphs, then decode graphs."""
        if self.prefill_graphs:
            size = self.table["prefill_graph"] * self.model["layers"] * len(self.prefill_graphs) * GIB
            old = self.release < (0, 5, 13)
            self.capture_one(
                "piecewise" if old else "target prefill", f"num_tokens={self.prefill_graphs}", "", size, "prefill"
            )
        if self.decode_graphs:
            size = self.gib("graphs") * len(self.decode_graphs) / self.sizes["graph_sizes"]
            if self.backend != "triton":
                size += self.table["flashinfer_graphs"] * GIB
            told = f"bs={self.decode_graphs}, " if self.release >= (0, 5, 13) else ""
            name = "target decode" if told else "cuda"
            self.capture_one(name, "num_tokens_per_req=1", told, size, "decode")

    def capture_one(self, name: str, detail: str, told: str, size: float, phase: str) -> None:
        before = self.free_gib()
        new = self.release >= (0, 5, 13)
        if new:
            backend = "breakable" if phase == "prefill" else "full"
            self.log(f"Capture {name} CUDA graph begin. backend={backend}, {detail}, avail mem={before:.2f} GB")
        else:
            self.log(f"Capture {name} graph begin. This can take up to several minutes. avail mem={before:.2f} GB")
        machine.rest(0.5)
        try:
            self.ledger.take(f"{phase}_graphs", size)
        except OutOfMemory as problem:
            raise EngineError(f"Capture cuda graph failed: {problem}\n{CAPTURE_FAILED}", "Exception") from None
        after = self.free_gib()
        if new:
            line = f"Capture {name} CUDA graph end. {told}elapsed=0.50 s, mem usage={before - after:.2f} GB, "
            self.log(f"{line}avail mem={after:.2f} GB.")
        else:
            line = f"Capture {name} graph end. Time elapsed: 0.50 s. mem usage={before - after:.2f} GB. "
            self.log(f"{line}avail mem={after:.2f} GB.")

    def fail_start(self, problem: Exception) -> None:
        if isinstance(problem, EngineError) and (problem.kind == "OSError" or "No accelerator" in str(problem)):
            print(self.exception(problem), file=sys.stderr, flush=True)  # in the main process, before any scheduler
            os._exit(1)
        self.log(f"Scheduler hit an exception: {self.exception(problem)}\n")
        self.log("Received sigquit from a child process. It usually means the child failed.")
        os._exit(137)  # kill_process_tree of itself

    def serve_lines(self, host: str) -> None:
        """uvicorn's lines, the warm-up, and the last one, while the server already answers."""
        if self.host_rank:
            self.log(f"Dummy health check server started in background thread at {host}:{self.port}")
            return
        stamp = time.strftime("[%Y-%m-%d %H:%M:%S]")
        for text in (
            "Started server process [1]",
            "Waiting for application startup.",
            "Application startup complete.",
            f"Uvicorn running on http://{host}:{self.port} (Press CTRL+C to quit)",
        ):
            print(f"{stamp} INFO:     {text}", file=sys.stderr, flush=True)
        machine.rest(0.3)
        if not self.words.get("skip_server_warmup"):
            for _ in self.generate("The capital city of France is", 8):
                pass
        self.ready_to_serve.set()
        self.log("The server is fired up and ready to roll!")

    # ---- requests ----

    def admit(self, prompt_tokens: int, limit: int | None) -> int:
        longest = min(self.context_length - 1, self.tokens - 1)
        if prompt_tokens >= longest:
            raise Refused(
                400,
                "BadRequestError",
                f"The input ({prompt_tokens} tokens) is longer than the model's context length ({self.context_length} "
                "tokens).",
            )
        return min(limit or 128, longest - prompt_tokens)

    def die(self, problem: Exception) -> None:
        self.log(f"Scheduler hit an exception: {self.exception(problem)}\n")
        self.log("SIGQUIT received. signum=3, frame=None. It usually means one child failed.")
        os._exit(137)

    def log_stop(self) -> None:
        self.log("Gracefully exiting... Remaining number of requests 0. Remaining requests remaining_rids=[].")

    def graph_usage(self) -> dict[str, float]:
        parts = self.memory()
        names = {"decode": "decode_graphs", "prefill": "prefill_graphs"}
        return {phase: round(parts[part] / GIB, 3) for phase, part in names.items() if part in parts}

    def memory_usage(self) -> dict:
        parts = self.memory()
        usage = {
            "weight": round(parts["weights"] / GIB, 3),
            "kvcache": round(parts["kv"] / GIB, 3),
            "token_capacity": self.tokens,
            "graph": self.graph_usage(),
        }
        if self.release < (0, 5, 16):
            return usage | {"graph": round(sum(self.graph_usage().values()), 2)}
        return usage | {"startup_available": round(self.startup_available, 3), "token_capacity_swa": None}


@contextlib.contextmanager
def rank_errors():
    try:
        yield
    except RanksLost as problem:
        raise EngineError(str(problem), problem.kind) from None


def decode_sizes(largest: int) -> list[int]:
    """cuda_graph_hook.py: generate_decode_cuda_graph_batch_sizes"""
    sizes = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, largest + 1, 32)]
    kept = [size for size in sizes if size <= largest]
    return kept if largest in kept else [*kept, largest]


def prefill_sizes(chunk: int) -> list[int]:
    """cuda_graph_hook.py: generate_prefill_cuda_graph_batch_sizes"""
    sizes = [
        *range(4, 33, 4),
        *range(48, 257, 16),
        *range(288, 513, 32),
        *range(576, 1025, 64),
        *range(1280, 4097, 256),
    ]
    return [size for size in [*sizes, *range(4608, chunk + 1, 512)] if size <= chunk]
