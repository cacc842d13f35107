"""What a plan promises: each service gets its tokens from cold, and again when it restarts alone."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host

TINY = {"name": "tiny", "engine": "sglang", "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "port": 30001}
QWEN = {"name": "qwen", "engine": "sglang", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30002}
YI = {"name": "yi", "engine": "vllm", "model": "01-ai/Yi-6B", "port": 30003}
MLA = {
    "engine": "sglang",
    "model": "deepseek-ai/DeepSeek-V2-Lite-Chat",
    "context_length": 8192,
    "image": "sglang-cu130",
}
STACKS = {
    "three services, both engines": (["rtx_5090"], [TINY, QWEN, YI]),
    "all under SGLang": (["rtx_5090"], [TINY, QWEN, YI | {"engine": "sglang"}]),
    "all under vLLM": (["rtx_5090"], [TINY | {"engine": "vllm"}, QWEN | {"engine": "vllm"}, YI]),
    "an old vLLM, which takes no KV size": (
        ["rtx_5090"],
        [TINY, QWEN | {"engine": "vllm", "image": "vllm-0.10.1"}, YI | {"image": "vllm-0.10.1"}],
    ),
    "the documented fallback": (["rtx_5090"], [TINY | {"profile": "safe"}, QWEN | {"profile": "safe"}]),
    "fp8 KV and shares": (
        ["rtx_5090"],
        [QWEN | {"kv_cache_dtype": "fp8_e5m2", "share": 3}, YI | {"kv_cache_dtype": "fp8"}, TINY],
    ),
    "quantised checkpoints": (
        ["rtx_5090"],
        [
            QWEN | {"model": "Qwen/Qwen3-8B-FP8", "context_length": 8192},
            YI | {"model": "Qwen/Qwen3-4B-AWQ", "context_length": 8192},
        ],
    ),
    "measured card": (
        [{"gpu": "h100_sxm", "measured_total_gib": 79.18, "measured_free_gib": 30.54}],
        [TINY | {"image": "sglang-0.5.15"}, QWEN | {"image": "sglang-0.5.15"}, YI | {"image": "vllm-0.24"}],
    ),
    "MLA": (["rtx_pro_6000_blackwell"], [MLA | {"name": "mla", "port": 1}]),
    "sliding window": (
        ["rtx_5090"],
        [QWEN | {"model": "openai/gpt-oss-20b", "context_length": 16384, "image": "sglang-cu130"}],
    ),
    "hybrid under both engines": (
        ["h200"],
        [
            QWEN | {"model": "nvidia/NVIDIA-Nemotron-Nano-9B-v2", "context_length": 8192, "image": "sglang-cu130"},
            YI | {"model": "nvidia/NVIDIA-Nemotron-Nano-9B-v2", "context_length": 8192, "image": "vllm-cu130"},
        ],
    ),
    "tensor parallelism beside single GPUs": (
        ["rtx_5090", "rtx_5090"],
        [
            {"name": "big", "engine": "sglang", "model": "Qwen/Qwen2.5-14B-Instruct", "port": 1, "tensor_parallel": 2,
             "context_length": 8192},
            QWEN | {"context_length": 8192},
            YI,
        ],
    ),
}  # fmt: skip


@pytest.fixture(params=STACKS, scope="module")
def stack(request, make_plan):
    gpus, services = STACKS[request.param]
    plan = make_plan(services, gpus)
    assert plan["verdict"] == "fits", plan["errors"]
    return plan


def engine_grants(plan, service, free_gib, catalog):
    """Tokens by the engine's own rule, worked out from the plan's command line and sizes: no planner code."""
    arguments = dict(argument.split("=", 1) for argument in service["command"] if "=" in argument)
    memory, cell = service["memory"], service["kv_bytes_per_token"]
    gib = 2**30
    if service["engine"] == "sglang":
        fraction = float(arguments["--mem-fraction-static"])
        tokens = (free_gib * fraction - memory["weights"] - memory["state"]) * gib / cell
        return min(int(tokens), int(arguments["--max-total-tokens"]))
    total = next(gpu["cuda_visible_gib"] for gpu in plan["gpus"] if gpu["index"] in service["gpus"])
    requested = total * float(arguments["--gpu-memory-utilization"])
    if free_gib < requested:
        return 0
    exact = arguments.get("--kv-cache-memory-bytes")
    # what vLLM's own profiling sees: no late growth, and tensors rather than the segments that hold them
    late, factor = catalog.overhead("vllm", "first_request", "gib"), catalog.overhead("activations", "factor")
    other = memory["weights"] + memory["workspaces"] - late + memory["activations"] / factor
    return int((int(exact) if exact else (requested - other) * gib) / cell)


def within_a_block(service):
    """plan.json rounds sizes to 0.001 GiB: a token count may be off by that much."""
    return service["kv_tokens"] - 0.003 * 2**30 / service["kv_bytes_per_token"]


def test_each_service_gets_its_tokens_from_cold_in_order(stack, catalog):
    for gpu in stack["gpus"]:
        free = gpu["cuda_visible_gib"] - gpu["reserved_gib"]
        for service in stack["services"]:
            if gpu["index"] not in service["gpus"]:
                continue
            seen = free - service["memory"]["context"]
            assert engine_grants(stack, service, seen, catalog) >= within_a_block(service)
            free -= service["memory"]["resident"]


def restarts_alone(plan):
    """Each service on each of its GPUs, and what it sees there when all others are at their peak."""
    for service in plan["services"]:
        for gpu in plan["gpus"]:
            if gpu["index"] not in service["gpus"]:
                continue
            others = [
                other["memory"]["peak"]
                for other in plan["services"]
                if other is not service and gpu["index"] in other["gpus"]
            ]
            free = gpu["cuda_visible_gib"] - gpu["reserved_gib"] - sum(others) - service["memory"]["context"]
            yield service, gpu, free


def test_each_service_gets_its_tokens_when_it_restarts_alone_among_peaks(stack, catalog):
    for service, _, free in restarts_alone(stack):
        assert free >= service["memory"]["peak"] - service["memory"]["context"]
        assert engine_grants(stack, service, free, catalog) >= within_a_block(service)
        assert free == pytest.approx(service["free_before_restart_gib"], abs=0.01) or len(service["gpus"]) > 1


def test_each_service_gets_its_tokens_also_when_the_others_hold_the_margin_besides(stack, catalog):
    for service, gpu, free in restarts_alone(stack):
        assert engine_grants(stack, service, free - gpu["margin_gib"], catalog) >= within_a_block(service)


def test_sglang_keeps_a_reserve_for_restarts_where_there_is_no_margin(catalog):
    """Beside others that hold 2 % more of what is free then than they should."""
    bare = replace(catalog, gpus={**catalog.gpus, "safety_margin": 0}, _known={})
    plan = plan_host("host", {"gpus": ["rtx_5090"], "services": [TINY, QWEN]}, bare)
    assert plan["gpus"][0]["margin_gib"] == 0
    for service, _, free in restarts_alone(plan):
        assert engine_grants(plan, service, free / 1.02, bare) >= within_a_block(service)


def test_sizes_add_up(stack):
    for service in stack["services"]:
        memory = service["memory"]
        parts = [size for part, size in memory.items() if part not in ("resident", "peak")]
        assert sum(parts) == pytest.approx(memory["peak"], abs=0.006)
        assert memory["resident"] == pytest.approx(
            memory["peak"] - memory["activations"] - memory["reserve"], abs=0.006
        )
    for gpu in stack["gpus"]:
        peaks = [service["memory"]["peak"] for service in stack["services"] if gpu["index"] in service["gpus"]]
        assert gpu["planned_gib"] == pytest.approx(sum(peaks), abs=0.01)
        assert gpu["free_gib"] >= gpu["margin_gib"] - 0.002


def test_every_argument_is_one_that_the_engine_version_has(stack, catalog):
    for service in stack["services"]:
        recorded = catalog.flags[service["engine"], service["engine_version"]]["flags"]
        spellings = {name for name, entry in recorded.items() for name in (name, entry.get("negative"))}
        for argument in service["command"]:
            assert argument.split("=")[0] in spellings


def test_services_start_after_the_one_before_on_their_gpus(stack):
    last = {}
    for service in stack["services"]:
        assert set(service["depends_on"]) == {last[gpu] for gpu in service["gpus"] if gpu in last}
        last |= dict.fromkeys(service["gpus"], service["name"])


def test_equal_services_need_growing_fractions_from_cold(make_plan):
    same = [QWEN | {"name": f"qwen{i}", "port": 30000 + i, "context_length": 8192} for i in range(3)]
    services = make_plan(same)["services"]
    assert len({service["kv_tokens"] for service in services}) == 1
    cold = [service["fraction"]["cold"] for service in services]
    assert cold == sorted(cold)
    assert cold[2] > 1.5 * cold[0]


def test_share_divides_what_is_left_over(make_plan):
    def pools(share):
        services = [QWEN | {"name": "a", "share": share}, QWEN | {"name": "b", "port": 30009}]
        return [service["memory"]["kv"] for service in make_plan(services)["services"]]

    even, uneven = pools(1), pools(3)
    floor = 32768 * 36864 / 2**30
    assert even[0] == pytest.approx(even[1], abs=0.15)
    assert (uneven[0] - floor) / (uneven[1] - floor) == pytest.approx(3, rel=0.1)


def test_no_service_is_given_more_than_it_can_use(make_plan):
    service = make_plan([TINY | {"max_concurrency": 4}])["services"][0]
    assert service["kv_tokens"] == 4 * 2048


def test_kv_floor_is_kept_or_refused(make_plan):
    wanted = make_plan([QWEN | {"kv_tokens": 200_000, "share": 0.001}, YI])
    assert wanted["services"][0]["kv_tokens"] >= 200_000
    assert make_plan([QWEN | {"kv_tokens": 2_000_000}, YI])["verdict"] == "does_not_fit"


def test_best_fit_keeps_the_large_gpu_for_the_large_model(make_plan):
    large = {
        "name": "large",
        "engine": "sglang",
        "model": "Qwen/Qwen2.5-14B-Instruct",
        "port": 1,
        "context_length": 4096,
        "extra_args": {"chunked-prefill-size": 2048},
    }
    plan = make_plan([TINY, large], ["rtx_5090", "rtx_5080"])
    assert {service["name"]: service["gpus"] for service in plan["services"]} == {"tiny": [1], "large": [0]}


def test_placement_backtracks_where_best_fit_alone_fails(make_plan):
    """Two services that fit only if the larger one does not take the tightest place."""
    pinned = QWEN | {"name": "pinned", "port": 5, "gpus": [0], "context_length": 4096}
    plan = make_plan([TINY, YI | {"context_length": 2048}, pinned], ["rtx_5080", "rtx_5080"])
    assert plan["verdict"] == "fits"


def test_what_was_measured_beats_the_catalogue(make_plan):
    measured = {"gpu": "rtx_5090", "measured_total_gib": 31.36, "measured_free_gib": 28.0}
    held, free = make_plan([TINY], [measured]), make_plan([TINY])
    assert held["services"][0]["free_before_gib"] == pytest.approx(28.0, abs=0.01)
    assert held["gpus"][0]["reserved_gib"] == pytest.approx(31.36 - 28.0 - 0.70, abs=0.01)
    assert free["gpus"][0]["reserved_gib"] == 0
    model = {"name": "Qwen/Qwen2.5-3B-Instruct", "weights_gib": 6.5}
    assert make_plan([QWEN | {"model": model}])["services"][0]["memory"]["weights"] == 6.5


def test_extra_arguments_change_the_sizes_that_they_change(make_plan):
    base = make_plan([QWEN])["services"][0]["memory"]
    prefill = make_plan([QWEN | {"extra_args": {"disable-prefill-cuda-graph": False}}])["services"][0]["memory"]
    chunk = make_plan([QWEN | {"extra_args": {"chunked_prefill_size": 8192}}])["services"][0]["memory"]
    eager = make_plan([QWEN | {"extra_args": {"--disable-cuda-graph": True}}])["services"][0]["memory"]
    assert prefill["graphs"] > base["graphs"] + 0.3
    assert chunk["activations"] == pytest.approx(2 * base["activations"], abs=0.002)
    assert eager["graphs"] == 0


VLLM = {"engine": "vllm", "image": "vllm-0.24"}


def test_a_first_start_of_vllm_leaves_room_for_a_copy_of_the_embedding_table(make_plan):
    """151,936 rows of 2,048 elements; more than activations need is planned, and held before any load."""
    memory = make_plan([QWEN | VLLM])["services"][0]["memory"]
    assert memory["kv"] / 36 > memory["compilation"]
    assert memory["compilation"] == pytest.approx(151_936 * 2048 * 2 / 2**30, abs=0.003)
    assert memory["activations"] == 0
    assert memory["resident"] == pytest.approx(memory["peak"], abs=0.002)


def test_kv_buffers_use_what_compilation_leaves(make_plan):
    def memory(tokens):
        return make_plan([QWEN | VLLM | {"kv_tokens": tokens, "max_concurrency": 1}])["services"][0]["memory"]

    small, large = memory(32_768), memory(65_536)
    assert small["compilation"] < 0.05
    assert small["compilation"] + small["activations"] == pytest.approx(
        large["compilation"] + large["activations"], abs=0.002
    )


@pytest.mark.parametrize(
    "without",
    [
        {"profile": "safe"},
        {"image": "vllm-0.10.1"},
        {"extra_args": {"enforce-eager": True}},
        {"environment": {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}},
        {"engine": "sglang", "image": "sglang-0.5.15"},
    ],
    ids=str,
)
def test_nothing_is_left_by_compilation(make_plan, without):
    memory = make_plan([QWEN | VLLM | without])["services"][0]["memory"]
    assert memory["compilation"] == 0
    assert memory["activations"] > 0


def test_prefill_batches_are_no_larger_than_the_pool(make_plan):
    def activations(**settings):
        return make_plan([TINY | settings])["services"][0]["memory"]["activations"]

    full = activations()
    assert activations(context_length=1024, max_concurrency=2) == pytest.approx(full / 2, abs=0.002)
    assert activations(profile="notes", pinned={"max_total_tokens": 1024}) == pytest.approx(full / 4, abs=0.002)
    assert activations(context_length=1024, max_concurrency=4) == full


def test_renamed_options_follow_the_version(make_plan):
    def options(image):
        return " ".join(make_plan([QWEN | {"image": image}])["services"][0]["command"])

    assert "--cuda-graph-max-bs=32" in options("sglang-0.5.10")
    assert "--cuda-graph-max-bs-decode=32" in options("sglang-cu130")
    assert "--disable-piecewise-cuda-graph" in options("sglang-0.5.10")
    assert "--disable-prefill-cuda-graph" in options("sglang-cu130")


def test_the_result_does_not_depend_on_dictionary_order(make_plan):
    services = [TINY | {"share": 2}, QWEN, YI]
    turned = [dict(reversed(service.items())) for service in copy.deepcopy(services)]
    assert make_plan(services) == make_plan(turned)


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_a_stack_that_does_not_fit_says_what_would_make_it_fit(make_plan, with_remedy, engine):
    services = [QWEN | {"engine": engine, "model": "Qwen/Qwen2.5-7B-Instruct"}, YI | {"engine": engine}, TINY]
    plan = make_plan(services)
    assert plan["verdict"] == "does_not_fit"
    assert plan["services"] == []
    assert "GiB short on GPU 0" in plan["errors"][0]["problem"]
    offered = {error["service"]: error["remedies"] for error in plan["errors"]}
    tried = 0
    for name, remedies in offered.items():
        for remedy in remedies:
            if name is None:
                continue
            assert make_plan(with_remedy(services, name, remedy))["verdict"] == "fits", remedy
            tried += 1
    assert tried
    general = " ".join(offered[None])
    other = re.search(r"another GPU: (\w+)", general)
    assert make_plan(services, [other[1]])["verdict"] == "fits"


def test_a_smaller_context_that_is_offered_is_the_largest_that_fits(make_plan):
    services = [
        QWEN | {"model": "Qwen/Qwen2.5-7B-Instruct"},
        QWEN | {"name": "long", "port": 9, "model": "Qwen/Qwen3-4B"},
    ]
    remedies = {error["service"]: error["remedies"] for error in make_plan(services)["errors"]}
    offered = int(next(remedy for remedy in remedies["long"] if "context_length" in remedy).split()[1])
    assert make_plan([services[0], services[1] | {"context_length": offered}])["verdict"] == "fits"
    assert make_plan([services[0], services[1] | {"context_length": offered + 256}])["verdict"] == "does_not_fit"


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_fewer_tokens_are_offered_where_too_many_were_asked_for(make_plan, engine):
    """And no other change hides that it takes them away."""
    wanted = QWEN | {"engine": engine, "kv_tokens": 2_000_000}
    (error, *_) = [error for error in make_plan([wanted, YI])["errors"] if error["service"] == "qwen"]
    (remedy,) = error["remedies"]
    offered = int(re.fullmatch(r"kv_tokens: (\d+) \(now 2000000\)", remedy)[1])
    assert make_plan([wanted | {"kv_tokens": offered}, YI])["verdict"] == "fits"
    assert make_plan([wanted | {"kv_tokens": offered + 256}, YI])["verdict"] == "does_not_fit"


def test_tokens_are_left_out_together_where_several_services_ask_for_too_many(make_plan):
    services = [service | {"kv_tokens": 800_000} for service in (QWEN, YI)]
    (error,) = [error for error in make_plan(services)["errors"] if error["service"] is None and error["remedies"]]
    assert "together: qwen {kv_tokens: left out}, yi {kv_tokens: left out}" in error["remedies"]
    assert not any("context_length" in remedy for remedy in error["remedies"])
    assert make_plan([QWEN, YI])["verdict"] == "fits"


def test_several_changes_are_offered_where_no_single_one_is_enough(make_plan):
    services = [QWEN | {"name": f"q{i}", "port": 10 + i, "model": "Qwen/Qwen2.5-7B-Instruct"} for i in range(3)]
    errors = make_plan(services)["errors"]
    assert {error["service"] for error in errors} == {None}
    together = next(remedy for error in errors for remedy in error["remedies"] if remedy.startswith("together"))
    changed = [
        service | {"model": "Qwen/Qwen2.5-7B-Instruct-AWQ", "kv_cache_dtype": "fp8_e4m3"} for service in services
    ]
    assert together.count("Qwen/Qwen2.5-7B-Instruct-AWQ") == together.count("fp8_e4m3") == 3
    assert make_plan(changed)["verdict"] == "fits"


def test_only_cards_without_peer_access_are_warned_of(make_plan):
    wide = {"name": "wide", "engine": "sglang", "model": "Qwen/Qwen2.5-14B-Instruct", "port": 1, "tensor_parallel": 2,
            "context_length": 8192}  # fmt: skip

    def said(*gpus):
        return [warning for warning in make_plan([wide], list(gpus))["warnings"] if "peer access" in warning]

    (warning,) = said("rtx_5090", "rtx_5090")
    assert "wide: NVIDIA GeForce RTX 5090" in warning
    assert "16g" in warning
    assert said("rtx_pro_6000_blackwell", "rtx_pro_6000_blackwell") == []


def test_a_smaller_prefill_chunk_is_offered_where_it_is_enough(make_plan):
    service = QWEN | {"model": "Qwen/Qwen2.5-14B-Instruct", "context_length": 4096}
    remedies = [remedy for error in make_plan([service])["errors"] for remedy in error["remedies"]]
    assert "extra_args: {chunked-prefill-size: 2048}" in remedies
    assert make_plan([service | {"extra_args": {"chunked-prefill-size": 2048}}])["verdict"] == "fits"
