"""The plan as series for Prometheus, so that what runs can be compared with it. Sizes in bytes.

node_exporter's textfile collector reads the file from the release that serves; so it changes with every deployment and
comes back with every way back. Runs on the host, under its own Python, 3.9 or newer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

GIB = 2**30
FILE = "plan.prom"


def plan_metrics(plan: Mapping[str, Any]) -> str:
    """plan.prom."""
    services = sorted(plan["services"], key=lambda service: service["start_order"])
    gpus = [({"gpu": gpu["index"]}, (gpu["planned_gib"] + gpu.get("reserved_gib", 0)) * GIB) for gpu in plan["gpus"]]
    infos = ("engine", "engine_version", "model", "image", "profile")
    return "".join(
        [
            _metric("blackwell_planned_gpu_memory_bytes", "Memory planned on a GPU, what others hold included.", gpus),
            _metric(
                "blackwell_planned_memory_bytes",
                "Memory planned for a service on each of its GPUs, after its start and under full load.",
                (
                    ({"service": service["name"], "gpu": gpu, "when": when}, service["memory"][when] * GIB)
                    for service in services
                    for gpu in service["gpus"]
                    for when in ("resident", "peak")
                ),
            ),
            _metric(
                "blackwell_planned_kv_tokens",
                "Tokens of KV cache planned for a service.",
                (({"service": service["name"]}, service["kv_tokens"]) for service in services),
            ),
            _metric(
                "blackwell_planned_service_info",
                "A service of the plan that serves.",
                (({"service": service["name"], **{name: service[name] for name in infos}}, 1) for service in services),
            ),
        ]
    )


def host_metrics(facts: Mapping[str, Any]) -> str:
    """What the host was provisioned with, from its facts."""
    installed = facts["driver"]["installed"] or {}
    drivers = [({"version": installed["version"]}, 1)] if installed else []
    return _metric("blackwell_installed_driver_info", "The driver that is installed on the host.", drivers)


def _metric(name: str, description: str, samples: Iterable[tuple[Mapping[str, Any], float]]) -> str:
    lines = [f"# HELP {name} {description}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        text = ",".join(f'{key}="{_escaped(str(label))}"' for key, label in labels.items())
        lines.append(f"{name}{{{text}}} {value:.0f}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
