#!/usr/bin/env python3
"""Tuned flags against the field notes' flags: the same model, the same requests, in one go on one machine.

    compare.py --sites SITES --prepared PREPARED --out OUT [--gpus 0,1]

Each variant of PREPARED/stacks.json is planned and started alone on a card that shows the plan's memory. With several
GPUs the variants start at the same time on cards of their own; they are loaded one after another all the same, in turn,
and the median of the rounds counts. OUT gets comparison.json.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from card import Card, versions
from commands import differences
from program import today
from running import Box, Load, Running

ROUNDS = 3
FIGURES = ("tokens_per_s", "first_token_ms", "first_token_p99_ms", "between_tokens_ms")


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median of each figure; requests and failures are added up."""
    result = {figure: statistics.median(one[figure] for one in rounds) for figure in FIGURES}
    return result | {key: sum(one[key] for one in rounds) for key in ("requests", "failed")}


def sized(wanted: Mapping[str, Any], running: Running) -> dict[str, Any]:
    """A load with `highest` as the number of requests that the service takes at once."""
    highest = running.service["max_concurrency"]
    return {key: highest if value == "highest" else value for key, value in wanted.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sites", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpus", default="0")
    options = parser.parse_args()
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    about = json.loads((options.prepared / "stacks.json").read_text())
    comparison, gpus = about["comparison"], [int(gpu) for gpu in options.gpus.split(",")]
    result: dict[str, Any] = {**comparison, "date": today()}
    result |= {"shown_gib": about["shown_gib"], "rounds": ROUNDS, "measured": {}}
    names = list(comparison["variants"])
    together = [names] if len(gpus) >= len(names) else [[name] for name in names]
    for group in together:
        with contextlib.ExitStack() as stack:
            running: dict[str, Running] = {}
            for name, gpu in zip(group, gpus, strict=False):
                card = stack.enter_context(Card(gpu, about["shown_gib"], options.out))
                box = Box(options.sites, options.prepared, 41000 + 1000 * gpu)
                plan = json.loads((options.prepared / "plans" / card.product / f"{name}.json").read_text())
                service = plan["services"][0]
                running[name] = Running(service, box, card, options.out / "logs" / f"{name}.full")
                stack.callback(running[name].stop)
                result |= {"gpu": card.product, "driver": card.driver, "versions": versions(box.sites)}
                result["measured"][name] = {
                    "command": running[name].command,
                    "differences": differences(service, running[name].command),
                    "rounds": {label: [] for label in comparison["loads"]},
                }
            with concurrent.futures.ThreadPoolExecutor() as pool:
                starts = {name: pool.submit(one.start) for name, one in running.items()}
            for name, start in starts.items():
                result["measured"][name]["start"] = start.result()
                print(time.strftime("%H:%M:%S"), name, json.dumps(start.result()), flush=True)
            for name in group:  # kernels are compiled by their first use, graphs or not
                for wanted in comparison["loads"].values():
                    Load(running[name], {**sized(wanted, running[name]), "output": 8}, seed=9).result()
            for number in range(ROUNDS):
                for name in group:
                    for label, wanted in comparison["loads"].items():
                        one = Load(running[name], sized(wanted, running[name]), seed=10 + number).result()
                        result["measured"][name]["rounds"][label].append(one)
                        print(time.strftime("%H:%M:%S"), name, label, json.dumps(one), flush=True)
        for name in group:
            measured = result["measured"][name]
            measured["medians"] = {label: medians(rounds) for label, rounds in measured["rounds"].items()}
        told = json.dumps(result, indent=1).replace(f"{options.prepared}/models/", "MODELS/")
        (options.out / "comparison.json").write_text(told + "\n")


if __name__ == "__main__":
    main()
