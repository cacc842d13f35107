"""Which other options of an engine are worth trying for a service, and which of them to keep, from what was measured.

Pure functions, for the control node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .catalog_view import Catalog
from .memory_plan import plan_host
from .plan_error import PlanError
from .tuned_services import flags_of, spelled

# The figure that decides, and the one that must not suffer.
DECIDES, GUARDS = "tokens_per_s", "first_token_p99_ms"


def candidates(
    host: str, declaration: Mapping[str, Any], catalog: Catalog, tuning: Mapping[str, Any], service: str
) -> list[dict[str, Any]]:
    """What to try for a service: {name, tuned, plan, skipped}, in the order of the catalogue.

    `declaration` is that of plan_host, and `tuned` what its key of that name would become. `skipped` says why one is
    not tried; only the others have a plan. `tuning` is catalog/tuning.yml.
    """
    declared = next(item for item in declaration["services"] if item["name"] == service)
    flags = flags_of(declared, catalog)
    engine, version = flags.version.split(" ", 1)
    now = plan_host(host, declaration, catalog)
    known = (declaration.get("tuned") or {}).get(service) or {}
    tuned = dict(known.get("extra_args") or {}) if known.get("engine_version") == version else {}
    found = []
    for candidate in tuning["engines"][engine]["candidates"]:
        entry: dict[str, Any] = {"name": candidate["name"], "tuned": {}, "plan": None, "skipped": ""}
        found.append(entry)
        try:
            changes = _changes(candidate, flags, declared, _majors(now, service))
        except PlanError as reason:
            entry["skipped"] = reason.problem
            continue
        kept = {flag: value for flag, value in tuned.items() if flags.canonical(spelled(flag)) not in changes}
        extra_args = {name.lstrip("-"): value for name, value in {**kept, **changes}.items()}
        entry["tuned"] = {
            **(declaration.get("tuned") or {}),
            service: {"engine": engine, "engine_version": version, "extra_args": extra_args},
        }
        plan = plan_host(host, {**declaration, "tuned": entry["tuned"]}, catalog)
        if plan["verdict"] != "fits":
            entry["skipped"] = plan["errors"][0]["problem"]
        elif _command(plan, service) == _command(now, service):
            entry["skipped"] = "it is so already"
        elif any(_command(plan, service) == _command(other["plan"], service) for other in found if other["plan"]):
            entry["skipped"] = "it is the same as one above"
        else:
            entry["plan"] = plan
    return found


def _changes(candidate: Mapping[str, Any], flags: Any, declared: Mapping[str, Any], majors: set[str]) -> dict[str, Any]:
    """The candidate's options by canonical flag. Raises PlanError with the reason where it cannot be tried."""
    if not majors <= set(candidate.get("majors", majors)):
        raise PlanError(f"it is not for GPUs of compute capability {', '.join(sorted(majors))}.x")
    own = {flags.canonical(spelled(flag)) for flag in declared.get("extra_args") or {}}
    changes = {}
    for role, value in candidate["set"].items():
        name = flags.name_for(role)
        if name is None:
            raise PlanError(f"{flags.version} has no option for it")
        if name in own:
            raise PlanError(f"the service's own extra_args decide {name}")
        changes[name] = flags.checked(name, value)[1]
    return changes


def _majors(plan: Mapping[str, Any], service: str) -> set[str]:
    indexes = next((entry["gpus"] for entry in plan["services"] if entry["name"] == service), [])
    return {gpu["compute_capability"].split(".")[0] for gpu in plan["gpus"] if gpu["index"] in indexes}


def _command(plan: Mapping[str, Any], service: str) -> Any:
    return next((entry["command"] for entry in plan["services"] if entry["name"] == service), None)


def decide(
    now: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], margin: float, first_token_margin: float
) -> dict[str, Any]:
    """{winner, verdicts}: the trial to keep, or None, and a sentence on each.

    `now` and `medians` of a trial are figures as load_generator.medians gives them, at the highest concurrency. A trial
    without them has a `problem`. It wins if its tokens/s are more by `margin` (0.03: 3 %) at least, no request failed,
    and the p99 of its time to first token is not longer by more than `first_token_margin`; of several, the fastest.
    """
    verdicts, winner = [], None
    for trial in trials:
        wins, text = _verdict(now, trial, margin, first_token_margin)
        verdicts.append({"name": trial["name"], "wins": wins, "text": text})
        if wins and (winner is None or trial["medians"][DECIDES] > winner["medians"][DECIDES]):
            winner = trial
    return {"winner": winner["name"] if winner else None, "verdicts": verdicts}


def _verdict(
    now: Mapping[str, Any], trial: Mapping[str, Any], margin: float, first_token_margin: float
) -> tuple[bool, str]:
    medians = trial.get("medians")
    if not medians:
        return False, f"failed: {trial.get('problem') or 'it was not measured'}"
    if medians["failed"]:
        return False, f"failed: {medians['failed']} of {medians['requests']} requests had no answer"
    gain = medians[DECIDES] / now[DECIDES] - 1
    text = f"{medians[DECIDES]:,.1f} tokens/s, {100 * gain:+.1f} %"
    if gain < margin:
        return False, f"{text}: less than the {100 * margin:g} % that it takes"
    later = medians[GUARDS] / now[GUARDS] - 1 if now[GUARDS] else 0.0
    if later > first_token_margin:
        return False, f"{text}, but its first token (p99) comes {100 * later:.0f} % later"
    return True, text
