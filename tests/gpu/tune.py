#!/usr/bin/env python3
"""Try what `playbooks/benchmark.yml --tags tune` would try for a service, and decide by its rule. Runs on the GPU box.

    tune.py --sites SITES --prepared PREPARED --out OUT --gpu 0 [--deadline SECONDS]

PREPARED holds the plan of every trial (prepare.py). Each is started alone and loaded; one that does not come up is
recorded with what the catalogue of failures says of its log. OUT gets tune.json, written anew after each trial. Several
may run at the same time, each with a --gpu of its own and the same OUT.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from card import Card
from commands import differences
from compare import medians
from program import claimed, conditions_of, parser, shared_result, without_paths
from running import Box, Load, NotUp, Running, diagnosis

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / ".collections"))
from ansible_collections.blackwell.serving.plugins.module_utils import tuning

START_ALLOWANCE = 75  # no trial begins with less than this many seconds left


def attempt(plan: Mapping[str, Any], tune: Mapping[str, Any], box: Box, card: Card, log: Path) -> dict[str, Any]:
    """One trial: {command, differences, rounds, medians}, or {problem, diagnosis}."""
    service = plan["services"][0]
    running = Running(service, box, card, log)
    found: dict[str, Any] = {"command": " ".join(running.command)}
    found["differences"] = differences(service, running.command)
    try:
        card.settled(card.shown_gib - 0.02)
        found["start"] = running.start()
        Load(running, {**tune["load"], "output": 8}, seed=9).result()  # kernels are compiled by their first use
        found["rounds"] = [Load(running, tune["load"], seed=10 + number).result() for number in range(tune["rounds"])]
        if any(one["failed"] == one["requests"] for one in found["rounds"]):
            raise NotUp("it came up and answered no request under load")
        found["medians"] = medians(found["rounds"])
    except NotUp as problem:
        said = diagnosis.diagnose(running.lines(), box.signatures, service["engine"])
        found |= {"problem": said[0]["cause"] if said else str(problem), "diagnosis": said[:3]}
        found["log"] = running.lines()[-30:]
    finally:
        running.stop()
    return found


def add(result: dict[str, Any], name: str, found: Mapping[str, Any]) -> None:
    """Add what came of one trial, and decide anew."""
    result["trials"] = [{**one, **found} if one["name"] == name else one for one in result["trials"]]
    now, *others = result["trials"]
    tried = [one for one in others if "command" in one]
    if now.get("medians"):
        result["decision"] = tuning.decide(now["medians"], tried, result["margin"], result["first_token_margin"])


def main() -> None:
    options = parser().parse_args()
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    box = Box(options.sites, options.prepared, 33000 + 1000 * options.gpu)
    declared = json.loads((options.prepared / "stacks.json").read_text())
    tune = declared["tune"]
    with Card(options.gpu, declared["shown_gib"], options.out) as card:
        trials = json.loads((options.prepared / "plans" / card.product / "tune.json").read_text())
        plans = {trial["name"]: trial.pop("plan") for trial in trials}
        begin = {key: tune[key] for key in ("about", "margin", "first_token_margin", "rounds", "load")}
        begin |= {**conditions_of(card, box.sites), "trials": trials}
        for name, plan in plans.items():
            if plan is None or time.time() > options.deadline - START_ALLOWANCE:
                continue
            if not claimed(options.out, f"tune.{name.replace(' ', '_')}"):
                continue
            log = options.out / "logs" / f"tune.{name.replace(' ', '_')}.full"
            found = attempt(plan, tune, box, card, log)
            told = without_paths(found, options.prepared)
            with shared_result(options.out / "tune.json", begin) as result:
                add(result, name, told)
            shown = told.get("medians") or told.get("problem")
            print(time.strftime("%H:%M:%S"), f"GPU {options.gpu}", name, json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
