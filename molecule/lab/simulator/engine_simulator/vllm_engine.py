"""vLLM's start and memory law, from its sources (0.24.0): v1/worker/utils.py (request_memory), v1/worker/gpu_worker.py
(determine_available_memory), v1/core/kv_cache_utils.py, v1/engine/core.py, entrypoints/launcher.py.
"""

import math
import os
import sys
import threading
import time

from . import machine
from .engine import BATCH, Engine, EngineError, Refused
from .ledger import GIB

BLOCK = 16  # tokens
SEE = "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."


class VLLM(Engine):
    default_port = 8000
    process_name = "VLLM::EngineCore"

    def model_name(self) -> tuple[str, str]:
        path = self.words.get("model_tag") or self.words.get("model") or "Qwen/Qwen3-0.6B"
        served = self.words.get("served_model_name") or [path]
        return path, served[0] if isinstance(served, list) else served

    @property
    def release(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split(".")[:2])

    def log(self, text: str, place: str = "core.py:115", process: str = "EngineCore", level: str = "INFO") -> None:
        stamp = time.strftime("%m-%d %H:%M:%S")
        lines = text.split("\n")
        head = f"({process} pid={os.getpid()}) {level} {stamp} [{place}] "
        print("\n".join(f"{head}{line}" for line in lines), flush=True)

    def no_gpu(self) -> EngineError:
        return EngineError(
            "Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG` to turn on "
            "verbose "
            "logging to help debug the issue."
        )

    # ---- settings ----

    def settle(self) -> None:
        """engine/arg_utils.py: get_batch_defaults; config/vllm.py: _set_cudagraph_sizes"""
        words, large = self.words, min(gpu.total for gpu in self.gpus[: self.tp]) >= 70 * GIB
        self.max_running = words.get("max_num_seqs") or (1024 if large else 256)
        self.context_length = words.get("max_model_len") or self.model["max_context"]
        if self.context_length > self.model["max_context"] and "VLLM_ALLOW_LONG_MAX_MODEL_LEN" not in os.environ:
            raise EngineError(
                "1 validation error for ModelConfig\n  Value error, User-specified max_model_len "
                f"({self.context_length}) is greater than the derived max_model_len (max_position_embeddings="
                f"{self.model['max_context']} or model_max_length=None in model's config.json). To allow overriding "
                "this maximum, "
                "set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1.",
                "pydantic_core._pydantic_core.ValidationError",
            )
        self.chunk = words.get("max_num_batched_tokens") or (8192 if large else 2048)
        default = 0.92 if self.release >= (0, 18) else 0.9
        self.utilization = words.get("gpu_memory_utilization") or default
        self.graph_sizes: list[int] = []
        if not words.get("enforce_eager"):
            largest = words.get("max_cudagraph_capture_size") or min(2 * self.max_running, 512)
            sizes = (1, 2, 4, *range(8, min(largest + 1, 256), 8), *range(256, largest + 1, 16))
            self.graph_sizes = [size for size in sizes if size <= largest]

    # ---- start ----

    def phases(self) -> None:
        self.log(f"vLLM API server version {self.version}", "utils.py:299", "APIServer")
        self.settle()
        self.log(f"Initializing a V1 LLM engine (v{self.version}) with config: model='{self.model_path}'")
        self.take_context()
        machine.rest(0.4)
        total = min(gpu.total for gpu in self.gpus[: self.tp])
        free_before = self.ledger.free()
        requested = math.ceil(total * self.utilization)
        if free_before < requested:
            raise EngineError(
                f"Free memory on device cuda:0 ({gib(free_before)}/{gib(total)} GiB) on startup is less than desired "
                "GPU memory "
                f"utilization ({self.utilization}, {gib(requested)} GiB). Decrease GPU memory utilization or reduce "
                "GPU memory "
                "used by other processes.",
                "ValueError",
            )
        weights = self.load_weights()
        available = self.determine_available(free_before, requested, weights)
        self.make_pool(available)
        self.capture()
        self.log("init engine (profile, create kv cache, warmup model) took 1.50 s", "core.py:345")

    def load_weights(self) -> int:
        self.log(f"Starting to load model {self.model_path}...", "gpu_model_runner.py:5161")
        self.hang_fault()
        self.oom_fault()
        weights = self.take_weights()
        self.log(f"Model loading took {gib(weights)} GiB memory and 1.000000 seconds", "gpu_model_runner.py:5256")
        return weights

    def determine_available(self, free_before: int, requested: int, weights: int) -> int:
        """total x utilisation, less weights, activations, growth outside PyTorch, and (since 0.21) graphs.

        That growth is the difference of what is free on the GPU: what others take meanwhile is charged to this one.
        """
        self.ledger.take("runtime", self.gib("runtime"))
        activations = self.gib("profiled") * self.chunk / BATCH
        self.ledger.take("profile", activations)
        machine.rest(0.5)
        self.ledger.release("profile")
        free_after = self.ledger.free()
        if given := self.words.get("kv_cache_memory_bytes"):
            self.log(
                f"Initial free memory {gib(free_before)} GiB, reserved {gib(given)} GiB memory for KV Cache as "
                "specified by "
                "kv_cache_memory_bytes config and skipped memory profiling. This does not respect the "
                "gpu_memory_utilization "
                "config. Only use kv_cache_memory_bytes config when you want manual control of KV cache memory size.",
                "gpu_worker.py:431",
            )
            return given
        if free_before < free_after:
            raise EngineError(
                f"Error in memory profiling. Initial free memory {gib(free_before)} GiB, current free memory "
                f"{gib(free_after)} "
                "GiB. This happens when other processes sharing the same container release GPU memory while vLLM is "
                "profiling "
                "during initialization. To fix this, ensure consistent GPU memory allocation or isolate vLLM in its "
                "own "
                "container.",
                "AssertionError",
            )
        outside = free_before - free_after - weights
        graphs = self.graph_bytes() if self.release >= (0, 21) else 0
        available = int(requested - weights - activations - outside - graphs)
        self.log(f"Available KV cache memory: {gib(available)} GiB", "gpu_worker.py:508")
        return available

    def make_pool(self, available: int) -> None:
        if available <= 0:
            raise EngineError(
                "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
                "the engine "
                f"(this flag also controls CPU memory reservation on the CPU backend, despite its name). {SEE}",
                "ValueError",
            )
        block = BLOCK * self.cell
        needed = -(-self.context_length // BLOCK) * block
        if needed > available:
            longest = available // block * BLOCK
            estimate = (
                f"Based on the available memory, the estimated maximum model length is {longest}. " if longest else ""
            )
            raise EngineError(
                f"To serve at least one request with the model's max seq len ({self.context_length}), ({gib(needed)} "
                "GiB KV cache "
                f"is needed, which is larger than the available KV cache memory ({gib(available)} GiB). {estimate}Try "
                "increasing "
                "`gpu_memory_utilization` (which also controls CPU memory on the CPU backend) or decreasing "
                "`max_model_len` when "
                f"initializing the engine. {SEE}",
                "ValueError",
            )
        self.blocks = available // block
        self.tokens = self.blocks * BLOCK
        self.ledger.take("kv", self.blocks * block)
        self.log(f"GPU KV cache size: {self.tokens:,} tokens", "kv_cache_utils.py:2146")
        concurrency = self.tokens / (-(-self.context_length // BLOCK) * BLOCK)
        self.log(
            f"Maximum concurrency for {self.context_length:,} tokens per request: {concurrency:.2f}x",
            "kv_cache_utils.py:2147",
        )

    def graph_bytes(self) -> float:
        return self.gib("graphs") * len(self.graph_sizes) / self.sizes["graph_sizes"]

    def capture(self) -> None:
        if self.graph_sizes:
            machine.rest(0.5)
            self.ledger.take("decode_graphs", self.graph_bytes())
            self.log(
                f"Graph capturing finished in 1 secs, took {gib(self.graph_bytes())} GiB", "gpu_model_runner.py:6657"
            )

    def fail_start(self, problem: Exception) -> None:
        early = isinstance(problem, EngineError) and (
            problem.kind == "OSError" or "validation error" in str(problem) or "infer device" in str(problem)
        )
        if not early:
            text = f"EngineCore failed to start.\n{self.exception(problem)}"
            self.log(text, "core.py:1231", level="ERROR")
            problem = EngineError(
                "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
            )
        text = "\n".join(f"(APIServer pid={os.getpid()}) {line}" for line in self.exception(problem).split("\n"))
        print(text, file=sys.stderr, flush=True)
        os._exit(1)

    def serve_lines(self, host: str) -> None:
        self.log("Supported tasks: ['generate']", "api_server.py:577", "APIServer")
        self.log(f"Starting vLLM server on http://{host}:{self.port}", "api_server.py:581", "APIServer")
        for text in ("Started server process [1]", "Waiting for application startup.", "Application startup complete."):
            print(f"(APIServer pid={os.getpid()}) INFO:     {text}", flush=True)
        self.ready_to_serve.set()

    # ---- requests ----

    def admit(self, prompt_tokens: int, limit: int | None) -> int:
        room = self.context_length - prompt_tokens
        if room <= 0 or (limit or 0) > room:
            raise Refused(
                400,
                "BadRequestError",
                f"This model's maximum context length is {self.context_length} tokens. However, you requested "
                f"{limit or 0} output "
                f"tokens and your prompt contains {prompt_tokens} input tokens.",
            )
        return min(limit or room, room)

    def die(self, problem: Exception) -> None:
        """The engine process ends and its memory is free; the API server answers 500, then shuts down with status 0."""
        self.log(f"EngineCore encountered a fatal error.\n{self.exception(problem)}", "core.py:1233", level="ERROR")
        for part in list(self.ledger.parts):
            self.ledger.release(part)

        def shut_down() -> None:
            machine.rest(1.0)
            for text in ("Shutting down", "Waiting for application shutdown.", "Application shutdown complete."):
                print(f"(APIServer pid={os.getpid()}) INFO:     {text}", flush=True)
            os._exit(0)

        threading.Thread(target=shut_down, daemon=True).start()

    def log_stop(self) -> None:
        self.log("[shutdown] API server: shutdown triggered", "launcher.py:85", "APIServer")


def gib(size: float) -> str:
    """vllm/utils/mem_utils.py: format_gib"""
    return f"{size / GIB:.2f}"
