"""What one engine process takes on one GPU, KV cache apart. Bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..catalog_view import Catalog
from ..declaration import Gpu, Service
from ..units import from_gib


@dataclass(frozen=True)
class Footprint:
    """``context`` is taken before the engine measures free memory; ``activations`` only under load."""

    context: int = 0
    weights: int = 0
    state: int = 0
    workspaces: int = 0
    tables: int = 0
    graphs: int = 0
    activations: int = 0

    @cached_property
    def fixed(self) -> int:
        """Without load."""
        return self.context + self.weights + self.state + self.workspaces + self.tables + self.graphs

    def peak(self, left: int = 0) -> int:
        """Under load, where ``left`` bytes are reserved already and activations use them first."""
        return self.fixed + max(left, self.activations)


def sampler_bytes(rows: int, vocab: int) -> int:
    """Logits of ``rows`` sequences: in 2 bytes, their float32 copy, and probabilities."""
    return rows * vocab * (2 + 4 + 4)


def activation_bytes(tensors: int, catalog: Catalog) -> int:
    """What PyTorch's allocator holds for activations whose tensors take ``tensors`` bytes at their widest."""
    return int(tensors * catalog.overhead("activations", "factor"))


def context_bytes(service: Service, gpu: Gpu, catalog: Catalog) -> int:
    """CUDA context of the service's process on ``gpu``, with NCCL where it spans several GPUs."""
    context = from_gib(catalog.overhead("context", service.engine, "gib"))
    if gpu.largest_context is not None:
        context = min(context, gpu.largest_context)
    return context + (from_gib(catalog.overhead("tensor_parallel", "gib")) if service.tensor_parallel > 1 else 0)


def loading_bytes(service: Service, catalog: Catalog) -> int:
    """What a checkpoint that is quantised while it is loaded leaves beside its tensors."""
    return from_gib(catalog.overhead("quantized_while_loading", "gib")) if service.loaded_as else 0
