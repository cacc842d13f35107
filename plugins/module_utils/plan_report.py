"""report.html: what the page draws and says, worked out from the plan. The template prints it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .plan_text import shared_text

# Parts of a service's peak in the order in which it takes them: kind, label, keys of plan.json that it covers.
PARTS = (
    ("context", "CUDA context", ("context",)),
    ("weights", "Weights", ("weights",)),
    ("kv", "KV cache", ("kv",)),
    ("state", "State pool", ("state",)),
    ("workspaces", "Work buffers", ("workspaces", "tables")),
    ("graphs", "Graphs", ("graphs",)),
    ("activations", "Activations", ("compilation", "activations")),
    ("reserve", "Reserve", ("reserve",)),
)
IN_BAR_LABELS = {"weights": "weights", "kv": "KV"}
FRACTION_OF = {"sglang": "of what is free when it starts", "vllm": "of the whole card"}

# Pixels, for a drawing as wide as a phone's and a desk's page allow; text is 12 px, at most 7.2 px a character.
PHONE_WIDTH, DESK_WIDTH, CHARACTER = 320, 880, 7.2
ROW_PITCH, BAR_TOP, BAR_HEIGHT, AXIS_HEIGHT = 54, 24, 20, 24
LONGEST_ROW_NAME = 26
# Labels of round marks end here, so that the label of the end of the scale has room.
LAST_LABEL_ON_PHONE, LAST_LABEL = 0.68, 0.88


def report_view(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Plain dictionaries, lists and strings for ``templates/report.html.j2``. ``plan``: one whose verdict is ``fits``.

    In the drawings ``x`` and ``width`` are per cent of what CUDA sees of that GPU, heights are pixels.
    """
    services = sorted(plan["services"], key=lambda service: service["start_order"])
    return {
        "summary": _summary(plan),
        "facts": _facts(plan),
        "gpus": [_gpu(gpu, [entry for entry in services if gpu["index"] in entry["gpus"]]) for gpu in plan["gpus"]],
        "steps": [_step(service, plan["gpus"]) for service in services],
        "services": [_service(service) for service in services],
    }


def _size(gib: float) -> str:
    return "< 0.01" if 0 < gib < 0.005 else f"{gib:.2f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _gpu_names(indexes: Sequence[int]) -> str:
    return f"GPU{'' if len(indexes) == 1 else 's'} {', '.join(map(str, indexes))}"


def _summary(plan: Mapping[str, Any]) -> str:
    services, gpus = _count(len(plan["services"]), "service"), _count(len(plan["gpus"]), "GPU")
    return f"{services} on {gpus}, all at their peak at once."


def _facts(plan: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures under the headline."""
    total = {key: sum(gpu[key] for gpu in plan["gpus"]) for key in ("cuda_visible_gib", "planned_gib", "free_gib")}
    margin = sum(gpu["margin_gib"] for gpu in plan["gpus"])
    return [
        {"label": "GPU memory planned", "value": _size(total["planned_gib"]), "unit": "GiB"},
        {"label": "Seen by CUDA", "value": _size(total["cuda_visible_gib"]), "unit": "GiB"},
        {"label": f"Left free, {_size(margin)} of it as margin", "value": _size(total["free_gib"]), "unit": "GiB"},
        {
            "label": "Tokens of KV cache",
            "value": f"{sum(service['kv_tokens'] for service in plan['services']):,}",
            "unit": "",
        },
    ]


# ---- the memory map of one GPU -----------------------------------------------------------------------


def _gpu(gpu: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = _rows(gpu, services)
    return {
        "index": gpu["index"],
        "product": gpu["product"],
        "compute_capability": gpu["compute_capability"],
        "planned": _size(gpu["planned_gib"]),
        "visible": _size(gpu["cuda_visible_gib"]),
        "share": f"{100 * gpu['planned_gib'] / gpu['cuda_visible_gib']:.1f}",
        "rows": rows,
        "ticks": _ticks(gpu["cuda_visible_gib"]),
        "axis_y": len(rows) * ROW_PITCH,
        "height": len(rows) * ROW_PITCH + AXIS_HEIGHT,
        "alternative": _alternative(gpu, rows),
        "table": _breakdown(gpu, services),
    }


def _rows(gpu: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each holder of memory; each begins where the one above it ends."""
    holders = [(_row_name(entry), entry["memory"]["peak"], _parts(entry["memory"])) for entry in services]
    if gpu["reserved_gib"]:
        holders.insert(0, ("Held by others", gpu["reserved_gib"], [("foreign", "Held by others", gpu["reserved_gib"])]))
    spare = max(0.0, gpu["free_gib"] - gpu["margin_gib"])
    left = [("free", "Spare", spare), ("margin", "Safety margin", gpu["free_gib"] - spare)]
    holders.append(("Left free", gpu["free_gib"], [part for part in left if part[2]]))

    rows, start = [], 0.0
    for index, (name, size, parts) in enumerate(holders):
        drawn = []
        for kind, label, part_size in parts:
            drawn.append(_rectangle(kind, label, part_size, start, gpu["cuda_visible_gib"]))
            start += part_size
        top = index * ROW_PITCH
        rows.append(
            {
                "name": name,
                "size": f"{_size(size)} GiB",
                "text_y": top + BAR_TOP - 7,
                "bar_y": top + BAR_TOP,
                "bar_height": BAR_HEIGHT,
                "middle_y": top + BAR_TOP + BAR_HEIGHT // 2,
                "parts": drawn,
            }
        )
    return rows


def _row_name(service: Mapping[str, Any]) -> str:
    name = f"{service['start_order']}  {service['name']}"
    return name if len(name) <= LONGEST_ROW_NAME else name[: LONGEST_ROW_NAME - 1] + "…"


def _parts(memory: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """(kind, label, GiB) of the parts that take any memory."""
    sizes = [(kind, label, sum(memory[key] for key in keys)) for kind, label, keys in PARTS]
    return [part for part in sizes if part[2] > 0]


def _rectangle(kind: str, label: str, gib: float, start: float, scale: float) -> dict[str, Any]:
    share = gib / scale
    text = f"{IN_BAR_LABELS[kind]} {_size(gib)}" if kind in IN_BAR_LABELS else ""
    return {
        "kind": kind,
        "x": round(100 * start / scale, 4),
        "width": round(100 * share, 4),
        "gib": round(gib, 3),
        "title": f"{label}: {_size(gib)} GiB",
        "text": text if len(text) * CHARACTER < share * DESK_WIDTH else "",
        "text_on_phone": len(text) * CHARACTER < share * PHONE_WIDTH,
        "text_x": round(100 * (start + gib / 2) / scale, 4),
    }


def _ticks(scale: float) -> list[dict[str, Any]]:
    """At most eight round marks and the end of the scale."""
    step = next(step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 10**6) if scale / step <= 8)
    marks = [mark for mark in range(0, int(scale) + 1, step) if mark < scale]
    ticks = [
        {
            "x": round(100 * mark / scale, 4),
            "label": str(mark) if mark <= LAST_LABEL * scale else "",
            "on_phone": mark <= LAST_LABEL_ON_PHONE * scale,
            "anchor": "middle" if mark else "start",
        }
        for mark in marks
    ]
    return [*ticks, {"x": 100, "label": f"{_size(scale)} GiB", "on_phone": True, "anchor": "end"}]


def _alternative(gpu: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> str:
    held = "; ".join(f"{' '.join(row['name'].split())} {row['size']}" for row in rows)
    return (
        f"Memory map of GPU {gpu['index']}, {_size(gpu['cuda_visible_gib'])} GiB: {held}. "
        "The table below gives every part."
    )


def _breakdown(gpu: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The legend of the map and its figures: one row for each kind of memory, one column for each service."""
    lines = []
    for kind, label, keys in PARTS:
        sizes = [sum(service["memory"][key] for key in keys) for service in services]
        if any(sizes):
            lines.append(_line(kind, label, sizes, sum(sizes)))
    lines.append(
        _line("", "Peak", [service["memory"]["peak"] for service in services], gpu["planned_gib"], strong=True)
    )
    blank: list[float | None] = [None] * len(services)
    if gpu["reserved_gib"]:
        lines.append(_line("foreign", "Held by others", blank, gpu["reserved_gib"]))
    if gpu["free_gib"] > gpu["margin_gib"]:
        lines.append(_line("free", "Spare", blank, gpu["free_gib"] - gpu["margin_gib"]))
    lines.append(_line("margin", "Safety margin", blank, min(gpu["margin_gib"], gpu["free_gib"])))
    lines.append(_line("", "Seen by CUDA", blank, gpu["cuda_visible_gib"], strong=True))
    return {"services": [service["name"] for service in services], "lines": lines}


def _line(kind: str, label: str, sizes: Sequence[float | None], total: float, strong: bool = False) -> dict[str, Any]:
    cells = ["" if size is None else _size(size) if size else "–" for size in sizes]
    return {"kind": kind, "label": label, "cells": cells, "total": _size(total), "strong": strong}


# ---- start order, services, commands -----------------------------------------------------------------


def _step(service: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a service sees free before it starts, as a share of its (smallest) GPU, and what it is told."""
    scale = min(gpu["cuda_visible_gib"] for gpu in gpus if gpu["index"] in service["gpus"])
    fraction = service["fraction"]
    sights = (("In this order", service["free_before_gib"]), ("Restarting alone", service["free_before_restart_gib"]))
    return {
        "order": service["start_order"],
        "name": service["name"],
        "gpus": _gpu_names(service["gpus"]),
        "when": _when(service["depends_on"]),
        "sights": [
            {"label": label, "free": f"{_size(free)} GiB", "width": round(100 * min(1, max(0, free / scale)), 4)}
            for label, free in sights
        ],
        "option": f"{fraction['flag']}={fraction['value']:g}",
        "fraction_of": FRACTION_OF[service["engine"]],
        "enough_in_order": f"{fraction['cold']:.4f}",
    }


def _when(before: Sequence[str]) -> str:
    if not before:
        return "starts at once"
    return f"starts when {' and '.join(before)} {'is' if len(before) == 1 else 'are'} healthy"


def _service(service: Mapping[str, Any]) -> dict[str, Any]:
    memory, health = service["memory"], service["healthcheck"]
    return {
        "order": service["start_order"],
        "name": service["name"],
        "engine": f"{service['engine']} {service['engine_version']}",
        "model": service["model"],
        "gpus": ", ".join(map(str, service["gpus"])),
        "port": service["port"],
        "tokens": f"{service['kv_tokens']:,}",
        "contexts": f"{service['full_contexts']:.2f}",
        "context_length": f"{service['context_length']:,}",
        "weights": _size(memory["weights"]),
        "kv": _size(memory["kv"]),
        "peak": _size(memory["peak"]),
        "per_gpu": len(service["gpus"]) > 1,
        "settings": [
            ("Image", service["image"]),
            ("Needs", f"CUDA {service['image_cuda']}, driver {service['min_driver']} or later"),
            ("Container", f"{service['container_name']}, port {service['container_port']} on {_address(service)}"),
            (
                "Limits",
                f"{service['context_length']:,} tokens a request, {service['max_concurrency']} requests at once",
            ),
            ("Profile", service["profile"]),
            ("Shared memory", service["shm_size"]),
            *([("Hosts", shared_text(service["nodes"]))] if "nodes" in service else []),
            ("Health check", health["url"]),
            ("Time to start", f"up to {health['start_period_s'] // 60} minutes"),
        ],
        "environment": [f"{name}={value}" for name, value in service["environment"].items()],
        "command": _shell_lines(service["entrypoint"], service["command"]),
        "original_command": _shell_lines(service.get("original_command", ()), ()),
    }


def _address(service: Mapping[str, Any]) -> str:
    return f"{service['bind_address']}:{service['port']}"


def _shell_lines(entrypoint: Sequence[str], command: Sequence[str]) -> str:
    """The command as a shell takes it, one argument per line."""
    return " \\\n  ".join([shlex.join(entrypoint), *(shlex.quote(argument) for argument in command)])
