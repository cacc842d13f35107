"""Which models the module model_cache is asked for, from real plans."""

import json

import pytest
from ansible_collections.blackwell.serving.plugins.filter.plan_models import plan_models
from ansible_collections.blackwell.serving.plugins.module_utils.units import GIB

QWEN = {"name": "a", "engine": "sglang", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30001, "context_length": 2048}


def test_services_that_share_a_model_need_it_once(make_plan):
    plan = make_plan([QWEN, {**QWEN, "name": "b", "port": 30002, "engine": "vllm"}])
    (model,) = plan_models(plan)
    first = min(plan["services"], key=lambda service: service["start_order"])
    assert (model["name"], model["revision"], model["image"]) == (QWEN["model"], "main", first["image"])


def test_a_revision_is_a_model_of_its_own(make_plan):
    plan = make_plan([QWEN, {**QWEN, "name": "b", "port": 30002, "revision": "v1"}])
    assert sorted(model["revision"] for model in plan_models(plan)) == ["main", "v1"]


def test_the_size_is_the_published_one_where_it_is_known(make_plan, catalog):
    (model,) = plan_models(make_plan([QWEN]))
    assert model["size_bytes"] == catalog.models["models"][QWEN["model"]]["weights_bytes"]


def test_else_it_is_what_all_gpus_load(make_plan):
    def size(gpus: int) -> int:
        service = {**QWEN, "model": {"name": "lab/own", "config": CONFIG}, "tensor_parallel": gpus}
        (model,) = plan_models(make_plan([service], gpus=["rtx_5090"] * gpus))
        return model["size_bytes"]

    assert size(1) > GIB
    assert size(2) == pytest.approx(size(1), rel=0.02)


def test_a_directory_is_not_downloaded(make_plan, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/config.json").write_text(json.dumps(CONFIG))
    (model,) = plan_models(make_plan([{**QWEN, "model": str(tmp_path / "own")}]))
    assert model == {"name": "/models/own", "directory": str(tmp_path / "own")}


CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
