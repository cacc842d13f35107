"""Whether the services of the deployed plan run, answer, and use the memory that they were given.

Runs on the host, under its own Python, 3.9 or newer. Each service is asked over HTTP, all at the same time; that an
answer is sensible is not judged. Figures go into one dictionary per service.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import re
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from .finding import COULD_NOT_CHECK, FAILED, OK, Finding
from .node_groups import answers_requests
from .running_stack import ContainerState

PROMPT = "The capital of France is"
LONGEST_ANSWER = 8 * 1024**2
SHOWN_ANSWER = 40
LOOK_TIMEOUT, COMPLETION_TIMEOUT = 10, 120
# What an engine reports may differ from the plan by this share, or this much where that is more.
TOKENS_SHARE, SIZE_SHARE, SIZE_GIB = 0.01, 0.03, 0.1
DIAGNOSE = "Run: ansible-playbook playbooks/verify.yml --tags diagnose"
HOLDERS = "See who holds memory: nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv"
_METRIC_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Service = Mapping[str, Any]
Figures = MutableMapping[str, Any]


class Answer(NamedTuple):
    """An answer over HTTP; `status` is None where none came, and `text` then says why."""

    status: int | None
    text: str
    seconds: float

    def json(self, *path: str | int) -> Any:
        """What stands at `path` in the JSON; None where it is not there."""
        try:
            value = json.loads(self.text)
            for step in path:
                value = value[step]
        except (ValueError, LookupError, TypeError):
            return None
        return value


def ask(service: Service, path: str, body: Mapping[str, Any] | None = None, timeout: float = LOOK_TIMEOUT) -> Answer:
    """GET, or POST where there is a body, from where the service is published."""
    address = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(
        service["bind_address"], service["bind_address"]
    )
    connection = http.client.HTTPConnection(address, int(service["port"]), timeout=timeout)
    started = time.monotonic()
    try:
        content = None if body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read(LONGEST_ANSWER).decode("utf-8", "replace")
        return Answer(response.status, text, time.monotonic() - started)
    except (OSError, http.client.HTTPException) as error:
        return Answer(None, str(error) or type(error).__name__, time.monotonic() - started)
    finally:
        connection.close()


def services_up(services: Sequence[Service], states: Sequence[ContainerState], figures: Figures) -> Finding:
    """Each container runs and is healthy."""
    for service, state in zip(services, states):
        figures[service["name"]].update(
            state=state.status, health=state.health, restarts=state.restarts, exit_code=state.exit_code
        )
    bad = [f"{state.name} {state}" for state in states if not state.well]
    if bad:
        return Finding(FAILED, "; ".join(bad), DIAGNOSE)
    return Finding(OK, "; ".join(f"{state.name} {state}" for state in states))


def services_answer(services: Sequence[Service], figures: Figures) -> Finding:
    """Each lists its model, and completes a prompt by at least one token."""
    remedies = {FAILED: DIAGNOSE, COULD_NOT_CHECK: "Ask it with its key: curl -H 'Authorization: Bearer KEY' ..."}
    return _together(services, lambda service: _answers(service, figures[service["name"]]), remedies)


def _elsewhere(service: Service) -> Finding:
    """Of a service on several hosts only the first host answers; the others have nothing but /health."""
    return Finding(OK, f"{service['nodes']['hosts'][0]} answers for it")


def _answers(service: Service, figures: Figures) -> Finding:
    if not answers_requests(service):
        return _elsewhere(service)
    served = service.get("served_name") or service["model"]
    models = ask(service, "/v1/models")
    if models.status != 200:
        return _no_answer("/v1/models", models)
    listed = [model.get("id") for model in models.json("data") or [] if isinstance(model, dict)]
    if served not in listed:
        return Finding(FAILED, f"lists {', '.join(map(str, listed)) or 'no model'}, not {served}")
    request = {"model": served, "prompt": PROMPT, "max_tokens": 16, "temperature": 0}
    completion = ask(service, "/v1/completions", request, COMPLETION_TIMEOUT)
    if completion.status != 200:
        return _no_answer("/v1/completions", completion)
    text = completion.json("choices", 0, "text")
    tokens = completion.json("usage", "completion_tokens")
    if not isinstance(text, str) or not (tokens if isinstance(tokens, int) else text):
        return Finding(FAILED, "completed the prompt by no token")
    figures.update(
        prompt=PROMPT, answer=text, completion_tokens=tokens, completion_seconds=round(completion.seconds, 3)
    )
    shown = " ".join(text.split())
    shown = shown if len(shown) <= SHOWN_ANSWER else f"{shown[:SHOWN_ANSWER]}..."
    return Finding(OK, f"{json.dumps(shown, ensure_ascii=False)} in {completion.seconds:.2f} s")


def _no_answer(path: str, answer: Answer) -> Finding:
    if answer.status in (401, 403):
        return Finding(COULD_NOT_CHECK, f"{path} wants an API key")
    said = f"status {answer.status}" if answer.status else answer.text
    return Finding(FAILED, f"{path} does not answer: {said}")


def services_memory(
    services: Sequence[Service],
    planned_gpus: Sequence[Mapping[str, Any]],
    gpus: Sequence[Mapping[str, Any]],
    figures: Figures,
) -> Finding:
    """What each engine reports is what was planned, and no GPU is used beyond its plan."""
    remedies = {FAILED: HOLDERS, COULD_NOT_CHECK: "See services_answer."}
    reported = _together(services, lambda service: _memory(service, figures[service["name"]]), remedies)
    used = _used(planned_gpus, gpus)
    worst = max((reported, used), key=lambda finding: (OK, COULD_NOT_CHECK, FAILED).index(finding.status))
    return Finding(worst.status, f"{reported.message}; {used.message}", worst.remedy)


def _memory(service: Service, figures: Figures) -> Finding:
    if not answers_requests(service):
        return _elsewhere(service)
    reported = {"sglang": _sglang_memory, "vllm": _vllm_memory}[service["engine"]](service)
    if isinstance(reported, Finding):
        return reported
    planned = {"weights": service["memory"]["weights"], "kv": service["memory"]["kv"]}
    figures.update(
        kv_tokens=reported["tokens"],
        planned_kv_tokens=service["kv_tokens"],
        **{f"{name}_gib": reported[name] for name in planned if name in reported},
        **{f"planned_{name}_gib": size for name, size in planned.items()},
    )
    wrong = []
    if reported["tokens"] < service["kv_tokens"] * (1 - TOKENS_SHARE):
        wrong.append(f"{reported['tokens']:,} tokens of KV cache, planned are {service['kv_tokens']:,}")
    for name, size in planned.items():
        more = reported.get(name, size) - size
        # The planned KV cache is room: its tokens are judged above, and may need less than the room.
        if (more if name == "kv" else abs(more)) > max(SIZE_SHARE * size, SIZE_GIB):
            wrong.append(f"{reported[name]:.2f} GiB of {name}, planned are {size:.2f}")
    if wrong:
        return Finding(FAILED, f"has {' and '.join(wrong)}")
    sizes = "".join(f", {reported[name]:.2f} GiB of {name}" for name in planned if name in reported)
    return Finding(OK, f"{reported['tokens']:,} tokens{sizes}")


def _sglang_memory(service: Service) -> dict[str, Any] | Finding:
    """/server_info is SGLang's from 0.5.9 on; before, it was /get_server_info."""
    answer = ask(service, "/server_info")
    if answer.status == 404:
        answer = ask(service, "/get_server_info")
    if answer.status != 200:
        return _unknown(_no_answer("/server_info", answer))
    usage = answer.json("internal_states", 0, "memory_usage")
    usage = usage if isinstance(usage, dict) else {}
    tokens = answer.json("max_total_num_tokens") or usage.get("token_capacity")
    if not isinstance(tokens, int):
        return Finding(COULD_NOT_CHECK, "/server_info names no max_total_num_tokens")
    named = {"weights": usage.get("weight"), "kv": usage.get("kvcache")}
    return {"tokens": tokens, **{name: size for name, size in named.items() if isinstance(size, (int, float))}}


def _vllm_memory(service: Service) -> dict[str, Any] | Finding:
    """vLLM reports its KV cache only, as labels of a metric.

    Newer versions name the tokens; blocks times their size are the same for models whose layers all keep a full cache.
    """
    answer = ask(service, "/metrics")
    if answer.status != 200:
        return _unknown(_no_answer("/metrics", answer))
    for line in answer.text.splitlines():
        if line.startswith("vllm:cache_config_info{"):
            labels = dict(_METRIC_LABEL.findall(line))
            size = labels.get("kv_cache_size_tokens", "")
            if size.isdigit():
                return {"tokens": int(size)}
            blocks, per_block = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
            if blocks.isdigit() and per_block.isdigit():
                return {"tokens": int(blocks) * int(per_block)}
    return Finding(COULD_NOT_CHECK, "/metrics has no vllm:cache_config_info with the size of the KV cache")


def _unknown(finding: Finding) -> Finding:
    """A service that does not answer fails services_answer; its memory is then not known."""
    return finding._replace(status=COULD_NOT_CHECK)


def _used(planned_gpus: Sequence[Mapping[str, Any]], gpus: Sequence[Mapping[str, Any]]) -> Finding:
    used_mib = {gpu["index"]: gpu.get("memory_used_mib") for gpu in gpus}
    over, unknown, fine = [], [], []
    for planned in planned_gpus:
        index, used = planned["index"], used_mib.get(planned["index"])
        limit = planned["planned_gib"] + planned.get("reserved_gib", 0)
        if used is None:
            unknown.append(f"GPU {index} does not tell its memory")
        else:
            text = f"GPU {index} uses {used / 1024:.1f} of {limit:.1f} planned GiB"
            (fine if used / 1024 <= limit else over).append(text)
    status = FAILED if over else COULD_NOT_CHECK if unknown else OK
    return Finding(
        status, "; ".join(over + unknown + fine), HOLDERS if over else "See driver_loaded." if unknown else ""
    )


def _together(services: Sequence[Service], check: Callable[[Service], Finding], remedies: Mapping[str, str]) -> Finding:
    """One finding of one per service, made at the same time: the worst of their states, and those that have it."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        findings = list(pool.map(check, services))
    for status in (FAILED, COULD_NOT_CHECK):
        bad = [
            f"{service['name']}: {finding.message}"
            for service, finding in zip(services, findings)
            if finding.status == status
        ]
        if bad:
            return Finding(status, "; ".join(bad), remedies[status])
    return Finding(OK, "; ".join(f"{service['name']}: {one.message}" for service, one in zip(services, findings)))
