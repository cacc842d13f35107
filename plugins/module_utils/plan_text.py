"""plan.txt: the plan of one host on one screen, in aligned columns. Sizes in GiB."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BAR_WIDTH = 72
COLUMNS = (
    "#",
    "service",
    "engine",
    "gpu",
    "port",
    "sees",
    "weights",
    "kv",
    "peak",
    "tokens",
    "contexts",
    "told",
)
LEFT_ALIGNED = {"service", "engine", "contexts", "told"}


def plan_text(plan: Mapping[str, Any]) -> str:
    """The whole text, ending in a newline."""
    if plan["verdict"] != "fits":
        return "\n".join([f"{plan['host']}: {_verdict(plan)}", "", *_error_lines(plan["errors"])]) + "\n"
    lines = [headline(plan), ""]
    for gpu in plan["gpus"]:
        lines += [*_gpu_lines(gpu, plan["services"]), ""]
    lines += [*_table(plan["services"]), ""]
    lines += _notes(plan)
    return "\n".join(line.rstrip() for line in lines) + "\n"


def headline(plan: Mapping[str, Any]) -> str:
    """One line per host: name, verdict, what it holds."""
    if plan["verdict"] != "fits":
        more = f" (+{len(plan['errors']) - 1} more)" if len(plan["errors"]) > 1 else ""
        return f"{plan['host']}: {_verdict(plan)}: {plan['errors'][0]['problem']}{more}"
    use = ", ".join(f"{gpu['planned_gib']:.2f} of {gpu['cuda_visible_gib']:.2f} GiB" for gpu in plan["gpus"])
    count = len(plan["services"])
    warnings = f", {len(plan['warnings'])} warnings" if plan["warnings"] else ""
    return f"{plan['host']}: fits: {count} service{'s' if count != 1 else ''}, {use}{warnings}"


def _verdict(plan: Mapping[str, Any]) -> str:
    return plan["verdict"].replace("_", " ")


def _gpu_lines(gpu: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> list[str]:
    here = [service for service in services if gpu["index"] in service["gpus"]]
    title = (
        f"GPU {gpu['index']}  {gpu['product']} ({gpu['compute_capability']})  {gpu['cuda_visible_gib']:.2f} visible"
        f"  {gpu['planned_gib']:.2f} planned  {gpu['free_gib']:.2f} free ({gpu['margin_gib']:.2f} of it kept as margin)"
    )
    if gpu["reserved_gib"]:
        title += f"  {gpu['reserved_gib']:.2f} held by others"
    return [title, f"[{_bar(gpu, here)}]"]


def _bar(gpu: Mapping[str, Any], services: Sequence[Mapping[str, Any]]) -> str:
    """Each service's place in the start order, to scale; ``x`` held by others, ``.`` free."""
    bar, end = "", 0.0
    parts = [("x", gpu["reserved_gib"])] + [
        (str(service["start_order"])[-1], service["memory"]["peak"]) for service in services
    ]
    for letter, size in parts:
        end += size
        bar += letter * (round(end / gpu["cuda_visible_gib"] * BAR_WIDTH) - len(bar))
    return bar.ljust(BAR_WIDTH, ".")


def _table(services: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [COLUMNS] + [_row(service) for service in services]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return [
        "  ".join(
            cell.ljust(width) if name in LEFT_ALIGNED else cell.rjust(width)
            for cell, width, name in zip(row, widths, COLUMNS, strict=True)
        )
        for row in rows
    ]


def _row(service: Mapping[str, Any]) -> tuple[str, ...]:
    memory, fraction = service["memory"], service["fraction"]
    told = "" if fraction["value"] is None else f"{fraction['flag'].lstrip('-')} {fraction['value']:g}"
    return (
        str(service["start_order"]),
        service["name"],
        f"{service['engine']} {service['engine_version']}",
        ",".join(map(str, service["gpus"])),
        str(service["port"]),
        f"{service['free_before_gib']:.2f}",
        f"{memory['weights']:.2f}",
        f"{memory['kv']:.2f}",
        f"{memory['peak']:.2f}",
        f"{service['kv_tokens']:,}",
        f"{service['full_contexts']:g} x {service['context_length']}",
        told,
    )


def _notes(plan: Mapping[str, Any]) -> list[str]:
    lines = [
        "Sizes in GiB per GPU. 'sees': free when it starts, in this order; 'peak': under full load, context, graphs",
        "and activations included. Start one service at a time: a stack that starts at once measures wrong sizes.",
    ]
    lines += [
        f"{service['name']}: {shared_text(service['nodes'])}" for service in plan["services"] if "nodes" in service
    ]
    for warning in plan["warnings"]:
        lines.append(f"warning: {warning}")
    return lines


def shared_text(nodes: Mapping[str, Any]) -> str:
    """Which part of a service on several hosts this one is."""
    hosts = nodes["hosts"]
    return f"rank {nodes['rank']} of {', '.join(hosts)}, which meet at {nodes['rendezvous']}; {hosts[0]} serves"


def _error_lines(errors: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for error in errors:
        lines.append(f"- {error['problem']}")
        lines += [f"    would help: {remedy}" for remedy in error["remedies"]]
    return lines
