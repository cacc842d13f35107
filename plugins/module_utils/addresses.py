"""Addresses as they may be shown, and those of proxies as programs read them."""

from __future__ import annotations

import re


def without_passwords(text: str) -> str:
    """The text with the user and password of each address in it replaced by stars."""
    return re.sub(r"://[^/@\s\"]+@", "://***@", text)


def proxy_environment(proxy: dict[str, str] | None) -> dict[str, str]:
    """A proxy (http, https, no_proxy) as environment variables, in both spellings that programs read."""
    names = {"http": "http_proxy", "https": "https_proxy", "no_proxy": "no_proxy"}
    values = {names[key]: value for key, value in (proxy or {}).items() if value}
    return {**values, **{name.upper(): value for name, value in values.items()}}
