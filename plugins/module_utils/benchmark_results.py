"""What a benchmark found, kept for the next one: the record, what differs from the last record, the table, the drawing.

A record is `results/<host>/<UTC time>.json`. Pure functions; they run on the control node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .plan_report import BAR_HEIGHT, BAR_TOP, LONGEST_ROW_NAME, ROW_PITCH
from .stack_steps import changed_arguments

SCHEMA = 1
# title, figure, decimals
COLUMNS = (
    ("tokens/s", "tokens_per_s", 1),
    ("first token, ms", "first_token_ms", 1),
    ("first token p99, ms", "first_token_p99_ms", 1),
    ("between tokens, ms", "between_tokens_ms", 2),
)


def record(
    host: str,
    date: str,
    facts: Mapping[str, Any],
    plan: Mapping[str, Any],
    generator: Mapping[str, Any],
    runs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """`runs`: {service, load, together, seeds, rounds, medians} of each load; `problem` where it failed."""
    return {
        "schema": SCHEMA,
        "host": host,
        "date": date,
        "gpus": [gpu["name"] for gpu in facts["gpus"]],
        "driver": ((facts.get("driver") or {}).get("loaded") or {}).get("version", ""),
        "generator": {key: generator[key] for key in ("name", "version", "image")},
        "services": [
            {
                **{key: service[key] for key in ("name", "engine", "engine_version", "image", "model", "gpus")},
                "command": list(service["command"]),
                "runs": [
                    {key: value for key, value in run.items() if key != "service"}
                    for run in runs
                    if run["service"] == service["name"]
                ],
            }
            for service in plan["services"]
        ],
    }


def unlike(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[str]:
    """Why the two cannot be compared as like with like, a sentence each."""
    if before is None:
        return []
    reasons = []
    if now["gpus"] != before["gpus"]:
        reasons.append(f"GPUs: {', '.join(before['gpus'])} then, {', '.join(now['gpus'])} now")
    if now["driver"] != before["driver"]:
        reasons.append(f"driver: {before['driver']} then, {now['driver']} now")
    if _generator(now) != _generator(before):
        reasons.append(f"load generator: {_generator(before)} then, {_generator(now)} now")
    known = {service["name"]: service for service in before["services"]}
    for service in now["services"]:
        last = known.pop(service["name"], None)
        if last is not None:
            reasons += [f"{service['name']}: {difference}" for difference in _differences(service, last)]
        else:
            reasons.append(f"{service['name']}: it was not there then")
    return reasons + [f"{name}: it is not there any more" for name in known]


def _generator(one: Mapping[str, Any]) -> str:
    return f"{one['generator']['name']} {one['generator']['version']}"


def _differences(service: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    found = []
    for key, title in (("image", "image"), ("model", "model"), ("gpus", "GPUs")):
        if service[key] != last[key]:
            found.append(f"{title} {last[key]} then, {service[key]} now")
    if service["command"] != last["command"]:
        found.append(f"flags: {', '.join(changed_arguments(last['command'], service['command']))}")
    loads = {_place(run): run["load"] for run in last["runs"]}
    for run in service["runs"]:
        if loads.get(_place(run), run["load"]) != run["load"]:
            found.append(f"the load at {run['load']['concurrency']} at once has other sizes")
    return found


def _place(run: Mapping[str, Any]) -> tuple[int, bool]:
    return run["load"]["concurrency"], bool(run.get("together"))


def rows(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row for each load: {service, load, figures, before, problem}; `before`: the figures of the last record.

    A load is "16 at once", or "16 together" where all services were measured at the same time.
    """
    known = {
        (service["name"], *_place(run)): run.get("medians")
        for service in (before or {"services": []})["services"]
        for run in service["runs"]
    }
    return [
        {
            "service": service["name"],
            "load": f"{run['load']['concurrency']} {'together' if run.get('together') else 'at once'}",
            "figures": run.get("medians"),
            "before": known.get((service["name"], *_place(run))),
            "problem": run.get("problem", ""),
        }
        for service in now["services"]
        for run in service["runs"]
    ]


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [cell(row, figure, decimals) for _, figure, decimals in COLUMNS]


def cell(row: Mapping[str, Any], figure: str, decimals: int) -> str:
    """The figure, and by how much it differs from the last run's."""
    value = (row["figures"] or {}).get(figure)
    if value is None:
        return "–"
    last = (row["before"] or {}).get(figure)
    text = f"{value:,.{decimals}f}"
    return f"{text} ({_change(value, last)})" if last else text


def _change(value: float, last: float) -> str:
    percent = 100 * (value / last - 1)
    return "same" if abs(percent) < 0.05 else f"{percent:+.1f} %"


def failures(row: Mapping[str, Any]) -> str:
    if row["problem"]:
        return row["problem"]
    failed = row["figures"]["failed"]
    return f"{failed} of {row['figures']['requests']} requests failed" if failed else ""


def text(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    """The table for the terminal, with what to know before comparing."""
    heads = ["service", "load", *(title for title, _, _ in COLUMNS), ""]
    lines = [[row["service"], row["load"], *_cells(row), failures(row)] for row in rows(now, before)]
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    table = [
        "  ".join(
            word.ljust(width) if column < 2 or column == len(heads) - 1 else word.rjust(width)
            for column, (word, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [heads, *lines]
    ]
    notes = [f"{now['host']}: {', '.join(now['gpus'])}, driver {now['driver']}, by {_generator(now)}, {now['date']}"]
    if before is None:
        notes.append("There is no earlier run of this host to compare with.")
    else:
        notes.append(f"In brackets the difference to {before['date']}.")
        reasons = unlike(now, before)
        notes += ["Not like with like:", *(f"  {reason}" for reason in reasons)] if reasons else []
    return "\n".join([*table, "", *notes])


def view(now: Mapping[str, Any], before: Mapping[str, Any] | None, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What report.html prints. In the drawing `width` is per cent of the fastest run, heights are pixels."""
    found = rows(now, before)
    speeds = [_speed(row[key]) for row in found for key in ("figures", "before")]
    scale = max(speeds, default=0) or 1
    planned = {service["name"]: service["command"] for service in plan["services"]}
    return {
        "about": f"{', '.join(now['gpus'])}, driver {now['driver']}, {now['date']}, by {_generator(now)}.",
        "before": before["date"] if before else "",
        "unlike": unlike(now, before),
        "outdated": [
            f"{service['name']}: {', '.join(changed_arguments(service['command'], planned[service['name']]))}"
            for service in now["services"]
            if service["name"] in planned and service["command"] != planned[service["name"]]
        ],
        "heads": [title for title, _, _ in COLUMNS],
        "lines": [
            {
                "service": row["service"],
                "load": row["load"],
                "cells": _cells(row),
                "failures": failures(row),
            }
            for row in found
        ],
        "bars": [_bar(row, scale, index * ROW_PITCH) for index, row in enumerate(found)],
        "height": len(found) * ROW_PITCH,
        "alternative": "; ".join(f"{row['service']}, {row['load']}: {_speed(row['figures']):,.1f}" for row in found),
    }


def _speed(figures: Mapping[str, Any] | None) -> float:
    return (figures or {}).get("tokens_per_s") or 0


def _bar_name(row: Mapping[str, Any]) -> str:
    room = LONGEST_ROW_NAME - len(row["load"]) - 2
    name = row["service"]
    return f"{name if len(name) <= room else name[: room - 1] + '…'}, {row['load']}"


def _bar(row: Mapping[str, Any], scale: float, top: int) -> dict[str, Any]:
    speed, last = _speed(row["figures"]), _speed(row["before"])
    return {
        "name": _bar_name(row),
        "size": f"{speed:,.1f}" if speed else "–",
        "width": round(100 * speed / scale, 3),
        "before": round(100 * last / scale, 3),
        "before_title": f"{last:,.1f} tokens/s the time before",
        "text_y": top + BAR_TOP - 7,
        "bar_y": top + BAR_TOP,
        "bar_height": BAR_HEIGHT,
        "before_y": top + BAR_TOP + BAR_HEIGHT + 2,
    }
