"""This collection as one archive, for a control node without a network: a tree that is run in place."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from fnmatch import fnmatch
from pathlib import Path

import yaml
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import COLLECTION_ROOT

ALWAYS_OUT = (".git", "*.pyc")
RUN_IN_PLACE = ".collections"  # left out of a build, and needed by a tree that is run in place


def version(root: Path = COLLECTION_ROOT) -> str:
    """The collection's version, in a checkout or installed."""
    if (root / "galaxy.yml").exists():
        return str(yaml.safe_load((root / "galaxy.yml").read_text("utf-8"))["version"])
    return str(json.loads((root / "MANIFEST.json").read_text("utf-8"))["collection_info"]["version"])


def archive(root: Path = COLLECTION_ROOT) -> bytes:
    """The same bytes for the same files."""
    ignored = list(ALWAYS_OUT)
    if (root / "galaxy.yml").exists():
        ignored += yaml.safe_load((root / "galaxy.yml").read_text("utf-8"))["build_ignore"]
    ignored = [pattern for pattern in ignored if pattern != RUN_IN_PLACE]
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in _tree(root, ignored):
            entry = tar.gettarinfo(path, f"blackwell.serving/{path.relative_to(root)}")
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = 0
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            if entry.isreg():
                with path.open("rb") as stream:
                    tar.addfile(entry, stream)
            elif entry.issym():
                tar.addfile(entry)
    return buffer.getvalue()


def _tree(root: Path, ignored: list[str]) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        folders[:] = sorted(name for name in folders if name not in links and not _matches(name, ignored))
        found += [Path(folder, name) for name in names + links if not _matches(name, ignored)]
    return sorted(found)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
