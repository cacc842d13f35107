"""The model catalogue against itself: the published sizes follow from the published fields.

The formulas below count the tensors of each architecture on their own; they share no code with the planner.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

CATALOG = Path(__file__).parents[2] / "catalog" / "models.yml"
MODELS: dict[str, dict[str, Any]] = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))["models"]

GEOMETRY = (
    "architectures",
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
)
GATED_DELTA = (
    "linear_conv_kernel_dim",
    "linear_key_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_value_head_dim",
)
MAMBA = ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel", "hybrid_override_pattern")
MLA = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
PUBLIC = re.compile(r"(https://(huggingface\.co|github\.com)/\S+/\S+|PyPI \S+ \d+(\.\d+)+, \S+)")


class Tensor(NamedTuple):
    """``copies`` matrices of ``inputs`` x ``outputs`` elements; ``role`` says what quantisation may touch."""

    role: str  # linear | expert | kept
    inputs: int
    outputs: int = 1
    copies: int = 1

    @property
    def elements(self) -> int:
        return self.inputs * self.outputs * self.copies


def text_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's fields, with what only the top level says."""
    return {**config, **config["text_config"]} if "text_config" in config else dict(config)


def first(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def head_dim(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def is_qwen_hybrid(config: Mapping[str, Any]) -> bool:
    return "linear_num_value_heads" in config


def attention(config: Mapping[str, Any]) -> Iterator[Tensor]:
    kind, hidden, dim = config["model_type"], config["hidden_size"], head_dim(config)
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    yield Tensor("linear", hidden, queries * (2 if is_qwen_hybrid(config) else 1))
    yield Tensor("linear", hidden, keys, 2)
    yield Tensor("linear", queries, hidden)
    if kind == "qwen2" or config.get("attention_bias"):
        yield Tensor("kept", queries + 2 * keys)
    if kind == "gpt_oss":
        yield Tensor("kept", hidden + config["num_attention_heads"])  # output bias and sinks
    if kind.startswith(("qwen3", "gemma3")):
        yield Tensor("kept", dim, 2)


def latent_attention(config: Mapping[str, Any]) -> Iterator[Tensor]:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    if config["q_lora_rank"]:
        yield Tensor("linear", hidden, config["q_lora_rank"])
        yield Tensor("kept", config["q_lora_rank"])
    yield Tensor("linear", config["q_lora_rank"] or hidden, heads * (nope + rope))
    yield Tensor("linear", hidden, rank + rope)
    yield Tensor("kept", rank)
    yield Tensor("linear", rank, heads * (nope + value))
    yield Tensor("linear", heads * value, hidden)


def gated_delta(config: Mapping[str, Any]) -> Iterator[Tensor]:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    yield Tensor("linear", hidden, 2 * keys + 2 * values)
    yield Tensor("linear", hidden, 2 * heads)
    yield Tensor("kept", 2 * keys + values, config["linear_conv_kernel_dim"])
    yield Tensor("kept", 2 * heads + config["linear_value_head_dim"])
    yield Tensor("linear", values, hidden)


def mamba2(config: Mapping[str, Any]) -> Iterator[Tensor]:
    hidden, heads = config["hidden_size"], config["mamba_num_heads"]
    inner, states = heads * config["mamba_head_dim"], config["n_groups"] * config["ssm_state_size"]
    yield Tensor("linear", hidden, 2 * inner + 2 * states + heads)
    yield Tensor("kept", inner + 2 * states, config["conv_kernel"] + 1)
    yield Tensor("kept", 3 * heads + inner)
    yield Tensor("linear", inner, hidden)


def experts(config: Mapping[str, Any]) -> Iterator[Tensor]:
    kind, hidden, count = config["model_type"], config["hidden_size"], first(config, *EXPERTS)
    width = first(config, "moe_intermediate_size", "intermediate_size")
    yield Tensor("kept", hidden, count)
    yield Tensor("expert", hidden, width, 3 * count)
    if kind == "gpt_oss":
        yield Tensor("kept", (2 * width + hidden + 1), count)
    if kind in {"deepseek_v3", "glm4_moe"}:
        yield Tensor("kept", count)
    if config.get("n_shared_experts"):
        yield Tensor("linear", hidden, width, 3 * config["n_shared_experts"])
    if config.get("shared_expert_intermediate_size"):
        yield Tensor("linear", hidden, config["shared_expert_intermediate_size"], 3)
        yield Tensor("kept", hidden)


def feed_forward(config: Mapping[str, Any], layer: int) -> Iterator[Tensor]:
    if first(config, *EXPERTS) and layer >= config.get("first_k_dense_replace", 0):
        yield from experts(config)
    else:
        yield Tensor("linear", config["hidden_size"], config["intermediate_size"], 3)


def full_layer(config: Mapping[str, Any], layer: int) -> Iterator[Tensor]:
    yield from latent_attention(config) if "kv_lora_rank" in config else attention(config)
    yield from feed_forward(config, layer)
    yield Tensor("kept", config["hidden_size"], 4 if config["model_type"].startswith("gemma") else 2)


def decoder_layer(config: Mapping[str, Any], layer: int) -> Iterator[Tensor]:
    hidden = config["hidden_size"]
    if "hybrid_override_pattern" in config:
        match config["hybrid_override_pattern"][layer]:
            case "M":
                yield from mamba2(config)
            case "*":
                yield from attention(config)
            case "-":
                yield Tensor("linear", hidden, config["intermediate_size"], 2)
        yield Tensor("kept", hidden)
    elif is_qwen_hybrid(config) and (layer + 1) % config["full_attention_interval"]:
        yield from gated_delta(config)
        yield from feed_forward(config, layer)
        yield Tensor("kept", hidden, 2)
    else:
        yield from full_layer(config, layer)


def vision_tower(vision: Mapping[str, Any], hidden: int) -> Iterator[Tensor]:
    """SigLIP with Gemma's projector, or Qwen's tower with its merger."""
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"] ** 2
    layers = first(vision, "num_hidden_layers", "depth")
    yield Tensor("kept", 4 * width * width + 2 * width * inner + 9 * width + inner, 1, layers)
    if "image_size" in vision:
        yield Tensor("kept", vision["num_channels"] * patch + 1, width)
        yield Tensor("kept", vision["image_size"] ** 2 // patch, width)
        yield Tensor("kept", 3 * width + width * hidden)
    else:
        merged = width * vision["spatial_merge_size"] ** 2
        yield Tensor("kept", vision["in_channels"] * vision["temporal_patch_size"] * patch + 1, width)
        yield Tensor("kept", vision["num_position_embeddings"], width)
        yield Tensor("kept", 2 * width + (merged + 1) * merged + (merged + 1) * vision["out_hidden_size"])


def served_tensors(published: Mapping[str, Any]) -> Iterator[Tensor]:
    """Everything an engine loads: no speculative layers, one copy of a tied head."""
    config = text_of(published)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield Tensor("kept", vocab, hidden, 1 if config["tie_word_embeddings"] else 2)
    yield Tensor("kept", hidden)
    for layer in range(config["num_hidden_layers"]):
        yield from decoder_layer(config, layer)
    if "vision_config" in published:
        yield from vision_tower(published["vision_config"], hidden)


def unserved_tensors(published: Mapping[str, Any]) -> Iterator[Tensor]:
    """What the files hold beyond that: one layer that predicts the token after next, or a second head."""
    config = text_of(published)
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    if config.get("num_nextn_predict_layers") or is_qwen_hybrid(config):
        yield from full_layer(config, config["num_hidden_layers"])
        yield Tensor("kept", 2 * hidden, hidden)
        yield Tensor("kept", 3 * hidden)
        yield Tensor("kept", vocab, hidden, 0 if is_qwen_hybrid(config) else 2)
    else:
        yield Tensor("kept", vocab, hidden)


def stored_bytes(tensor: Tensor, quantisation: Mapping[str, Any] | None) -> float:
    """Bytes of a tensor in its checkpoint: 16-bit, or what its quantisation method stores with scales."""
    method = quantisation["quant_method"] if quantisation else None
    kept = tensor.role == "kept" or (method == "mxfp4" and tensor.role != "expert")
    if method is None or kept:
        return 2 * tensor.elements
    assert quantisation is not None
    match method:
        case "awq" | "gptq":
            group = quantisation["group_size"]
            codes = tensor.elements * quantisation["bits"] / 8
            zeros_and_scales = tensor.elements / group * (quantisation["bits"] / 8 + 2)
            order = 4 * tensor.inputs * tensor.copies if method == "gptq" else 0
            return codes + zeros_and_scales + order
        case "fp8":
            rows, columns = quantisation["weight_block_size"]
            blocks = math.ceil(tensor.outputs / rows) * math.ceil(tensor.inputs / columns) * tensor.copies
            return tensor.elements + 4 * blocks
        case "compressed-tensors":
            (group,) = quantisation["config_groups"].values()
            return tensor.elements * group["weights"]["num_bits"] / 8
        case "modelopt" if quantisation["quant_algo"] == "NVFP4":
            return tensor.elements * (1 / 2 + 1 / quantisation["group_size"])
        case "modelopt" if quantisation["quant_algo"] == "FP8":
            return tensor.elements
        case "mxfp4":
            return tensor.elements * (1 / 2 + 1 / 32)
    raise AssertionError(f"no formula for {method}")


def with_field(field: str) -> list[str]:
    return [name for name, entry in MODELS.items() if field in entry]


def quantisation_name(config: Mapping[str, Any]) -> str | None:
    declared = config.get("quantization_config")
    if not declared:
        return None
    return declared["quant_algo"].lower() if declared["quant_method"] == "modelopt" else declared["quant_method"]


def kind_of(config: Mapping[str, Any]) -> str:
    """The most special kind that the published fields speak of."""
    if is_qwen_hybrid(config) or "hybrid_override_pattern" in config:
        return "hybrid"
    if "kv_lora_rank" in config:
        return "mla"
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        return "sliding_window"
    return "moe" if first(config, *EXPERTS) else "dense"


@pytest.mark.parametrize("name", with_field("parameters"))
def test_published_parameters_follow_from_the_fields(name: str) -> None:
    entry = MODELS[name]
    served = sum(tensor.elements for tensor in served_tensors(entry["config"]))
    unserved = sum(tensor.elements for tensor in unserved_tensors(entry["config"])) if "unloaded_bytes" in entry else 0
    assert served + unserved == entry["parameters"]


@pytest.mark.parametrize("name", with_field("weights_bytes"))
def test_published_bytes_follow_from_the_fields(name: str) -> None:
    entry = MODELS[name]
    quantisation = entry["config"].get("quantization_config")
    served = sum(stored_bytes(tensor, quantisation) for tensor in served_tensors(entry["config"]))
    assert served == pytest.approx(entry["weights_bytes"] - entry.get("unloaded_bytes", 0), rel=0.0001)


@pytest.mark.parametrize("name", with_field("unloaded_bytes"))
def test_unloaded_bytes_are_the_speculative_layer_or_the_second_head(name: str) -> None:
    entry = MODELS[name]
    quantisation = entry["config"].get("quantization_config")
    unserved = sum(stored_bytes(tensor, quantisation) for tensor in unserved_tensors(entry["config"]))
    assert unserved == pytest.approx(entry["unloaded_bytes"], rel=0.001)


@pytest.mark.parametrize("name", [name for name in MODELS if not {"parameters", "weights_bytes"} & MODELS[name].keys()])
def test_a_model_without_published_size_has_the_size_in_its_name(name: str) -> None:
    billions = re.search(r"-(\d+(?:\.\d+)?)B\b", name)
    assert billions, f"neither a published size nor one in the name: {name}"
    served = sum(tensor.elements for tensor in served_tensors(MODELS[name]["config"]))
    assert served == pytest.approx(float(billions[1]) * 1e9, rel=0.1)


@pytest.mark.parametrize("name", MODELS)
def test_kind_is_the_most_special_that_the_fields_tell(name: str) -> None:
    assert MODELS[name]["kind"] == kind_of(text_of(MODELS[name]["config"]))


@pytest.mark.parametrize("name", MODELS)
def test_fields_that_size_memory_are_there(name: str) -> None:
    config = text_of(MODELS[name]["config"])
    wanted = set(GEOMETRY[:2]) | {
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "tie_word_embeddings",
    }
    if first(config, *EXPERTS):
        wanted.add("num_experts_per_tok")
    else:
        wanted.add("intermediate_size")
    match MODELS[name]["kind"]:
        case "mla":
            wanted |= set(MLA)
        case "hybrid":
            wanted |= {"head_dim", *(GATED_DELTA if is_qwen_hybrid(config) else MAMBA)}
    assert wanted <= config.keys()


@pytest.mark.parametrize("name", MODELS)
def test_layers_described_one_by_one_are_all_described(name: str) -> None:
    config = text_of(MODELS[name]["config"])
    for field in ("layer_types", "hybrid_override_pattern"):
        if field in config:
            assert len(config[field]) == config["num_hidden_layers"]
    if "layer_types" in config and "full_attention_interval" in config:
        for layer, kind in enumerate(config["layer_types"], 1):
            assert (kind == "full_attention") == (layer % config["full_attention_interval"] == 0)
    if MODELS[name]["kind"] == "sliding_window":
        # Gemma 2 alternates by its model class, without a field
        assert first(config, "layer_types", "sliding_window_pattern") or config["model_type"] == "gemma2"


@pytest.mark.parametrize(
    ("base", "checkpoint"),
    [(base, quantised) for base in with_field("quantised") for quantised in MODELS[base]["quantised"]],
)
def test_quantised_checkpoint_shares_the_geometry_of_its_base(base: str, checkpoint: str) -> None:
    assert "quantization_config" not in MODELS[base]["config"]
    original, quantised = MODELS[base]["config"], MODELS[checkpoint]["config"]
    assert quantisation_name(quantised)
    assert [quantised.get(field) for field in GEOMETRY] == [original.get(field) for field in GEOMETRY]
    assert MODELS[checkpoint].get("weights_bytes", 0) < MODELS[base]["weights_bytes"]


@pytest.mark.parametrize("name", MODELS)
def test_every_value_has_a_public_source(name: str) -> None:
    entry = MODELS[name]
    origins = [line.split(" from ", 1) for line in entry["source"] if " from " in line]
    assert {"config", "weights_bytes", "parameters"} & entry.keys() <= {field for field, _ in origins}
    for field, origin in origins:
        assert PUBLIC.match(origin) or (field == "weights_bytes" and origin.startswith("parameters")), origin
    assert ("unloaded_bytes" in entry) == any(line.startswith("unloaded_bytes: ") for line in entry["source"])


def test_catalogue_is_sorted_and_names_no_model_twice() -> None:
    written = re.findall(r"^  (\S+):$", CATALOG.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert written == sorted(set(written), key=str.lower)
    assert written == list(MODELS)


def test_catalogue_covers_kinds_and_quantisations_that_are_served() -> None:
    assert len(MODELS) >= 32
    assert {entry["kind"] for entry in MODELS.values()} == {"dense", "moe", "mla", "sliding_window", "hybrid"}
    served = {quantisation_name(entry["config"]) for entry in MODELS.values()}
    assert {"awq", "gptq", "fp8", "nvfp4", "mxfp4"} <= served
