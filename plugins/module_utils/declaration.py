"""From what the user declares to checked objects: GPUs and services. Every problem is found in one pass."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import convert
from .catalog_view import Catalog, Image
from .engine_flags import EngineFlags, Options, resolve_options
from .model_geometry import DTYPE_BYTES, ModelGeometry, geometry_of
from .node_groups import NodeGroup
from .plan_error import PlanError, PlanErrors, did_you_mean
from .quantization import Quantization, quantized_on_load
from .units import GIB, from_gib

MODEL_DIRECTORY = "/models"
KV_DTYPE_BYTES = {"auto": None, "bfloat16": 2, "bf16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
# where a version checks the value later than its command line, so that no choices are recorded
KV_DTYPES_EVERYWHERE = ("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2")


@dataclass(frozen=True)
class Gpu:
    """One GPU of a host. Sizes in bytes: ``total`` as CUDA sees it, ``foreign`` held by others, ``margin`` never
    planned; ``largest_context``: what a first service's own context can be at most, where that was measured."""

    index: int
    key: str
    product: str
    capability: str
    total: int
    memory_mib: int
    arm64: bool
    foreign: int
    margin: int
    largest_context: int | None = None

    @property
    def budget(self) -> int:
        return self.total - self.foreign - self.margin


@dataclass(frozen=True)
class Fleet:
    """What a host's plan needs to know of others. ``groups``: groups of the inventory that services name, each with the
    names and addresses of its hosts; ``interface``: the host's own, towards them; ``required``: whether it must be
    known.
    """

    host: str = ""
    groups: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    interface: str = ""
    required: bool = False


@dataclass(frozen=True)
class Service:
    """A checked service. ``kv_element`` in bytes; ``weights`` (bytes per rank) only where it was measured."""

    name: str
    engine: str
    image: Image
    model: str
    directory: str | None
    geometry: ModelGeometry
    weights: int | None
    loaded_as: Quantization | None
    port: int
    container_port: int
    container_name: str
    context_length: int
    max_concurrency: int
    kv_tokens: int | None
    share: float
    kv_cache_dtype: str
    kv_element: int
    dtype: str | None
    quantization: str | None
    tensor_parallel: int
    nodes: NodeGroup | None
    gpus: tuple[int, ...] | None
    profile: str
    pinned: Mapping[str, float]
    extra_args: Mapping[str, Any]
    environment: Mapping[str, str]
    shm_size: str
    trust_remote_code: bool
    revision: str | None
    flags: EngineFlags = field(repr=False, compare=False)
    settings: Mapping[str, Any] = field(repr=False, compare=False)

    @property
    def local_gpus(self) -> int:
        """GPUs of this host that it runs on."""
        return self.tensor_parallel // (len(self.nodes.hosts) if self.nodes else 1)

    def engine_chunk(self, gpu: Gpu) -> int:
        """Tokens of one prefill batch that the engine itself chooses on ``gpu``."""
        limits = self.settings["chunk_by_memory"]
        return next(tokens for limit, tokens in limits if limit is None or gpu.memory_mib <= limit)

    def options(self, gpu: Gpu) -> tuple[Options, list[str]]:
        """Profile and extra options on ``gpu`` (canonical flag -> value), and warnings."""
        by_major = self.settings.get("attention_by_architecture", {}).get(gpu.capability.split(".")[0], {})
        return resolve_options(
            self.flags,
            self.profile,
            self.extra_args,
            {
                "by_memory": max(self.engine_chunk(gpu), self.max_concurrency),
                "by_architecture": by_major.get(self.geometry.attention_kind),
                "max_concurrency": self.max_concurrency,
            },
        )


REQUIRED = object()
COMMIT = re.compile("[0-9a-f]{40}")
# key -> (conversion, default)
SERVICE_KEYS: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "name": (convert.name, REQUIRED),
    "engine": (convert.one_of("sglang", "vllm"), REQUIRED),
    "image": (lambda value: value, None),
    "model": (lambda value: value, REQUIRED),
    "port": (convert.integer(1, 65535), REQUIRED),
    "container_port": (convert.integer(1, 65535), 8000),
    "container_name": (convert.name, None),
    "context_length": (convert.integer(16, 16 << 20), None),
    "max_concurrency": (convert.integer(1, 4096), 32),
    "kv_tokens": (convert.integer(16, 1 << 31), None),
    "share": (convert.number(0, 1000), 1.0),
    "kv_cache_dtype": (convert.text, "auto"),
    "dtype": (convert.one_of("auto", *DTYPE_BYTES, "half"), "auto"),
    "quantization": (convert.text, None),
    "tensor_parallel": (convert.integer(1, 64), 1),
    "nodes": (convert.text, None),
    "nodes_port": (convert.integer(1024, 64535), 20000),
    "gpus": (convert.gpu_indices, None),
    "profile": (convert.one_of("tuned", "safe", "notes"), "tuned"),
    "pinned": (convert.mapping, {}),
    "extra_args": (convert.mapping, {}),
    "environment": (convert.environment, {}),
    "shm_size": (convert.shm_size, None),
    "trust_remote_code": (convert.boolean, False),
    "revision": (convert.text, None),
}
PINNED_KEYS: dict[str, Callable[[Any], Any]] = {
    "mem_fraction_static": convert.number(0, 0.999),
    "max_total_tokens": convert.integer(16, 1 << 31),
    "gpu_memory_utilization": convert.number(0, 1),
    "kv_cache_memory_bytes": convert.integer(1 << 20, 1 << 42),
}


def parse_gpus(declared: Any, catalog: Catalog, first_engine: str) -> list[Gpu]:
    """``serving_gpus``: catalogue keys, or mappings with what was measured. Raises PlanErrors.

    ``measured_free_gib`` is what the first service sees, so its engine's context is not counted as somebody else's.
    """
    if not isinstance(declared, (list, tuple)) or not declared:
        raise PlanErrors(
            [
                PlanError(
                    "must be a list with at least one GPU",
                    key="serving_gpus",
                    value=declared,
                    allowed=did_you_mean("", catalog.gpus["gpus"]),
                )
            ]
        )
    gpus, errors = [], []
    for index, entry in enumerate(declared):
        try:
            gpus.append(_gpu(index, entry, catalog, first_engine))
        except PlanError as error:
            errors.append(error)
    if errors:
        raise PlanErrors(errors)
    return gpus


def _gpu(index: int, declared: Any, catalog: Catalog, first_engine: str) -> Gpu:
    measured = dict(declared) if isinstance(declared, Mapping) else {"gpu": declared}
    unknown = set(measured) - {"gpu", "measured_total_gib", "measured_free_gib"}
    if unknown or "gpu" not in measured:
        raise PlanError(
            f"GPU {index} is declared as {declared!r}",
            key="serving_gpus",
            value=declared,
            allowed="a key such as rtx_5090, or {gpu: rtx_5090, measured_total_gib: 31.36, measured_free_gib: 30.54}",
        )
    entry = catalog.gpu(measured["gpu"])
    visible = float(entry["cuda_visible_gib"])
    sizes = {}
    for key, low, high in (
        ("measured_total_gib", 0.5 * visible, 1.5 * visible),
        ("measured_free_gib", 0.0, 1.5 * visible),
    ):
        if measured.get(key) is not None:
            try:
                sizes[key] = convert.number(low, high)(measured[key])
            except ValueError as allowed:
                raise PlanError(
                    f"{measured[key]!r} cannot be GiB of a {entry['product']}",
                    key=f"serving_gpus[{index}].{key}",
                    value=measured[key],
                    allowed=str(allowed),
                ) from None
    total = from_gib(sizes.get("measured_total_gib", visible))
    foreign, largest_context = 0, None
    if "measured_free_gib" in sizes:
        used = total - from_gib(sizes["measured_free_gib"])
        if used < 0:
            raise PlanError(
                f"{sizes['measured_free_gib']:g} GiB cannot be free of {total / GIB:g}",
                key=f"serving_gpus[{index}].measured_free_gib",
                value=sizes["measured_free_gib"],
                allowed=f"at most {sizes.get('measured_total_gib', visible):g}",
            )
        largest_context = used
        foreign = max(0, used - from_gib(catalog.overhead("context", first_engine, "gib")))
    return catalogue_gpu(index, measured["gpu"], catalog, total, foreign, largest_context)


def catalogue_gpu(
    index: int, key: str, catalog: Catalog, total: int, foreign: int = 0, largest_context: int | None = None
) -> Gpu:
    entry = catalog.gpu(key)
    return Gpu(
        index=index,
        key=key,
        product=entry["product"],
        capability=str(entry["compute_capability"]),
        total=total,
        memory_mib=int(entry["memory_mib"]),
        arm64=entry.get("host") == "arm64",
        foreign=foreign,
        margin=int((total - foreign) * float(entry.get("safety_margin", catalog.gpus["safety_margin"]))),
        largest_context=largest_context,
    )


def parse_services(declared: Any, catalog: Catalog, gpus: Sequence[Gpu], fleet: Fleet = Fleet()) -> list[Service]:
    """``serving_services``. Raises PlanErrors with one entry per problem found."""
    if not isinstance(declared, (list, tuple)) or not declared:
        raise PlanErrors(
            [
                PlanError(
                    "must be a list with at least one service",
                    key="serving_services",
                    value=declared,
                    allowed="[{name: ..., engine: ..., model: ..., port: ...}, ...]",
                )
            ]
        )
    services: list[Service] = []
    errors: list[PlanError] = []
    for index, item in enumerate(declared):
        label = str(item.get("name", f"#{index + 1}")) if isinstance(item, Mapping) else f"#{index + 1}"
        found: list[PlanError] = []
        service = _service(item, catalog, gpus, fleet, found)
        for error in found:
            error.service = error.service or label
        errors += found
        if service:
            services.append(service)
    errors += _duplicates(declared)
    if errors:
        raise PlanErrors(errors)
    return services


def _duplicates(declared: Sequence[Any]) -> list[PlanError]:
    errors = []
    items = [item for item in declared if isinstance(item, Mapping)]
    for key in ("name", "port", "container_name"):
        owners: dict[str, str] = {}
        for item in items:
            name = str(item.get("name"))
            value = item.get(key, name if key == "container_name" else None)
            if value is None:
                continue
            if str(value) in owners and (key in item or owners[str(value)] != name):
                errors.append(
                    PlanError(
                        f"{value} is already the {key} of service '{owners[str(value)]}'",
                        service=name,
                        key=key,
                        value=value,
                        allowed="one that no other service has",
                    )
                )
            owners.setdefault(str(value), name)
    return errors


def _service(item: Any, catalog: Catalog, gpus: Sequence[Gpu], fleet: Fleet, errors: list[PlanError]) -> Service | None:
    if not isinstance(item, Mapping):
        errors.append(PlanError(f"{item!r} is not a mapping", key="serving_services", value=item))
        return None
    for key in item:
        if key not in SERVICE_KEYS:
            errors.append(
                PlanError(
                    "there is no such key", key=str(key), value=item[key], allowed=did_you_mean(key, SERVICE_KEYS, 30)
                )
            )
    values = {}
    for key, (conversion, default) in SERVICE_KEYS.items():
        if item.get(key) is None:
            if default is REQUIRED:
                errors.append(PlanError("is missing", key=key))
            values[key] = default
            continue
        try:
            values[key] = conversion(item[key])
        except ValueError as allowed:
            errors.append(PlanError(f"{item[key]!r} is not possible", key=key, value=item[key], allowed=str(allowed)))
    if errors:
        return None
    try:
        return _resolve(values, catalog, gpus, fleet)
    except PlanError as error:
        errors.append(error)
        return None


def _resolve(values: dict[str, Any], catalog: Catalog, gpus: Sequence[Gpu], fleet: Fleet) -> Service:
    engine = values["engine"]
    settings = catalog.engine(engine)
    image = catalog.image(values["image"] or settings["default_image"], engine)
    _check_gpu_code(image, values["gpus"], gpus, catalog)
    flags = catalog.once(
        ("flags", engine, image.engine_version),
        lambda: EngineFlags(catalog.engine_flags(image), settings, f"{engine} {image.engine_version}"),
    )
    model, directory, geometry, weights = _model(values["model"], values["dtype"], catalog)
    nodes = _nodes(values, fleet)
    _check_model_limits(values, geometry, gpus, len(nodes.hosts) if nodes else 1)
    _check_remote_code(values, directory)
    pinned = _pinned(values["pinned"], settings, flags)
    resolve_options(flags, values["profile"], values["extra_args"], {})
    kv_dtype, kv_element = _kv_dtype(values["kv_cache_dtype"], geometry, flags)
    loaded_as = _loaded_as(values["quantization"], geometry, flags)
    for role in ("context", "concurrency", "fraction"):
        if flags.name_for(role) is None:
            raise PlanError(f"{flags.version} has no option for {role}", key="image", value=image.key)
    if engine == "sglang" and geometry.state and flags.name_for("state_slots") is None:
        raise PlanError(
            f"{flags.version} sizes the state of {geometry.architecture} by itself, so it cannot be planned",
            key="image",
            value=image.key,
            allowed="a version with --max-mamba-cache-size",
        )
    return Service(
        name=values["name"],
        engine=engine,
        image=image,
        model=model,
        directory=directory,
        geometry=geometry,
        weights=weights,
        loaded_as=loaded_as,
        port=values["port"],
        container_port=values["port"] if nodes else values["container_port"],
        container_name=values["container_name"] or values["name"],
        context_length=values["context_length"] or geometry.max_context,
        max_concurrency=values["max_concurrency"],
        kv_tokens=values["kv_tokens"],
        share=values["share"],
        kv_cache_dtype=kv_dtype,
        kv_element=kv_element,
        dtype=None if values["dtype"] == "auto" else values["dtype"],
        quantization=values["quantization"],
        tensor_parallel=values["tensor_parallel"],
        nodes=nodes,
        gpus=values["gpus"],
        profile=values["profile"],
        pinned=pinned,
        extra_args=values["extra_args"],
        environment={**settings["environment"], **(nodes.environment() if nodes else {}), **values["environment"]},
        shm_size=values["shm_size"] or ("16g" if values["tensor_parallel"] > 1 else "8g"),
        trust_remote_code=values["trust_remote_code"],
        revision=values["revision"],
        flags=flags,
        settings=settings,
    )


def _check_remote_code(values: Mapping[str, Any], directory: str | None) -> None:
    """Code of a model's repository runs as the engine does, so it has to be code that somebody has read."""
    if values["trust_remote_code"] and not directory and not COMMIT.fullmatch(values["revision"] or ""):
        raise PlanError(
            "trust_remote_code runs code of the model's repository, and "
            f"{values['revision'] or 'what is newest'} may be other code tomorrow",
            key="revision",
            value=values["revision"],
            allowed="the commit that was read, 40 hexadecimal digits; or a model in a local directory",
        )


def _check_gpu_code(image: Image, indices: tuple[int, ...] | None, gpus: Sequence[Gpu], catalog: Catalog) -> None:
    for index in indices or ():
        if index >= len(gpus):
            raise PlanError(
                f"there is no GPU {index}", key="gpus", value=list(indices or ()), allowed=f"0 to {len(gpus) - 1}"
            )
    candidates = [gpus[index] for index in indices] if indices else gpus
    able = [gpu for gpu in candidates if image.runs_on(gpu.capability, gpu.arm64)]
    if able and (not indices or len(able) == len(candidates)):
        return
    lacking = next(gpu for gpu in candidates if gpu not in able)
    fitting = [
        other.key for other in catalog.usable_images(image.engine) if other.runs_on(lacking.capability, lacking.arm64)
    ]
    built_for = ", ".join(image.code_for(lacking.arm64)) or "no 64-bit Arm host"
    raise PlanError(
        f"{image.key} ({image.reference}) has no code for sm_{lacking.capability.replace('.', '')}, the compute "
        f"capability of {lacking.product}; it was built for {built_for}, so every kernel launch would fail with "
        "'no kernel image is available for execution on the device'",
        key="image",
        value=image.key,
        remedies=[f"image: {key}" for key in fitting] or ["an image that was built for it: none is catalogued"],
    )


def read_model_directory(path: str) -> dict[str, Any]:
    """``config.json`` of a local directory, as a catalogue entry. Raises PlanError."""
    file = Path(os.path.expanduser(path), "config.json")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as problem:
        raise PlanError(f"cannot read {file}: {problem.strerror}", key="model", value=path) from None
    except ValueError as problem:
        raise PlanError(f"{file} is not JSON: {problem}", key="model", value=path) from None
    return {"config": config}


def _model(declared: Any, dtype: str, catalog: Catalog) -> tuple[str, str | None, ModelGeometry, int | None]:
    """Name, directory, geometry and measured weights of what ``model`` says."""
    loaded = {"auto": None, "half": "float16"}.get(dtype, dtype)
    if isinstance(declared, Mapping):
        unknown = set(declared) - {"name", "config", "weights_gib"}
        if unknown or not isinstance(declared.get("name"), str):
            raise PlanError(
                "the inline model is not complete",
                key="model",
                value=sorted(map(str, declared)),
                allowed="{name: ..., config: {...config.json...}, weights_gib: optional}",
            )
        name = declared["name"]
        entry = {"config": declared["config"]} if "config" in declared else catalog.model(name)
        weights = None
        if declared.get("weights_gib") is not None:
            try:
                weights = from_gib(convert.number(0, 4096)(declared["weights_gib"]))
            except ValueError as allowed:
                raise PlanError(
                    f"{declared['weights_gib']!r} is not a size in GiB",
                    key="model.weights_gib",
                    value=declared["weights_gib"],
                    allowed=str(allowed),
                ) from None
        geometry = geometry_of(name, entry, loaded)
        return name, None, _sizable(geometry, weights), weights
    if not isinstance(declared, str) or not declared:
        raise PlanError(
            f"{declared!r} is no model",
            key="model",
            value=declared,
            allowed="a key of catalog/models.yml, a directory, or {name: ..., config: ...}",
        )
    if declared.startswith(("/", "./", "../", "~")):
        directory = os.path.abspath(os.path.expanduser(declared))
        geometry = geometry_of(directory, read_model_directory(declared), loaded)
        return f"{MODEL_DIRECTORY}/{Path(directory).name}", directory, _sizable(geometry, None), None
    geometry = catalog.once(
        ("geometry", declared, dtype), lambda: geometry_of(declared, catalog.model(declared), loaded)
    )
    return declared, None, _sizable(geometry, None), None


def _sizable(geometry: ModelGeometry, weights: int | None) -> ModelGeometry:
    if geometry.multimodal and not geometry.published_weights and weights is None:
        raise PlanError(
            f"the vision tower of {geometry.name} has no size rule here",
            key="model",
            value=geometry.name,
            remedies=["give the loaded size: model: {name: ..., config: {...}, weights_gib: ...}"],
        )
    return geometry


def _nodes(values: Mapping[str, Any], fleet: Fleet) -> NodeGroup | None:
    """The hosts that run the service together."""
    name = values["nodes"]
    if name is None:
        return None
    problem, allowed = "", ""
    members = fleet.groups.get(name) or ()
    hosts, addresses = [host for host, _ in members], [address for _, address in members]
    if values["engine"] != "sglang":
        problem, allowed = f"{values['engine']} is not run on several hosts here", "engine: sglang, or no nodes"
    elif not hosts:
        problem, allowed = f"the inventory has no hosts in a group {name}", "the name of a group of the inventory"
    elif fleet.host not in hosts:
        problem, allowed = f"{fleet.host} is not in the group {name}", f"services of {', '.join(hosts)} alone"
    elif len(hosts) < 2:
        problem, allowed = f"the group {name} has one host", "two hosts or more, or no nodes"
    elif values["tensor_parallel"] % len(hosts):
        raise PlanError(
            f"{values['tensor_parallel']} GPUs cannot be parted over the {len(hosts)} hosts of {name}",
            key="tensor_parallel",
            value=values["tensor_parallel"],
            allowed=f"the GPUs of all hosts together, a multiple of {len(hosts)}",
        )
    elif not all(addresses):
        lacking = ", ".join(host for host, address in members if not address)
        problem, allowed = (
            f"{lacking} has no serving_fleet_address",
            "hosts with the address at which the others reach them",
        )
    elif len(set(addresses)) < len(addresses):
        problem, allowed = f"two hosts of {name} have the same serving_fleet_address", "an address of its own for each"
    elif fleet.required and not fleet.interface:
        problem = f"no interface of {fleet.host} has its serving_fleet_address {addresses[hosts.index(fleet.host)]}"
        allowed = "an address of this host, or the interface's name in serving_fleet_interface"
    if problem:
        raise PlanError(problem, key="nodes", value=name, allowed=allowed)
    return NodeGroup(
        name, tuple(hosts), tuple(addresses), hosts.index(fleet.host), values["nodes_port"], fleet.interface
    )


def _check_model_limits(values: Mapping[str, Any], geometry: ModelGeometry, gpus: Sequence[Gpu], hosts: int) -> None:
    if values["context_length"] and values["context_length"] > geometry.max_context:
        raise PlanError(
            f"{values['context_length']} is more than {geometry.name} was made for",
            key="context_length",
            value=values["context_length"],
            allowed=f"at most {geometry.max_context}",
        )
    problem = geometry.tensor_parallel_problem(values["tensor_parallel"])
    if problem:
        fitting = [str(tp) for tp in (1, 2, 4, 8, 16, 32, 64) if not geometry.tensor_parallel_problem(tp)]
        raise PlanError(problem, key="tensor_parallel", value=values["tensor_parallel"], allowed=", ".join(fitting))
    if values["gpus"] and len(values["gpus"]) * hosts != values["tensor_parallel"]:
        raise PlanError(
            f"{len(values['gpus'])} GPUs are named for tensor_parallel {values['tensor_parallel']}"
            + (f" on {hosts} hosts" if hosts > 1 else ""),
            key="gpus",
            value=list(values["gpus"]),
            allowed="as many GPUs as tensor_parallel, or auto" if hosts == 1 else "an equal part of them, or auto",
        )
    kinds = sorted({gpus[index].key for index in values["gpus"] or ()})
    if len(kinds) > 1:
        raise PlanError(
            f"tensor parallelism needs GPUs of one kind, these are {', '.join(kinds)}",
            key="gpus",
            value=list(values["gpus"]),
            allowed="GPUs of one kind, or auto",
        )


def _pinned(declared: Mapping[str, Any], settings: Mapping[str, Any], flags: EngineFlags) -> dict[str, float]:
    pinned = {}
    for key, value in declared.items():
        role = settings["pinned"].get(key)
        if role is None:
            raise PlanError("cannot be pinned", key=f"pinned.{key}", value=value, allowed=", ".join(settings["pinned"]))
        if flags.name_for(role) is None:
            raise PlanError(f"{flags.version} has no option for it", key=f"pinned.{key}", value=value)
        try:
            pinned[key] = PINNED_KEYS[key](value)
        except ValueError as allowed:
            raise PlanError(
                f"{value!r} is not possible", key=f"pinned.{key}", value=value, allowed=str(allowed)
            ) from None
    return pinned


def _kv_dtype(declared: str, geometry: ModelGeometry, flags: EngineFlags) -> tuple[str, int]:
    name = flags.name_for("kv_dtype")
    choices = flags.recorded[name].get("choices", KV_DTYPES_EVERYWHERE) if name else ("auto",)
    sized = [choice for choice in choices if choice in KV_DTYPE_BYTES]
    if declared not in sized:
        raise PlanError(
            f"{flags.version} does not take {declared!r}, or no rule sizes it",
            key="kv_cache_dtype",
            value=declared,
            allowed=", ".join(sized),
        )
    element = KV_DTYPE_BYTES[declared]
    if element is None:
        element = 1 if geometry.quantization.fp8_kv else geometry.dtype_bytes
    return declared, element


def _loaded_as(declared: str | None, geometry: ModelGeometry, flags: EngineFlags) -> Quantization | None:
    if declared is None:
        return None
    name = flags.name_for("quantization")
    choices = flags.recorded[name].get("choices") if name else ()
    if choices and declared not in choices:
        raise PlanError(
            f"{flags.version} does not take {declared!r}",
            key="quantization",
            value=declared,
            allowed=", ".join(map(str, choices)),
        )
    if geometry.quantization.method:
        return None
    loaded = quantized_on_load(declared)
    if loaded is None:
        raise PlanError(
            f"no rule sizes a {geometry.dtype} checkpoint that is quantised to {declared} while loading",
            key="quantization",
            value=declared,
            allowed="fp8, or a checkpoint that is quantised already",
        )
    return loaded
