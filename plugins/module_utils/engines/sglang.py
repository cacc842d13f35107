"""SGLang's memory law.

Source: sglang 0.5.19 ``srt/mem_cache/kv_cache_configurator.py`` (_profile_available_bytes), and
``srt/model_executor/pool_configurator.py`` (DefaultPoolConfigurator, HybridSWAPoolConfigurator); the substance is
the same from 0.4.6 to 0.5.23:

    tokens = (free after weights - F x (1 - fraction) - state) / cell, page-aligned, at most --max-total-tokens

F is what is free when the process starts, after its own CUDA context: the fraction is a share of what is left,
not of the card. Attention workspaces, request tables, CUDA graphs and activations come out of the rest.
"""

from __future__ import annotations

import math
from functools import cached_property

from ..catalog_view import Catalog
from ..cuda_allocator import allocator_of
from ..declaration import Gpu, Service
from ..engine_flags import Options
from ..units import ceil3, from_gib, round_down, round_up
from .footprint import Footprint, activation_bytes, context_bytes, loading_bytes, sampler_bytes

ROTARY_ELEMENT = 4  # float32 tables (srt/layers/rotary_embedding/base.py)
CONV_ELEMENT = 2  # bfloat16 (srt/configs/mamba_utils.py)
MULTIMODAL_CACHE = 100 << 20  # SGLANG_VLM_CACHE_SIZE_MB
PAGED_BACKENDS = {"trtllm_mha": 64, "trtllm_mla": 64, "flashmla": 64, "cutedsl_mla": 64, "fa4": 128}
TRITON_KV_SPLITS = 16
# A service that restarts alone must get its tokens although weights may turn out a little larger than planned, also
# where the GPU's margin is set to nothing.
RESTART_RESERVE = 1.025
LARGEST_FRACTION = 0.99


def granted_tokens(
    free: float,
    weights: float,
    fraction: float,
    cell: float,
    *,
    state: float = 0,
    cap: int | None = None,
    page: int = 1,
) -> int:
    """Tokens that SGLang grants; sizes in bytes, at most ``cap``. Zero or less: it refuses to start."""
    tokens = int((free * fraction - weights - state) // cell)
    if cap is not None:
        tokens = min(tokens, cap)
    return round_down(tokens, page)


class SglangMemory:
    """Sizes of one service on one kind of GPU. Bytes and tokens, per rank."""

    def __init__(self, service: Service, gpu: Gpu, catalog: Catalog) -> None:
        self.service, self.gpu, self.catalog = service, gpu, catalog
        self.options, self.warnings = service.options(gpu)
        self.geometry, self.tp = service.geometry, service.tensor_parallel
        self.allocator = allocator_of(service.environment)

    def option(self, role: str, default: object = None) -> object:
        name = self.service.flags.name_for(role)
        return self.options.get(name, default) if name else default

    @cached_property
    def attention(self) -> str:
        return str(self.option("attention", "engine_default"))

    @cached_property
    def page(self) -> int:
        return int(self.option("page_size", PAGED_BACKENDS.get(self.attention, 1)))

    @cached_property
    def chunk(self) -> int:
        chunk = int(self.option("chunk", self.service.engine_chunk(self.gpu)))
        return chunk if chunk > 0 else self.service.context_length

    # ---- KV pool ----

    @cached_property
    def _sliding_ratio(self) -> float:
        """Size of the sliding-window layers' pool as a share of the full one; 1: no pool of their own."""
        since = self.service.settings["sliding_window_pools"].get(self.geometry.architecture)
        pooled = since is not None and self.service.image.at_least(since)
        return self.service.settings["swa_full_tokens_ratio"] if pooled else 1.0

    def _layer_tokens(self, kind: str, tokens: int) -> int:
        return round_down(int(tokens * self._sliding_ratio), self.page) if kind == "sliding" else tokens

    @cached_property
    def cell(self) -> float:
        """Bytes per token over all layers, as SGLang divides its budget."""
        return sum(
            layers.count
            * layers.row_elements(self.tp)
            * self.service.kv_element
            * (self._sliding_ratio if layers.kind == "sliding" else 1.0)
            for layers in self.geometry.attention
        )

    def pool_bytes(self, tokens: int) -> int:
        """Device memory of a pool for ``tokens``: one K and one V buffer per layer, with a page of padding."""
        total = 0
        for layers in self.geometry.attention:
            rows = self._layer_tokens(layers.kind, tokens) + self.page
            for elements in (layers.k_elements(self.tp), layers.v_elements(self.tp)):
                total += self.allocator.buffers(rows * elements * self.service.kv_element, layers.count)
        return total

    def compilation_bytes(self, tokens: int) -> int:
        """Nothing: SGLang by itself has no kernels compared."""
        return 0

    @cached_property
    def floor_tokens(self) -> int:
        return round_up(self.service.kv_tokens or self.service.context_length, self.page)

    @cached_property
    def most_tokens(self) -> int:
        return max(self.floor_tokens, self.service.max_concurrency * self.service.context_length)

    # ---- everything else ----

    @cached_property
    def state_slots(self) -> int:
        """Slots of the recurrent state: several per running request while the prefix cache keeps copies."""
        if self.geometry.state is None:
            return 0
        per_request = self.service.settings["state_slots_per_request"]
        cached = not self.option("no_prefix_cache", False)
        return self.service.max_concurrency * per_request["prefix_cache" if cached else "none"]

    @cached_property
    def state(self) -> int:
        layers = self.geometry.state
        if layers is None:
            return 0
        return (self.state_slots + 1) * layers.count * layers.request_bytes(self.tp, CONV_ELEMENT)

    @cached_property
    def weights(self) -> int:
        if self.service.weights is not None:
            return self.service.weights
        loaded = self.geometry.weight_bytes(self.tp, ROTARY_ELEMENT, self.service.loaded_as, self.allocator.reserved)
        return loaded + loading_bytes(self.service, self.catalog)

    @cached_property
    def multimodal(self) -> int:
        return MULTIMODAL_CACHE if self.geometry.multimodal else 0

    @cached_property
    def footprint(self) -> Footprint:
        return Footprint(
            context=context_bytes(self.service, self.gpu, self.catalog),
            weights=self.weights,
            state=self.state,
            workspaces=self._workspaces(),
            tables=self._tables(),
            graphs=self._decode_graphs() + self._prefill_graphs(),
            activations=self._activations(),
        )

    def _overhead(self, *path: str) -> float:
        return self.catalog.overhead(*path, "gib")

    def _workspaces(self) -> int:
        known = self.catalog.overhead("sglang", "attention_workspace")
        sizes = known.get(self.attention, known["none"])
        workspace = sizes.get(self.geometry.architecture, sizes["default"])
        runtime = self._overhead("sglang", "runtime") + self._overhead("sglang", "first_request")
        return from_gib(workspace + runtime) + self.multimodal

    def _tables(self) -> int:
        """req_to_token, and the attention backend's own tables for the captured batch."""
        context, batch = self.service.context_length, self._graph_batch
        request_table = (self.service.max_concurrency + 1) * (context + 4) * 4
        if self.attention == "triton":
            split = TRITON_KV_SPLITS * self.geometry.heads // self.tp
            widest = max((layers.v_head_dim or layers.head_dim) for layers in self.geometry.attention)
            return request_table + batch * (context * 8 + split * (widest + 1) * 4)
        return request_table + batch * context * (4 + 1)

    @cached_property
    def _graph_batch(self) -> int:
        """Largest batch with a decode graph; 0 without graphs."""
        off = self.option("no_graphs", False) or self.option("no_decode_graphs", False)
        if off or self.attention in self.service.settings["graphless_attention"]:
            return 0
        return int(self.option("decode_graph_batch", self.service.max_concurrency))

    @property
    def _layers(self) -> int:
        state = self.geometry.state.count if self.geometry.state else 0
        return sum(layers.count for layers in self.geometry.attention) + state

    def _decode_graphs(self) -> int:
        if not self._graph_batch:
            return 0
        law = "decode_graphs" if self.attention in ("triton", "fa3") else "decode_graphs_flashinfer"
        constants = self.catalog.overhead("sglang", law)
        captured = self._layers * decode_batches(self._graph_batch) * constants["per_layer_and_size"]
        logits = self._graph_batch * self.geometry.vocab * (2 + 4)
        return from_gib(constants["base"] + captured) + logits

    def _prefill_graphs(self) -> int:
        known = self.service.image.at_least(self.service.settings["prefill_graphs_since"])
        off = self.option("no_graphs", False) or self.option("no_prefill_graphs", False)
        graphless = self.attention in self.service.settings["graphless_attention"]
        if off or graphless or not known:
            return 0
        per_bucket = self.catalog.overhead("sglang", "prefill_graphs", "per_layer_and_bucket")
        return from_gib(self._layers * prefill_buckets(self.chunk) * per_bucket)

    @property
    def _largest_batch(self) -> int:
        """Tokens of the largest prefill batch: no more than the pool holds."""
        return min(self.chunk, int(self.service.pinned.get("max_total_tokens", self.most_tokens)))

    def _activations(self) -> int:
        layer = self._largest_batch * self.geometry.activation_elements(self.tp) * self.geometry.dtype_bytes
        widest = max(layer, sampler_bytes(self.service.max_concurrency, self.geometry.vocab))
        return activation_bytes(widest, self.catalog)

    # ---- what the engine is told, and what it then grants ----

    def static_bytes(self, tokens: int) -> float:
        """Weights + KV + state: what the fraction has to cover."""
        return self.weights + self.cell * tokens + self.state + self.multimodal

    def settle(self, tokens: int) -> int:
        """Tokens that the engine will hold for a cap of ``tokens``: whole pages."""
        return round_down(tokens, self.page)

    def reserve_bytes(self, tokens: int) -> int:
        """Held back so that the largest fraction still covers weights, KV and state."""
        footprint = self.footprint
        taken = footprint.peak() - footprint.context + self.pool_bytes(tokens)
        return max(0, math.ceil(self.static_bytes(tokens) / LARGEST_FRACTION) - taken)

    def least_fraction(self, tokens: int, free: float) -> float:
        return self.static_bytes(tokens) / free

    def fraction(self, tokens: int, free: float) -> float:
        """For what is left of ``free`` when others hold more than planned, up to the GPU's margin: allocators fragment.

        Under the token cap a fraction that is too high grants nothing extra.
        """
        left = min(free - self.gpu.margin, free / RESTART_RESERVE)
        return min(LARGEST_FRACTION, ceil3(self.least_fraction(tokens, left)))

    def granted(self, free: float, fraction: float, cap: int | None) -> int:
        return granted_tokens(
            free, self.weights, fraction, self.cell, state=self.state + self.multimodal, cap=cap, page=self.page
        )

    def engine_options(self, tokens: int | None, fraction: float | None) -> Options:
        """Options by role that follow from the plan."""
        roles: Options = {"context": self.service.context_length, "concurrency": self.service.max_concurrency}
        if self.geometry.state:
            roles["state_slots"] = self.state_slots
        if fraction is not None:
            roles["fraction"] = fraction
        if tokens is not None:
            roles["tokens"] = tokens
        return roles


def decode_batches(largest: int) -> int:
    """How many batch sizes get a decode graph (srt/arg_groups/cuda_graph_hook.py, 0.5.19)."""
    sizes = (1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, largest + 1, 32))
    return sum(size <= largest for size in sizes) + (largest not in sizes)


def prefill_buckets(chunk: int) -> int:
    """How many token counts get a prefill graph (srt/arg_groups/cuda_graph_hook.py, 0.5.19)."""
    sizes = (
        *range(4, 33, 4),
        *range(48, 257, 16),
        *range(288, 513, 32),
        *range(576, 1025, 64),
        *range(1280, 4097, 256),
        *range(4608, chunk + 1, 512),
    )
    return sum(size <= chunk for size in sizes)
