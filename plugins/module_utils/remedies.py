"""What would make a stack fit: every proposal is tried with the planner before it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from .declaration import KV_DTYPES_EVERYWHERE, Gpu, Service, catalogue_gpu
from .engine_flags import EngineFlags
from .model_geometry import geometry_of
from .placement import Laws, Placed, place
from .plan_error import PlanError
from .units import GIB, from_gib, largest

TOKEN_STEP = 256
FEWEST_TOKENS = 512
SMALLER_CHUNKS = (2048, 1024)
FP8 = ("fp8_e4m3", "fp8")


def remedies_for(services: Sequence[Service], gpus: Sequence[Gpu], laws: Laws) -> list[PlanError]:
    """One entry per service with the changes of that service alone that make the whole stack fit, or one for the
    host where no such change exists."""

    def fits(changed: Sequence[Service]) -> bool:
        return place(changed, gpus, laws) is not None

    errors = []
    for index, service in enumerate(services):
        found = list(_changes(service, lambda other, i=index: fits([*services[:i], other, *services[i + 1 :]]), laws))
        if found:
            errors.append(
                PlanError(
                    f"needs {_need(service, gpus, laws):.2f} GiB at least",
                    service=service.name,
                    remedies=found,
                    kind="does_not_fit",
                )
            )
    general = [
        *_shorter_together(services, fits),
        *_without_one(services, fits),
        *([] if errors else _several_changes(services, fits, laws)),
        *_other_gpu(services, gpus, laws),
    ]
    if general:
        errors.append(PlanError("for the stack as a whole", remedies=general, kind="does_not_fit"))
    return errors


def _need(service: Service, gpus: Sequence[Gpu], laws: Laws) -> float:
    gpu = gpus[(service.gpus or (0,))[0]]
    law = laws.of(service, gpu)
    return Placed(service, (gpu,), law, law.settle(law.floor_tokens)).peak() / GIB


def _changes(service: Service, fits: Callable[[Service], bool], laws: Laws) -> Iterator[str]:
    tokens = service.kv_tokens and _most(service.kv_tokens, lambda floor: fits(replace(service, kv_tokens=floor)))
    if tokens:
        yield f"kv_tokens: {tokens} (now {service.kv_tokens})"
    context = _most(service.context_length, lambda limit: fits(_shorter(service, limit)))
    if context:
        yield f"context_length: {context} (now {service.context_length})"
    halved = _fp8_kv(service)
    if halved and fits(halved):
        yield f"kv_cache_dtype: {halved.kv_cache_dtype}"
    if service.max_concurrency > 1 and fits(replace(service, max_concurrency=1)):
        fewer = largest(1, service.max_concurrency - 1, lambda n: fits(replace(service, max_concurrency=n)))
        yield f"max_concurrency: {fewer} (now {service.max_concurrency})"
    for smaller in _quantised(service, laws):
        if fits(smaller):
            yield f"model: {smaller.model}"
    chunk = service.flags.name_for("chunk")
    for tokens in SMALLER_CHUNKS:
        if chunk and chunk not in service.extra_args and fits(_chunked(service, chunk, tokens)):
            yield f"extra_args: {{{chunk.lstrip('-')}: {tokens}}}"
            break


def _chunked(service: Service, flag: str, tokens: int) -> Service:
    return replace(service, extra_args={**service.extra_args, flag: tokens})


def _most(now: int, fits: Callable[[int], bool]) -> int | None:
    """The most tokens below ``now`` that fit, in steps of 256."""
    low, high = FEWEST_TOKENS // TOKEN_STEP, (now - 1) // TOKEN_STEP
    if high < low or not fits(FEWEST_TOKENS):
        return None
    return TOKEN_STEP * largest(low, high, lambda step: fits(step * TOKEN_STEP))


def _shorter(service: Service, limit: int) -> Service:
    return replace(service, context_length=min(service.context_length, limit))


def _one_context(service: Service) -> Service:
    return replace(service, kv_tokens=None)


def _fp8_kv(service: Service) -> Service | None:
    choice = fp8_choice(service.flags)
    if choice is None or service.kv_element == 1:
        return None
    return replace(service, kv_cache_dtype=choice, kv_element=1)


def _quantised(service: Service, laws: Laws) -> Iterator[Service]:
    """The same service with each quantised checkpoint of its model that the catalogue knows."""
    entry = laws.catalog.models["models"].get(service.model, {})
    for key in entry.get("quantised", ()):
        geometry = geometry_of(key, laws.catalog.model(key))
        if service.context_length <= geometry.max_context:
            yield replace(service, model=key, geometry=geometry, weights=None, loaded_as=None)


def fp8_choice(flags: EngineFlags) -> str | None:
    name = flags.name_for("kv_dtype")
    choices = flags.recorded[name].get("choices", KV_DTYPES_EVERYWHERE) if name else ()
    return next((choice for choice in FP8 if choice in choices), None)


def _shorter_together(services: Sequence[Service], fits: Callable[[Sequence[Service]], bool]) -> Iterator[str]:
    longest = max(service.context_length for service in services)
    limit = _most(longest, lambda limit: fits([_shorter(service, limit) for service in services]))
    if limit and len(services) > 1:
        yield f"context_length: at most {limit} for every service"


def _several_changes(
    services: Sequence[Service], fits: Callable[[Sequence[Service]], bool], laws: Laws
) -> Iterator[str]:
    """No more tokens than one context, FP8 KV, quantised checkpoints, shorter contexts, added up until it fits."""
    changed = list(services)
    for change in (_one_context, _fp8_kv, _smallest(laws)):
        changed = [change(service) or service for service in changed]
        if fits(changed):
            yield f"together: {_differences(services, changed)}"
            return
    longest = max(service.context_length for service in changed)
    limit = _most(longest, lambda limit: fits([_shorter(service, limit) for service in changed]))
    if limit:
        yield f"together: {_differences(services, [_shorter(service, limit) for service in changed])}"


def _differences(before: Sequence[Service], after: Sequence[Service]) -> str:
    texts = []
    for old, new in zip(before, after, strict=True):
        keys = ("model", "kv_tokens", "kv_cache_dtype", "context_length")
        changed = {key: getattr(new, key) for key in keys if getattr(old, key) != getattr(new, key)}
        if changed:
            words = (f"{key}: {'left out' if value is None else value}" for key, value in changed.items())
            texts.append(f"{old.name} {{{', '.join(words)}}}")
    return ", ".join(texts)


def _smallest(laws: Laws) -> Callable[[Service], Service | None]:
    def choose(service: Service) -> Service | None:
        tp = service.tensor_parallel
        return min(_quantised(service, laws), key=lambda other: sum(other.geometry.weight_tensors(tp)), default=None)

    return choose


def _without_one(services: Sequence[Service], fits: Callable[[Sequence[Service]], bool]) -> Iterator[str]:
    for index, service in enumerate(services):
        rest = [*services[:index], *services[index + 1 :]]
        if rest and fits(rest):
            yield f"leave out {service.name}"


def _other_gpu(services: Sequence[Service], gpus: Sequence[Gpu], laws: Laws) -> Iterator[str]:
    """The smallest GPU of the same architecture on which everything fits, one for one in place of the declared."""
    architectures = {laws.catalog.gpu(gpu.key)["architecture"] for gpu in gpus}
    entries = sorted(laws.catalog.gpus["gpus"].items(), key=lambda item: (item[1]["cuda_visible_gib"], item[0]))
    for key, entry in entries:
        total = from_gib(entry["cuda_visible_gib"])
        if entry["architecture"] not in architectures or total <= max(gpu.total for gpu in gpus):
            continue
        swapped = [catalogue_gpu(gpu.index, key, laws.catalog, total) for gpu in gpus]
        runs = all(service.image.runs_on(swapped[0].capability, swapped[0].arm64) for service in services)
        if runs and place(services, swapped, laws) is not None:
            yield f"another GPU: {key} ({entry['product']}, {entry['cuda_visible_gib']:g} GiB)"
            return
