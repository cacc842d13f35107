"""The lab's simulated engines obey the memory laws of the real ones.

Each engine runs as a process of its own below a directory that stands for its container and its host. Expected figures
are measurements of the real engines: SGLang 0.5.15.post1 (three services one after another on an H100 80 GB, beside a
process that left them what an RTX 5090 would) and vLLM 0.24.0 (H100 80 GB), as in tests/calibration/startup_logs.yml.
"""

import concurrent.futures
import contextlib
import http.client
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

LAB = Path(__file__).resolve().parents[2] / "molecule/lab"
GIB = 2**30
H100 = "0, GPU-0, NVIDIA H100 80GB HBM3, 9.0, 81559, 479"
RTX_5090 = "0, GPU-0, NVIDIA GeForce RTX 5090, 12.0, 32607, 490"
TINYLLAMA, QWEN, YI = "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "Qwen/Qwen2.5-3B-Instruct", "01-ai/Yi-6B"
TINY = "simulated/tiny"
SGLANG, VLLM = "sglang.launch_server", "vllm.entrypoints.openai.api_server"
TRITON = [
    *(
        "--attention-backend=triton",
        "--sampling-backend=pytorch",
        "--max-running-requests=32",
        "--cuda-graph-max-bs=32",
    ),
    *("--disable-piecewise-cuda-graph", "--skip-server-warmup"),
]
# fraction, tokens, context; then as measured: F, free after weights, pool end, last line, MiB in nvidia-smi after load
MEASURED_A = {
    TINYLLAMA: (0.124, 65536, 2048, 30.54, 28.44, 26.98, 26.82, 4696),
    QWEN: (0.325, 65536, 32768, 26.11, 20.23, 17.84, 17.64, 9656),
    YI: (0.83, 32768, 4096, 16.67, 5.37, 3.24, 3.08, 14922),
}
FREE_BESIDE_THE_BALLAST = 31.195  # before the first of the three; CUDA sees 79.18


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Started:
    """A simulated engine that runs."""

    def __init__(self, process: subprocess.Popen, log: Path, port: int) -> None:
        self.process, self.log_file, self.port = process, log, port

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def get(self, path: str, body: dict | None = None, timeout: float = 30):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read().decode()
        return json.loads(content) if content.startswith(("{", "[")) else content

    def healthy(self, seconds: float = 30):
        """Wait until /health answers 200."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                self.get("/health")
                return self
            time.sleep(0.02)
        pytest.fail(f"not healthy:\n{self.log}")

    def says(self, text: str, seconds: float = 30) -> None:
        """Wait until the log has that text."""
        end = time.monotonic() + seconds
        while text not in self.log:
            if time.monotonic() > end or self.process.poll() is not None:
                pytest.fail(f"{text} is not in:\n{self.log}")
            time.sleep(0.01)

    def ends(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)

    def number(self, pattern: str) -> float:
        found = re.search(pattern, self.log)
        assert found, f"{pattern} is not in:\n{self.log}"
        return float(found[1].replace(",", ""))


class Host:
    """A directory that stands for a test host with one GPU and for its containers."""

    def __init__(self, root: Path, gpu: str) -> None:
        self.root, self.ledger_directory = root, root / "run/lab/gpu"
        self.ledger_directory.mkdir(parents=True)
        (root / "run/lab/gpus.csv").write_text(
            f"index, uuid, name, compute_cap, memory.total, memory.reserved\n{gpu}\n"
        )
        (root / "dev").mkdir()
        for node in ("nvidiactl", "nvidia0"):
            (root / "dev" / node).touch()
        self.pace(0.05)
        self.started: list[Started] = []
        self.images: set[str] = set()

    def pace(self, factor: float) -> None:
        (self.ledger_directory / "environment").write_text(f"SIMULATOR_PACE={factor}\n")

    def fault(self, name: str, **faults) -> None:
        (self.ledger_directory / "faults.json").write_text(json.dumps({name: faults}))

    def image(self, key: str) -> Path:
        """The root of that image, with this host's devices and ledger in it."""
        from simulator.image import write_root

        root = self.root / "images" / key
        if not root.exists():
            write_root(root, key)
            for name in ("run", "dev"):
                (root / name).symlink_to(self.root / name)
        return root

    def environment(self, image: str) -> dict[str, str]:
        root = self.image(image)
        packages = root / "usr/local/lib/python3.12/dist-packages"
        paths = {"SIMULATOR_ROOT": root, "PYTHONPATH": packages, "HF_HOME": self.root / "huggingface"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
        return kept | {name: str(path) for name, path in paths.items()}

    def run(self, image: str, *words: str, **environment) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *words]
        return subprocess.run(
            command, env=self.environment(image) | environment, capture_output=True, text=True, timeout=60, check=False
        )

    def start(self, image: str, module: str, model: str, *flags: str, **environment: str) -> Started:
        port = free_port()
        log = self.root / f"{port}.log"
        model_flag = "--model-path" if module == SGLANG else "--model"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, f"{model_flag}={model}", f"--port={port}", "--host=127.0.0.1", *flags],
                env=self.environment(image) | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(Started(process, log, port))
        return self.started[-1]

    def ledger(self, name: str = "test"):
        """A ledger of this test's own process on the GPU."""
        from simulator.engine_simulator.ledger import Ledger

        line = (self.root / "run/lab/gpus.csv").read_text().splitlines()[1].split(", ")
        return Ledger(self.ledger_directory, {0: (int(line[4]) - int(line[5])) * 2**20}, name)

    def taken(self) -> list[int]:
        """MiB of each process, as nvidia-smi would print them."""
        from simulator.engine_simulator.ledger import processes

        return sorted(math.ceil(gpus[0] / 2**20) for _, gpus in processes(self.ledger_directory))

    def free(self) -> float:
        return self.ledger().free() / GIB


@pytest.fixture
def host(tmp_path, monkeypatch):
    """`host(gpu)`: a test host; what was started on it ends with the test."""
    pytest.importorskip("yaml")
    monkeypatch.syspath_prepend(LAB)
    hosts: list[Host] = []

    def make(gpu: str = RTX_5090) -> Host:
        hosts.append(Host(tmp_path / f"host{len(hosts)}", gpu))
        return hosts[-1]

    yield make
    for started in (started for made in hosts for started in made.started):
        started.process.kill()
        started.process.wait()


def start_measured(where: Host, model: str) -> Started:
    fraction, tokens, context = MEASURED_A[model][:3]
    sizes = [f"--mem-fraction-static={fraction}", f"--max-total-tokens={tokens}", f"--context-length={context}"]
    return where.start("sglang-0.5.15", SGLANG, model, *TRITON, *sizes)


def beside_the_ballast(where: Host):
    ballast = where.ledger("ballast")
    ballast.take("ballast", ballast.free() - FREE_BESIDE_THE_BALLAST * GIB)
    return ballast


def load(engine: Started, model: str, requests: int, words: int, out: int) -> None:
    body = {"model": model, "prompt": "word " * words, "max_tokens": out, "ignore_eos": True}
    with concurrent.futures.ThreadPoolExecutor(requests) as pool:
        for answer in [pool.submit(engine.get, "/v1/completions", body) for _ in range(requests)]:
            answer.result()


# Several hosts


def start_rank(where: Host, rank: int, port: int, *flags: str) -> Started:
    words = ["--tp-size=2", "--nnodes=2", f"--node-rank={rank}", f"--dist-init-addr=127.0.0.1:{port}", *flags]
    return where.start("sglang-cu129", SGLANG, TINY, *words)


def test_ranks_wait_for_each_other_and_only_the_first_one_serves(host):
    port, hosts = free_port(), [host(), host()]
    second = start_rank(hosts[1], 1, port)
    second.says("Init torch distributed begin.")
    time.sleep(1)
    assert "Load weight begin" not in second.log
    first = start_rank(hosts[0], 0, port)
    for engine in (first, second):
        engine.healthy()
    assert first.get("/v1/completions", {"model": TINY, "prompt": "Hello", "max_tokens": 1})["choices"]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        second.get("/v1/models")
    assert " TP0] " in first.log
    assert " TP1] " in second.log


def test_each_rank_takes_its_part_and_sizes_itself_by_the_least_that_is_free(host):
    port, hosts = free_port(), [host(), host()]
    ballast = hosts[1].ledger("ballast")
    ballast.take("ballast", 20 * GIB)
    engines = [start_rank(hosts[rank], rank, port, "--mem-fraction-static=0.5") for rank in (0, 1)]
    tokens = [engine.healthy().number(r"#tokens: (\d+)") for engine in engines]
    alone = hosts[1].ledger("x").totals[0] - 20 * GIB
    assert tokens[0] == tokens[1] < alone * 0.5 / 512


@pytest.mark.parametrize("ended", [0, 1])
def test_when_one_rank_ends_the_other_ends_too(host, ended):
    port, hosts = free_port(), [host(), host()]
    engines = [start_rank(hosts[rank], rank, port) for rank in (0, 1)]
    for engine in engines:
        engine.healthy()
    engines[ended].process.kill()
    assert engines[1 - ended].ends() == 137
    assert "Connection closed by peer [127.0.0.1]" in engines[1 - ended].log


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        (0, "DistStoreError: Timed out after 2 seconds waiting for clients. 1/2 clients joined."),
        (1, "DistNetworkError: The client socket has timed out after 1000ms while trying to connect to (127.0.0.1, "),
    ],
)
def test_a_rank_that_nobody_meets_says_so(rank, message, monkeypatch):
    monkeypatch.syspath_prepend(LAB)
    from simulator.engine_simulator.ranks import Ranks, RanksLost

    with pytest.raises(RanksLost) as lost:
        Ranks(f"127.0.0.1:{free_port()}", 2, rank, timeout=1).meet()
    assert f"{lost.value.kind}: {lost.value}".removeprefix("torch.distributed.").startswith(message)


# The laws


def test_three_sglang_services_one_after_another_are_what_was_measured(host):
    h100 = host(H100)
    ballast = beside_the_ballast(h100)
    engines = {}
    for model, (_, tokens, _, free, after, pool_end, last, _) in MEASURED_A.items():
        engine = engines[model] = start_measured(h100, model)
        engine.says("ready to roll")
        assert engine.number(r"Load weight begin\. avail mem=([\d.]+)") == pytest.approx(free, abs=0.011)
        assert engine.number(r"Load weight end\. .*avail mem=([\d.]+)") == pytest.approx(after, abs=0.021)
        assert engine.number(r"#tokens: (\d+)") == tokens
        assert engine.number(r"Memory pool end\. avail mem=([\d.]+)") == pytest.approx(pool_end, abs=0.021)
        assert engine.number(r"available_gpu_mem=([\d.]+)") == pytest.approx(last, abs=0.021)
    h100.pace(3)  # long enough that 16 requests run at once
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda pair: load(pair[1], pair[0], 16, 127, 64), engines.items()))
    measured = sorted(figures[-1] for figures in MEASURED_A.values())
    assert [size for size in h100.taken() if size < 20000] == pytest.approx(measured, abs=30)
    assert ballast.free() / 2**20 == pytest.approx(2670, abs=60)
    usage = engines[QWEN].get("/server_info")["internal_states"][0]["memory_usage"]
    assert usage == pytest.approx({"weight": 5.88, "kvcache": 2.25, "token_capacity": 65536, "graph": 0.1}, abs=0.006)


def test_the_same_three_at_once_measure_wrong_sizes(host):
    h100 = host(H100)
    h100.pace(0.6)
    ballast = beside_the_ballast(h100)
    engines = [start_measured(h100, model) for model in MEASURED_A]
    wanted = [figures[1] for figures in MEASURED_A.values()]
    outcomes = []
    for engine in engines:
        while engine.process.poll() is None and "ready to roll" not in engine.log:
            time.sleep(0.02)
        found = re.search(r"#tokens: (\d+)", engine.log)
        outcomes.append(int(found[1]) if found and engine.process.poll() is None else 0)
    assert outcomes != wanted, "a parallel start must not give what a serial one gives"
    assert ballast.own() > 0


def test_a_service_that_restarts_alone_needs_a_larger_fraction(host):
    h100 = host(H100)
    ballast = beside_the_ballast(h100)
    for model in MEASURED_A:
        start_measured(h100, model).healthy()
    qwen = h100.started[1]
    qwen.process.send_signal(signal.SIGKILL)
    qwen.ends()
    again = start_measured(h100, QWEN)
    assert again.ends() == 137
    assert "Loaded weights leave no GPU memory for the KV cache under --mem-fraction-static=0.325" in again.log
    least = again.number(r"Raise --mem-fraction-static above ([\d.]+)")
    needed = 8.13 / again.number(r"Load weight begin\. avail mem=([\d.]+)")
    assert 0.325 < least < needed < 0.8
    wide = h100.start(
        "sglang-0.5.15", SGLANG, QWEN, *TRITON, f"--mem-fraction-static={needed + 0.01:.3f}", "--max-total-tokens=65536"
    )
    assert wide.healthy().number(r"#tokens: (\d+)") == 65536
    assert ballast.own() > 0


@pytest.mark.parametrize(
    ("model", "flags", "kv", "tokens"),
    [
        pytest.param(QWEN, ["--gpu-memory-utilization=0.15", "--max-model-len=4096"], 5.20, 151440, id="qwen"),
        pytest.param(
            TINYLLAMA, ["--gpu-memory-utilization=0.0594", "--max-model-len=1024"], 2.04, 97440, id="tinyllama"
        ),
        pytest.param(
            QWEN, ["--gpu-memory-utilization=0.099", "--max-model-len=1536"], 1.16, 33824, id="qwen with less"
        ),
    ],
)
def test_vllm_grants_what_was_measured(host, model, flags, kv, tokens):
    engine = host(H100).start("vllm-cu129", VLLM, model, "--enforce-eager", "--max-num-seqs=32", *flags).healthy()
    assert engine.number(r"Available KV cache memory: ([\d.]+)") == pytest.approx(kv, abs=0.011)
    assert engine.number(r"GPU KV cache size: ([\d,]+)") == pytest.approx(tokens, abs=32)


def test_vllm_s_share_is_of_the_whole_card_and_must_be_free(host):
    card = host()
    neighbour = card.ledger("neighbour")
    neighbour.take("ballast", 20 * GIB)
    refused = card.start("vllm-cu129", VLLM, QWEN, "--gpu-memory-utilization=0.4", "--max-model-len=2048")
    assert refused.ends() == 1
    assert (
        "Free memory on device cuda:0 (10.86/31.36 GiB) on startup is less than desired GPU memory utilization "
        "(0.4, 12.55 GiB)" in refused.log
    )
    assert "Engine core initialization failed. See root cause above." in refused.log
    small = ["--gpu-memory-utilization=0.28", "--max-model-len=2048"]
    exact = card.start("vllm-cu129", VLLM, QWEN, *small, f"--kv-cache-memory-bytes={GIB}").healthy()
    assert exact.number(r"GPU KV cache size: ([\d,]+)") == GIB // (16 * 36864) * 16
    assert neighbour.own() == 20 * GIB


def test_what_a_neighbour_takes_meanwhile_is_charged_to_vllm(host):
    def granted(neighbour_takes: float) -> float:
        card = host()
        card.pace(0.6)
        neighbour = card.ledger("neighbour")
        engine = card.start("vllm-cu129", VLLM, QWEN, "--gpu-memory-utilization=0.5", "--enforce-eager")
        engine.says("Starting to load model")
        neighbour.take("ballast", neighbour_takes * GIB)
        return engine.healthy().number(r"Available KV cache memory: ([\d.]+)")

    assert granted(0) - granted(2) == pytest.approx(2, abs=0.02)


# Memory runs out, processes die


@pytest.mark.parametrize(
    ("flags", "free", "text", "status"),
    [
        pytest.param(
            ["--mem-fraction-static=0.99"],
            4,
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate",
            137,
            id="weights",
        ),
        pytest.param(
            ["--mem-fraction-static=0.3"], 9, "Loaded weights leave no GPU memory for the KV cache", 137, id="fraction"
        ),
        pytest.param(["--mem-fraction-static=0.97"], 8, "CUDA out of memory", 137, id="after the pool"),
    ],
)
def test_sglang_dies_at_its_start_where_memory_does_not_suffice(host, flags, free, text, status):
    card = host()
    neighbour = card.ledger("neighbour")
    neighbour.take("ballast", neighbour.free() - free * GIB)
    engine = card.start("sglang-cu129", SGLANG, QWEN, "--max-running-requests=32", *flags)
    assert engine.ends() == status
    assert "Scheduler hit an exception: Traceback (most recent call last):" in engine.log
    assert text in engine.log
    assert "Received sigquit from a child process" in engine.log
    assert card.free() == pytest.approx(free, abs=0.001), "what the dead process took is free again"


@pytest.mark.parametrize(
    ("image", "module", "status"), [("sglang-cu129", SGLANG, 137), ("vllm-cu129", VLLM, 0)], ids=["sglang", "vllm"]
)
def test_requests_that_need_more_than_is_free_kill_the_engine(host, image, module, status):
    card = host()
    flags = (
        ["--max-total-tokens=60000", "--skip-server-warmup"] if module == SGLANG else ["--gpu-memory-utilization=0.5"]
    )
    engine = card.start(image, module, QWEN, *flags).healthy()
    engine.get("/v1/completions", {"model": QWEN, "prompt": "The capital of France is", "max_tokens": 2})
    before = card.free()
    load(engine, QWEN, 2, 500, 2)
    assert card.free() < before - 0.04, "activations are taken while requests run"
    neighbour = card.ledger("neighbour")
    neighbour.take("ballast", neighbour.free() - 0.02 * GIB)
    with pytest.raises((ConnectionError, urllib.error.URLError, http.client.HTTPException)):
        load(engine, QWEN, 8, 1000, 1000)
    assert engine.ends() == status
    assert "torch.OutOfMemoryError: CUDA out of memory" in engine.log
    assert card.free() > 9


def test_a_killed_process_frees_its_memory(host):
    card = host()
    engine = card.start("sglang-cu129", SGLANG, TINY, "--max-total-tokens=4096").healthy()
    assert card.free() < 31.0
    engine.process.send_signal(signal.SIGKILL)
    engine.ends()
    assert card.free() == pytest.approx(31.364, abs=0.01)
    assert card.taken() == []


def test_nvidia_smi_shows_what_the_engines_took(host):
    card = host()
    header = "index, uuid, name, driver_version, memory.total, memory.reserved, memory.used, memory.free, pci.bus_id"
    line = "0, GPU-0, NVIDIA GeForce RTX 5090, 1.0, 32607, 490, 2, 32115, 00000000:01:00.0"
    (card.root / "run/lab/gpus.csv").write_text(f"{header}, compute_cap\n{line}, 12.0\n")
    program = (LAB / "mirror/stand_ins/nvidia-smi").read_text().replace("@VERSION@", "1.0")
    for path in ("/run/lab", "/dev/nvidiactl"):
        program = program.replace(path, f"{card.root}{path}")

    def ask(*words: str) -> str:
        done = subprocess.run(["sh", "-s", "--", *words], input=program, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    engine = card.start("sglang-cu129", SGLANG, TINY, "--max-total-tokens=4096").healthy()
    (taken,) = card.taken()
    processes = ask("--query-compute-apps=pid,process_name,used_memory", "--format=csv,noheader,nounits")
    assert processes == f"{engine.process.pid}, sglang::scheduler, {taken}"
    assert (
        ask("--query-gpu=memory.used,memory.free", "--format=csv,noheader") == f"{2 + taken} MiB, {32115 - taken} MiB"
    )
    engine.process.kill()
    engine.ends()
    assert ask("--query-compute-apps=pid,used_memory", "--format=csv,noheader") == ""
    assert ask("--query-gpu=memory.used", "--format=csv,noheader,nounits") == "2"


# Flags


@pytest.mark.parametrize(
    ("image", "module", "flags", "text"),
    [
        ("sglang-cu129", SGLANG, ["--enable-radix-attention"], "unrecognized arguments: --enable-radix-attention"),
        ("sglang-cu129", SGLANG, ["--attention-backend=fast"], "argument --attention-backend: invalid choice: 'fast'"),
        ("sglang-cu129", SGLANG, ["--disable-c"], "ambiguous option: --disable-c could match"),
        ("sglang-cu129", SGLANG, ["--enable-expert-distribution-metrics"], "is no longer supported"),
        ("sglang-cu129", SGLANG, ["--context-length=long"], "argument --context-length: invalid"),
        ("vllm-cu129", VLLM, ["--swap-space=4"], "unrecognized arguments: --swap-space=4"),
        ("vllm-cu129", VLLM, ["--max-num-seqs=many"], "argument --max-num-seqs: invalid int value: 'many'"),
    ],
)
def test_flags_that_the_version_does_not_have_are_refused(host, image, module, flags, text):
    engine = host().start(image, module, TINY, *flags)
    assert engine.ends() == 2
    assert text in engine.log


def test_spellings_that_the_version_takes(host):
    card = host()
    abbreviated = card.start("sglang-cu129", SGLANG, TINY, "--max-total=4096", "--mem-fraction-static", "0.2").healthy()
    assert abbreviated.number(r"#tokens: (\d+)") == 4096
    words = [
        "--max_model_len=1k",
        "--no-enable-prefix-caching",
        "--gpu-memory-utilization=0.1",
        "--served-model-name",
        "short",
    ]
    underscores = card.start("vllm-cu129", VLLM, TINY, *words).healthy()
    model = underscores.get("/v1/models")["data"][0]
    assert (model["id"], model["max_model_len"]) == ("short", 1000)


# Containers and images


def test_an_image_without_code_for_the_gpu_cannot_start(host):
    engine = host().start("sglang-2025-09-stock", SGLANG, TINY)
    assert engine.ends() == 137
    assert (
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation."
        in engine.log
    )
    assert "supports CUDA capabilities sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90." in engine.log
    assert "CUDA error: no kernel image is available for execution on the device" in engine.log


def test_a_container_without_a_gpu_cannot_start(host):
    card = host()
    (card.root / "dev/nvidia0").unlink()
    engines = [card.start("sglang-cu129", SGLANG, TINY), card.start("vllm-cu129", VLLM, TINY)]
    assert [engine.ends() for engine in engines] == [1, 1]
    assert "No accelerator (CUDA" in engines[0].log
    assert "Failed to infer device type" in engines[1].log


# Requests


@pytest.mark.parametrize(("image", "module"), [("sglang-cu129", SGLANG), ("vllm-cu129", VLLM)], ids=["sglang", "vllm"])
def test_answers_say_that_they_are_simulated(host, image, module):
    engine = host().start(image, module, TINY).healthy()
    question = "The capital of France is"
    answer = engine.get("/v1/completions", {"model": TINY, "prompt": question, "max_tokens": 1})
    assert answer["choices"][0]["text"] == " Paris"
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    assert "simulated" in answer["system_fingerprint"]
    chat = {"model": TINY, "messages": [{"role": "user", "content": question}], "max_tokens": 3}
    assert engine.get("/v1/chat/completions", chat)["choices"][0]["message"]["content"].startswith("Paris")
    lines = engine.get("/v1/chat/completions", chat | {"stream": True}).strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for line in lines[:-1]]
    assert "".join(parts).startswith(" Paris")
    with pytest.raises(urllib.error.HTTPError) as refused:
        engine.get("/v1/completions", {"model": TINY, "prompt": "word " * 3000, "max_tokens": 1})
    assert refused.value.code == 400


@pytest.mark.parametrize(
    ("image", "module", "flags", "engine"),
    [
        ("sglang-cu129", SGLANG, ["--enable-metrics"], "sglang-0.5.19"),
        ("vllm-cu129", VLLM, [], "vllm-0.24.0"),
    ],
)
def test_metrics_have_names_that_the_real_engine_has_and_count_requests(host, image, module, flags, engine):
    started = host().start(image, module, TINY, *flags).healthy()
    for _ in range(3):
        started.get("/v1/completions", {"model": TINY, "prompt": "The capital of", "max_tokens": 4})
    text = started.get("/metrics")
    recorded = yaml.safe_load((LAB.parents[1] / f"catalog/engine_metrics/{engine}.yml").read_text())
    prefix = engine.partition("-")[0]
    kinds = dict(re.findall(rf"^# TYPE ({prefix}:\w+) (\w+)$", text, re.MULTILINE))
    known = {name: kind for kind, names in recorded.items() for name in names}
    wrong = {name: kind for name, kind in kinds.items() if known.get(name) != kind}
    assert set(wrong) <= {"vllm:cache_config_info"}  # made in another way, which the recording does not see
    assert re.search(rf"^{prefix}:time_to_first_token_seconds_count{{.*}} 3$", text, re.MULTILINE)


# Faults


def test_faults_can_be_asked_for_from_outside(host):
    card = host()
    card.fault(TINY, crash_loop=0.05)
    assert card.start("sglang-cu129", SGLANG, TINY).ends() == 1
    card.fault(TINY, nvml_lost=True)
    lost = card.start("vllm-cu129", VLLM, TINY)
    assert lost.ends() == 1
    assert "Failed to infer device type" in lost.log
    card.fault(TINY, oom_at_start=True)
    starved = card.start("vllm-cu129", VLLM, TINY)
    assert starved.ends() == 1
    assert "CUDA out of memory" in starved.log
    card.fault(TINY, fatal_line_then_hang="CUDA error: an illegal memory access was encountered")
    hanging = card.start("sglang-cu129", SGLANG, TINY)
    hanging.says("an illegal memory access")
    assert hanging.process.poll() is None
    card.fault(TINY, never_healthy=True)
    sick = card.start("sglang-cu129", SGLANG, TINY)
    sick.says("ready to roll")
    with pytest.raises(urllib.error.HTTPError) as answer:
        sick.get("/health")
    assert answer.value.code == 503
    card.fault("another service", crash_loop=0)
    assert sick.healthy().process.poll() is None


def test_a_fault_is_of_one_service(host):
    card = host()
    card.fault("late", slow=600)
    late = card.start("sglang-cu129", SGLANG, TINY, "--served-model-name=late", "--mem-fraction-static=0.1")
    card.start("sglang-cu129", SGLANG, TINY, "--mem-fraction-static=0.1").healthy()
    assert late.process.poll() is None
    assert "Init torch distributed begin" not in late.log


def test_a_service_can_be_made_to_die_under_load(host):
    card = host()
    card.fault(TINY, die_under_load=True)
    engine = card.start("sglang-cu129", SGLANG, TINY).healthy()
    load(engine, TINY, 1, 5, 2)
    card.pace(1)
    with pytest.raises((ConnectionError, urllib.error.URLError, http.client.HTTPException)):
        load(engine, TINY, 8, 20, 200)
    assert engine.ends() == 137
    assert "an illegal memory access was encountered" in engine.log


# The hub


def test_models_come_from_the_simulated_hub(host):
    card = host()
    hub = ["-c", "import sys; from engine_simulator.hub import main; sys.exit(main(sys.argv[1:]))", "download"]
    done = card.run("sglang-cu129", *hub, TINY)
    snapshot = Path(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    root = card.root / "huggingface/hub/models--simulated--tiny"
    assert snapshot == root / "snapshots" / (root / "refs/main").read_text()
    weights = (snapshot / "model.safetensors").resolve()
    assert weights.parent == root / "blobs"
    half = weights.read_bytes()[:1000]
    weights.rename(weights.with_suffix(".incomplete"))
    weights.with_suffix(".incomplete").write_bytes(half)
    assert card.run("sglang-cu129", *hub, TINY).returncode == 0
    assert weights.exists()
    assert not list((root / "blobs").glob("*.incomplete"))
    missing = card.run("sglang-cu129", *hub, "nobody/nothing")
    assert missing.returncode == 1
    assert "Repository Not Found for url: https://huggingface.co/api/models/nobody/nothing" in missing.stderr
    gated = card.run("sglang-cu129", *hub, "meta-llama/Llama-3.1-8B-Instruct")
    assert "Cannot access gated repo for url" in gated.stderr
    (card.root / "token").write_text("hf_made_up\n")
    allowed = card.run("sglang-cu129", *hub, "meta-llama/Llama-3.1-8B-Instruct", HF_TOKEN_PATH=str(card.root / "token"))
    assert allowed.returncode == 0, allowed.stderr


def test_an_engine_cannot_serve_what_the_hub_does_not_have(host):
    card = host()
    engine = card.start("sglang-cu129", SGLANG, "nobody/nothing")
    assert engine.ends() == 1
    assert "nobody/nothing is not a local folder and is not a valid model identifier" in engine.log
    offline = card.start("vllm-cu129", VLLM, TINY, HF_HUB_OFFLINE="1")
    assert offline.ends() == 1
    assert "couldn't find them in the cached files" in offline.log


# The load generators' stand-in, as playbooks/benchmark.yml calls it


@pytest.mark.parametrize(("image", "module"), [("sglang-cu129", SGLANG), ("vllm-cu129", VLLM)], ids=["sglang", "vllm"])
def test_the_stand_in_measures_what_the_options_make_of_the_speed(host, image, module):
    from ansible_collections.blackwell.serving.plugins.module_utils import load_generator
    from ansible_collections.blackwell.serving.plugins.plugin_utils import benchmark_files
    from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog

    where = host()
    where.fault(TINY, speed={"all": 0.01, "dtype=bfloat16": 3})
    entry = load_catalog().images["images"][image]
    service = {
        **entry,
        "engine_version": str(entry["engine_version"]),
        "image": image,
        "model": TINY,
        "served_name": TINY,
    }
    generator = load_generator.choose_generator([service], benchmark_files.generators())
    flags = benchmark_files.generator_flags(generator["engine"], generator["version"])
    load = {"concurrency": 2, "requests": 4, "input": 16, "output": 8}
    results = [where.root / name for name in ("slow.json", "fast.json")]
    for result, more in zip(results, ([], ["--dtype=bfloat16"]), strict=True):
        engine = where.start(image, module, TINY, *more).healthy()
        words = load_generator.command(
            generator, flags, {**service, "container_port": engine.port}, load, 7, str(result)
        )
        program = ["-m", words[2]] if module == SGLANG else [str(where.image(image) / "usr/local/bin/vllm")]
        ran = where.run(image, *program, *words[1 if module == VLLM else 3 :])
        assert ran.returncode == 0, ran.stderr
        engine.process.terminate()
        engine.ends()
    slow, fast = (load_generator.parse(result.read_text(), generator["figures"], load) for result in results)
    assert slow["failed"] == fast["failed"] == 0
    assert fast["tokens_per_s"] > slow["tokens_per_s"]
    assert fast["between_tokens_ms"] < slow["between_tokens_ms"]


def test_a_start_with_an_option_that_was_to_crash_ends(host):
    where = host()
    where.fault(TINY, crash_with=["sampling-backend=pytorch"])
    engine = where.start("sglang-cu129", SGLANG, TINY, "--sampling-backend=pytorch")
    assert engine.ends() != 0
    assert "illegal memory access" in engine.log


# Under a real Prometheus


def test_a_real_prometheus_fires_when_an_engine_dies_and_resolves_when_it_is_back(host, tmp_path):
    """With the rules as they are shipped, but for how long an engine has to be down."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    from ansible_collections.blackwell.serving.plugins.module_utils.monitoring_files import alert_rules

    card = host()
    engines = {
        "sglang": card.start("sglang-cu129", SGLANG, TINY, "--enable-metrics", "--mem-fraction-static=0.3").healthy(),
        "vllm": card.start("vllm-cu129", VLLM, TINY, "--gpu-memory-utilization=0.2").healthy(),
    }
    rules = LAB.parents[1] / "roles/monitoring/files/rules"
    changed = alert_rules(yaml.safe_load((rules / "alerts.yml").read_text()), {"EngineDown": {"for": "2s"}})
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(changed))
    targets = [
        {"targets": [f"127.0.0.1:{engine.port}"], "labels": {"host": "box1", "service": f"my-{name}", "engine": name}}
        for name, engine in engines.items()
    ]
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules / "recording.yml"), str(tmp_path / "alerts.yml")],
        "scrape_configs": [{"job_name": "engines", "static_configs": targets}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    port = free_port()
    options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "prometheus.log").open("w") as log:
        prometheus = subprocess.Popen(
            ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    try:
        ask = PrometheusAt(port)
        for engine in engines.values():
            for _ in range(3):
                engine.get("/v1/completions", {"model": TINY, "prompt": "The capital of", "max_tokens": 4})
        for series in ("service:requests_waiting", "service:kv_usage_ratio", "service:time_to_first_token_seconds:p95"):
            assert ask.until(series, lambda found: len(found) == 2) == {"my-sglang", "my-vllm"}
        firing = 'ALERTS{alertname="EngineDown", alertstate="firing"}'
        assert ask.until(firing, lambda found: not found) == set()
        engines["vllm"].process.kill()
        assert ask.until(firing, bool) == {"my-vllm"}
        flags = [f"--port={engines['vllm'].port}", "--gpu-memory-utilization=0.2"]
        card.start("vllm-cu129", VLLM, TINY, *flags)
        assert ask.until(firing, lambda found: not found) == set()
    finally:
        prometheus.kill()
        prometheus.wait()


class PrometheusAt:
    """A Prometheus that runs on this machine."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}/api/v1/query"

    def services(self, query: str) -> set[str] | None:
        """The services that the answer names; None where it does not answer yet."""
        try:
            with urllib.request.urlopen(
                f"{self.address}?{urllib.parse.urlencode({'query': query})}", timeout=20
            ) as answer:
                return {one["metric"]["service"] for one in json.load(answer)["data"]["result"]}
        except OSError:
            return None

    def until(self, query: str, wanted, seconds: float = 120) -> set[str]:
        end = time.monotonic() + seconds
        while True:
            found = self.services(query)
            if found is not None and wanted(found):
                return found
            assert time.monotonic() < end, f"{query}: {found}"
            time.sleep(0.2)
