"""What a planned service looks like as a container: arguments, ports, health check, volumes, dependencies.

plan.json carries it, and ``templates/compose.yaml.j2`` prints it without deciding anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .declaration import MODEL_DIRECTORY, Service
from .engine_flags import Options, as_arguments
from .image_decisions import with_digest
from .node_groups import OWN_VARIABLES
from .placement import Placed
from .units import GIB

MODEL_CACHE = "/root/.cache/huggingface"
# The engine finds its model in the cache and asks nobody: it has no token, and a start must not depend on the Hub. vLLM
# then names the model after its directory, unless it is told a name (vllm/engine/arg_utils.py).
OFFLINE = {"HF_HUB_OFFLINE": "1"}
# A cold start reads (at worst downloads) the weights and compiles kernels. Health may fail that long before it counts.
START_BASE_S, START_PER_GIB_S = 600, 60


def service_spec(
    entry: Placed, roles: Options, before: Sequence[str], declaration: Mapping[str, Any]
) -> dict[str, Any]:
    """Container settings of a placed service. ``roles``: options that the plan decides, by role."""
    service = entry.service
    settings = service.settings
    offline = bool(declaration.get("models_offline")) and not service.directory
    address = str(declaration.get("bind_address", "127.0.0.1"))
    rendezvous = _rendezvous(entry, roles, offline, declaration)
    return {
        **({"nodes": service.nodes.entry(rendezvous)} if service.nodes else {}),
        "container_name": service.container_name,
        "container_port": service.container_port,
        "served_name": _served_name(service),
        "bind_address": address,
        "gpu_request": str(declaration.get("gpu_request", "cdi")),
        "entrypoint": list(settings["entrypoint"]),
        "command": _command(entry, roles | _ranks(service, rendezvous), offline, address),
        **({"original_command": _notes_command(service)} if service.profile == "notes" else {}),
        "environment": {**(OFFLINE if offline else {}), **service.environment},
        "depends_on": list(before),
        "volumes": _volumes(entry),
        "healthcheck": {
            "url": f"http://{_own_address(service, address)}:{service.container_port}{settings['health_path']}",
            "interval_s": 15,
            "timeout_s": int(settings["health_timeout_s"]),
            "retries": 3,
            "start_interval_s": 5,
            "start_period_s": START_BASE_S + int(entry.law.weights * service.tensor_parallel / GIB) * START_PER_GIB_S,
        },
    }


def _own_address(service: Service, bind_address: str) -> str:
    """Where the container reaches its own engine: on a network of its own, or on the host's."""
    return "127.0.0.1" if not service.nodes or bind_address == "0.0.0.0" else bind_address


def _command(entry: Placed, roles: Options, offline: bool, bind_address: str) -> list[str]:
    service, flags = entry.service, entry.service.flags
    host = bind_address if service.nodes else "0.0.0.0"
    model = {"model": service.model, "host": host, "port": service.container_port}
    if service.directory or offline:
        model["served_name"] = _served_name(service)
    declared = {
        "kv_dtype": None if service.kv_cache_dtype == "auto" else service.kv_cache_dtype,
        "dtype": service.dtype,
        "quantization": service.quantization,
        "tensor_parallel": service.tensor_parallel if service.tensor_parallel > 1 else None,
        "revision": service.revision,
        "trust_remote_code": service.trust_remote_code or None,
    }
    options = {
        flags.name_for(role): value for role, value in {**model, **roles, **declared}.items() if value is not None
    }
    return as_arguments(flags, {**options, **entry.law.options})


def _ranks(service: Service, rendezvous: str) -> Options:
    nodes = service.nodes
    return {"nodes": len(nodes.hosts), "node_rank": nodes.rank, "rendezvous": rendezvous} if nodes else {}


def _rendezvous(entry: Placed, roles: Options, offline: bool, declaration: Mapping[str, Any]) -> str:
    """Where the hosts of a service on several hosts meet; empty for one on this host alone."""
    service = entry.service
    if not service.nodes:
        return ""
    image = with_digest(service.image.reference, declaration.get("image_locks") or {})
    variables = [f"{name}={value}" for name, value in service.environment.items() if name not in OWN_VARIABLES]
    content = [image, *service.nodes.hosts, *sorted(variables), *_command(entry, roles, offline, "")]
    return service.nodes.rendezvous("\n".join(content))


def _served_name(service: Service) -> str:
    """The model's name in requests."""
    return service.model.removeprefix(f"{MODEL_DIRECTORY}/") if service.directory else service.model


def _notes_command(service: Service) -> list[str]:
    """What the field notes ran, with options that this version may have lost (shown beside the plan, never run)."""
    flags = {
        service.settings["flags"]["model"][0]: service.model,
        "--host": "0.0.0.0",
        "--port": service.container_port,
        **{f"--{key.replace('_', '-')}": value for key, value in service.pinned.items()},
        **service.settings["notes_flags"],
        "--trust-remote-code": service.trust_remote_code,
    }
    return [
        *service.settings["entrypoint"],
        *(name if value is True else f"{name}={value}" for name, value in flags.items() if value is not False),
    ]


def _volumes(entry: Placed) -> list[dict[str, str]]:
    """Named volumes for what is expensive to make again; a local model read-only."""
    service = entry.service
    volumes = [{"type": "volume", "source": "huggingface-cache", "target": MODEL_CACHE}]
    for path in service.settings["cache_directories"]:
        kind = path.rsplit("/", 1)[-1].lstrip(".")
        source = f"{kind}-cache" if kind == service.engine else f"{service.engine}-{kind}-cache"
        volumes.append({"type": "volume", "source": source, "target": path})
    if service.directory:
        volumes.append({"type": "bind", "source": service.directory, "target": service.model})
    return volumes
