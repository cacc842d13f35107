"""The module that measures, on a made-up host: its Docker answers from a list, its load generator writes a file."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.host import Output
from ansible_collections.blackwell.serving.plugins.modules import service_benchmark

RUNNING = {
    "Id": "c1",
    "RestartCount": 0,
    "State": {"Status": "running", "StartedAt": "t0", "Health": {"Status": "healthy"}},
}
RESTARTED = {**RUNNING, "RestartCount": 1}
RESULT = {"completed": 8, "output_throughput": 50.0, "median_ttft_ms": 10.0, "p99_ttft_ms": 12.0}
RESULT |= {"median_tpot_ms": 5.0, "p99_itl_ms": 6.0, "duration": 1.0}
FIGURES = {
    "completed": "completed",
    "seconds": "duration",
    "tokens_per_s": "output_throughput",
    "first_token_ms": "median_ttft_ms",
    "first_token_p99_ms": "p99_ttft_ms",
    "between_tokens_ms": "median_tpot_ms",
    "token_gap_p99_ms": "p99_itl_ms",
}
RUN = {
    "service": "qwen",
    "engine": "sglang",
    "container": "qwen",
    "image": "image@sha256:1",
    "load": {"concurrency": 4, "requests": 8, "input": 16, "output": 8},
    "seeds": [7, 8],
    "commands": [["python3", "-m", "generator", f"--output-file=/results/{seed}.json"] for seed in (7, 8)],
    "figures": FIGURES,
}


class BenchmarkHost:
    """`states`: what Docker says of the container, one after another, the last for ever."""

    def __init__(self, states=(RUNNING,), result=RESULT, status=0, said=""):
        self.states, self.result, self.status, self.said = list(states), result, status, said
        self.commands: list[list[str]] = []

    def docker_api(self, socket, paths):
        return [self.states.pop(0) if len(self.states) > 1 else self.states[0]]

    def run(self, command, timeout=20):
        self.commands.append(list(command))
        if command[:2] == ["docker", "run"] and self.result is not None:
            folder = re.search(r"(\S+):/results", " ".join(command))[1]
            name = command[-1].rpartition("/")[2]
            Path(folder, name).write_text(json.dumps(self.result))
        return Output(self.status if command[:2] == ["docker", "run"] else 0, "", self.said)

    def read(self, path):
        return Path(path).read_text() if Path(path).exists() else None


def measure(host):
    module = SimpleNamespace(params={"docker_socket": "/run/docker.sock", "timeout": 60})
    return service_benchmark.measured(service_benchmark.Measurement(module, host, RUN))


def test_each_command_is_a_round_in_a_container_of_its_own_that_is_removed():
    host = BenchmarkHost()
    found = measure(host)
    assert [one["tokens_per_s"] for one in found["rounds"]] == [50.0, 50.0]
    assert (found["medians"]["tokens_per_s"], found["medians"]["requests"]) == (50.0, 16)
    runs = [command for command in host.commands if command[:2] == ["docker", "run"]]
    assert len(runs) == 2
    assert host.commands[0] == host.commands[-1] == ["docker", "rm", "--force", "qwen-benchmark"]


def test_the_generator_has_the_services_network_and_cache_but_no_gpu():
    host = BenchmarkHost()
    measure(host)
    words = " ".join(host.commands[1])
    assert "--network container:qwen --volumes-from qwen:ro" in words
    assert "--cap-drop ALL" in words
    assert "--env HF_HUB_OFFLINE=1" in words
    assert not re.search(r"--gpus|--device|--runtime|--publish|--privileged", words)
    assert words.endswith("image@sha256:1 -m generator --output-file=/results/7.json")


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        (BenchmarkHost([None]), "no container"),
        (BenchmarkHost([{**RUNNING, "State": {"Status": "exited"}}]), "does not serve: its container is exited"),
        (BenchmarkHost([RUNNING, RESTARTED]), "stopped under this load"),
        (BenchmarkHost(result=None, status=1, said="no such option: --x"), "status 1: no such option: --x"),
        (BenchmarkHost(result={**RESULT, "completed": 0}), "answered none of 8 requests"),
        (BenchmarkHost(result={}), "its result is not the one that was expected"),
    ],
    ids=["missing", "exited", "restarted", "generator", "no answer", "other result"],
)
def test_what_goes_wrong_is_said(host, problem):
    found = measure(host)
    assert problem in found["problem"]
    assert "medians" not in found
    assert problem in service_benchmark.line_of(found)


def test_a_service_that_died_is_the_cause_and_not_the_generator_that_then_failed():
    assert (
        "stopped under this load" in measure(BenchmarkHost([RUNNING, RESTARTED], status=1, said="refused"))["problem"]
    )
