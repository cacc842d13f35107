"""vLLM's memory law.

Source: vllm 0.24.0 ``v1/worker/utils.py`` (request_memory), ``v1/worker/gpu_worker.py`` (determine_available_memory),
``v1/core/kv_cache_utils.py`` (groups, blocks, capacity), ``platforms/interface.py`` (_align_hybrid_block_size):

    KV = total x gpu_memory_utilization - weights - growth outside PyTorch - activations - graphs

total is the whole card's, whatever else sits on it; the CUDA context comes on top. It refuses to start when less than
total x utilization is free. ``--kv-cache-memory-bytes`` fixes the pool exactly; that gate stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from ..catalog_view import Catalog
from ..cuda_allocator import allocator_of
from ..declaration import Gpu, Service
from ..engine_flags import Options
from ..model_geometry import StateLayers
from ..units import ceil3, from_gib
from .footprint import Footprint, activation_bytes, context_bytes, loading_bytes, sampler_bytes

BLOCK = 16  # tokens per KV block


def available_kv(total: float, utilization: float, non_kv: float) -> int:
    """Bytes that vLLM leaves for KV when it decides by utilization; negative: it refuses to start."""
    return math.ceil(total * utilization) - math.ceil(non_kv)


@dataclass(frozen=True)
class KvBlocks:
    """How vLLM cuts the pool: ``block_bytes`` over all layers of a group, ``per_request`` blocks for one full context,
    ``state_per_request`` of them whatever the length."""

    block_tokens: int
    block_bytes: int
    group_layers: int
    per_request: int
    state_per_request: int


class VllmMemory:
    """Sizes of one service on one kind of GPU. Bytes and tokens, per rank."""

    def __init__(self, service: Service, gpu: Gpu, catalog: Catalog) -> None:
        self.service, self.gpu, self.catalog = service, gpu, catalog
        self.options, self.warnings = service.options(gpu)
        self.geometry, self.tp = service.geometry, service.tensor_parallel
        self.allocator = allocator_of(service.environment)
        prefix_cache = service.flags.name_for("prefix_cache")
        if self.geometry.state and service.profile != "notes" and prefix_cache not in service.extra_args:
            self.options[prefix_cache] = False
        limits = service.flags.name_for("modality_limits")
        if self.geometry.multimodal and limits and limits not in self.options:
            self.options[limits] = '{"image":0,"video":0}'
            self.warnings = [
                *self.warnings,
                f"{service.model} is planned for text: image and video inputs are switched off",
            ]

    def option(self, role: str, default: object = None) -> object:
        name = self.service.flags.name_for(role)
        return self.options.get(name, default) if name else default

    @cached_property
    def chunk(self) -> int:
        return int(self.option("chunk", self.service.engine_chunk(self.gpu)))

    # ---- KV pool ----

    @cached_property
    def blocks(self) -> KvBlocks:
        """Groups of equal layer count share blocks: ``_get_kv_cache_groups_uniform_page_size``."""
        context, element = self.service.context_length, self.service.kv_element
        ahead = self.service.image.at_least(self.service.settings["two_batches_in_flight_since"])
        in_flight = self.chunk * (2 if ahead else 1)
        kinds = [
            (layers.count, layers.row_elements(self.tp) * element, layers.window) for layers in self.geometry.attention
        ]
        row = max(bytes_per_token for _, bytes_per_token, _ in kinds)
        counts = [count for count, _, _ in kinds]
        block_tokens = BLOCK
        state = self._state
        if state:
            counts.append(state.count)
            page = state.request_bytes(self.tp, self.geometry.dtype_bytes)
            block_tokens = BLOCK * -(-page // (BLOCK * row))
        group = min(counts)
        if max(counts) < 1.5 * group:
            group = max(counts)
        per_request = 0
        for count, _, window in kinds:
            tokens = context if window is None else min(window - 1 + in_flight, context)
            needed = -(-tokens // block_tokens) + (1 if window is not None else 0)
            per_request += -(-count // group) * needed
        per_state = 0
        if state:
            per_state = -(-state.count // group) * self._state_blocks(block_tokens)
        return KvBlocks(block_tokens, block_tokens * row * group, group, per_request + per_state, per_state)

    @cached_property
    def _state(self) -> StateLayers | None:
        """A gated-delta state is kept in the model's dtype unless config.json names another (Mamba 2: float32)."""
        state = self.geometry.state
        if state and self.geometry.family == "gated_delta" and not self.geometry.config.get("mamba_ssm_dtype"):
            return replace(state, ssm_bytes=self.geometry.dtype_bytes)
        return state

    def _state_blocks(self, block_tokens: int) -> int:
        """Blocks of one state group for one request (MambaSpec.max_memory_usage_bytes)."""
        if not self.option("prefix_cache", True):
            return 1
        if self.geometry.family == "mamba2":
            return -(-self.service.context_length // block_tokens)
        return 2

    @cached_property
    def cell(self) -> float:
        """Bytes per token of a full context."""
        return self.blocks.per_request * self.blocks.block_bytes / self.service.context_length

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens * self.blocks.per_request // self.service.context_length)

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of the blocks that hold ``tokens``, as ``--kv-cache-memory-bytes`` takes them."""
        return self._blocks_for(tokens) * self.blocks.block_bytes

    def pool_bytes(self, tokens: int) -> int:
        """Device memory of those blocks: one tensor per layer of a group."""
        return self.allocator.buffers(*self._pool_buffers(tokens))

    def _pool_buffers(self, tokens: int) -> tuple[int, int]:
        layers = self.blocks.group_layers
        return self._blocks_for(tokens) * self.blocks.block_bytes // layers, layers

    def compilation_bytes(self, tokens: int) -> int:
        """What the compilation of a first start leaves reserved beside a pool of ``tokens``; activations may use it.

        Where kernels are compared by running them, on made-up inputs, the embedding table is among those inputs. Its
        copy is freed, its segment is not. A start that finds the kernels in its cache does without.
        """
        if not self._kernels_compared:
            return 0
        embedding = self.geometry.embedding_elements(self.tp) * self.geometry.dtype_bytes
        return self.allocator.unfilled(embedding, *self._pool_buffers(tokens))

    @cached_property
    def _kernels_compared(self) -> bool:
        compiled = not self.option("no_graphs", False)
        return compiled and self.service.image.at_least(self.service.settings["kernels_compared_since"])

    def tokens_in(self, size: float) -> int:
        """Capacity that vLLM reports for a pool of ``size`` bytes (get_kv_cache_capacity)."""
        blocks = int(size // self.blocks.block_bytes)
        return blocks * self.service.context_length // self.blocks.per_request

    @cached_property
    def floor_tokens(self) -> int:
        wanted = self.service.kv_tokens or self.service.context_length
        states = self.service.max_concurrency * self.blocks.state_per_request
        return max(wanted, -(-states * self.service.context_length // self.blocks.per_request))

    @cached_property
    def most_tokens(self) -> int:
        return max(self.floor_tokens, self.service.max_concurrency * self.service.context_length)

    # ---- everything else ----

    @cached_property
    def weights(self) -> int:
        """As the allocator holds them."""
        return self._weight_bytes(self.allocator.reserved)

    @cached_property
    def profiled_weights(self) -> int:
        """As vLLM counts them: what PyTorch reports as allocated."""
        return self._weight_bytes(self.allocator.allocated)

    def _weight_bytes(self, count: Callable[[list[int]], int]) -> int:
        if self.service.weights is not None:
            return self.service.weights
        loaded = self.geometry.weight_bytes(self.tp, self.geometry.dtype_bytes, self.service.loaded_as, count)
        return loaded + loading_bytes(self.service, self.catalog)

    @cached_property
    def footprint(self) -> Footprint:
        return Footprint(
            context=context_bytes(self.service, self.gpu, self.catalog),
            weights=self.weights,
            workspaces=self._runtime + from_gib(self.catalog.overhead("vllm", "first_request", "gib")),
            graphs=self._graphs(),
            activations=activation_bytes(self._activation_tensors, self.catalog),
        )

    @cached_property
    def _graph_batch(self) -> int:
        if self.option("no_graphs", False):
            return 0
        return int(self.option("decode_graph_batch", min(2 * self.service.max_concurrency, 512)))

    def _graphs(self) -> int:
        if not self._graph_batch:
            return 0
        constants = self.catalog.overhead("vllm", "graphs")
        layers = sum(layers.count for layers in self.geometry.attention) + (self._state.count if self._state else 0)
        sizes = captured_sizes(self._graph_batch)
        return from_gib(constants["base"] + layers * sizes * constants["per_layer_and_size"])

    @cached_property
    def _runtime(self) -> int:
        return from_gib(self.catalog.overhead("vllm", "runtime", "gib"))

    @cached_property
    def _activation_tensors(self) -> int:
        """What vLLM's profiling counts: the tensors, not the segments that hold them."""
        layer = self.chunk * self.geometry.activation_elements(self.tp) * self.geometry.dtype_bytes
        return max(layer, sampler_bytes(self.service.max_concurrency, self.geometry.vocab))

    # ---- what the engine is told, and what it then grants ----

    @cached_property
    def exact(self) -> bool:
        """Whether this version takes the size of its KV pool in bytes."""
        return self.service.flags.name_for("kv_bytes") is not None

    @cached_property
    def non_kv(self) -> int:
        """What vLLM takes off ``total x utilization`` before KV."""
        counted = self.service.image.at_least("0.21")
        graphs = self.footprint.graphs if counted else 0
        return self.profiled_weights + self._runtime + self._activation_tensors + graphs

    @cached_property
    def profiling_margin(self) -> int:
        """Where utilization alone sizes the pool: what else its profiling may find."""
        return 0 if self.exact else from_gib(self.catalog.overhead("vllm", "profiling_margin", "gib"))

    def reserve_bytes(self, tokens: int) -> int:
        """Held back: that margin, and what the third decimal of the utilization may add."""
        return 0 if self.exact else self.profiling_margin + self.gpu.total // 1000

    def settle(self, tokens: int) -> int:
        """Tokens that the engine will report for a pool of ``tokens``: whole blocks."""
        return self.tokens_in(self.kv_bytes(tokens))

    def least_fraction(self, tokens: int, free: float) -> float:
        """The smallest utilization that covers everything but the context."""
        if self.exact:
            footprint, left = self.footprint, self.compilation_bytes(tokens)
            return (footprint.peak(left) - footprint.context + self.pool_bytes(tokens)) / self.gpu.total
        return (self.non_kv + self.kv_bytes(tokens)) / self.gpu.total

    def fraction(self, tokens: int, free: float) -> float:
        """With an exact pool it is only the gate at start, else it sizes the pool."""
        return ceil3(self.least_fraction(tokens, free) + self.profiling_margin / self.gpu.total)

    def granted(self, free: float, utilization: float, kv_bytes: int | None) -> int:
        """Tokens for what is free at start; 0 where the gate refuses."""
        if free < self.gpu.total * utilization:
            return 0
        size = kv_bytes if kv_bytes is not None else available_kv(self.gpu.total, utilization, self.non_kv)
        return self.tokens_in(max(0, size))

    def engine_options(self, tokens: int | None, fraction: float | None) -> Options:
        """Options by role that follow from the plan."""
        roles: Options = {"context": self.service.context_length, "concurrency": self.service.max_concurrency}
        if fraction is not None:
            roles["fraction"] = fraction
        if tokens is not None and self.exact:
            roles["kv_bytes"] = self.kv_bytes(tokens)
        return roles


def captured_sizes(largest: int) -> int:
    """How many sizes get a CUDA graph (vllm/config/vllm.py, _set_cudagraph_sizes)."""
    sizes = (1, 2, 4, *range(8, min(largest + 1, 256), 8), *range(256, largest + 1, 16))
    return sum(size <= largest for size in sizes)
