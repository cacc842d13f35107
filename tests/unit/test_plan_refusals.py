"""Bad declarations: one clear message that names the service, the key, the value and what is allowed."""

from __future__ import annotations

import json

import pytest

QWEN = {"name": "qwen", "engine": "sglang", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30002}
TINY = {"name": "tiny", "engine": "sglang", "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "port": 30001}
LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 22,
         "intermediate_size": 5632, "vocab_size": 32000, "max_position_embeddings": 2048}  # fmt: skip

# what is changed in a good service, and what the message must contain
BAD_SERVICES = {
    "unknown engine": ({"engine": "tgi"}, ["qwen", "engine", "'tgi'", "sglang, vllm"]),
    "unknown model": ({"model": "Qwen/Qwen2.5-3B-Instrukt"}, ["qwen", "model", "Qwen/Qwen2.5-3B-Instruct"]),
    "unknown image": ({"image": "sglang-cu128"}, ["qwen", "image", "sglang-cu128", "sglang-cu129"]),
    "image of the other engine": ({"image": "vllm-cu129"}, ["qwen", "image", "sglang-cu129"]),
    "image without a digest": ({"image": "lmsysorg/sglang:latest"}, ["qwen", "image", "digest"]),
    "unknown key": ({"max_concurency": 4}, ["qwen", "max_concurency", "max_concurrency"]),
    "unknown flag": (
        {"extra_args": {"attention-backnd": "triton"}},
        ["qwen", "--attention-backnd", "--attention-backend"],
    ),
    "flag that this version lost": (
        {"extra_args": {"disable-flashinfer": True}},
        ["sglang 0.5.19", "--disable-flashinfer"],
    ),
    "flag that the planner owns": ({"extra_args": {"mem-fraction-static": 0.5}}, ["--mem-fraction-static", "pinned"]),
    "flag that nobody sizes": ({"extra_args": {"speculative-algorithm": "EAGLE"}}, ["--speculative-algorithm", "size"]),
    "value that the flag does not take": (
        {"extra_args": {"attention-backend": "fa9"}},
        ["fa9", "triton", "flashinfer"],
    ),
    "switch with a value": (
        {"extra_args": {"disable-radix-cache": "please"}},
        ["--disable-radix-cache", "please", "true"],
    ),
    "number that is none": ({"extra_args": {"chunked-prefill-size": "4k"}}, ["--chunked-prefill-size", "4k"]),
    "port out of range": ({"port": 70000}, ["qwen", "port", "70000", "65535"]),
    "port that is text": ({"port": "eighty"}, ["qwen", "port", "eighty"]),
    "no port": ({"port": None}, ["qwen", "port", "missing"]),
    "bad name": ({"name": "Qwen 3B"}, ["name", "Qwen 3B", "lower-case"]),
    "fraction above 1": ({"pinned": {"mem_fraction_static": 1.2}}, ["pinned.mem_fraction_static", "1.2", "0.999"]),
    "fraction of zero": ({"pinned": {"mem_fraction_static": 0}}, ["pinned.mem_fraction_static", "above 0"]),
    "pinned key of the other engine": ({"pinned": {"gpu_memory_utilization": 0.5}}, ["pinned", "mem_fraction_static"]),
    "negative context": ({"context_length": -1}, ["context_length", "-1"]),
    "absurd concurrency": ({"max_concurrency": 10**9}, ["max_concurrency", "4096"]),
    "negative share": ({"share": -2}, ["share", "-2"]),
    "context above the model's": ({"context_length": 65536}, ["context_length", "65536", "32768"]),
    "tensor parallelism that does not divide": ({"tensor_parallel": 3}, ["tensor_parallel", "3", "1, 2, 4"]),
    "a GPU that is not there": ({"gpus": [1]}, ["gpus", "no GPU 1"]),
    "GPUs that do not match": ({"gpus": [0], "tensor_parallel": 2}, ["gpus", "tensor_parallel 2"]),
    "KV type that the version lacks": ({"kv_cache_dtype": "int3"}, ["kv_cache_dtype", "int3", "fp8_e4m3"]),
    "quantization that nobody sizes": ({"quantization": "bitsandbytes"}, ["quantization", "bitsandbytes", "fp8"]),
    "secret in the environment": ({"environment": {"HF_TOKEN": "hf_x"}}, ["environment", "HF_TOKEN", "readable"]),
    "code of a repository at no commit": ({"trust_remote_code": True}, ["qwen", "revision", "40 hexadecimal"]),
    "code of a branch": ({"trust_remote_code": True, "revision": "main"}, ["qwen", "revision", "main", "commit"]),
    "unknown architecture": (
        {"model": {"name": "my", "config": LLAMA | {"architectures": ["FancyForCausalLM"]}}},
        ["FancyForCausalLM", "LlamaForCausalLM"],
    ),
    "config without geometry": (
        {"model": {"name": "my", "config": {key: LLAMA[key] for key in LLAMA if key != "hidden_size"}}},
        ["config.json of my", "hidden_size"],
    ),
    "config with nonsense": (
        {"model": {"name": "my", "config": LLAMA | {"num_hidden_layers": "many"}}},
        ["config.json of my", "num_hidden_layers", "many"],
    ),
    "quantization that is unknown": (
        {"model": {"name": "my", "config": LLAMA | {"quantization_config": {"quant_method": "quip"}}}},
        ["quip", "awq"],
    ),
    "inline model without a name": ({"model": {"config": LLAMA}}, ["model", "name"]),
    "weights that are no size": ({"model": {"name": "my", "config": LLAMA, "weights_gib": -3}}, ["weights_gib", "-3"]),
}


@pytest.mark.parametrize("case", BAD_SERVICES)
def test_a_bad_service_is_refused_with_a_message_that_says_why(make_plan, tmp_path, case):
    change, expected = BAD_SERVICES[case]
    plan = make_plan([TINY, QWEN | change])
    assert plan["verdict"] == "invalid"
    assert plan["services"] == plan["gpus"] == []
    messages = " / ".join(error["problem"] for error in plan["errors"])
    assert [word for word in expected if word not in messages] == []
    assert left_behind(plan, make_plan([TINY, QWEN]), tmp_path) == {"plan.json": "invalid"}


def left_behind(plan, earlier, directory):
    """Files of a directory that held an earlier plan, once `plan` is written there; plan.json by its verdict."""
    from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import (
        current_files,
        render,
        write_files,
    )

    for written in (earlier, plan):
        write_files(directory, render(written), current_files(directory))
    assert json.loads((directory / "plan.json").read_text()) == plan
    return {path.name: json.loads(path.read_text())["verdict"] for path in directory.iterdir()}


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (["rtx_5091"], ["serving_gpus", "rtx_5091", "rtx_5090"]),
        ([], ["serving_gpus", "at least one"]),
        ("rtx_5090", ["serving_gpus", "list"]),
        ([{"gpu": "rtx_5090", "measured_free_gib": 40}], ["measured_free_gib", "40", "at most"]),
        ([{"gpu": "rtx_5090", "measured_total_gib": "lots"}], ["measured_total_gib", "lots"]),
        ([{"gpu": "rtx_5090", "memory": 31}], ["measured_total_gib"]),
        ([["rtx_5090"]], ["serving_gpus"]),
    ],
)
def test_bad_gpus(make_plan, gpus, expected):
    plan = make_plan([TINY], gpus)
    assert plan["verdict"] == "invalid"
    messages = " / ".join(error["problem"] for error in plan["errors"])
    assert [word for word in expected if word not in messages] == []


@pytest.mark.parametrize(
    ("service", "flag"),
    [
        (TINY, "api-key"),
        (TINY, "admin-api-key"),
        (TINY, "ssl-keyfile-password"),
        (TINY | {"engine": "vllm", "image": "vllm-cu129"}, "api-key"),
        (TINY | {"engine": "vllm", "image": "vllm-cu129"}, "hf_token"),
    ],
)
def test_a_secret_is_refused_and_not_repeated(make_plan, service, flag):
    plan = make_plan([service | {"extra_args": {flag: "do-not-tell-1"}}])
    assert plan["verdict"] == "invalid"
    assert "takes a secret" in plan["errors"][0]["problem"]
    assert "do-not-tell-1" not in json.dumps(plan)


@pytest.mark.parametrize("services", [[], None, {}, "qwen", {"qwen": QWEN}, 3])
def test_services_that_are_no_list(make_plan, services):
    plan = make_plan(services)
    assert plan["verdict"] == "invalid"
    assert "serving_services: must be a list with at least one service" in plan["errors"][0]["problem"]


@pytest.mark.parametrize("item", ["qwen", None, 7, ["qwen"]])
def test_a_service_that_is_no_mapping(make_plan, item):
    assert "is not a mapping" in make_plan([TINY, item])["errors"][0]["problem"]


@pytest.mark.parametrize("key", ["name", "port", "container_name"])
def test_what_must_be_unique(make_plan, key):
    shared = {"name": "same", "port": 30009, "container_name": "same"}[key]
    plan = make_plan([TINY | {key: shared}, QWEN | {key: shared}])
    assert plan["verdict"] == "invalid"
    assert any(f"{shared} is already the {key} of service" in error["problem"] for error in plan["errors"])


def test_a_container_name_may_not_be_that_of_another_service_by_default(make_plan):
    plan = make_plan([TINY | {"container_name": "qwen"}, QWEN])
    assert plan["verdict"] == "invalid"
    assert "container_name" in plan["errors"][0]["problem"]


def test_every_problem_is_reported_at_once(make_plan):
    plan = make_plan([TINY | {"port": 0, "engine": "x"}, QWEN | {"share": "much"}])
    assert sorted((error["service"], error["key"]) for error in plan["errors"]) == [
        ("qwen", "share"),
        ("tiny", "engine"),
        ("tiny", "port"),
    ]


def test_tensor_parallelism_over_unlike_gpus(make_plan):
    service = QWEN | {"tensor_parallel": 2, "gpus": [0, 1]}
    problem = make_plan([service], ["rtx_5090", "rtx_5080"])["errors"][0]["problem"]
    assert "rtx_5080, rtx_5090" in problem
    assert make_plan([QWEN | {"tensor_parallel": 2}], ["rtx_5090", "rtx_5080"])["verdict"] == "does_not_fit"


def test_a_gpu_that_shares_memory_with_the_system_keeps_more_free(make_plan):
    plan = make_plan([QWEN | {"image": "sglang-cu130"}], ["gb10"])
    assert plan["gpus"][0]["free_gib"] > 11
    assert any("shares its memory with the system" in warning for warning in plan["warnings"])


def test_a_model_directory(make_plan, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    plan = make_plan([TINY | {"model": str(tmp_path)}])
    service = plan["services"][0]
    assert f"--model-path=/models/{tmp_path.name}" in service["command"]
    assert {"type": "bind", "source": str(tmp_path), "target": f"/models/{tmp_path.name}"} in service["volumes"]
    (tmp_path / "config.json").write_text("{")
    assert "is not JSON" in make_plan([TINY | {"model": str(tmp_path)}])["errors"][0]["problem"]
    (tmp_path / "config.json").unlink()
    assert "No such file" in make_plan([TINY | {"model": str(tmp_path)}])["errors"][0]["problem"]


def test_an_image_without_code_for_the_card_is_refused_with_those_that_have_it(make_plan):
    plan = make_plan([QWEN | {"image": "sglang-2025-09-stock"}])
    problem = plan["errors"][0]
    assert plan["verdict"] == "invalid"
    assert "sm_120" in problem["problem"]
    assert "no kernel image is available" in problem["problem"]
    offered = [remedy.removeprefix("image: ") for remedy in problem["remedies"]]
    assert "sglang-cu129" in offered
    for image in offered:
        assert make_plan([QWEN | {"image": image}])["verdict"] == "fits"
    assert make_plan([QWEN | {"image": "sglang-2025-09-stock"}], ["h100_sxm"])["verdict"] == "fits"


def test_an_image_by_digest_or_described(make_plan):
    digest = "@sha256:" + "a" * 64
    known = make_plan([QWEN | {"image": f"lmsysorg/sglang:v0.5.19-cu129{digest}"}])
    assert known["services"][0]["image"].endswith(digest)
    assert known["services"][0]["engine_version"] == "0.5.19"
    unknown = make_plan([QWEN | {"image": f"example.org/mine{digest}"}])
    assert "engine_version" in unknown["errors"][0]["problem"]
    described = {
        "reference": f"example.org/mine{digest}",
        "engine_version": "0.5.23",
        "cuda": "13.0",
        "gpu_code": ["sm_120"],
    }
    assert make_plan([QWEN | {"image": described}])["services"][0]["min_driver"] == "580.65.06"
    assert "sm_120" in make_plan([QWEN | {"image": described | {"gpu_code": ["sm_90"]}}])["errors"][0]["problem"]


def test_a_blocked_image_is_refused_with_its_reason(make_plan):
    problem = make_plan([QWEN | {"image": "sglang-blackwell-notes"}])["errors"][0]["problem"]
    assert "cannot be used" in problem
    assert "sglang-cu129" in problem


def test_a_pinned_fraction_that_is_too_low_says_what_it_grants_and_what_it_needs(make_plan):
    first = TINY | {"pinned": {"mem_fraction_static": 0.15, "max_total_tokens": 2048}}
    second = QWEN | {"pinned": {"mem_fraction_static": 0.15, "max_total_tokens": 4096}}
    plan = make_plan([first, second])
    assert plan["verdict"] == "does_not_fit"
    problem = plan["errors"][0]
    assert problem["service"] == "qwen"
    assert "refuses to start" in problem["problem"]
    needed = float(problem["remedies"][0].split("mem_fraction_static: ")[1].rstrip("}"))
    second["pinned"]["mem_fraction_static"] = needed
    fixed = make_plan([first, second])
    assert fixed["services"][1]["kv_tokens"] == 4096
    second["pinned"]["mem_fraction_static"] = round(needed - 0.005, 3)
    assert make_plan([first, second])["verdict"] == "does_not_fit"


def test_a_pinned_size_is_explained(make_plan):
    plan = make_plan([TINY | {"pinned": {"mem_fraction_static": 0.15, "max_total_tokens": 1024}}, QWEN])
    explained = [warning for warning in plan["warnings"] if warning.startswith("tiny")]
    assert any("really grants 1,024 tokens" in warning for warning in explained)
    assert any("less than its context_length 2,048" in warning for warning in explained)
    assert any("restarted alone" in warning for warning in explained)
    arguments = plan["services"][0]["command"]
    assert "--mem-fraction-static=0.15" in arguments
    assert "--max-total-tokens=1024" in arguments
