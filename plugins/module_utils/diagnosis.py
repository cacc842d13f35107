"""What a log line means, and what to do about it: the signatures of catalog/failures.yml tried against lines.

Runs on the host, under its own Python, 3.9 or newer. Nothing here raises, whatever a log holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# A line may be as long as SGLang's list of its arguments, or a whole image in base64; what ends an engine is short.
LONGEST_LINE = 4000
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class Signature(NamedTuple):
    """One entry of catalog/failures.yml.

    `sources`: the logs in which the line occurs. `engines`: empty where any engine says it. `fatal`: what said it
    cannot go on. `generic`: it only says that something ended; the cause stands in another line, which may follow.
    """

    id: str
    pattern: re.Pattern[str]
    sources: frozenset[str]
    engines: frozenset[str]
    fatal: bool
    cause: str
    remedy: str
    generic: bool = False

    def belongs_to(self, engine: str | None, source: str) -> bool:
        return source in self.sources and (engine is None or not self.engines or engine in self.engines)


def signatures(entries: Iterable[Mapping[str, Any]]) -> list[Signature]:
    """The entries of catalog/failures.yml in their order, with patterns compiled."""
    return [
        Signature(
            id=entry["id"],
            pattern=re.compile(entry["pattern"]),
            sources=frozenset(entry["sources"]),
            engines=frozenset(entry.get("engines", ())),
            fatal=bool(entry["fatal"]),
            cause=entry["cause"],
            remedy=entry["remedy"],
            generic=bool(entry.get("generic", False)),
        )
        for entry in entries
    ]


def first_fatal(line: str, signatures: Iterable[Signature], engine: str | None) -> Signature | None:
    """The signature that explains this line of an engine's log, if the engine cannot go on after it.

    Meant for every line of a start. After a generic one the cause may still follow: take the whole log to `diagnose`.
    """
    found = _explanation(_clean(line), signatures, engine, "engine")
    return found[0] if found and found[0].fatal else None


def diagnose(
    lines: Iterable[str], signatures: Sequence[Signature], engine: str | None = None, source: str = "engine"
) -> list[dict[str, Any]]:
    """What the lines say, the most likely cause first: {id, cause, remedy, line, count} per signature.

    Fatal ones come before warnings, and earlier before later: what follows a first failure is mostly its consequence.
    Generic ones come last. `line` is the first that matched, `count` how many did.
    """
    found: dict[str, tuple[tuple[bool, bool, int], dict[str, Any]]] = {}
    for number, raw in enumerate(lines):
        line = _clean(raw)
        explanation = _explanation(line, signatures, engine, source)
        if not explanation:
            continue
        signature, match = explanation
        if signature.id in found:
            found[signature.id][1]["count"] += 1
            continue
        finding = {
            "id": signature.id,
            "cause": _fill(signature.cause, match),
            "remedy": _fill(signature.remedy, match),
            "line": line.strip(),
            "count": 1,
        }
        found[signature.id] = ((signature.generic, not signature.fatal, number), finding)
    return [finding for _, finding in sorted(found.values(), key=lambda ranked: ranked[0])]


def _clean(line: str) -> str:
    return _COLOUR.sub("", line[:LONGEST_LINE])


def _explanation(
    line: str, signatures: Iterable[Signature], engine: str | None, source: str
) -> tuple[Signature, re.Match[str]] | None:
    """The first signature, in the order of the catalogue, that matches the line."""
    for signature in signatures:
        if signature.belongs_to(engine, source):
            match = signature.pattern.search(line)
            if match:
                return signature, match
    return None


def _fill(text: str, match: re.Match[str]) -> str:
    """The text with {name} replaced by what the group of that name matched; other braces stay."""
    values = match.groupdict()

    def value(placeholder: re.Match[str]) -> str:
        name = placeholder[1]
        return (values[name] or "?").strip() if name in values else placeholder[0]

    return _PLACEHOLDER.sub(value, text)
