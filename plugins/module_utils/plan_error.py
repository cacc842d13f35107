"""What is wrong with a declaration, said once: where, which value, what is allowed, what helps."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class PlanError(ValueError):
    """A declaration that cannot be planned.

    ``kind`` is ``invalid`` (the declaration is wrong) or ``does_not_fit`` (it is right, and too large).
    """

    def __init__(
        self,
        problem: str,
        *,
        service: str | None = None,
        key: str | None = None,
        value: Any = None,
        allowed: str | None = None,
        remedies: Iterable[str] = (),
        kind: str = "invalid",
    ) -> None:
        self.service, self.key, self.value, self.allowed = service, key, value, allowed
        self.problem, self.remedies, self.kind = problem, list(remedies), kind
        super().__init__(self.message())

    def message(self) -> str:
        where = f"service '{self.service}'" if self.service else ""
        if self.key:
            where = f"{where}, {self.key}" if where else self.key
        text = f"{where}: {self.problem}" if where else self.problem
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        return text

    def as_dict(self) -> dict[str, Any]:
        entry: dict[str, Any] = {"service": self.service, "problem": self.message(), "remedies": self.remedies}
        if self.key:
            entry |= {"key": self.key, "value": self.value, "allowed": self.allowed}
        return entry


class PlanErrors(Exception):
    """Several of them, found in one pass. ``missing``: bytes that are short, by the index of the GPU."""

    def __init__(self, errors: list[PlanError], missing: Mapping[int, int] | None = None) -> None:
        self.errors, self.missing = errors, dict(missing or {})
        super().__init__("; ".join(error.message() for error in errors))


def did_you_mean(word: Any, known: Iterable[str], limit: int = 12) -> str:
    """The closest known words first, or all of them where they are few."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word), known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return ", ".join(known) if len(known) <= limit else f"{', '.join(known[:limit])} … ({len(known)} in all)"
