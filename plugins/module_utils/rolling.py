"""Work on many hosts, batch by batch: whether the next batch may begin, and how far it came. Pure functions.

`states` says by host how far its turn came; a host whose turn has not come has none. `failure` and `serves` (the
release that serves after all) tell more of one that failed. A host that was lost on the way stays at `begun`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BEGUN, DONE, FAILED = "begun", "done", "failed"


def may_go_on(states: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether every host whose turn came is done; asked before a batch begins."""
    return all(state["turn"] == DONE for state in states.values() if state)


def report(states: Mapping[str, Mapping[str, Any]], idempotent: bool = True) -> str:
    """Which hosts are done, failed and untouched, and how to go on; empty where all are done.

    Where a second run would not leave those alone that are done (`idempotent`), only the others may run it again.
    """
    done = [host for host, state in states.items() if state and state["turn"] == DONE]
    untouched = [host for host, state in states.items() if not state]
    failed = [host for host in states if host not in {*done, *untouched}]
    if not failed:
        return ""
    lines = [f"Stopped after a batch with a failure: {len(done)} of {len(states)} hosts are done."]
    lines += [_named("done", done)] if done else []
    lines += [_of_failed(host, states[host]) for host in failed]
    lines += [_named("untouched", untouched)] if untouched else []
    if idempotent:
        lines.append(
            "Put right what failed and run the same command again: hosts that are done are left alone, and the first "
            "of the others goes first."
        )
    else:
        left = ",".join([*failed, *untouched])
        lines.append(f"Put right what failed and run the same command again, with --limit {left}")
    return "\n".join(lines)


def _named(what: str, hosts: Sequence[str]) -> str:
    return f"{what}: {', '.join(hosts)}"


def _of_failed(host: str, state: Mapping[str, Any]) -> str:
    if state["turn"] == BEGUN:
        return f"lost: {host} cannot be reached any more; what it serves is not known"
    first = (state.get("failure") or "its message is above").strip().splitlines()[0]
    return f"failed: {host}: {first}" + (f" Release {state['serves']} serves there." if state.get("serves") else "")
