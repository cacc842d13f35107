"""Starts the engine that the image plays."""

import signal
import sys

from . import bench, flags, machine
from .server import serve
from .sglang_engine import SGLang
from .vllm_engine import VLLM

ENGINES = {"sglang": (SGLang, "launch_server.py"), "vllm": (VLLM, "api_server.py")}


def launch(engine: str, words: list[str] | None = None) -> None:
    image = machine.image()
    if image["engine"] != engine:
        raise SystemExit(f"simulator: this image plays {image['engine']}, not {engine}")
    cls, program = ENGINES[engine]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    options = flags.as_json(flags.parse(image["flags"], program, sys.argv[1:] if words is None else words))
    serve(cls(options))


def load_generator(engine: str) -> None:
    """`python3 -m sglang.bench_serving`."""
    bench.main(engine, sys.argv[1:])


def command(engine: str) -> None:
    """`sglang serve`, `vllm serve`, `vllm bench serve`."""
    if engine == "vllm" and sys.argv[1:3] == ["bench", "serve"]:
        bench.main(engine, sys.argv[3:])
        return
    if sys.argv[1:2] != ["serve"]:
        raise SystemExit(f"simulator: {engine} {' '.join(sys.argv[1:2])} is not simulated; `{engine} serve` is")
    launch(engine, sys.argv[2:])
