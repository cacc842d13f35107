"""The planner alone, without Ansible: many hosts with four services each, on one core."""

import time

import pytest

MODELS = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 2048,
    "Qwen/Qwen2.5-3B-Instruct": 32768,
    "01-ai/Yi-6B": 4096,
}


def declaration(number: int) -> dict:
    """Four services on two GPUs; no two hosts have the same numbers."""
    services = [
        {
            "name": f"service{index}",
            "engine": ("sglang", "vllm")[index % 2],
            "image": ("sglang-cu129", "vllm-cu129")[index % 2],
            "model": model,
            "port": 30001 + index,
            "context_length": context,
            "max_concurrency": 1 + number % 64,
            "kv_tokens": context + 64 * number,
        }
        for index, (model, context) in enumerate([*MODELS.items(), ("Qwen/Qwen2.5-3B-Instruct", 8192)])
    ]
    return {
        "mode": "preview",
        "gpus": ["rtx_5090", "rtx_5090"],
        "services": services,
        "bind_address": "127.0.0.1",
        "gpu_request": "cdi",
        "project_name": "serving",
    }


def test_plan_alone(request: pytest.FixtureRequest, catalog, timing):
    from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host

    count = 1000 if request.config.getoption("--full-benchmarks") else 100
    started = time.process_time()
    plans = [plan_host(f"node{number}", declaration(number), catalog) for number in range(count)]
    timing(f"planner alone, {count} hosts with 4 services each, one core", time.process_time() - started, limit=5)
    assert {plan["verdict"] for plan in plans} == {"fits"}, plans[0]["errors"]
