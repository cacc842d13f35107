"""The memory law of each engine, behind one interface."""

from __future__ import annotations

from ..catalog_view import Catalog
from ..declaration import Gpu, Service
from .sglang import SglangMemory
from .vllm import VllmMemory

EngineMemory = SglangMemory | VllmMemory


def engine_memory(service: Service, gpu: Gpu, catalog: Catalog) -> EngineMemory:
    return {"sglang": SglangMemory, "vllm": VllmMemory}[service.engine](service, gpu, catalog)
