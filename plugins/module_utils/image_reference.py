"""Names of container images. Source: github.com/distribution/reference, reference.go and normalize.go.

Runs on hosts and on the control node.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
REFERENCE = re.compile(
    r"(?P<name>[a-z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?(?::[0-9]+)?(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
DOCKER_HUB = "docker.io"


class Reference(NamedTuple):
    """``name[:tag][@digest]``; `name` as Docker shows it, without ``docker.io/`` and ``library/``."""

    name: str
    tag: str | None
    digest: str | None

    @property
    def tagged(self) -> str | None:
        """Name and tag; None where there is a digest alone."""
        return f"{self.name}:{self.tag}" if self.tag else None

    @property
    def registry(self) -> str:
        first, slash, _ = self.name.partition("/")
        return first if slash and (re.search(r"[.:]", first) or first == "localhost") else DOCKER_HUB

    def pinned(self, digest: str) -> str:
        """The content `digest` of this repository."""
        return f"{self.name}@{digest}"


def parse(text: str) -> Reference:
    """ValueError for what is no name of an image."""
    match = REFERENCE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no name of an image, such as vllm/vllm-openai:v0.33.0")
    name, tag, digest = match["name"], match["tag"], match["digest"]
    for prefix in ("docker.io/", "index.docker.io/"):
        name = name[len(prefix) :] if name.startswith(prefix) else name
    name = name[len("library/") :] if name.startswith("library/") and name.count("/") == 1 else name
    return Reference(name, tag or (None if digest else "latest"), digest)
