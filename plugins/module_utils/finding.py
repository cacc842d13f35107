"""The outcome of one check of a host."""

from __future__ import annotations

from typing import NamedTuple

OK, FAILED, COULD_NOT_CHECK = "ok", "failed", "could_not_check"


class Finding(NamedTuple):
    """The outcome of one check; `remedy` says what to do where it is not ok."""

    status: str
    message: str
    remedy: str = ""
