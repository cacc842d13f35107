"""Three-way merge of Docker's daemon.json, and what a change of it asks of a running daemon. Pure functions.

Several owners can set keys. For each of them a record holds what it set (`managed`) and which foreign values that
displaced (`replaced`). What others wrote is never lost: without our settings the file is as they left it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Settings = dict[str, Any]

# Lists in which each entry stands for itself: ours are added to foreign ones.
_UNION_LISTS = {
    "allow-nondistributable-artifacts",
    "authorization-plugins",
    "cdi-spec-dirs",
    "hosts",
    "insecure-registries",
    "registry-mirrors",
}
# Lists of `name=value`: ours replace entries of the same name. Other lists are replaced whole.
_NAMED_LISTS = {"exec-opts", "labels", "storage-opts"}

# A driver of others may not know our options, and ours not theirs.
_LOGGING = {"log-driver", "log-opts"}

# What SIGHUP applies: daemon/reload.go, daemon/reload_unix.go and reloadConfig in the daemon command of moby 25 (commit
# 056be8b7b0e0), and "Configuration reload behavior" in docker/cli, docs/reference/dockerd.md (commit 0bab00741722).
_RELOADABLE = {
    "allow-nondistributable-artifacts",
    "authorization-plugins",
    "debug",
    "default-cgroupns-mode",
    "default-ipc-mode",
    "default-runtime",
    "default-shm-size",
    "features",
    "insecure-registries",
    "labels",
    "live-restore",
    "max-concurrent-downloads",
    "max-concurrent-uploads",
    "max-download-attempts",
    "network-diagnostic-port",
    "registry-mirrors",
    "runtimes",
    "shutdown-timeout",
}
# Where the key disappears, these go back to their default; the others keep their value (`IsValueSet` in reload.go).
_RESET_BY_RELOAD = {
    "authorization-plugins",
    "features",
    "max-concurrent-downloads",
    "max-concurrent-uploads",
    "max-download-attempts",
    "network-diagnostic-port",
}
# A reload replaces the map `features`, yet most are read only at start: cdi and containerd-snapshotter in the daemon
# command. Read for each request: buildkit (moby pull request 37692).
_FEATURES_READ_LIVE = {"buildkit"}


class DaemonJsonError(Exception):
    """The settings cannot be read or merged; the text says why."""


def parse(text: str) -> Settings:
    """The settings in daemon.json; an empty file is `{}`, as for dockerd.

    Raises DaemonJsonError where it is not one JSON object.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        return {}
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise DaemonJsonError(f"not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise DaemonJsonError(f"one JSON object was expected, not {type(settings).__name__}")
    return settings


def render(settings: Settings) -> str:
    """daemon.json as text, keys in their order."""
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


def merge(current: Settings, record: Mapping[str, Settings], wanted: Settings) -> tuple[Settings, dict[str, Settings]]:
    """(new settings, new record) with `wanted` instead of what `record` says that we set before.

    `record` is `{"managed": {...}, "replaced": {...}}`, or empty the first time.
    """
    displaced: Settings = {}
    merged = _with(_foreign(current, record), _unfold(wanted), displaced)
    return _fold(merged), {"managed": wanted, "replaced": _fold(displaced)} if wanted else {}


def default_settings(current: Settings, record: Mapping[str, Any], wanted: Settings, defaults: Settings) -> Settings:
    """Those of `defaults` whose key neither `wanted` nor others set; log-driver and log-opts go together.

    A key that was set as a default before (`defaults` in the record) stays ours, whatever it was changed to since.
    """
    taken = {*wanted, *_foreign(current, record)} - {*record.get("defaults", [])} | {*wanted}
    if taken & _LOGGING:
        taken |= _LOGGING
    return {key: value for key, value in defaults.items() if key not in taken}


def _foreign(current: Settings, record: Mapping[str, Settings]) -> Settings:
    """`current` (lists unfolded) as it would be without us."""
    return _without(_unfold(current), _unfold(record.get("managed", {})), _unfold(record.get("replaced", {})))


class _Entries(dict):
    """A list, as a dictionary from what an entry stands for to the entry."""


def _unfold(settings: Settings) -> Settings:
    return {key: _entries(key, value) for key, value in settings.items()}


def _entries(key: str, value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        return value
    if key in _UNION_LISTS:
        entries = _Entries((entry, entry) for entry in value)
    elif key in _NAMED_LISTS:
        entries = _Entries((entry.partition("=")[0], entry) for entry in value)
    else:
        return value
    return entries if len(entries) == len(value) else value


def _fold(settings: Settings) -> Settings:
    return {key: list(value.values()) if isinstance(value, _Entries) else value for key, value in settings.items()}


def _merge_inside(one: Any, other: Any) -> bool:
    return isinstance(one, dict) and type(one) is type(other)


def _with(foreign: Settings, wanted: Settings, displaced: Settings) -> Settings:
    """`foreign` with `wanted` on top; the values that give way are put into `displaced`."""
    result = type(wanted)(foreign)
    for key, value in wanted.items():
        if _merge_inside(value, foreign.get(key)):
            displaced[key] = type(value)()
            result[key] = _with(foreign[key], value, displaced[key])
            continue
        if key in foreign:
            displaced[key] = foreign[key]
        result[key] = value
    return result


def _without(current: Settings, managed: Settings, replaced: Settings) -> Settings:
    """`current` as it would be without `managed`: a value that others changed since stays as they left it."""
    result = type(current)()
    for key, value in current.items():
        if key not in managed:
            result[key] = value
        elif _merge_inside(value, managed[key]):
            before = replaced.get(key)
            had_it = _merge_inside(value, before)
            rest = _without(value, managed[key], before if had_it else {})
            if rest or had_it:
                result[key] = rest
            elif key in replaced:
                result[key] = before
        elif not _same(value, managed[key]):
            result[key] = value
        elif key in replaced:
            result[key] = replaced[key]
    return result


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON (true is not 1)."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def contradictions(wanted: Settings, others: Mapping[str, Settings]) -> list[str]:
    """Keys for which another owner manages another value, as `key (owner)`; `others` maps owners to their settings."""
    found = []
    for owner, managed in others.items():
        ours, theirs = dict(_leaves(_unfold(wanted))), dict(_leaves(_unfold(managed)))
        found += [f"{'.'.join(key)} ({owner})" for key in ours if key in theirs and not _same(ours[key], theirs[key])]
    return found


def _leaves(settings: Settings, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def changed_keys(before: Settings, after: Settings) -> list[str]:
    """What differs, as `key`, or `key.name` inside a map (`runtimes.nvidia`, `log-opts.max-size`)."""
    changed = []
    for key in _differing(before, after):
        one, other = before.get(key, {}), after.get(key, {})
        if isinstance(one, dict) and isinstance(other, dict) and (one or other):
            changed += [f"{key}.{name}" for name in _differing(one, other)]
        else:
            changed.append(key)
    return changed


def _differing(one: Settings, other: Settings) -> list[str]:
    keys = dict.fromkeys([*other, *one])
    return [key for key in keys if key not in one or key not in other or not _same(one[key], other[key])]


def action_for(key: str, after: Settings) -> str:
    """`reload` or `restart`: what dockerd needs to take over a change of `key` (as `changed_keys` names it)."""
    top, _, name = key.partition(".")
    if top not in _RELOADABLE or (top == "features" and name not in _FEATURES_READ_LIVE):
        return "restart"
    return "reload" if top in after or top in _RESET_BY_RELOAD else "restart"


def effective(settings: Settings, info: Mapping[str, Any], resolve: Callable[[str], str]) -> dict[str, tuple[Any, Any]]:
    """(wanted, in force) of those keys of `settings` that the running engine tells, keys as in `changed_keys`.

    `info` is the engine's answer to `docker info`; `resolve` follows symbolic links in a path.
    """
    pairs: dict[str, tuple[Any, Any]] = {}
    for key, field in _INFO_FIELDS.items():
        if key in settings and field in info:
            pairs[key] = settings[key], info[field]
    if "data-root" in settings and "DockerRootDir" in info:
        pairs["data-root"] = resolve(settings["data-root"]), resolve(info["DockerRootDir"])
    if "labels" in settings and "Labels" in info:
        pairs["labels"] = sorted(settings["labels"]), sorted(info["Labels"] or [])
    if "CDISpecDirs" in info:
        in_force = sorted(map(resolve, info["CDISpecDirs"] or []))
        enabled = settings.get("features", {}).get("cdi")
        if enabled is not None:
            pairs["features.cdi"] = enabled, bool(in_force)
        if "cdi-spec-dirs" in settings and enabled is not False:
            pairs["cdi-spec-dirs"] = sorted(map(resolve, settings["cdi-spec-dirs"])), in_force
    registries = info.get("RegistryConfig") or {}
    if "registry-mirrors" in settings and "Mirrors" in registries:
        wanted, in_force = settings["registry-mirrors"], registries["Mirrors"] or []
        pairs["registry-mirrors"] = [url.rstrip("/") for url in wanted], [url.rstrip("/") for url in in_force]
    if "Runtimes" in info:
        for name, runtime in settings.get("runtimes", {}).items():
            in_force = info["Runtimes"].get(name)
            if "path" not in runtime or in_force is None:  # of a runtimeType, info tells the name alone
                pairs[f"runtimes.{name}"] = True, in_force is not None
                continue
            wanted_command, command_in_force = (
                [one.get("path"), *(one.get("runtimeArgs") or [])] for one in (runtime, in_force)
            )
            pairs[f"runtimes.{name}"] = wanted_command, command_in_force
    return pairs


_INFO_FIELDS = {
    "debug": "Debug",
    "default-runtime": "DefaultRuntime",
    "experimental": "ExperimentalBuild",
    "live-restore": "LiveRestoreEnabled",
    "log-driver": "LoggingDriver",
}


def not_in_force(pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """The keys of `effective` whose wanted value is not the one in force."""
    return [key for key, (wanted, in_force) in pairs.items() if not _same(wanted, in_force)]
