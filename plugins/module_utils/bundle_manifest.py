"""The manifest of a bundle: what is in it, and whether all of it is there as it was.

manifest.json: {schema, created, made_by, systems, images, models, control, files}
    systems   by system and architecture: kernels, packages (versions by name), sources of the distribution
    images    by architecture and reference: id, archive, digest, size_bytes
    models    name, revision, commit, directory, bytes
    control   what the control node needs: the collection's archive, the directory of its wheels, its lock
    files     by path: size, sha256
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .bundle_store import BundleError, digest_of, files_below

NAME = "manifest.json"
SCHEMA = 1
SHOWN = 10
PARTS = ("systems", "images", "models", "control", "files")


def text_of(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def written(directory: Path, parts: Mapping[str, Any], created: str, made_by: str) -> tuple[dict[str, Any], str]:
    """The manifest of what lies in `directory`, and its text; nothing is written."""
    files = {
        path: {"size": place.stat().st_size, "sha256": digest_of(place)}
        for path, place in files_below(directory).items()
        if path != NAME
    }
    manifest = {"schema": SCHEMA, "created": created, "made_by": made_by, **parts, "files": files}
    return manifest, text_of(manifest)


def read(directory: Path, expected_sha256: str = "") -> tuple[dict[str, Any], str]:
    """The manifest of a bundle and its SHA-256; BundleError where it is none, or not the expected one."""
    path = directory / NAME
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise BundleError(
            f"{directory} is no bundle: {NAME} cannot be read ({getattr(problem, 'strerror', None) or problem}). An "
            "interrupted playbooks/bundle.yml leaves none; run it again"
        ) from problem
    found = sha256_of_text(text)
    if expected_sha256 and found != expected_sha256.lower().removeprefix("sha256:"):
        raise BundleError(
            f"{path} is not the expected one: serving_bundle_sha256 is {expected_sha256}, and its SHA-256 is {found}"
        )
    try:
        manifest = json.loads(text)
    except ValueError as problem:
        raise BundleError(f"{path} is damaged: {problem}") from problem
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA or not set(PARTS) <= set(manifest):
        version = manifest.get("schema") if isinstance(manifest, dict) else None
        raise BundleError(
            f"{path} is of schema {version}, and this collection reads {SCHEMA}; use the one that made it"
        )
    return manifest, found


def refuse_damage(directory: Path, manifest: Mapping[str, Any], seen: Callable[[int], None] | None = None) -> None:
    """Read every byte; BundleError that names each file that is missing, foreign or not as it was."""
    there = {path: place for path, place in files_below(directory).items() if path != NAME}
    problems = [f"{path}: missing" for path in manifest["files"] if path not in there]
    problems += [f"{path}: not in the manifest" for path in there if path not in manifest["files"]]
    sound = []
    for path, wanted in manifest["files"].items():
        if path not in there:
            continue
        place = there[path]
        if place.is_symlink() or not place.is_file():
            problems.append(f"{path}: is no plain file")
        elif place.stat().st_size != wanted["size"]:
            problems.append(f"{path}: expected {wanted['size']} bytes, found {place.stat().st_size}")
        else:
            sound.append((path, place, wanted["sha256"]))

    def compared(entry: tuple[str, Path, str]) -> str:
        path, place, expected = entry
        try:
            found = digest_of(place, seen)
        except OSError as problem:
            return f"{path}: cannot be read: {problem.strerror}"
        return "" if found == expected else f"{path}: expected SHA-256 {expected}, found {found}"

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        problems += filter(None, pool.map(compared, sound))
    if problems:
        more = f"\n(and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        raise BundleError(f"The bundle {directory} is damaged:\n" + "\n".join(problems[:SHOWN]) + more)


def total_bytes(manifest: Mapping[str, Any]) -> int:
    return sum(file["size"] for file in manifest["files"].values())


def below(manifest: Mapping[str, Any], *prefixes: str) -> list[dict[str, Any]]:
    """The files of these directories (or of these very paths), as bundle_files takes them."""
    return [
        {"path": path, **file}
        for path, file in manifest["files"].items()
        if any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)
    ]
