"""Read what the callback action_log wrote: runs in order, and what each did on a host."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Run:
    """One ansible-playbook process. ``actions`` in the order in which they ran."""

    name: str
    playbook: str
    check: bool
    actions: list[dict[str, Any]] = field(default_factory=list)

    def on(self, host: str) -> list[dict[str, Any]]:
        return [action for action in self.actions if action["host"] == host]

    def changed(self, host: str) -> set[tuple[str | None, str, str | None]]:
        """Role, task and loop item of everything that changed ``host``."""
        return {(action["role"], action["task"], action["item"]) for action in self.on(host) if action["changed"]}

    def hosts(self) -> set[str]:
        return {action["host"] for action in self.actions}


def read_runs(path: Path, playbooks: Iterable[str] = ()) -> list[Run]:
    """Runs of the named playbooks (of all, where none is named), oldest first."""
    runs: dict[str, Run] = {}
    wanted = set(playbooks)
    for line in path.read_text(encoding="utf-8").splitlines():
        action = json.loads(line)
        if not wanted or action["playbook"] in wanted:
            run = runs.setdefault(action["run"], Run(action["run"], action["playbook"], action["check"]))
            run.actions.append(action)
    return list(runs.values())
