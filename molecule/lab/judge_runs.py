#!/usr/bin/env python3
"""Judge what three runs of the converge playbook did on a host: judge_runs.py ACTION_LOG HOST [MOST_ACTIONS].

The run with --check must predict exactly the changes that the first real run made; the last run must change nothing,
with at most so many actions on the host (18 for provisioning, which is a part of site.yml). Exit status 1, with the
differences, where that is not so.
"""

import sys
from pathlib import Path

from action_log import read_runs

MOST_ACTIONS = 18


def problems(log: Path, host: str, most_actions: int = MOST_ACTIONS) -> list[str]:
    runs = [run for run in read_runs(log, ["provision.yml", "converge.yml"]) if run.on(host)]
    checks, real = [run for run in runs if run.check], [run for run in runs if not run.check]
    if not checks or len(real) < 2:
        return [f"{host}: no run with --check, or fewer than two without, in {log}"]
    predicted, made, last = checks[0].changed(host), real[0].changed(host), real[-1]
    found = [f"changed, but --check did not say so: {change}" for change in sorted(made - predicted, key=str)]
    found += [f"--check said so, but it did not change: {change}" for change in sorted(predicted - made, key=str)]
    found += [f"the last run changed: {change}" for change in sorted(last.changed(host), key=str)]
    if len(last.on(host)) > most_actions:
        found.append(f"the last run took {len(last.on(host))} actions, more than {most_actions}")
    print(f"{host}: {len(predicted)} changes predicted, {len(made)} made, {len(last.on(host))} actions in the last run")
    return found


if __name__ == "__main__":
    if found := problems(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])):
        sys.exit("\n".join(found))
