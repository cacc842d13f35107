"""The plan of one host: which service sits on which GPU, with how much memory, which options and in which order.

One direction: declaration -> checked services -> placement -> tokens -> start order and fractions -> plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .catalog_view import Catalog
from .declaration import Fleet, Gpu, Service, parse_gpus, parse_services
from .image_decisions import ImageRefused, checked_locks, with_digest
from .placement import Laws, Placed, hand_out, pinned_tokens, place, shortfall
from .plan_error import PlanError, PlanErrors
from .remedies import remedies_for
from .service_overrides import with_overrides
from .service_spec import service_spec
from .tuned_services import with_tuned
from .units import GIB, gib

SCHEMA = 1


def plan_host(
    host: str,
    declaration: Mapping[str, Any],
    catalog: Catalog,
    *,
    generated_by: str = "blackwell.serving",
) -> dict[str, Any]:
    """The plan (``plan.json``) for a declaration with the keys ``mode``, ``gpus``, ``services``, ``bind_address``,
    ``service_overrides``, ``tuned``, ``gpu_request``, ``project_name``, ``image_locks``, ``models_offline``,
    ``node_groups``, ``fleet_interface``. Never raises for a bad declaration: the verdict and the errors say what is
    wrong.
    """
    plan: dict[str, Any] = {
        "schema": SCHEMA,
        "host": host,
        "generated_by": generated_by,
        "mode": declaration.get("mode", "preview"),
        "project_name": declaration.get("project_name", "serving"),
        "gpus": [],
        "services": [],
        "verdict": "fits",
        "errors": [],
        "warnings": [],
    }
    gpus: list[Gpu] = []
    try:
        locks = _image_locks(declaration)
        declared = with_overrides(
            declaration.get("services"), declaration.get("service_overrides") or {}, plan["warnings"]
        )
        declared, warnings = with_tuned(declared, declaration.get("tuned"), catalog)
        gpus = parse_gpus(declaration.get("gpus"), catalog, _first_engine(declared, catalog))
        services = parse_services(declared, catalog, gpus, _fleet(host, declaration))
        laws = Laws(catalog)
        placed = _placed(services, gpus, laws)
    except PlanErrors as problems:
        return _refused(plan, problems, gpus)
    except PlanError as problem:
        return _refused(plan, PlanErrors([problem]), gpus)
    plan["warnings"] += warnings
    errors = _start_in_order(placed, plan["warnings"])
    if errors:
        return _refused(plan, PlanErrors(errors), gpus)
    plan["warnings"] += [
        f"GPU {gpu.index}: {gpu.product} shares its memory with the system; engines count what is available, "
        "page cache included, so keep other programs small"
        for gpu in gpus
        if catalog.gpu(gpu.key).get("integrated")
    ]
    plan["warnings"] += _peer_warnings(placed, catalog) + _group_warnings(placed)
    plan["gpus"] = [_gpu_entry(gpu, placed) for gpu in gpus]
    plan["services"] = _service_entries(placed, declaration, locks, plan["warnings"])
    return plan


def _image_locks(declaration: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return checked_locks(declaration.get("image_locks") or {})
    except ImageRefused as problem:
        raise PlanError(str(problem)) from problem


def _fleet(host: str, declaration: Mapping[str, Any]) -> Fleet:
    groups = declaration.get("node_groups") or {}
    return Fleet(
        host=host,
        groups={name: [(member["host"], member["address"]) for member in members] for name, members in groups.items()},
        interface=declaration.get("fleet_interface") or "",
        required=declaration.get("mode") == "apply",
    )


def _first_engine(services: Any, catalog: Catalog) -> str:
    """Engine of the first service, as far as it is declared well enough to tell."""
    first = services[0] if isinstance(services, (list, tuple)) and services else None
    engine = first.get("engine") if isinstance(first, Mapping) else None
    return next((name for name in catalog.profiles["engines"] if name == engine), "sglang")


def _refused(plan: dict[str, Any], problems: PlanErrors, gpus: Sequence[Gpu]) -> dict[str, Any]:
    fits_nowhere = all(error.kind == "does_not_fit" for error in problems.errors)
    plan["verdict"] = "does_not_fit" if fits_nowhere else "invalid"
    plan["errors"] = [error.as_dict() for error in problems.errors]
    plan["warnings"] = []
    if fits_nowhere:
        plan["gpus"] = [{**_gpu_entry(gpu, []), "short_gib": gib(problems.missing.get(gpu.index, 0))} for gpu in gpus]
    return plan


def _placed(services: Sequence[Service], gpus: Sequence[Gpu], laws: Laws) -> list[Placed]:
    placed = place(services, gpus, laws)
    if placed is None:
        missing = shortfall(services, gpus, laws)
        raise PlanErrors(_does_not_fit(services, gpus, laws, missing), missing)
    hand_out(placed, gpus)
    return placed


def _does_not_fit(
    services: Sequence[Service], gpus: Sequence[Gpu], laws: Laws, missing: Mapping[int, int]
) -> list[PlanError]:
    where = ", ".join(
        f"{size / GIB:.2f} GiB short on GPU {index} "
        f"({gpus[index].product}, {gpus[index].budget / GIB:.2f} GiB to plan with)"
        for index, size in missing.items()
    )
    summary = PlanError(
        f"the services do not fit: {where or 'no set of GPUs holds a service with its tensor_parallel'}",
        kind="does_not_fit",
    )
    return [summary, *remedies_for(services, gpus, laws)]


def _peer_warnings(placed: Sequence[Placed], catalog: Catalog) -> list[str]:
    """What is to be known of services on several GPUs that cannot read each other's memory."""
    prefix = catalog.gpus["without_peer_access"]["prefix"]
    return [
        f"{entry.service.name}: {entry.gpus[0].product} has no peer access, so its GPUs talk through the host's memory "
        f"(shm_size {entry.service.shm_size}); tensor parallelism gains less there"
        for entry in placed
        if len(entry.gpus) > 1 and entry.gpus[0].product.startswith(prefix)
    ]


def _group_warnings(placed: Sequence[Placed]) -> list[str]:
    """What is to be known of services that run on several hosts."""
    warnings, alone = [], ""
    for entry in placed:
        service = entry.service
        if service.nodes and not service.nodes.interface:
            warnings.append(
                f"{service.name}: the interface that has {service.nodes.address} is found on the host; "
                "serving_fleet_interface names it beforehand"
            )
        if service.nodes and alone:
            warnings.append(
                f"{service.name}: its hosts wait ten minutes for each other at most, and {alone} starts before it; "
                "declare services on several hosts first"
            )
        alone = alone or ("" if service.nodes else service.name)
    return warnings


# ---- start order: what each service sees, and what it is told ---------------------------------------


def _free(gpu: Gpu) -> int:
    return gpu.total - gpu.foreign


def free_before(entry: Placed, placed: Sequence[Placed]) -> int:
    """Bytes that the service sees when the host starts from cold, in order: all earlier ones resident."""
    earlier = placed[: placed.index(entry)]
    return (
        min(_free(gpu) - sum(other.resident for other in earlier if gpu in other.gpus) for gpu in entry.gpus)
        - entry.context
    )


def free_before_restart(entry: Placed, placed: Sequence[Placed]) -> int:
    """Bytes that it sees when it restarts alone, with every other service of its GPUs at its peak."""
    return (
        min(
            _free(gpu) - sum(other.peak() for other in placed if other is not entry and gpu in other.gpus)
            for gpu in entry.gpus
        )
        - entry.context
    )


def _start_in_order(placed: Sequence[Placed], warnings: list[str]) -> list[PlanError]:
    """Settle pinned sizes where they stand in the order; errors for those that cannot start."""
    errors = []
    for entry in placed:
        if not entry.service.pinned:
            continue
        free = free_before(entry, placed)
        tokens = pinned_tokens(entry.law, free) or 0
        entry.tokens = min(entry.tokens, max(0, tokens))
        problem = _pinned_problem(entry, free)
        if problem:
            errors.append(problem)
    if not errors:
        for entry in placed:
            if entry.service.pinned:
                warnings += _pinned_warnings(entry, placed)
    return errors


def _pinned_problem(entry: Placed, free: int) -> PlanError | None:
    service, law = entry.service, entry.law
    wanted = service.kv_tokens
    fraction_key = next(
        (key for key in ("mem_fraction_static", "gpu_memory_utilization") if key in service.pinned), None
    )
    cap = service.pinned.get("max_total_tokens")
    needed = law.settle(wanted or (int(cap) if cap else 0) or law.floor_tokens)
    if entry.tokens >= (wanted or 1) and not (fraction_key and cap and entry.tokens < law.settle(int(cap))):
        return None
    if fraction_key is None:
        return PlanError(
            f"{_pinned_text(service)} is {entry.tokens:,} tokens, kv_tokens asks for {wanted:,}",
            service=service.name,
            key="pinned",
            value=dict(service.pinned),
            kind="does_not_fit",
        )
    value = service.pinned[fraction_key]
    base, of = (free, "free when it starts") if service.engine == "sglang" else (law.gpu.total, "on the card")
    enough = law.fraction(needed, free) if service.engine == "vllm" else _next_up(law.least_fraction(needed, free))
    granted = f"grants {entry.tokens:,} tokens" if entry.tokens else "leaves nothing for KV, so it refuses to start"
    return PlanError(
        f"{fraction_key} {value:g} of the {base / GIB:.2f} GiB {of} is {base * value / GIB:.2f} GiB, its weights take "
        f"{law.weights / GIB:.2f} GiB: that {granted}; it needs {enough:.3f} for {needed:,} tokens",
        service=service.name,
        key=f"pinned.{fraction_key}",
        value=value,
        allowed=f"at least {enough:.3f} at this place in the start order",
        remedies=[f"pinned: {{{fraction_key}: {enough:.3f}}}", "leave pinned out: the planner computes it"],
        kind="does_not_fit",
    )


def _next_up(fraction: float) -> float:
    return (int(fraction * 1000) + 1) / 1000


def _pinned_text(service: Service) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in service.pinned.items())


def _pinned_warnings(entry: Placed, placed: Sequence[Placed]) -> list[str]:
    service, law = entry.service, entry.law
    warnings = [
        f"{service.name}: pinned {_pinned_text(service)} really grants {entry.tokens:,} tokens at place "
        f"{placed.index(entry) + 1} of the start order"
    ]
    if entry.tokens < service.context_length:
        warnings.append(
            f"{service.name}: {entry.tokens:,} tokens are less than its context_length {service.context_length:,}: "
            "longer requests are rejected"
        )
    fraction = service.pinned.get("mem_fraction_static")
    if fraction is None:
        return warnings
    alone = law.granted(free_before_restart(entry, placed), fraction, service.pinned.get("max_total_tokens"))
    if alone < entry.tokens:
        later = _later(entry, placed)
        outcome = f"only {alone:,} tokens" if alone > 0 else "nothing, and it would not start"
        warnings.append(
            f"{service.name}: restarted alone, with the others up, this fraction grants {outcome}; "
            f"restart {', '.join([*later, 'it'])} in start order instead"
        )
    return warnings


def _later(entry: Placed, placed: Sequence[Placed]) -> list[str]:
    """Services of its GPUs that start after it."""
    return [other.service.name for other in placed[placed.index(entry) + 1 :] if set(other.gpus) & set(entry.gpus)]


def _restarts(entry: Placed, placed: Sequence[Placed]) -> list[str]:
    """Services that have to start again after this one did: a pinned share may not grant its tokens beside them."""
    pinned, law = entry.service.pinned, entry.law
    fraction = _fraction(entry, free_before_restart(entry, placed)) if pinned else None
    if fraction is None:
        return []
    cap = pinned.get("max_total_tokens") if entry.service.engine == "sglang" else pinned.get("kv_cache_memory_bytes")
    return (
        _later(entry, placed) if law.granted(free_before_restart(entry, placed), fraction, cap) < entry.tokens else []
    )


# ---- plan.json ---------------------------------------------------------------------------------------


def _gpu_entry(gpu: Gpu, placed: Sequence[Placed]) -> dict[str, Any]:
    planned = sum(entry.peak() for entry in placed if gpu in entry.gpus)
    return {
        "index": gpu.index,
        "key": gpu.key,
        "product": gpu.product,
        "compute_capability": gpu.capability,
        "cuda_visible_gib": gib(gpu.total),
        "reserved_gib": gib(gpu.foreign),
        "margin_gib": gib(gpu.margin),
        "planned_gib": gib(planned),
        "free_gib": gib(gpu.total - gpu.foreign - planned),
        "utilisation": round(planned / (gpu.total - gpu.foreign), 4),
    }


def _service_entries(
    placed: Sequence[Placed], declaration: Mapping[str, Any], locks: Mapping[str, Any], warnings: list[str]
) -> list[dict[str, Any]]:
    entries = []
    for order, entry in enumerate(placed, 1):
        service, law = entry.service, entry.law
        warnings += [f"{service.name}: {warning}" for warning in law.warnings]
        free, alone = free_before(entry, placed), free_before_restart(entry, placed)
        fraction = _fraction(entry, alone)
        options = {
            role: value
            for role, value in law.engine_options(_told_tokens(entry), fraction).items()
            if value is not None
        }
        entries.append(
            {
                "name": service.name,
                "engine": service.engine,
                "engine_version": service.image.engine_version,
                "image": with_digest(service.image.reference, locks),
                "image_key": service.image.key,
                "image_cuda": service.image.cuda,
                "min_driver": service.image.min_driver,
                "model": service.model,
                "gpus": [gpu.index for gpu in entry.gpus],
                "start_order": order,
                "port": service.port,
                "shm_size": service.shm_size,
                "memory": _memory(entry),
                "free_before_gib": gib(free),
                "free_before_restart_gib": gib(alone),
                "fraction": {
                    "flag": service.flags.name_for("fraction"),
                    "value": fraction,
                    "cold": round(law.least_fraction(entry.tokens, free), 4),
                },
                "kv_tokens": entry.tokens,
                "kv_bytes_per_token": round(law.cell, 1),
                "full_contexts": round(entry.tokens / service.context_length, 2),
                "context_length": service.context_length,
                "max_concurrency": service.max_concurrency,
                "profile": service.profile,
                "restarts": _restarts(entry, placed),
                **service_spec(entry, options, _starts_after(entry, placed), declaration),
            }
        )
    return entries


def _memory(entry: Placed) -> dict[str, float]:
    """GiB per GPU. The parts up to ``reserve`` add up to ``peak``; ``resident`` lacks activations and reserve."""
    footprint, law = entry.law.footprint, entry.law
    sizes = {
        "context": footprint.context,
        "weights": footprint.weights,
        "kv": law.pool_bytes(entry.tokens),
        "state": footprint.state,
        "workspaces": footprint.workspaces,
        "tables": footprint.tables,
        "graphs": footprint.graphs,
        "compilation": entry.compilation,
        "activations": entry.activations,
        "reserve": law.reserve_bytes(entry.tokens),
        "resident": entry.resident,
        "peak": entry.peak(),
    }
    return {part: gib(size) for part, size in sizes.items()}


def _starts_after(entry: Placed, placed: Sequence[Placed]) -> list[str]:
    """The service that starts just before it on each of its GPUs."""
    earlier = placed[: placed.index(entry)]
    last = {gpu.index: other.service.name for other in earlier for gpu in other.gpus if gpu in entry.gpus}
    return [other.service.name for other in earlier if other.service.name in last.values()]


def _fraction(entry: Placed, alone: int) -> float | None:
    pinned = entry.service.pinned
    for key in ("mem_fraction_static", "gpu_memory_utilization"):
        if key in pinned:
            return pinned[key]
    return entry.law.fraction(entry.tokens, alone)


def _told_tokens(entry: Placed) -> int | None:
    """The exact pool size that the engine is told; None where a pinned fraction alone decides."""
    pinned = entry.service.pinned
    if set(pinned) in ({"mem_fraction_static"}, {"gpu_memory_utilization"}):
        return None
    return int(pinned.get("max_total_tokens", entry.tokens))
