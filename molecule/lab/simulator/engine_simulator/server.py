"""The HTTP endpoints of both engines."""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from . import machine
from .engine import FINGERPRINT, Engine, EngineDead, Refused
from .ledger import GIB
from .timings import Timings
from .vllm_engine import BLOCK

OPEN = ("/health", "/metrics", "/ping", "/version", "/load")
# srt/utils/common.py, launch_dummy_health_check_server; /metrics with --enable-metrics
OF_OTHER_RANKS = ("/ping", "/health", "/health_generate", "/metrics")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine
    timings: Timings

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_request(None)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        try:
            body = json.loads(self.rfile.read(length) or b"{}")
        except json.JSONDecodeError as problem:
            self.send_problem(Refused(400, "BadRequestError", f"JSON decode error: {problem}"))
            return
        self.handle_request(body)

    def handle_request(self, body: dict | None) -> None:
        path = urlsplit(self.path).path
        try:
            if not self.allowed(path):
                self.send_json({"error": "Unauthorized"}, 401)
                return
            if self.engine.host_rank:
                answer = (lambda: self.send_empty(200)) if body is None and path in OF_OTHER_RANKS else None
            else:
                answer = self.common(path, body) or self.own(path, body)
            if answer is None:
                self.send_json({"detail": "Not Found"}, 404)
            else:
                answer()
        except Refused as problem:
            self.send_problem(problem)
        except EngineDead:
            self.send_problem(
                Refused(
                    500,
                    "InternalServerError",
                    "EngineCore encountered an issue. See stack trace (above) for the root cause.",
                )
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def allowed(self, path: str) -> bool:
        keys = self.engine.words.get("api_key")
        keys = [keys] if isinstance(keys, str) else keys or []
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return not keys or path.startswith(OPEN) or given in keys

    # ---- what both have ----

    def common(self, path: str, body: dict | None):
        engine = self.engine
        if body is None and path == "/v1/models":
            model = {"id": engine.served, "object": "model", "created": int(time.time()), "owned_by": engine.engine}
            model |= {"root": engine.model_path, "max_model_len": engine.context_length, "simulated": True}
            return lambda: self.send_json({"object": "list", "data": [model]})
        if body is not None and path == "/v1/completions":
            return lambda: self.complete(body, body.get("prompt", ""), "text_completion", "cmpl")
        if body is not None and path == "/v1/chat/completions":
            text = "\n".join(str(message.get("content")) for message in body.get("messages", []))
            return lambda: self.complete(body, text, "chat.completion", "chatcmpl")
        return None

    def own(self, path: str, body: dict | None):
        return (self.sglang if self.engine.engine == "sglang" else self.vllm)(path, body)

    def complete(self, body: dict, prompt: object, kind: str, prefix: str) -> None:
        engine, chat = self.engine, kind.startswith("chat")
        name = body.get("model") or engine.served
        if name != engine.served and engine.engine == "vllm":
            raise Refused(404, "NotFoundError", f"The model `{name}` does not exist.")
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or (None if chat else 16)
        generation = self.timings.timed(engine.generate(prompt, limit, bool(body.get("ignore_eos"))))
        work = next(generation)
        head = {
            "id": f"{prefix}-{work.identity}",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": FINGERPRINT,
        }
        if body.get("stream"):
            self.stream(generation, work, head | {"object": f"{kind}.chunk" if chat else kind}, body, chat)
            return
        text = "".join(generation)
        choice = {"index": 0, "logprobs": None, "finish_reason": work.reason}
        choice |= {"message": {"role": "assistant", "content": text.lstrip()}} if chat else {"text": text}
        self.send_json(head | {"object": kind, "choices": [choice], "usage": usage(work)})

    def stream(self, generation, work, head: dict, body: dict, chat: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

        def send(choices: list, **more) -> None:
            self.wfile.write(f"data: {json.dumps(head | {'choices': choices} | more)}\n\n".encode())
            self.wfile.flush()

        def choice(text: str, reason: str | None) -> dict:
            part = {"delta": {"content": text} if text else {}} if chat else {"text": text}
            return {"index": 0, "logprobs": None, "finish_reason": reason} | part

        for word in generation:
            send([choice(word, None)])
        send([choice("", work.reason)])
        if (body.get("stream_options") or {}).get("include_usage"):
            send([], usage=usage(work))
        self.wfile.write(b"data: [DONE]\n\n")

    # ---- SGLang ----

    def sglang(self, path: str, body: dict | None):
        engine = self.engine
        if path in ("/health", "/health_generate"):
            return self.sglang_health
        if path in ("/model_info", "/get_model_info"):
            info = {
                "model_path": engine.model_path,
                "tokenizer_path": engine.model_path,
                "is_generation": True,
                "simulated": True,
            }
            return lambda: self.send_json(info)
        if path in ("/server_info", "/get_server_info"):
            return lambda: self.send_json(self.server_info())
        if path == "/metrics" and engine.words.get("enable_metrics"):
            return lambda: self.send_metrics(sglang_metrics(engine))
        if path == "/flush_cache":
            return self.flush_cache
        if path == "/v1/loads":
            return lambda: self.send_json(self.loads())
        if path == "/generate" and body is not None:
            return lambda: self.generate(body)
        return None

    def sglang_health(self) -> None:
        engine = self.engine
        if not engine.ready_to_serve.is_set() or engine.faults().get("never_healthy"):
            self.send_empty(503)
            return
        if (
            os.environ.get("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION", "1").lower() in ("1", "true")
            and not engine.running
        ):
            for _ in engine.generate([0], 1):
                pass
            machine.rest(0.3)  # it looks for an answer once a second
        self.send_empty(200)

    def server_info(self) -> dict:
        engine = self.engine
        state = {"memory_usage": engine.memory_usage(), "last_gen_throughput": 0.0, "simulated_memory": engine.memory()}
        info = {"version": engine.version, "status": engine.state, "max_total_num_tokens": engine.tokens}
        return engine.words | info | {"simulated": True, "internal_states": [state]}

    def flush_cache(self) -> None:
        """Also gives back what PyTorch's allocator held for activations."""
        if self.engine.running:
            self.send_text("Cache not flushed because there are pending requests.\n", 400)
            return
        self.engine.ledger.release("activations")
        self.send_text(
            "Cache flushed.\nPlease check backend logs for more details. (When there are running or waiting requests, "
        )

    def loads(self) -> dict:
        engine = self.engine
        load = {
            "dp_rank": 0,
            "num_running_reqs": engine.running,
            "num_waiting_reqs": engine.waiting,
            "num_used_tokens": engine.held_tokens,
            "max_total_num_tokens": engine.tokens,
            "token_usage": round(engine.held_tokens / engine.tokens, 4),
            "max_running_requests": engine.max_running,
        }
        parts = engine.memory()
        memory = {
            "weight_gb": parts["weights"] / GIB,
            "kv_cache_gb": parts["kv"] / GIB,
            "token_capacity": engine.tokens,
        }
        memory["graph_gb"] = sum(engine.graph_usage().values())
        load["memory"] = {key: round(value, 3) for key, value in memory.items()}
        return {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "version": engine.version,
            "dp_rank_count": 1,
            "loads": [load],
        }

    def generate(self, body: dict) -> None:
        engine, parameters = self.engine, body.get("sampling_params") or {}
        prompt = body.get("text") or body.get("input_ids") or ""
        generation = engine.generate(prompt, parameters.get("max_new_tokens"), bool(parameters.get("ignore_eos")))
        work = next(generation)
        text = "".join(generation)
        meta = {"id": work.identity, "finish_reason": {"type": work.reason}, "prompt_tokens": work.prompt_tokens}
        meta |= {"completion_tokens": len(work.words), "cached_tokens": 0, "simulated": True}
        self.send_json({"text": text, "meta_info": meta})

    # ---- vLLM ----

    def vllm(self, path: str, body: dict | None):
        engine = self.engine
        if path == "/health":
            sick = engine.state == "dead" or engine.faults().get("never_healthy")
            return lambda: self.send_empty(503 if sick else 200)
        if path == "/ping":
            return lambda: self.send_empty(200)
        if path == "/version":
            return lambda: self.send_json({"version": engine.version})
        if path == "/load":
            return lambda: self.send_json({"server_load": engine.running})
        if path == "/metrics":
            return lambda: self.send_metrics(vllm_metrics(engine), cache_config(engine))
        return None

    # ---- answers ----

    def send_bytes(self, content: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send_json(self, value: object, status: int = 200) -> None:
        self.send_bytes(json.dumps(value, default=str).encode(), "application/json", status)

    def send_text(self, text: str, status: int = 200) -> None:
        self.send_bytes(text.encode(), "text/plain; charset=utf-8", status)

    def send_empty(self, status: int) -> None:
        self.send_bytes(b"", "text/plain", status)

    def send_problem(self, problem: Refused) -> None:
        error = {"message": str(problem), "type": problem.kind, "param": None, "code": problem.status}
        sglang = {"object": "error"} | error
        self.send_json(sglang if self.engine.engine == "sglang" else {"error": error}, problem.status)

    def send_metrics(self, metrics: dict[str, float], more: str = "") -> None:
        own = 'tp_rank="0",pp_rank="0"' if self.engine.engine == "sglang" else 'engine="0"'
        labels = f'model_name="{self.engine.served}",{own}'
        lines = [
            f"# HELP {name} simulated\n# TYPE {name} {metric_type(name)}\n{name}{{{labels}}} {value}\n"
            for name, value in metrics.items()
        ]
        histograms = self.timings.text(self.engine.engine, labels)
        self.send_bytes("".join([*lines, histograms, more]).encode(), "text/plain; version=0.0.4; charset=utf-8")


def metric_type(name: str) -> str:
    return "counter" if name.endswith("_total") else "gauge"


def usage(work) -> dict:
    done = len(work.words)
    return {"prompt_tokens": work.prompt_tokens, "completion_tokens": done, "total_tokens": work.prompt_tokens + done}


def sglang_metrics(engine: Engine) -> dict[str, float]:
    """observability/metrics_collector.py"""
    parts = engine.memory()
    return {
        "sglang:num_running_reqs": engine.running,
        "sglang:num_queue_reqs": engine.waiting,
        "sglang:num_used_tokens": engine.held_tokens,
        "sglang:token_usage": engine.held_tokens / engine.tokens,
        "sglang:max_total_num_tokens": engine.tokens,
        "sglang:gen_throughput": 0.0,
        "sglang:prompt_tokens_total": engine.totals["prompt"],
        "sglang:generation_tokens_total": engine.totals["generated"],
        "sglang:num_requests_total": engine.totals["requests"],
        "sglang:num_retracted_requests_total": 0,
        "sglang:weight_memory_usage_gb": parts["weights"] / GIB,
        "sglang:kv_cache_memory_usage_gb": parts["kv"] / GIB,
        "sglang:graph_memory_usage_gb": sum(engine.graph_usage().values()),
        "sglang:startup_available_gpu_memory_gb": engine.startup_available,
    }


def vllm_metrics(engine: Engine) -> dict[str, float]:
    """v1/metrics/loggers.py"""
    return {
        "vllm:num_requests_running": engine.running,
        "vllm:num_requests_waiting": engine.waiting,
        "vllm:kv_cache_usage_perc": engine.held_tokens / engine.tokens,
        "vllm:prompt_tokens_total": engine.totals["prompt"],
        "vllm:generation_tokens_total": engine.totals["generated"],
        "vllm:request_success_total": engine.totals["requests"],
        "vllm:num_preemptions_total": 0,
    }


def cache_config(engine: Engine) -> str:
    """The info metric with the size of the KV cache: v1/metrics/loggers.py, log_metrics_info."""
    name = "vllm:cache_config_info"
    labels = f'block_size="{BLOCK}",cache_dtype="auto",engine="0",num_gpu_blocks="{engine.blocks}"'
    return f"# HELP {name} simulated\n# TYPE {name} gauge\n{name}{{{labels}}} 1.0\n"


def serve(engine: Engine) -> None:
    """Start the engine, then answer until it ends."""
    engine.start()
    host = engine.words.get("host") or ("127.0.0.1" if engine.engine == "sglang" else "0.0.0.0")
    handler = type("EngineHandler", (Handler,), {"engine": engine, "timings": Timings()})
    try:
        server = Server((host, engine.port), handler)
    except OSError as problem:
        print(
            f"ERROR:    [Errno {problem.errno}] error while attempting to bind on address ('{host}', {engine.port})",
            file=sys.stderr,
        )
        os._exit(1)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    engine.serve_lines(host)
    while True:
        time.sleep(3600)
