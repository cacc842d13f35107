#!/usr/bin/env python3
"""Compare a plan with the simulated engines' ledger after load: compare_ledger.py PLAN_JSON LEDGER_JSON.

The simulator has sizes of its own, from measurements, and takes none of the planner's constants. Exit status 1, with
the differences, where a service holds more than SERVICE_GIB above or below its planned peak, or all together more than
TOTAL_GIB above or below what was planned for the GPU.
"""

import json
import sys
from pathlib import Path

GIB = 2**30
SERVICE_GIB, TOTAL_GIB = 0.15, 0.12


def compared(plan: dict, holders: list[dict[str, int]]) -> list[tuple[str, float, float]]:
    """(service, planned peak, held) in GiB; processes are told apart by the size of their weights."""
    services = sorted(plan["services"], key=lambda service: service["memory"]["weights"])
    sizes = sorted(holders, key=lambda parts: parts["weights"])
    if len(services) != len(sizes):
        raise SystemExit(f"{len(services)} services are planned, {len(sizes)} processes hold memory")
    return [
        (service["name"], service["memory"]["peak"], sum(parts.values()) / GIB)
        for service, parts in zip(services, sizes, strict=True)
    ]


def problems(rows: list[tuple[str, float, float]]) -> list[str]:
    found = [
        f"{name} holds {held:.2f} GiB, planned were {planned:.2f}"
        for name, planned, held in rows
        if abs(held - planned) > SERVICE_GIB
    ]
    planned, held = (sum(row[column] for row in rows) for column in (1, 2))
    if abs(held - planned) > TOTAL_GIB:
        found.append(f"all together hold {held:.2f} GiB, planned were {planned:.2f}")
    return found


if __name__ == "__main__":
    rows = compared(json.loads(Path(sys.argv[1]).read_text()), json.loads(Path(sys.argv[2]).read_text()))
    for name, planned, held in rows:
        print(f"{name:<12} planned {planned:6.2f}  held {held:6.2f} GiB")
    if found := problems(rows):
        sys.exit("\n".join(found))
