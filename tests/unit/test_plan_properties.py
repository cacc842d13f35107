"""Properties that hold for every declaration, searched with hypothesis."""

from __future__ import annotations

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.declaration import SERVICE_KEYS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MODELS = ["TinyLlama/TinyLlama-1.1B-Chat-v1.0", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-3B-Instruct", "01-ai/Yi-6B",
          "Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-4B-AWQ", "openai/gpt-oss-20b"]  # fmt: skip
LONGEST = {MODELS[0]: 2048, MODELS[3]: 4096}
GPUS = ["rtx_5090", "rtx_5080", "rtx_pro_6000_blackwell"]
SEARCH = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def stacks(draw, largest=4):
    services = []
    for index in range(draw(st.integers(1, largest))):
        engine = draw(st.sampled_from(["sglang", "vllm"]))
        service = {
            "name": f"s{index}",
            "engine": engine,
            "image": draw(st.sampled_from(["sglang-cu129", "sglang-cu130"] if engine == "sglang" else ["vllm-cu129"])),
            "model": draw(st.sampled_from(MODELS)),
            "port": 30000 + index,
            "context_length": draw(st.sampled_from([512, 1024, 2000, 2048])),
            "max_concurrency": draw(st.integers(1, 64)),
            "share": draw(st.sampled_from([0.5, 1, 2, 5])),
            "profile": draw(st.sampled_from(["tuned", "safe"])),
            "gpus": [0],
        }
        if draw(st.booleans()):
            service["kv_tokens"] = draw(st.integers(512, 60_000))
        services.append(service)
    return services


def by_name(plan):
    return {service["name"]: service for service in plan["services"]}


@SEARCH
@given(services=stacks(), gpu=st.sampled_from(GPUS))
def test_a_plan_stays_within_the_gpu_and_keeps_every_floor(make_plan, services, gpu):
    plan = make_plan(services, [gpu])
    assert plan["verdict"] in ("fits", "does_not_fit")
    for planned, declared in zip(plan["services"], services, strict=plan["verdict"] == "fits"):
        assert planned["kv_tokens"] >= (declared.get("kv_tokens") or declared["context_length"])
        assert planned["kv_tokens"] <= max(
            declared.get("kv_tokens", 0) + 4096, declared["max_concurrency"] * declared["context_length"] + 4096
        )
        assert 0 < planned["fraction"]["cold"] <= planned["fraction"]["value"] + 0.001 <= 1
        assert planned["memory"]["peak"] - planned["memory"]["context"] <= planned["free_before_restart_gib"] + 0.002
    for entry in plan["gpus"]:
        assert entry["planned_gib"] + entry["margin_gib"] <= entry["cuda_visible_gib"] + 0.002


@SEARCH
@given(services=stacks(largest=3), added=stacks(largest=1), gpu=st.sampled_from(GPUS))
def test_another_service_never_gives_one_more(make_plan, services, added, gpu):
    alone = make_plan(services, [gpu])
    beside = make_plan([*services, {**added[0], "name": "added", "port": 1}], [gpu])
    if alone["verdict"] != "fits" or beside["verdict"] != "fits":
        assert alone["verdict"] == "fits" or beside["verdict"] != "fits"
        return
    for name, service in by_name(alone).items():
        assert by_name(beside)[name]["kv_tokens"] <= service["kv_tokens"]


@SEARCH
@given(services=stacks(), less=st.floats(8, 60), more=st.floats(0.01, 30))
def test_tokens_grow_with_memory(make_plan, services, less, more):
    def on(free):
        return make_plan(services, [{"gpu": "rtx_pro_6000_blackwell", "measured_free_gib": free}])

    small, large = on(less), on(less + more)
    if small["verdict"] == "fits":
        assert large["verdict"] == "fits"
        for name, service in by_name(small).items():
            assert by_name(large)[name]["kv_tokens"] >= service["kv_tokens"]


@settings(SEARCH, max_examples=300)
@given(
    services=stacks(),
    longer=st.sampled_from([1, 8, 64]),
    more=st.sampled_from([1, 10, 100]),
    gpu=st.sampled_from(["rtx_5080", "rtx_5090"]),
)
def test_what_would_help_does(make_plan, with_remedy, services, longer, more, gpu):
    for service in services:
        service["context_length"] = min(service["context_length"] * longer, LONGEST.get(service["model"], 32768))
        if "kv_tokens" in service:
            service["kv_tokens"] *= more
    for error in make_plan(services, [gpu])["errors"]:
        for remedy in error.get("remedies") or []:
            better = with_remedy(services, error["service"], remedy)
            if better is not None:
                assert make_plan(better, [gpu])["verdict"] == "fits", remedy


@SEARCH
@given(services=stacks(), order=st.randoms())
def test_the_order_of_keys_changes_nothing(make_plan, services, order):
    shuffled = []
    for service in services:
        keys = list(service)
        order.shuffle(keys)
        shuffled.append({key: service[key] for key in keys})
    assert make_plan(shuffled) == make_plan(services)


@SEARCH
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
    key=st.sampled_from(sorted(SERVICE_KEYS)),
)
def test_any_value_of_any_key_is_planned_or_refused_by_name(make_plan, value, key):
    service = {"name": "a", "engine": "sglang", "model": MODELS[0], "port": 30001, key: value}
    plan = make_plan([service])
    if plan["verdict"] == "invalid":
        assert all(error["problem"] and error["service"] is not None for error in plan["errors"])
    else:
        assert plan["verdict"] in ("fits", "does_not_fit")


@pytest.mark.parametrize("placed_on", [[0], [1]])
def test_a_service_over_two_gpus_leaves_its_unused_part_unused(make_plan, placed_on):
    """It gets the smaller of its two parts; a newcomer on one GPU makes nobody on the other one larger."""
    wide = {"name": "wide", "engine": "sglang", "model": "Qwen/Qwen2.5-7B-Instruct", "port": 1, "tensor_parallel": 2,
            "gpus": [0, 1], "context_length": 4096}  # fmt: skip
    other = {"name": "other", "engine": "sglang", "model": MODELS[2], "port": 2, "gpus": [0], "max_concurrency": 512}
    newcomer = {"name": "new", "engine": "sglang", "model": MODELS[1], "port": 3, "gpus": placed_on}
    before = by_name(make_plan([wide, other], ["rtx_5090", "rtx_5090"]))
    after = by_name(make_plan([wide, other, newcomer], ["rtx_5090", "rtx_5090"]))
    assert all(after[name]["kv_tokens"] <= before[name]["kv_tokens"] for name in before)
