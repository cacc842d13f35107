#!/usr/bin/env python3
"""Start planned services one at a time, each alone on a card, and measure what each part takes. Runs on the GPU box.

    alone.py --sites SITES --prepared PREPARED --out OUT --gpu 0 [--deadline SECONDS]

The variants of stacks.yml (`alone`) differ in one thing each: attention backend, largest graph, prefill graphs, chunk,
requests. OUT gets alone.json, written anew after each variant. catalog/overheads.yml takes its constants from it.
Several may run at the same time, each with a --gpu of its own and the same OUT.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accept import KEYS, claimed
from card import Card, versions
from commands import differences
from parts import parts
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


def add(out: Path, about: Mapping[str, Any], name: str, found: Mapping[str, Any]) -> None:
    """Write one variant into alone.json, which several of these programs share."""
    file = out / "alone.json"
    with (out / "alone.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = json.loads(file.read_text()) if file.exists() else {**about, "variants": {}}
        known["variants"][name] = found
        file.write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=float("inf"), help="seconds since 1970")
    options = parser.parse_args()
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    box = Box(options.sites, options.prepared, 51000 + 1000 * options.gpu)
    declared = json.loads((options.prepared / "stacks.json").read_text())
    with Card(options.gpu, declared["shown_gib"], options.out) as card:
        about = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "shown_gib": card.shown_gib}
        about |= {"gpu": card.product, "driver": card.driver, "versions": versions(box.sites)}
        for name, variant in declared["alone"].items():
            if time.time() > options.deadline - START_ALLOWANCE or not claimed(options.out, f"alone.{name}"):
                continue
            plan = json.loads((options.prepared / "plans" / KEYS[card.product] / f"alone_{name}.json").read_text())
            found = measure(name, plan, variant["load"], box, card, options.out)
            told = json.loads(json.dumps(found).replace(f"{options.prepared}/models/", "MODELS/"))
            add(options.out, about, name, told)
            print(
                time.strftime("%H:%M:%S"), f"GPU {options.gpu}", name, json.dumps(told.get("parts", told)), flush=True
            )


if __name__ == "__main__":
    main()
