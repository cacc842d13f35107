"""From what apt says to the part of its repositories that a set of packages needs. Runs under Python 3.9."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

# Fields of `apt-get indextargets`: apt's doc/acquire-additional-files.md
FIELDS = ("METAKEY", "FILENAME", "REPO_URI", "BASE_URI", "RELEASE", "COMPONENT", "ARCHITECTURE", "SIGNED_BY")
FORMAT = "|".join(f"$({field})" for field in ("CREATED_BY", *FIELDS))
URI_LINE = re.compile(r"^'([^']+)' (\S+\.deb) (\d+)\b.*$", re.MULTILINE)
# In the order of apt's Acquire::CompressionTypes
COMPRESSIONS = (".zst", ".xz", ".bz2", ".lzma", ".gz", ".lz4", "")


def parse_targets(text: str) -> list[dict[str, str]]:
    """The package indices of `apt-get indextargets --format FORMAT`; a field that is not set is empty."""
    found = []
    for line in text.splitlines():
        kind, *values = line.split("|")
        if kind == "Packages" and len(values) == len(FIELDS):
            found.append(
                {field.lower(): "" if value.startswith("$(") else value for field, value in zip(FIELDS, values)}
            )
    return found


def parse_uris(text: str) -> list[dict[str, Any]]:
    """`apt-get --print-uris`: {uri, name, size, package, version}; `name` is what apt calls the file."""
    found = []
    for uri, name, size in URI_LINE.findall(text):
        package, version, _ = name.rsplit("_", 2)
        found.append({"uri": uri, "name": name, "size": int(size), "package": package, "version": unquote(version)})
    return found


def place_of(uri: str, repositories: Mapping[str, str]) -> tuple[str, str]:
    """The repository (an address of `repositories`) of an archive, and its path there, as the index has it."""
    base = max((known for known in repositories if uri.startswith(known)), key=len)
    return base, unquote(uri[len(base) :])


def repository_names(targets: Iterable[Mapping[str, str]], named: Mapping[str, str]) -> dict[str, str]:
    """A directory for each repository by its address.

    `named`: directories by the beginning of the address, as the roles' variables have it; what follows in the address
    follows in the directory. Any other repository is one of the distribution's.
    """
    found = {}
    for target in targets:
        uri = target["repo_uri"]
        prefix = max((known for known in named if uri.startswith(known)), key=len, default=None)
        if prefix is None:
            parts = urlsplit(uri)
            found[uri] = "distribution/" + re.sub(r"[^A-Za-z0-9.-]+", "_", f"{parts.netloc}{parts.path}").strip("_")
        else:
            found[uri] = f"{named[prefix]}/{uri[len(prefix) :]}".replace("//", "/").strip("/")
    return found


def release_files(target: Mapping[str, str]) -> list[tuple[str, str]]:
    """(path in apt's lists, path in the repository) of what vouches for an index: InRelease, or the older pair."""
    name = target["filename"]
    for suffix in filter(None, COMPRESSIONS):  # apt tells the name that it keeps the index under
        if name.endswith(suffix):
            name = name[: -len(suffix)]
    stem, below = name[: -len(target["metakey"])], target["base_uri"][len(target["repo_uri"]) :]
    return [
        (stem + each, below + each) for each in ("InRelease", "Release", "Release.gpg") if os.path.exists(stem + each)
    ]


def listed_index(release: str, metakey: str) -> tuple[str, str] | None:
    """(name with suffix, SHA-256) of an index in a release file: the first compression that apt would ask for."""
    _, _, section = release.partition("\nSHA256:")
    listed = {}
    for line in section.splitlines()[1:]:
        if not line.startswith(" "):
            break
        sha256, _, name = line.split()
        listed[name] = sha256
    return next(
        ((metakey + suffix, listed[metakey + suffix]) for suffix in COMPRESSIONS if metakey + suffix in listed), None
    )


def sources_of(targets: Sequence[Mapping[str, str]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """What a deb822 source of each suite says, with the repository's directory in place of its address.

    `signed_by`: a keyring of the distribution, which every host has, or the path of a key that has to come along.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for target in targets:
        entry = found.setdefault(
            (target["repo_uri"], target["release"]),
            {
                "directory": names[target["repo_uri"]],
                "suite": target["release"],
                "components": [],
                "architecture": target["architecture"],
                "signed_by": target["signed_by"],
            },
        )
        if target["component"] and target["component"] not in entry["components"]:
            entry["components"].append(target["component"])
    return list(found.values())


def own_key(signed_by: str) -> str | None:
    """Where a key that has to come along lies beside the repositories; None for a keyring of the distribution."""
    if not signed_by.startswith("/") or signed_by.startswith("/usr/share/keyrings/"):
        return None
    return f"keys/{os.path.basename(signed_by)}"
