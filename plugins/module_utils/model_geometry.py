"""What a model's ``config.json`` says about memory: layers, KV rows, state, weight tensors, activations.

Everything is per tensor-parallel rank and in elements or bytes; nothing here knows an engine or a GPU.
Architectures are listed by name. An unknown one is refused: a wrong size is worse than none.

Sources: the ``transformers`` configuration classes, and the model files of SGLang 0.5.19
(``sglang/srt/models``) and vLLM 0.24.0 (``vllm/model_executor/models``) for how tensors are fused and split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .cuda_allocator import DEFAULT
from .plan_error import PlanError
from .quantization import Quantization, quantization_of
from .units import round_up

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
VOCAB_PADDING = 64
MXFP4_TILE = 256  # vllm 0.24.0, fused_moe/oracle/mxfp4.py: hidden and intermediate sizes are rounded up to it

GATED, UNGATED = "gated", "ungated"
# architecture -> how its decoder layers are built
ARCHITECTURES: dict[str, str] = {
    **dict.fromkeys(
        (
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
            "Phi3ForCausalLM",
            "GemmaForCausalLM",
            "Gemma2ForCausalLM",
            "Gemma3ForCausalLM",
            "Gemma3ForConditionalGeneration",
            "Mistral3ForConditionalGeneration",
            "GlmForCausalLM",
            "Glm4ForCausalLM",
            "GraniteForCausalLM",
            "Olmo2ForCausalLM",
        ),
        "dense",
    ),
    **dict.fromkeys(
        (
            "MixtralForCausalLM",
            "Qwen2MoeForCausalLM",
            "Qwen3MoeForCausalLM",
            "GptOssForCausalLM",
            "Glm4MoeForCausalLM",
        ),
        "moe",
    ),
    **dict.fromkeys(("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), "mla"),
    **dict.fromkeys(
        (
            "Qwen3NextForCausalLM",
            "Qwen3_5ForCausalLM",
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForCausalLM",
            "Qwen3_5MoeForConditionalGeneration",
        ),
        "gated_delta",
    ),
    "NemotronHForCausalLM": "mamba2",
}
# architectures whose sliding-window layers follow a pattern; {pattern length: the last one is full attention}
SLIDING_PATTERN = {
    "Gemma2ForCausalLM": 2,
    "Gemma3ForCausalLM": 6,
    "Gemma3ForConditionalGeneration": 6,
    "GptOssForCausalLM": 2,
}
ATTENTION_SINKS = frozenset({"GptOssForCausalLM"})


@dataclass(frozen=True)
class AttentionLayers:
    """Layers that keep one KV row per token. ``kind``: full | sliding | mla; dimensions in elements."""

    kind: str
    count: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    window: int | None = None

    def rank_heads(self, tp: int) -> int:
        return 1 if self.kind == "mla" else max(1, self.kv_heads // tp)

    def k_elements(self, tp: int) -> int:
        """Elements of one token's K (for MLA: the latent row) in one layer on one rank."""
        return self.rank_heads(tp) * self.head_dim

    def v_elements(self, tp: int) -> int:
        return self.rank_heads(tp) * self.v_head_dim

    def row_elements(self, tp: int) -> int:
        return self.k_elements(tp) + self.v_elements(tp)


@dataclass(frozen=True)
class StateLayers:
    """Layers with a fixed state per request: a convolution window and a recurrent (SSM) state."""

    count: int
    conv_channels: int
    conv_kernel: int
    heads: int
    head_dim: int
    state_size: int
    ssm_bytes: int

    def conv_elements(self, tp: int) -> int:
        return self.conv_channels // tp * (self.conv_kernel - 1)

    def ssm_elements(self, tp: int) -> int:
        return self.heads // tp * self.head_dim * self.state_size

    def request_bytes(self, tp: int, conv_bytes: int) -> int:
        """State of one request in one layer on one rank, in bytes."""
        return self.conv_elements(tp) * conv_bytes + self.ssm_elements(tp) * self.ssm_bytes


@dataclass(frozen=True)
class ModelGeometry:
    """Sizes of one model. ``max_context`` in tokens; ``dtype_bytes`` of an unquantised weight."""

    name: str
    architecture: str
    family: str
    hidden: int
    vocab: int
    heads: int
    kv_heads: int
    max_context: int
    dtype: str
    attention: tuple[AttentionLayers, ...]
    state: StateLayers | None
    rotary_positions: int
    rotary_dim: int
    rotary_tables: int
    multimodal: bool
    quantization: Quantization
    config: Mapping[str, Any] = field(repr=False, compare=False, hash=False)
    published_weights: int | None = None
    _weights: dict[Any, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def is_mla(self) -> bool:
        return any(layers.kind == "mla" for layers in self.attention)

    @property
    def attention_kind(self) -> str:
        """What decides the attention backend: ``mla``, ``sinks`` or ``mha``."""
        if self.is_mla:
            return "mla"
        return "sinks" if self.architecture in ATTENTION_SINKS else "mha"

    def tensor_parallel_problem(self, tp: int) -> str | None:
        """Why the model cannot be split over ``tp`` GPUs, or None."""
        if self.heads % tp:
            return f"{tp} does not divide the model's {self.heads} attention heads"
        if not self.is_mla and self.kv_heads % tp and tp % self.kv_heads:
            return f"{tp} neither divides nor is a multiple of the model's {self.kv_heads} KV heads"
        if self.state and self.state.heads % tp:
            return f"{tp} does not divide the model's {self.state.heads} state heads"
        return None

    def rotary_bytes(self, element: int) -> int:
        """Cosine and sine tables, shared by all layers, held with the weights."""
        return self.rotary_tables * self.rotary_positions * self.rotary_dim * element

    def embedding_elements(self, tp: int) -> int:
        """Elements of one rank's part of the embedding table."""
        return _embedding(self.config, tp)

    def activation_elements(self, tp: int) -> int:
        """Elements per token alive at the widest point of one layer (hidden states, residual, projections)."""
        return 3 * self.hidden + max(_widths(self.config, self.architecture, tp))

    def weight_tensors(self, tp: int, loaded: Quantization | None = None) -> list[int]:
        """Bytes of each weight tensor on one rank, in the order in which engines create them.

        ``loaded`` overrides the checkpoint's quantization (weights quantised while loading).
        """
        quantization = loaded or self.quantization
        tensors: list[int] = []
        for elements, linear in _tensors(self.config, self.architecture, self.family, tp):
            if linear:
                tensors += quantization.linear_tensors(elements, self.dtype_bytes)
            else:
                tensors.append(elements * self.dtype_bytes)
        return tensors

    def absorbed_bytes(self, tp: int) -> int:
        """MLA keeps per-head copies of kv_b_proj (w_kc, w_vc) beside it, in the model's dtype."""
        if not self.is_mla:
            return 0
        per_head = _count(self.config, "qk_nope_head_dim") + _count(self.config, "v_head_dim")
        copies = self.heads // tp * per_head * _count(self.config, "kv_lora_rank")
        return len(_layer_kinds(self.config, self.architecture, self.family)) * copies * self.dtype_bytes

    def padding_bytes(self, tp: int) -> int:
        """MXFP4 experts are padded to whole tiles when they are loaded, in both dimensions."""
        if self.quantization.method != "mxfp4":
            return 0
        hidden, width = self.hidden, _expert_width(self.config) // tp
        padded = round_up(hidden, MXFP4_TILE) * round_up(width, MXFP4_TILE) - hidden * width
        matrices = 3 * _experts(self.config) * sum(layers.count for layers in self.attention)
        return matrices * sum(self.quantization.linear_tensors(padded, self.dtype_bytes))

    def weight_bytes(
        self,
        tp: int,
        rotary_element: int,
        loaded: Quantization | None = None,
        count: Callable[[list[int]], int] = DEFAULT.reserved,
    ) -> int:
        """Device memory of the loaded weights on one rank, as the allocator holds (or, with
        its ``allocated``, as PyTorch reports) them.

        A quantised or multimodal checkpoint's published size replaces the sum of the tensors: which of
        its layers stay unquantised, and its vision tower, are the publisher's choice.
        """
        key = tp, rotary_element, loaded, count
        if key not in self._weights:
            tensors = self.weight_tensors(tp, loaded)
            held = sum(tensors)
            if self.published_weights and loaded is None and (self.quantization.method or self.multimodal):
                held = self.published_weights // tp
            unused = count(tensors) - sum(tensors)
            extra = self.absorbed_bytes(tp) + self.padding_bytes(tp) + self.rotary_bytes(rotary_element)
            self._weights[key] = held + unused + extra
        return self._weights[key]


def geometry_of(name: str, entry: Mapping[str, Any], dtype: str | None = None) -> ModelGeometry:
    """Geometry from a catalogue entry: ``{config: {...config.json...}, weights_bytes: optional}``.

    Raises PlanError naming the field that is missing or the architecture that is unknown.
    """
    config = _text_config(name, entry.get("config"))
    architecture = _architecture(name, entry["config"])
    family = ARCHITECTURES.get(architecture)
    if family is None:
        raise PlanError(
            f"architecture {architecture} of {name} is not one that this planner can size",
            key="model",
            value=name,
            allowed=", ".join(sorted(ARCHITECTURES)),
        )
    try:
        return _build(name, architecture, family, config, entry, dtype)
    except KeyError as missing:
        raise PlanError(f"config.json of {name} lacks {missing.args[0]}", key="model", value=name) from None
    except (TypeError, ValueError, AttributeError) as wrong:
        raise PlanError(f"config.json of {name} is malformed: {wrong}", key="model", value=name) from None


def _architecture(name: str, config: Mapping[str, Any]) -> str:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise PlanError(f"config.json of {name} names no architecture", key="model", value=name)
    return architectures[0]


def _text_config(name: str, config: Any) -> dict[str, Any]:
    if not isinstance(config, Mapping):
        raise PlanError(f"config of {name} is not a mapping", key="model", value=name)
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, Mapping) else dict(config)


def _count(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
                raise ValueError(f"{name} is {value!r}, not a positive whole number")
            return value
    if default is None:
        raise KeyError(" or ".join(names))
    return default


def _build(
    name: str,
    architecture: str,
    family: str,
    config: dict[str, Any],
    entry: Mapping[str, Any],
    dtype: str | None,
) -> ModelGeometry:
    heads = _count(config, "num_attention_heads")
    hidden = _count(config, "hidden_size")
    checkpoint_dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    loaded_dtype = dtype or {"float32": "float16"}.get(str(checkpoint_dtype), str(checkpoint_dtype))
    if loaded_dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype {loaded_dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
    max_context = _count(config, "max_position_embeddings")
    return ModelGeometry(
        name=name,
        architecture=architecture,
        family=family,
        hidden=hidden,
        vocab=_count(config, "vocab_size"),
        heads=heads,
        kv_heads=_count(config, "num_key_value_heads", default=heads),
        max_context=max_context,
        dtype=loaded_dtype,
        attention=_attention(config, architecture, family),
        state=_state(config, family, loaded_dtype),
        rotary_positions=max_context,
        rotary_dim=_rotary_dim(config, family),
        rotary_tables=2 if config.get("rope_local_base_freq") else 1,
        multimodal="vision_config" in entry["config"],
        quantization=quantization_of(name, config),
        config=config,
        published_weights=_loaded_bytes(entry),
    )


def _loaded_bytes(entry: Mapping[str, Any]) -> int | None:
    """Published size less what engines do not load, such as layers for multi-token prediction."""
    published = entry.get("weights_bytes")
    return None if published is None else published - entry.get("unloaded_bytes", 0)


def head_dim(config: Mapping[str, Any]) -> int:
    return _count(config, "head_dim", default=_count(config, "hidden_size") // _count(config, "num_attention_heads"))


def _rotary_dim(config: Mapping[str, Any], family: str) -> int:
    if family == "mla":
        return _count(config, "qk_rope_head_dim")
    rope = config.get("rope_parameters")
    partial = config.get("partial_rotary_factor") or (rope or {}).get("partial_rotary_factor") or 1.0
    return int(head_dim(config) * partial)


def _layer_kinds(config: Mapping[str, Any], architecture: str, family: str) -> list[str]:
    """One of full, sliding, mla, linear, mamba, mlp for each decoder layer."""
    if family == "mamba2":
        names = {"M": "mamba", "*": "full", "-": "mlp"}
        pattern = config["hybrid_override_pattern"]
        if set(pattern) - set(names):
            raise ValueError(f"hybrid_override_pattern {pattern!r} has layers other than M, * and -")
        return [names[letter] for letter in pattern]
    count = _count(config, "num_hidden_layers")
    if family == "mla":
        return ["mla"] * count
    listed = config.get("layer_types")
    if listed:
        names = {
            "full_attention": "full",
            "attention": "full",
            "sliding_attention": "sliding",
            "linear_attention": "linear",
        }
        unknown = sorted(set(listed) - set(names))
        if unknown or len(listed) != count:
            raise ValueError(f"layer_types has {len(listed)} entries for {count} layers, unknown kinds: {unknown}")
        return [names[kind] for kind in listed]
    if family == "gated_delta":
        interval = _count(config, "full_attention_interval")
        return ["full" if (layer + 1) % interval == 0 else "linear" for layer in range(count)]
    if architecture in SLIDING_PATTERN and config.get("sliding_window"):
        period = _count(
            config, "sliding_window_pattern", "_sliding_window_pattern", default=SLIDING_PATTERN[architecture]
        )
        return ["full" if (layer + 1) % period == 0 else "sliding" for layer in range(count)]
    return ["full"] * count


def _attention(config: Mapping[str, Any], architecture: str, family: str) -> tuple[AttentionLayers, ...]:
    kinds = _layer_kinds(config, architecture, family)
    if family == "mla":
        latent = _count(config, "kv_lora_rank") + _count(config, "qk_rope_head_dim")
        return (AttentionLayers("mla", len(kinds), 1, latent, 0),)
    kv_heads = _count(config, "num_key_value_heads", default=_count(config, "num_attention_heads"))
    width = head_dim(config)
    groups = []
    for kind in ("full", "sliding"):
        count = kinds.count(kind)
        if count:
            window = _count(config, "sliding_window") if kind == "sliding" else None
            groups.append(AttentionLayers(kind, count, kv_heads, width, width, window))
    return tuple(groups)


def _state(config: Mapping[str, Any], family: str, dtype: str) -> StateLayers | None:
    if family == "gated_delta":
        key_heads = _count(config, "linear_num_key_heads")
        value_heads = _count(config, "linear_num_value_heads")
        key_dim = _count(config, "linear_key_head_dim")
        value_dim = _count(config, "linear_value_head_dim")
        return StateLayers(
            count=_layer_kinds(config, "", family).count("linear"),
            conv_channels=2 * key_heads * key_dim + value_heads * value_dim,
            conv_kernel=_count(config, "linear_conv_kernel_dim"),
            heads=value_heads,
            head_dim=value_dim,
            state_size=key_dim,
            ssm_bytes=DTYPE_BYTES[str(config.get("mamba_ssm_dtype") or "float32")],
        )
    if family == "mamba2":
        heads, width = _count(config, "mamba_num_heads"), _count(config, "mamba_head_dim")
        groups, state = _count(config, "n_groups"), _count(config, "ssm_state_size")
        return StateLayers(
            count=_layer_kinds(config, "", family).count("mamba"),
            conv_channels=heads * width + 2 * groups * state,
            conv_kernel=_count(config, "conv_kernel"),
            heads=heads,
            head_dim=width,
            state_size=state,
            ssm_bytes=DTYPE_BYTES[str(config.get("mamba_ssm_dtype") or "float32")],
        )
    return None


# ---- tensors: (elements, is a linear layer's weight) ------------------------------------------------


def _embedding(config: Mapping[str, Any], tp: int) -> int:
    return round_up(_count(config, "vocab_size"), VOCAB_PADDING) // tp * _count(config, "hidden_size")


def _tensors(config: Mapping[str, Any], architecture: str, family: str, tp: int) -> Iterator[tuple[int, bool]]:
    hidden = _count(config, "hidden_size")
    embedding = _embedding(config, tp)
    yield embedding, False
    for layer, kind in enumerate(_layer_kinds(config, architecture, family)):
        yield hidden, False
        if kind in ("full", "sliding"):
            yield from _gqa_tensors(config, family, tp)
        elif kind == "mla":
            yield from _mla_tensors(config, tp)
        elif kind == "linear":
            yield from _gated_delta_tensors(config, tp)
        elif kind == "mamba":
            yield from _mamba2_tensors(config, tp)
        if family == "mamba2":
            if kind == "mlp":
                yield from _mlp_tensors(hidden, _count(config, "intermediate_size"), tp, UNGATED)
            continue
        yield hidden, False
        if _is_moe_layer(config, layer):
            yield from _moe_tensors(config, tp)
        else:
            yield from _mlp_tensors(hidden, _count(config, "intermediate_size"), tp, GATED)
    yield hidden, False
    if not config.get("tie_word_embeddings", architecture.startswith("Gemma")):
        yield embedding, False


def _gqa_tensors(config: Mapping[str, Any], family: str, tp: int) -> Iterator[tuple[int, bool]]:
    hidden, width = _count(config, "hidden_size"), head_dim(config)
    heads = _count(config, "num_attention_heads")
    kv_heads = max(1, _count(config, "num_key_value_heads", default=heads) // tp)
    gate = 2 if family == "gated_delta" and config.get("attn_output_gate", True) else 1
    yield hidden * (gate * heads // tp + 2 * kv_heads) * width, True
    yield heads // tp * width * hidden, True


def _mla_tensors(config: Mapping[str, Any], tp: int) -> Iterator[tuple[int, bool]]:
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads") // tp
    rope, nope = _count(config, "qk_rope_head_dim"), _count(config, "qk_nope_head_dim")
    latent, value = _count(config, "kv_lora_rank"), _count(config, "v_head_dim")
    query_rank = config.get("q_lora_rank")
    if query_rank:
        yield hidden * (query_rank + latent + rope), True
        yield query_rank * heads * (nope + rope), True
    else:
        yield hidden * heads * (nope + rope), True
        yield hidden * (latent + rope), True
    yield latent * heads * (nope + value), True
    yield heads * value * hidden, True


def _gated_delta_tensors(config: Mapping[str, Any], tp: int) -> Iterator[tuple[int, bool]]:
    hidden = _count(config, "hidden_size")
    keys = _count(config, "linear_num_key_heads") * _count(config, "linear_key_head_dim") // tp
    value_heads = _count(config, "linear_num_value_heads") // tp
    values = value_heads * _count(config, "linear_value_head_dim")
    yield (2 * keys + values) * _count(config, "linear_conv_kernel_dim"), False
    yield hidden * (2 * keys + 2 * values), True
    yield hidden * 2 * value_heads, False
    yield values * hidden, True


def _mamba2_tensors(config: Mapping[str, Any], tp: int) -> Iterator[tuple[int, bool]]:
    hidden, heads = _count(config, "hidden_size"), _count(config, "mamba_num_heads") // tp
    inner = heads * _count(config, "mamba_head_dim")
    groups = max(1, _count(config, "n_groups") // tp) * _count(config, "ssm_state_size")
    yield (inner + 2 * groups) * _count(config, "conv_kernel"), False
    yield hidden * (2 * inner + 2 * groups + heads), True
    yield inner * hidden, True


def _mlp_tensors(hidden: int, intermediate: int, tp: int, style: str) -> Iterator[tuple[int, bool]]:
    yield hidden * intermediate // tp * (2 if style == GATED else 1), True
    yield intermediate // tp * hidden, True


def _experts(config: Mapping[str, Any]) -> int:
    return _count(config, "num_experts", "num_local_experts", "n_routed_experts", default=1)


def _expert_width(config: Mapping[str, Any]) -> int:
    return _count(config, "moe_intermediate_size", "intermediate_size")


def _shared_width(config: Mapping[str, Any]) -> int:
    if config.get("shared_expert_intermediate_size"):
        return _count(config, "shared_expert_intermediate_size")
    return (config.get("n_shared_experts") or 0) * _expert_width(config)


def _is_moe_layer(config: Mapping[str, Any], layer: int) -> bool:
    if _experts(config) == 1:
        return False
    if layer in (config.get("mlp_only_layers") or ()) or layer < (config.get("first_k_dense_replace") or 0):
        return False
    step = config.get("decoder_sparse_step") or config.get("moe_layer_freq") or 1
    return (layer + 1) % step == 0


def _moe_tensors(config: Mapping[str, Any], tp: int) -> Iterator[tuple[int, bool]]:
    hidden, experts, width = _count(config, "hidden_size"), _experts(config), _expert_width(config) // tp
    yield hidden * experts, False
    yield experts * 2 * width * hidden, True
    yield experts * width * hidden, True
    shared = _shared_width(config)
    if shared:
        yield from _mlp_tensors(hidden, shared, tp, GATED)


def _widths(config: Mapping[str, Any], architecture: str, tp: int) -> Iterator[int]:
    """Elements per token of each kind of layer's own intermediate tensors."""
    family = ARCHITECTURES[architecture]
    hidden, heads = _count(config, "hidden_size"), _count(config, "num_attention_heads") // tp
    if family == "mla":
        query = heads * (_count(config, "qk_nope_head_dim") + _count(config, "qk_rope_head_dim"))
        yield 2 * query + heads * (_count(config, "qk_nope_head_dim") + 2 * _count(config, "v_head_dim"))
    else:
        kv_heads = max(1, _count(config, "num_key_value_heads", default=heads * tp) // tp)
        gate = 2 if family == "gated_delta" else 1
        yield ((gate + 1) * heads + 2 * kv_heads) * head_dim(config)
    state = _state(config, family, "bfloat16")
    if state:
        yield 2 * state.conv_channels // tp + 3 * state.heads // tp * state.head_dim
    if _experts(config) > 1:
        routed = _count(config, "num_experts_per_tok", "experts_per_token", "num_experts_per_token")
        yield routed * (3 * _expert_width(config) // tp + hidden) + 3 * _shared_width(config) // tp
    dense = config.get("intermediate_size")
    if dense and (_experts(config) == 1 or _count(config, "first_k_dense_replace", default=0)):
        yield (2 if family == "mamba2" else 3) * dense // tp
