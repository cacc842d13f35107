"""What would make a stack fit: every proposal is tried with the planner before it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from .declaration import Gpu, Service, catalogue_gpu
from .engine_flags import EngineFlags
from .model_geometry import geometry_of
from .placement import Laws, place
from .plan_error import PlanError
from .units import GIB, from_gib, largest

CONTEXT_STEP = 256
SMALLEST_CONTEXT = 512
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
    general = [*_all_together(services, fits), *_without_one(services, fits), *_other_gpu(services, gpus, laws)]
    if general:
        errors.append(PlanError("for the stack as a whole", remedies=general, kind="does_not_fit"))
    return errors


def _need(service: Service, gpus: Sequence[Gpu], laws: Laws) -> float:
    law = laws.of(service, gpus[(service.gpus or (0,))[0]])
    tokens = law.settle(law.floor_tokens)
    return (law.footprint.fixed + law.pool_bytes(tokens) + law.reserve_bytes(tokens)) / GIB


def _changes(service: Service, fits: Callable[[Service], bool], laws: Laws) -> Iterator[str]:
    def shorter(context: int) -> Service:
        floor = None if service.kv_tokens is None else min(service.kv_tokens, context)
        return replace(service, context_length=context, kv_tokens=floor)

    steps = (service.context_length - 1) // CONTEXT_STEP
    if steps * CONTEXT_STEP >= SMALLEST_CONTEXT and fits(shorter(SMALLEST_CONTEXT)):
        low = SMALLEST_CONTEXT // CONTEXT_STEP
        context = CONTEXT_STEP * largest(low, steps, lambda step: fits(shorter(step * CONTEXT_STEP)))
        yield f"context_length: {context} (now {service.context_length})"
    fp8 = fp8_choice(service.flags)
    if fp8 and service.kv_element > 1:
        halved = replace(service, kv_cache_dtype=fp8, kv_element=1)
        if fits(halved):
            yield f"kv_cache_dtype: {fp8}"
    if service.max_concurrency > 1 and fits(replace(service, max_concurrency=1)):
        fewer = largest(1, service.max_concurrency - 1, lambda n: fits(replace(service, max_concurrency=n)))
        yield f"max_concurrency: {fewer} (now {service.max_concurrency})"
    entry = laws.catalog.models["models"].get(service.model, {})
    for key in entry.get("quantised", ()):
        smaller = geometry_of(key, laws.catalog.model(key))
        if fits(replace(service, model=key, geometry=smaller, weights=None, loaded_as=None)):
            yield f"model: {key}"


def fp8_choice(flags: EngineFlags) -> str | None:
    name = flags.name_for("kv_dtype")
    choices = flags.recorded[name].get("choices", ()) if name else ()
    return next((choice for choice in FP8 if choice in choices), None)


def _all_together(services: Sequence[Service], fits: Callable[[Sequence[Service]], bool]) -> Iterator[str]:
    longest = max(service.context_length for service in services)

    def limited(context: int) -> list[Service]:
        return [
            replace(
                service,
                context_length=min(service.context_length, context),
                kv_tokens=None if service.kv_tokens is None else min(service.kv_tokens, context),
            )
            for service in services
        ]

    steps = (longest - 1) // CONTEXT_STEP
    if len(services) > 1 and steps * CONTEXT_STEP >= SMALLEST_CONTEXT and fits(limited(SMALLEST_CONTEXT)):
        low = SMALLEST_CONTEXT // CONTEXT_STEP
        context = CONTEXT_STEP * largest(low, steps, lambda step: fits(limited(step * CONTEXT_STEP)))
        yield f"context_length: at most {context} for every service"


def _without_one(services: Sequence[Service], fits: Callable[[Sequence[Service]], bool]) -> Iterator[str]:
    for index, service in enumerate(services):
        rest = [*services[:index], *services[index + 1 :]]
        if rest and fits(rest):
            yield f"leave out {service.name}"


def _other_gpu(services: Sequence[Service], gpus: Sequence[Gpu], laws: Laws) -> Iterator[str]:
    """The smallest GPU of the catalogue, one for one in place of the declared ones, on which everything fits."""
    entries = sorted(laws.catalog.gpus["gpus"].items(), key=lambda item: (item[1]["cuda_visible_gib"], item[0]))
    for key, entry in entries:
        total = from_gib(entry["cuda_visible_gib"])
        if total <= max(gpu.total for gpu in gpus):
            continue
        swapped = [catalogue_gpu(gpu.index, key, laws.catalog, total) for gpu in gpus]
        runs = all(service.image.runs_on(swapped[0].capability, swapped[0].arm64) for service in services)
        if runs and place(services, swapped, laws) is not None:
            yield f"another GPU: {key} ({entry['product']}, {entry['cuda_visible_gib']:g} GiB)"
            return
