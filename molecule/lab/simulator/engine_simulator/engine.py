"""What both simulated engines have in common: a ledger, requests that take time and activations, faults, a death."""

import json
import os
import re
import signal
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field

from . import hub, machine
from .ledger import GIB, Ledger, OutOfMemory

BATCH = 8192  # tokens that sizes.yml's activations were measured with
ANSWER = (
    " Paris, which is classified as a UNESCO World Heritage Site. (This text is simulated: no model ran, a test host "
    "has no "
    "GPU.)"
)
FINGERPRINT = "simulated-engine"
WORD = re.compile(r"\s*(?:\w+|[^\w\s])")


class EngineError(Exception):
    """Stops a start or a running engine; `kind` is the exception that the real engine raises."""

    def __init__(self, message: str, kind: str = "RuntimeError") -> None:
        super().__init__(message)
        self.kind = kind


class Refused(Exception):
    """A request that the engine does not serve: HTTP status, kind, message."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class EngineDead(Exception):
    """The engine died while it served the request."""


@dataclass
class Generation:
    """One finished or running request."""

    prompt_tokens: int
    words: list[str]
    reason: str
    seconds_per_token: float
    identity: str = field(default_factory=lambda: uuid.uuid4().hex)


def words_of(text: object) -> list[str]:
    """A token of the simulation is a word or a punctuation mark."""
    if isinstance(text, list) and all(isinstance(item, int) for item in text):
        return [str(item) for item in text]
    return WORD.findall(str(text))


class Engine:
    """A start in phases (`phases`, in the subclass), then requests until the end."""

    def __init__(self, words: dict) -> None:
        self.words, self.image = words, machine.image()
        self.engine, self.version = self.image["engine"], self.image["version"]
        self.gpus = machine.visible_gpus()
        self.model_path, self.served = self.model_name()
        self.port = words.get("port") or self.default_port
        self.tp = words.get("tensor_parallel_size") or words.get("tp_size") or 1
        self.hosts, self.host_rank = words.get("nnodes") or 1, words.get("node_rank") or 0
        self.local_tp = self.tp // self.hosts
        self.table = self.image["sizes"]
        self.state = "starting"
        self.running, self.waiting, self.held_tokens, self.prompt_tokens = 0, 0, 0, 0
        self.totals = {"prompt": 0, "generated": 0, "requests": 0}
        self.lock = threading.Condition()
        self.ready_to_serve = threading.Event()
        self.tokens = 0
        self.ledger: Ledger = None

    # ---- start ----

    def start(self) -> None:
        """Check the container, then go through the engine's own phases."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop())
        signal.signal(signal.SIGINT, lambda *_: self.stop())
        self.fault_thread()
        try:
            machine.rest(0.8)
            self.check_gpus()
            self.find_model()
            time.sleep(float(self.faults().get("slow", 0)))
            if any(self.has_option(option) for option in self.faults().get("crash_with", [])):
                raise EngineError(machine.ILLEGAL_ACCESS, "torch.AcceleratorError")
            self.phases()
        except (EngineError, OutOfMemory) as problem:
            self.fail_start(problem)
        self.state = "ready"

    def faults(self) -> dict:
        return machine.faults(self.served, self.model_path, self.port)

    def fault_thread(self) -> None:
        born = time.monotonic()

        def watch() -> None:
            while True:
                after = self.faults().get("crash_loop")
                if after is not None and time.monotonic() - born >= float(after):
                    print("simulated fault crash_loop: the engine exits", file=sys.stderr, flush=True)
                    os._exit(1)
                time.sleep(0.05)

        threading.Thread(target=watch, daemon=True).start()

    def check_gpus(self) -> None:
        if not self.gpus or self.faults().get("nvml_lost"):
            raise self.no_gpu()
        if self.local_tp > len(self.gpus):
            raise EngineError("CUDA error: invalid device ordinal", "torch.AcceleratorError")
        used = self.gpus[: self.local_tp]
        codes = self.image["libraries"]
        torch = next((codes[name] for name in codes if name.startswith("torch ")), [])
        for gpu in used:
            if machine.lacking(torch, gpu.capability):
                print(machine.pytorch_warning(gpu, torch), file=sys.stderr, flush=True)
            if any(machine.lacking(library, gpu.capability) for library in codes.values()):
                raise EngineError(machine.NO_KERNEL, "torch.AcceleratorError")
        totals = {gpu.index: gpu.total for gpu in used}
        self.ledger = Ledger(machine.LEDGER, totals, self.process_name)

    def find_model(self) -> None:
        """Its sizes, and its files from the cache or the simulated hub."""
        name = hub.name_of(self.model_path)
        try:
            hub.fetch(name, self.words.get("revision") or "main", quiet=True)
        except hub.HubError as problem:
            raise EngineError(problem.as_engine_says(self.model_path), "OSError") from None
        self.model = self.table["models"][name]
        self.sizes = self.model[self.engine]

    def gib(self, name: str) -> float:
        return self.sizes[name] * GIB

    def free_gib(self) -> float:
        return self.ledger.free() / GIB

    def oom_fault(self) -> None:
        """`oom_at_start`: ask for more than there is, once the weights are half loaded."""
        if self.faults().get("oom_at_start"):
            self.ledger.take("weights", self.gib("weights") / 2)
            self.ledger.take("weights", self.ledger.free() + GIB)

    def hang_fault(self) -> None:
        if line := self.faults().get("fatal_line_then_hang"):
            self.log(line if isinstance(line, str) else machine.ILLEGAL_ACCESS.splitlines()[0])
            while True:
                time.sleep(3600)

    @property
    def cell(self) -> int:
        """Bytes of one token's keys and values, on one GPU."""
        element = 1 if str(self.words.get("kv_cache_dtype") or "auto").startswith("fp8") else 2
        return self.model["kv_bytes_per_token"] * element // 2 // self.tp

    def take_context(self) -> None:
        more = self.table["tensor_parallel"] if self.tp > 1 else 0
        self.ledger.take("context", self.gib("context") + more * GIB)

    def take_weights(self) -> int:
        """Bytes on one GPU, taken bit by bit; `slow_weights` is a disk that is slower than the others'."""
        weights = int(self.gib("weights") / self.tp)
        self.ledger.take_slowly("weights", weights, machine.pace() + float(self.faults().get("slow_weights", 0)))
        return weights

    # ---- requests ----

    def tokens_per_second(self) -> float:
        """Of one request, whatever else runs: the model's, times what the options make of it (sizes.yml, faults)."""
        factors = {**self.table["speeds"][self.engine], **self.faults().get("speed", {})}
        speed = self.model["tokens_per_second"]
        for option, factor in factors.items():
            if option == "all" or self.has_option(option):
                speed *= factor
        return speed

    def has_option(self, option: str) -> bool:
        """`attention-backend=triton`, or `enforce-eager` for a switch that is on."""
        name, _, value = option.partition("=")
        return str(self.words.get(name.replace("-", "_"))) == (value or "True")

    def generate(self, prompt: object, limit: int, ignore_eos: bool = False):
        """Yield a Generation, then its words one by one, in the time that the real engine would need."""
        prompt_tokens = max(1, len(words_of(prompt)))
        limit = self.admit(prompt_tokens, limit)
        answer = words_of(ANSWER)
        words = (answer * (limit // len(answer) + 1))[:limit] if ignore_eos else answer[:limit]
        reason = "length" if len(words) == limit else "stop"
        work = Generation(prompt_tokens, words, reason, 1 / self.tokens_per_second())
        self.enter(work)
        try:
            yield work
            for word in words:
                machine.rest(work.seconds_per_token)
                if self.state == "dead":
                    raise EngineDead
                yield word
                self.totals["generated"] += 1
        finally:
            self.leave(work)

    def enter(self, work: Generation) -> None:
        """Wait for a place, take the batch's activations, die where they do not fit."""
        need = work.prompt_tokens + len(work.words)
        with self.lock:
            self.waiting += 1
            while self.running >= self.max_running or (self.running and self.held_tokens + need > self.tokens):
                self.lock.wait(0.5)
                if self.state == "dead":
                    self.waiting -= 1
                    raise EngineDead
            self.waiting -= 1
            self.running += 1
            self.held_tokens += need
            self.prompt_tokens += work.prompt_tokens
            self.totals["prompt"] += work.prompt_tokens
            self.totals["requests"] += 1
            try:
                if self.running > 1 and self.faults().get("die_under_load"):
                    raise EngineError(machine.ILLEGAL_ACCESS, "torch.AcceleratorError")
                self.grow()
            except (EngineError, OutOfMemory) as problem:
                self.leave_locked(work)
                self.state = "dead"
                self.die(problem)
                raise EngineDead from None

    def leave(self, work: Generation) -> None:
        with self.lock:
            self.leave_locked(work)

    def leave_locked(self, work: Generation) -> None:
        self.running -= 1
        self.held_tokens -= work.prompt_tokens + len(work.words)
        self.prompt_tokens -= work.prompt_tokens
        self.lock.notify_all()

    def grow(self) -> None:
        """Activations of the prompts that run at once, up to one batch; PyTorch's allocator keeps them afterwards."""
        if "first_request" not in self.ledger.parts:
            self.ledger.take("first_request", self.gib("first_request"))
        batch = min(self.prompt_tokens, self.chunk)
        size = max(0, int((self.sizes["activations"] * batch / BATCH - self.sizes.get("held", 0)) * GIB))
        have = self.ledger.parts.get("activations", 0)
        if size > have:
            self.ledger.take("activations", size - have)

    def stop(self) -> None:
        self.log_stop()
        sys.stdout.flush()
        os._exit(0)

    def exception(self, problem: Exception) -> str:
        kind = "torch.OutOfMemoryError" if isinstance(problem, OutOfMemory) else problem.kind
        return (
            "Traceback (most recent call last):\n"
            f'  File "/usr/local/lib/python3.12/dist-packages/{self.engine}", line 1, in simulated\n{kind}: {problem}'
        )

    def memory(self) -> dict[str, int]:
        return dict(self.ledger.parts)


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)
