"""Which service goes to which GPU, and how much each one gets there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from .catalog_view import Catalog
from .declaration import Gpu, Service
from .engines import EngineMemory, engine_memory
from .units import largest

SEARCH_LIMIT = 20_000


@dataclass
class Placed:
    """A service on its GPUs. ``law``: its sizes there; ``tokens``: what it gets, at first its floor."""

    service: Service
    gpus: tuple[Gpu, ...]
    law: EngineMemory
    tokens: int = 0

    def peak(self, tokens: int | None = None) -> int:
        """Bytes per GPU under full load."""
        law, tokens = self.law, self.tokens if tokens is None else tokens
        left = law.compilation_bytes(tokens)
        return law.footprint.peak(left) + law.pool_bytes(tokens) + law.reserve_bytes(tokens)

    @property
    def resident(self) -> int:
        """Bytes per GPU after start and one request."""
        return self.law.footprint.fixed + self.compilation + self.law.pool_bytes(self.tokens)

    @property
    def compilation(self) -> int:
        return self.law.compilation_bytes(self.tokens)

    @property
    def activations(self) -> int:
        """Bytes per GPU that load adds to ``resident``."""
        return max(0, self.law.footprint.activations - self.compilation)

    @property
    def context(self) -> int:
        return self.law.footprint.context


@dataclass
class Laws:
    """Sizes by service and kind of GPU, worked out once."""

    catalog: Catalog
    known: dict[tuple[int, str, int], EngineMemory] = field(default_factory=dict)
    keep: list[Service] = field(default_factory=list)

    def of(self, service: Service, gpu: Gpu) -> EngineMemory:
        key = (id(service), gpu.key, gpu.total)
        if key not in self.known:
            self.known[key] = engine_memory(service, gpu, self.catalog)
            self.keep.append(service)
        return self.known[key]


def pinned_tokens(law: EngineMemory, free: int) -> int | None:
    """Tokens of a service whose size is pinned, for ``free`` bytes at its start; None where the plan decides."""
    pinned = law.service.pinned
    if "mem_fraction_static" in pinned:
        return law.granted(free, pinned["mem_fraction_static"], pinned.get("max_total_tokens"))
    if "max_total_tokens" in pinned:
        return law.settle(int(pinned["max_total_tokens"]))
    if "kv_cache_memory_bytes" in pinned:
        return law.tokens_in(pinned["kv_cache_memory_bytes"])
    if "gpu_memory_utilization" in pinned:
        return law.granted(free, pinned["gpu_memory_utilization"], None)
    return None


def candidates(service: Service, gpus: Sequence[Gpu]) -> list[tuple[Gpu, ...]]:
    """Sets of GPUs that could hold the service: the named ones, or any of one kind that its image has code for."""
    if service.gpus is not None:
        return [tuple(gpus[index] for index in service.gpus)]
    able = [gpu for gpu in gpus if service.image.runs_on(gpu.capability, gpu.arm64)]
    return [group for group in combinations(able, service.local_gpus) if len({gpu.key for gpu in group}) == 1]


def floor_need(service: Service, group: tuple[Gpu, ...], laws: Laws) -> tuple[EngineMemory, int, int]:
    """Law, floor tokens and bytes per GPU that the service cannot do without."""
    law = laws.of(service, group[0])
    free = min(gpu.total - gpu.foreign for gpu in group) - law.footprint.context
    tokens = pinned_tokens(law, free)
    tokens = law.settle(law.floor_tokens) if tokens is None else max(0, tokens)
    return law, tokens, Placed(service, group, law, tokens).peak()


def place(services: Sequence[Service], gpus: Sequence[Gpu], laws: Laws) -> list[Placed] | None:
    """Best fit, largest first, with backtracking; in the order of declaration. None: no placement was found."""
    options = []
    for service in services:
        needs = [(group, *floor_need(service, group, laws)) for group in candidates(service, gpus)]
        if not needs:
            return None
        options.append(needs)
    order = sorted(range(len(services)), key=lambda i: (-min(need for *_, need in options[i]), i))
    left = {gpu.index: gpu.budget for gpu in gpus}
    chosen: dict[int, Placed] = {}
    visits = 0

    def search(depth: int) -> bool:
        nonlocal visits
        if depth == len(order):
            return True
        visits += 1
        if visits > SEARCH_LIMIT:
            return False
        index = order[depth]
        fitting = [
            (min(left[gpu.index] for gpu in group) - need, [gpu.index for gpu in group], group, law, tokens, need)
            for group, law, tokens, need in options[index]
            if all(left[gpu.index] >= need for gpu in group)
        ]
        for _, _, group, law, tokens, need in sorted(fitting, key=lambda option: option[:2]):
            for gpu in group:
                left[gpu.index] -= need
            chosen[index] = Placed(services[index], group, law, tokens)
            if search(depth + 1):
                return True
            for gpu in group:
                left[gpu.index] += need
        return False

    return [chosen[index] for index in range(len(services))] if search(0) else None


def shortfall(services: Sequence[Service], gpus: Sequence[Gpu], laws: Laws) -> dict[int, int]:
    """Missing bytes per GPU when every service is put where most is left: what a refusal reports."""
    left = {gpu.index: gpu.budget for gpu in gpus}
    needs = []
    for service in services:
        groups = candidates(service, gpus)
        if groups:
            needs.append((service, groups, min(floor_need(service, group, laws)[2] for group in groups)))
    for _, groups, need in sorted(needs, key=lambda entry: -entry[2]):
        group = max(groups, key=lambda group: (min(left[gpu.index] for gpu in group), [-gpu.index for gpu in group]))
        for gpu in group:
            left[gpu.index] -= need
    return {index: -rest for index, rest in left.items() if rest < 0}


def hand_out(placed: Sequence[Placed], gpus: Sequence[Gpu]) -> None:
    """Give each service what is left over after all floors, in proportion to ``share``, up to its most useful size.

    Every GPU is divided on its own; a service on several GPUs gets the smallest of its parts. What it leaves unused
    is not handed on, so that adding a service anywhere never gives another one more.
    """
    growing = [entry for entry in placed if not entry.service.pinned]
    level = {gpu.index: _level(gpu, placed) for gpu in gpus}
    for entry in growing:
        part = min(level[gpu.index] for gpu in entry.gpus)
        entry.tokens = _tokens_within(entry, entry.peak() + int(entry.service.share * part))


def _tokens_within(entry: Placed, limit: int) -> int:
    """The most useful tokens whose peak stays within ``limit`` bytes; never less than it has."""
    most = max(entry.tokens, entry.law.settle(entry.law.most_tokens))
    tokens = largest(entry.tokens, most, lambda tokens: entry.peak(tokens) <= limit)
    return max(entry.tokens, entry.law.settle(tokens))


def _level(gpu: Gpu, placed: Sequence[Placed]) -> float:
    """Bytes per unit of share that fill ``gpu``, if each service on it stops at its most useful size."""
    here = [entry for entry in placed if gpu in entry.gpus]
    rest = gpu.budget - sum(entry.peak() for entry in here)
    wants = sorted(
        (
            (entry.peak(entry.law.settle(entry.law.most_tokens)) - entry.peak()) / entry.service.share,
            entry.service.share,
        )
        for entry in here
        if not entry.service.pinned
    )
    shares = sum(share for _, share in wants)
    for full_at, share in wants:
        if shares * full_at >= rest:
            return rest / shares
        rest -= full_at * share
        shares -= share
    return wants[-1][0] if wants else 0.0
