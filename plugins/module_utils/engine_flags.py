"""The options of one service: a profile's choice, the service's own ``extra_args``, checked against what the
engine version really accepts (catalog/engine_flags, recorded from its published package)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .plan_error import PlanError, did_you_mean

Options = dict[str, Any]


class EngineFlags:
    """Options of one engine version. ``roles`` maps a purpose to the names that it has had, newest first."""

    def __init__(self, recorded: Mapping[str, Any], engine: Mapping[str, Any], version: str) -> None:
        self.recorded, self.engine, self.version = recorded, engine, version
        self._by_alias = {
            alias: name
            for name, entry in recorded.items()
            for alias in (name, *entry.get("aliases", ()), *filter(None, [entry.get("negative")]))
        }

    def canonical(self, flag: str) -> str | None:
        return self._by_alias.get(flag)

    def name_for(self, role: str) -> str | None:
        """The flag that serves ``role`` in this version, or None where it has none."""
        names = {**self.engine["flags"], **self.engine["tunable"]}[role]
        return next((found for found in map(self.canonical, names) if found), None)

    def checked(self, flag: str, value: Any) -> tuple[str, Any]:
        """Canonical name and converted value; raises PlanError (key ``extra_args``) where this version refuses it."""
        spelled = "--" + flag.lstrip("-").replace("_", "-")
        name = self.canonical(spelled)
        if name is None:
            raise PlanError(
                f"{self.version} has no option {spelled}",
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
            if spelled == entry.get("negative"):
                value = not value
            return name, value
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        if len(values) > 1 and entry["kind"] != "list":
            raise PlanError(f"{name} takes one value, not {value!r}", key="extra_args", value=value)
        for item in values:
            _check_value(name, entry, item)
        return name, value


def _check_value(name: str, entry: Mapping[str, Any], value: Any) -> None:
    choices = entry.get("choices")
    if choices and str(value) not in map(str, choices):
        raise PlanError(
            f"{name} does not take {value!r}", key="extra_args", value=value, allowed=", ".join(map(str, choices))
        )
    expected = {"int": int, "float": float}.get(entry.get("type", "str"))
    if expected and not isinstance(value, bool):
        try:
            expected(value)
            return
        except (TypeError, ValueError):
            pass
    elif not expected and value is not None and not isinstance(value, Mapping):
        return
    raise PlanError(
        f"{name} does not take {value!r}", key="extra_args", value=value, allowed=f"a value of type {entry.get('type')}"
    )


def resolve_options(
    flags: EngineFlags,
    profile: str,
    extra_args: Mapping[str, Any],
    choices: Mapping[str, Any],
) -> tuple[Options, list[str]]:
    """Options that a profile and ``extra_args`` give, by canonical flag, and warnings about what was dropped.

    ``choices`` holds what the words ``by_memory``, ``by_architecture`` and ``max_concurrency`` stand for.
    Raises PlanError for an option that this version does not have or that the planner owns.
    """
    engine, options, warnings = flags.engine, {}, []
    if profile == "notes":
        options, warnings = _notes_options(flags)
    for role, choice in engine["profiles"][profile].items():
        name = flags.name_for(role)
        value = choices.get(choice, choice) if isinstance(choice, str) else choice
        if name and value is not None:
            options[name] = value
    owned = {flags.name_for(role): role for role in engine["flags"]}
    for flag, value in extra_args.items():
        name, value = flags.checked(flag, value)
        if name in owned:
            raise PlanError(
                f"{name} is what the planner sets", key="extra_args", value=flag, allowed=_instead(owned[name])
            )
        if any(name.startswith(prefix) for prefix in engine["unsized"]):
            raise PlanError(f"{name} takes memory that the planner cannot size", key="extra_args", value=flag)
        options[name] = value
    return options, warnings


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
    """Options as command-line arguments, one entry each: ``--flag=value``, ``--switch``, ``--no-toggle``."""
    arguments = []
    for name, value in options.items():
        entry = flags.recorded[name]
        if entry["kind"] == "switch":
            if value:
                arguments.append(name)
        elif entry["kind"] == "toggle":
            arguments.append(name if value else entry["negative"])
        elif isinstance(value, (list, tuple)):
            arguments += [name, *map(str, value)]
        else:
            arguments.append(f"{name}={value}")
    return arguments
