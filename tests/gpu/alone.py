#!/usr/bin/env python3
"""Start planned services one at a time, each alone on a card, and measure what each part takes. Runs on the GPU box.

    alone.py --sites SITES --prepared PREPARED --out OUT --gpu 0 [--deadline SECONDS]

The variants of stacks.yml (`alone`) differ in one thing each: attention backend, largest graph, prefill graphs, chunk,
requests, allocator. OUT gets alone.json, written anew after each variant, with when and on which card it was measured.
What it has already is not measured again. catalog/overheads.yml takes its constants from it. Several may run at the
same time, each with a --gpu of its own and the same OUT.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from card import Card
from commands import differences
from parts import parts
from program import claimed, conditions_of, parser, shared_result, without_paths
from running import Box, Load, NotUp, Running

START_ALLOWANCE = 90  # no variant begins with less than this many seconds left


def measure(
    name: str, plan: Mapping[str, Any], load: Mapping[str, Any], box: Box, card: Card, out: Path
) -> dict[str, Any]:
    """One variant: its start, one request, then a load; and what the plan says of each part."""
    service = plan["services"][0]
    running = Running(service, box, card, out / "logs" / f"alone.{name}.full")
    found: dict[str, Any] = {"engine": service["engine"], "differences": differences(service, running.command)}
    found["command"] = " ".join(running.command)
    try:
        card.settled(card.shown_gib - 0.02)
        begin = time.time()
        found["start"] = running.start()
        found["load"] = Load(running, load).result()
        time.sleep(0.5)
        found["process_peak"] = round(card.process_peak(running.members(), begin), 3)
    except NotUp as problem:
        found |= {"problem": str(problem), "log": running.lines()[-40:]}
    finally:
        running.stop()
    if "process_peak" in found:
        found["parts"] = parts(service, found)
    return found


def main() -> None:
    options = parser().parse_args()
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    box = Box(options.sites, options.prepared, 51000 + 1000 * options.gpu)
    declared = json.loads((options.prepared / "stacks.json").read_text())
    with Card(options.gpu, declared["shown_gib"], options.out) as card:
        about = conditions_of(card, box.sites)
        recorded = options.out / "alone.json"
        known = json.loads(recorded.read_text())["variants"] if recorded.exists() else {}
        for name, variant in declared["alone"].items():
            if name in known:
                continue
            if time.time() > options.deadline - START_ALLOWANCE or not claimed(options.out, f"alone.{name}"):
                continue
            plan = json.loads((options.prepared / "plans" / card.product / f"alone_{name}.json").read_text())
            found = measure(name, plan, variant["load"], box, card, options.out)
            told = without_paths({**about, **found}, options.prepared)
            with shared_result(recorded, {"variants": {}}) as result:
                result["variants"][name] = told
            print(
                time.strftime("%H:%M:%S"), f"GPU {options.gpu}", name, json.dumps(told.get("parts", told)), flush=True
            )


if __name__ == "__main__":
    main()
