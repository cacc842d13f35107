"""Addresses as they may be shown."""

from __future__ import annotations

import re


def without_passwords(text: str) -> str:
    """The text with the user and password of each address in it replaced by stars."""
    return re.sub(r"://[^/@\s\"]+@", "://***@", text)
