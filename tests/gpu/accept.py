#!/usr/bin/env python3
"""Start planned stacks on a real GPU and measure whether they hold what the plan promises. Runs on the GPU box.

    accept.py --sites SITES --prepared PREPARED --out OUT --gpu 0 [--deadline SECONDS] STACK...

PREPARED is what prepare.py wrote: a plan per kind of GPU and stack, models without weights. For each stack: hold memory
back until the card shows what the plan's card shows; start the services one by one with the plan's own commands; load
all of them at once; restart each alone while the others are under load. OUT gets STACK.json and STACK.md, written anew
after every step, and the telling lines of each log.

Several may run at the same time, each with a --gpu of its own and the same OUT and list of stacks: each takes the next
stack that none has taken.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from card import Card, versions
from commands import differences
from engine_log import figures, telling
from program import claimed, parser, today
from running import Box, Load, NotUp, Running, all_at_once
from verdicts import checks, table

START_ALLOWANCE = 100  # a start is not begun with less than this many seconds left


class Acceptance:
    """One stack on one card."""

    def __init__(self, stack: str, about: Mapping[str, Any], plan: Mapping[str, Any], box: Box, card: Card, out: Path):
        self.plan, self.about, self.box, self.card, self.out = plan, about, box, card, out
        self.stack, self.running = stack, {}
        self.result: dict[str, Any] = {
            "stack": stack,
            "about": about["about"],
            "date": today(),
            "gpu": card.product,
            "driver": card.driver,
            "versions": versions(box.sites),
            "shown_gib": card.shown_gib,
            "shown_before_gib": round(card.free(), 3),
            "wanted_load": about["load"],
            "services": {},
        }

    def run(self, deadline: float) -> None:
        begin = time.time()
        try:
            for service in self.plan["services"]:
                self._start(service)
            self._load(begin)
            self.result["restarts"] = {}
            for service in self.plan["services"]:
                if time.time() > deadline - START_ALLOWANCE:
                    self._note("no time left for the other restarts")
                    break
                self._restart(self.running[service["name"]])
        except NotUp as problem:
            self.result["problem"] = str(problem)
            self._note(str(problem))
        finally:
            self.result["peak_with_restarts_gib"] = round(self.card.peak_used(begin), 3)
            for running in self.running.values():
                running.stop()
            self.card.settled(self.card.shown_gib - 0.02)
            self.result["free_at_the_end_gib"] = round(self.card.free(), 3)
            self._write("done")

    def _start(self, service: Mapping[str, Any]) -> None:
        name = service["name"]
        running = Running(service, self.box, self.card, self.out / "logs" / f"{self.stack}.{name}.full")
        differing = differences(service, running.command)
        words = "; ".join(f"{entry['flag']}: {entry['planned']} -> {entry['used']}" for entry in differing)
        self._note(f"{name}: start; differs from the plan in {words}")
        self.running[name] = running
        entry = self.result["services"][name] = {"engine": service["engine"], "differences": differing}
        try:
            entry["measured"] = running.start()
        finally:
            self._keep_lines(running)
        self._note(f"{name}: up, {json.dumps(entry['measured'])}")
        self._write("running")

    def _load(self, begin: float) -> None:
        self.result["load"] = all_at_once(list(self.running.values()), self.about["load"])
        time.sleep(0.5)
        self.result["peak_gib"] = round(self.card.peak_used(begin), 3)
        self.result["free_after_load_gib"] = round(self.card.free(), 3)
        for name, running in self.running.items():
            self.result["services"][name]["process_peak"] = round(self.card.process_peak(running.members(), begin), 3)
        self._note(f"loaded: {json.dumps(self.result['load'])}")
        self._write("running")

    def _restart(self, running: Running) -> None:
        name, stop = running.service["name"], self.out / f"stop.{self.stack}"
        stop.unlink(missing_ok=True)
        others = [other for other in self.running.values() if other is not running]
        began = time.time()
        loads = [Load(other, self.about["load"][other.service["name"]], stop, seed=2) for other in others]
        entry: dict[str, Any] = {}
        try:
            running.stop()
            again = Running(running.service, self.box, self.card, running.log.with_suffix(".again"))
            self.running[name] = again
            entry |= again.start()
        except NotUp as problem:
            entry["problem"] = str(problem)
        finally:
            stop.touch()
            entry["load"] = {load.name: load.result() for load in loads}
            entry["peak_gib"] = round(self.card.peak_used(began), 3)
            self.result["restarts"][name] = entry
        self._note(f"{name}: restarted alone, {json.dumps(entry)}")
        self._write("running")

    def _keep_lines(self, running: Running) -> None:
        service = running.service
        command = " ".join(running.command).replace(f"{self.box.prepared}/models/", "MODELS/")
        kept = [command, *telling(service["engine"], running.lines())]
        if not figures(service["engine"], running.lines()).get("tokens"):
            kept += running.lines()[-40:]
        (self.out / f"{self.stack}.{service['name']}.log").write_text("\n".join(kept) + "\n")

    def _write(self, state: str) -> None:
        found = checks(self.plan, self.result, self.about.get("least_use"))
        held = all(check["ok"] for check in found) and "problem" not in self.result
        self.result |= {"state": state, "checks": found, "verdict": "holds" if held else "does not hold"}
        told = json.dumps(self.result, indent=1).replace(f"{self.box.prepared}/models/", "MODELS/")
        (self.out / f"{self.stack}.json").write_text(told + "\n")
        (self.out / f"{self.stack}.plan.json").write_text(json.dumps(self.plan, indent=1) + "\n")
        (self.out / f"{self.stack}.md").write_text(table(self.result, self.plan))

    def _note(self, words: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} GPU {self.card.gpu} {self.stack}: {words}", flush=True)


def main() -> int:
    words = parser()
    words.add_argument("stacks", nargs="+")
    options = words.parse_args()
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    box = Box(options.sites, options.prepared, 31000 + 1000 * options.gpu)
    about = json.loads((options.prepared / "stacks.json").read_text())
    held = True
    with Card(options.gpu, about["shown_gib"], options.out) as card:
        for stack in options.stacks:
            if time.time() > options.deadline - 3 * START_ALLOWANCE or not claimed(options.out, stack):
                continue
            plan = json.loads((options.prepared / "plans" / card.product / f"{stack}.json").read_text())
            acceptance = Acceptance(stack, about["stacks"][stack], plan, box, card, options.out)
            acceptance.run(options.deadline)
            held = held and acceptance.result["verdict"] == "holds"
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
