"""Planned against measured: what a stack that was planned first and then started has to hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FREE_SHARE = 0.02
SIZE_SHARE, SIZE_GIB = 0.03, 0.1
SHOWN_GIB = 0.05


def checks(plan: Mapping[str, Any], result: Mapping[str, Any], least_use: float | None = None) -> list[dict[str, Any]]:
    """One entry per promise: {check, service, planned, measured, ok}. What was not measured is no entry, but for a
    service that never came up."""
    found = [_check("the card shows", None, result["shown_gib"], result["shown_before_gib"], _near(SHOWN_GIB))]
    for service in plan["services"]:
        entry = result["services"].get(service["name"], {})
        found += _service_checks(service, entry)
    if "load" in result:
        found += [_no_failures(name, load, "requests failed under load") for name, load in result["load"].items()]
    planned = plan["gpus"][0]["planned_gib"]
    if "peak_gib" in result:
        found.append(_check("peak of all, GiB, at most", None, planned, result["peak_gib"], _at_most))
        least = round(max((1 - SIZE_SHARE) * planned, (least_use or 0) * result["shown_gib"]), 3)
        found.append(_check("peak of all, GiB, at least", None, least, result["peak_gib"], _at_least))
    if "peak_with_restarts_gib" in result:
        peak = result["peak_with_restarts_gib"]
        found.append(_check("peak of all, restarts included, GiB, at most", None, planned, peak, _at_most))
    for name, again in result.get("restarts", {}).items():
        wanted = next(service["kv_tokens"] for service in plan["services"] if service["name"] == name)
        found.append(
            _check("tokens after it restarted alone, under load", name, wanted, again.get("tokens", 0), _at_least)
        )
        found += [
            _no_failures(other, load, f"requests failed while {name} restarted")
            for other, load in again.get("load", {}).items()
        ]
    return found


def _service_checks(service: Mapping[str, Any], entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    name, memory = service["name"], service["memory"]
    measured = entry.get("measured", {})
    tokens = measured.get("tokens", 0)
    found = [_check("tokens", name, service["kv_tokens"], tokens, _at_least)]
    if "device_free_before" in measured:
        planned = round(service["free_before_gib"] + memory["context"], 3)
        allowed = _near(FREE_SHARE * planned)
        found.append(_check("free before it starts, GiB", name, planned, measured["device_free_before"], allowed))
    if "weights" in measured:
        allowed = _near(max(SIZE_SHARE * memory["weights"], SIZE_GIB))
        found.append(_check("weights, GiB", name, memory["weights"], measured["weights"], allowed))
    for alarm in measured.get("false_alarms", []):
        found.append(_check("a line that the catalogue calls fatal, of a service that came up", name, None, alarm, _no))
    for option in entry.get("differences", []):
        if not option["allowed"]:
            found.append(_check(f"command differs in {option['flag']}", name, option["planned"], option["used"], _no))
    return found


def _check(what: str, service: str | None, planned: Any, measured: Any, holds) -> dict[str, Any]:
    return {"check": what, "service": service, "planned": planned, "measured": measured, "ok": holds(planned, measured)}


def _no_failures(name: str, load: Mapping[str, Any], what: str) -> dict[str, Any]:
    sent_some = load["requests"] > 0
    return _check(f"{what}, of {load['requests']}", name, 0, load["failed"], lambda a, b: b == a and sent_some)


def _near(allowed: float):
    return lambda planned, measured: abs(measured - planned) <= allowed


def _at_least(planned: float, measured: float) -> bool:
    return measured >= planned


def _at_most(planned: float, measured: float) -> bool:
    return measured <= planned


def _no(*_: object) -> bool:
    return False


def table(result: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """The result as Markdown: one row per service, then what did not hold."""
    lines = [
        f"## {result['stack']}: {result['verdict']}",
        "",
        result["about"],
        "",
        f"{conditions(result)} {load_text(result)}",
        "",
    ]
    lines += [
        "| service | engine | free before: planned / measured | weights | KV tokens | graphs | after one request "
        "| peak | restarted alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for service in plan["services"]:
        entry = result["services"].get(service["name"], {})
        measured, memory = entry.get("measured", {}), service["memory"]
        before = _pair(service["free_before_gib"] + memory["context"], measured.get("device_free_before"))
        again = result.get("restarts", {}).get(service["name"])
        cells = [
            f"{service['name']} ({service['model'].rsplit('/', 1)[-1]})",
            service["engine"],
            before,
            _pair(memory["weights"], measured.get("weights")),
            f"{service['kv_tokens']:,} / {measured['tokens']:,}" if "tokens" in measured else "not up",
            _pair(memory["graphs"], _graphs(measured)),
            _pair(memory["resident"], measured.get("resident")),
            _pair(memory["peak"], entry.get("process_peak")),
            "not tried" if again is None else f"{again.get('tokens', 0):,} tokens",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if "peak_gib" in result:
        planned = plan["gpus"][0]["planned_gib"]
        share = result["peak_gib"] / result["shown_gib"]
        lines += ["", f"Peak of all: planned {planned:.2f}, measured {result['peak_gib']:.2f} GiB ({share:.1%})."]
    failed = [check for check in result["checks"] if not check["ok"]]
    lines += ["", *(f"- does not hold: {_words(check)}" for check in failed)]
    return "\n".join(lines).rstrip() + "\n"


def conditions(result: Mapping[str, Any]) -> str:
    """Under which the figures were taken; no figure goes without."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['gpu']}, driver {result['driver']}, {versions}, {result['date']}; dummy weights; "
        f"{result['shown_gib']} GiB shown, the rest held back."
    )


def load_text(result: Mapping[str, Any]) -> str:
    """How much was asked of the services, and how much of it failed."""
    loads = list(result.get("load", {}).values())
    again = [load for entry in result.get("restarts", {}).values() for load in entry.get("load", {}).values()]
    if not loads:
        return "No load was reached."
    longest = max(prompt for wanted in result["wanted_load"].values() for prompt in wanted["prompts"])
    text = f"{sum(load['requests'] for load in loads):,} requests to all at once, prompts of up to {longest:,} tokens"
    if again:
        text += f", and {sum(load['requests'] for load in again):,} while one restarted"
    return f"{text}; {sum(load['failed'] for load in [*loads, *again])} failed."


def _graphs(measured: Mapping[str, Any]) -> float | None:
    sizes = [measured[name] for name in ("decode_graphs", "prefill_graphs") if name in measured]
    return sum(sizes) if sizes else None


def _pair(planned: float, measured: float | None) -> str:
    return f"{planned:.2f} / " + ("-" if measured is None else f"{measured:.2f}")


def _words(check: Mapping[str, Any]) -> str:
    service = f"{check['service']}: " if check["service"] else ""
    return f"{service}{check['check']}: planned {check['planned']}, measured {check['measured']}"
