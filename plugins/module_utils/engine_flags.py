"""The options of one service: a profile's choice, the service's own ``extra_args``, checked against what the
engine version really accepts (catalog/engine_flags, recorded from its published package)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plan_error import PlanError, did_you_mean

Options = dict[str, Any]
# what a profile may say instead of a value: the service or its GPU decides
DECIDED_LATER = ("by_memory", "by_architecture", "max_concurrency")


class EngineFlags:
    """Options of one engine version, as recorded (format: tests/tools/record_engine_flags.py)."""

    def __init__(self, recording: Mapping[str, Any], engine: Mapping[str, Any], version: str) -> None:
        self.recorded: Mapping[str, Any] = recording["flags"]
        self.retired: Mapping[str, Any] = recording.get("retired") or {}
        self.engine, self.version = engine, version
        self._negatives: dict[str, str] = {}
        self._by_spelling: dict[str, str] = {}
        for name, entry in self.recorded.items():
            negatives = [*filter(None, [entry.get("negative")]), *entry.get("negative_aliases", ())]
            self._negatives |= dict.fromkeys(negatives, name)
            self._by_spelling |= dict.fromkeys((name, *entry.get("aliases", ()), *negatives), name)

    def canonical(self, flag: str) -> str | None:
        return self._by_spelling.get(flag)

    def name_for(self, role: str) -> str | None:
        """The flag that serves ``role`` in this version, or None where it has none."""
        names = {**self.engine["flags"], **self.engine["tunable"]}[role]
        return next((found for found in map(self.canonical, names) if found), None)

    def checked(self, flag: str, value: Any) -> tuple[str, Any]:
        """Canonical name and value; raises PlanError (key ``extra_args``) where this version refuses it."""
        spelled = "--" + flag.lstrip("-").replace("_", "-")
        name = self.canonical(spelled)
        if name is None:
            retired = f" any more ({self.retired[spelled]})" if spelled in self.retired else ""
            raise PlanError(
                f"{self.version} has no option {spelled}{retired}",
                key="extra_args",
                value=flag,
                allowed=did_you_mean(spelled, self.recorded),
            )
        entry = self.recorded[name]
        if entry["kind"] in ("switch", "toggle"):
            if not isinstance(value, bool):
                raise PlanError(
                    f"{name} is on or off, not {value!r}", key="extra_args", value=value, allowed="true, false"
                )
            return name, not value if spelled in self._negatives else value
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if len(values) != 1 and entry["kind"] != "list" and not entry.get("repeatable"):
            raise PlanError(f"{name} takes one value, not {value!r}", key="extra_args", value=value)
        for item in values:
            _check_value(name, entry, item)
        return name, value


def _check_value(name: str, entry: Mapping[str, Any], value: Any) -> None:
    if value == "None" and entry.get("nullable"):
        return
    choices = entry.get("choices")
    allowed = ", ".join(map(str, choices)) if choices else f"a value of type {entry.get('type', 'str')}"
    expected = {"int": int, "float": float}.get(entry.get("type", "str"), str)
    try:
        if value is None or isinstance(value, bool):
            raise ValueError
        expected(value)
        if choices and str(value) not in map(str, choices):
            raise ValueError
    except (TypeError, ValueError):
        raise PlanError(f"{name} does not take {value!r}", key="extra_args", value=value, allowed=allowed) from None


def resolve_options(
    flags: EngineFlags,
    profile: str,
    extra_args: Mapping[str, Any],
    choices: Mapping[str, Any],
) -> tuple[Options, list[str]]:
    """Options that a profile and ``extra_args`` give, by canonical flag, and warnings about what was dropped.

    ``choices`` holds what the words of DECIDED_LATER stand for; an option whose word it lacks is left out.
    Raises PlanError for an option that this version does not have or that the planner owns.
    """
    engine, options, warnings = flags.engine, {}, []
    if profile == "notes":
        options, warnings = _notes_options(flags)
    for role, choice in engine["profiles"][profile].items():
        name = flags.name_for(role)
        value = choices.get(choice) if choice in DECIDED_LATER else choice
        if name and value is not None:
            options[name] = value
    owned = {flags.name_for(role): role for role in engine["flags"]}
    for flag, value in extra_args.items():
        name, value = flags.checked(flag, value)
        if name in owned:
            raise PlanError(
                f"{name} is what the planner sets", key="extra_args", value=flag, allowed=_instead(owned[name])
            )
        if name in engine["secret"]:
            raise PlanError(
                f"{name} takes a secret, which anybody could read in compose.yaml and in the list of processes",
                key="extra_args",
                value=flag,
                allowed="serving_stack_huggingface_token for downloads; a proxy in front of the service for keys",
            )
        if any(name.startswith(prefix) for prefix in engine["unsized"]):
            raise PlanError(f"{name} takes memory that the planner cannot size", key="extra_args", value=flag)
        options[name] = value
    _check_sized(flags, options)
    return options, warnings


def _check_sized(flags: EngineFlags, options: Options) -> None:
    """Options that the planner computes with must hold a number that it can compute with."""
    for role, (low, high) in flags.engine["sized"].items():
        name = flags.name_for(role)
        if name in options and not low <= _number(options[name]) <= high:
            raise PlanError(
                f"{name} does not take {options[name]!r}",
                key="extra_args",
                value=options[name],
                allowed=f"a whole number from {low} to {high}",
            )


def _number(value: Any) -> float:
    """Not a number where the engine takes more than the planner reads, such as 4k."""
    try:
        return int(value)
    except (TypeError, ValueError):
        return float("nan")


def _instead(role: str) -> str:
    keys = {
        "context": "context_length",
        "concurrency": "max_concurrency",
        "tokens": "kv_tokens or pinned.max_total_tokens",
        "fraction": "pinned",
        "kv_bytes": "pinned.kv_cache_memory_bytes",
        "kv_dtype": "kv_cache_dtype",
        "state_slots": "max_concurrency",
        "host": "nothing: engines listen inside their container",
        "port": "container_port",
        "served_name": "model",
        "node_rank": "nodes",
        "rendezvous": "nodes_port",
    }
    return f"the service's key {keys.get(role, role)}"


def _notes_options(flags: EngineFlags) -> tuple[Options, list[str]]:
    """The field notes' options, less those that this version no longer has, each with a warning."""
    kept, warnings = {}, []
    for flag, value in flags.engine["notes_flags"].items():
        name = flags.canonical(flag)
        if name is None:
            warnings.append(f"{flag}: {flags.version} has no such option; the notes' option is dropped")
            continue
        kept[name] = value
        if flags.recorded[name].get("deprecated"):
            warnings.append(f"{flag}: {flags.version} calls it deprecated")
    return kept, warnings


def as_arguments(flags: EngineFlags, options: Mapping[str, Any]) -> list[str]:
    """Options as command-line arguments: ``--flag=value``, ``--switch``, ``--no-toggle``, ``--list one two``."""
    arguments = []
    for name, value in options.items():
        entry = flags.recorded[name]
        if entry["kind"] == "switch":
            arguments += [name] if value else []
        elif entry["kind"] == "toggle":
            arguments.append(name if value else entry["negative"])
        elif isinstance(value, (list, tuple)) and entry.get("repeatable"):
            arguments += [f"{name}={item}" for item in value]
        elif isinstance(value, (list, tuple)):
            arguments += [name, *map(str, value)]
        else:
            arguments.append(f"{name}={value}")
    return arguments
