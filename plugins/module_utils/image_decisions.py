"""From a plan to the images that its host needs, and from what was found to the locks of the inventory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .image_reference import DIGEST, Reference, parse

LOCK_KEYS = ("digest", "id")


class ImageRefused(Exception):
    """Says which variable names which image in a way that does not work."""


def lock_key(name: Reference) -> str:
    """The key of an image in serving_image_locks."""
    return name.tagged or f"{name.name}@{name.digest}"


def checked_locks(locks: Any) -> dict[str, dict[str, str]]:
    """serving_image_locks with normal names; ImageRefused where an entry is wrong."""
    if not isinstance(locks, Mapping):
        raise ImageRefused(f"serving_image_locks is {locks!r}, not a dictionary by image")
    checked: dict[str, dict[str, str]] = {}
    for text, lock in locks.items():
        where = f"serving_image_locks, {text}"
        try:
            key = lock_key(parse(str(text)))
        except ValueError as error:
            raise ImageRefused(f"serving_image_locks: {error}") from error
        if not isinstance(lock, Mapping) or len(lock) != 1 or not set(lock) <= set(LOCK_KEYS):
            raise ImageRefused(f"{where}: {lock!r} is neither {{digest: sha256:...}} nor {{id: sha256:...}}")
        (kind, value), *_ = lock.items()
        if not DIGEST.fullmatch(str(value)):
            raise ImageRefused(f"{where}: {kind} is {value!r}, not sha256: and 64 hexadecimal digits")
        checked[key] = {kind: str(value)}
    return checked


def with_digest(reference: str, locks: Mapping[str, Mapping[str, str]]) -> str:
    """The reference with the digest that is locked for it, if one is."""
    name = parse(reference)
    digest = locks.get(lock_key(name), {}).get("digest")
    return reference if name.digest or not digest else f"{reference}@{digest}"


def wanted_images(
    services: Sequence[Mapping[str, Any]],
    locks: Mapping[str, Mapping[str, str]],
    archives: Mapping[str, Any],
    build: Callable[[str], dict[str, Any] | None],
    estimates: Mapping[str, float],
    start_path: Mapping[str, Sequence[Mapping[str, Any]]],
    archive_directory: str,
    refresh: bool = False,
    also: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """What engine_images is told: one entry for each image that `services` of a plan name, in their order, and `also`.

    `archives` by image: a path on the host, or `{src: path on the control node}`. `build` gives the build of an image,
    or None. `estimates`: GiB on disk by engine. `start_path`: the
    libraries to look at, by engine.
    """
    services = [*services, *({"image": reference, "engine": None} for reference in also)]
    archives = {lock_key(parse(str(text))): where for text, where in archives.items()}
    wanted: dict[str, dict[str, Any]] = {}
    for service in services:
        name = parse(service["image"])
        key = lock_key(name)
        if key in wanted:
            continue
        lock = dict(locks.get(key, {}))
        if name.digest and name.digest != lock.get("digest"):
            lock = {"digest": name.digest}
        image: dict[str, Any] = {"reference": key, "source": "pull", "lock": lock}
        spec = build(key)
        if spec and key in archives:
            raise ImageRefused(f"{key} is in engine_image_builds and in engine_image_archives; one of them is enough")
        if spec:
            image |= {"source": "build", "build": spec, "lock": {}}
        elif key in archives:
            image |= {"source": "load", **_archive(key, archives[key], archive_directory)}
        elif "id" in lock:
            image["source"] = "present"
        elif refresh and name.tag and lock == locks.get(key, lock):
            image["lock"] = {}
        if image["source"] == "pull":
            image["estimated_gib"] = estimates.get(service["engine"], 0)
        image["libraries"] = [
            {"name": library["name"], "files": library["files"]} for library in start_path.get(service["engine"], [])
        ]
        wanted[key] = image
    return list(wanted.values())


def _archive(key: str, where: Any, directory: str) -> dict[str, Any]:
    if isinstance(where, str) and where:
        return {"archive": where}
    if isinstance(where, Mapping) and set(where) == {"once"} and where["once"]:
        return {"archive": str(where["once"]), "archive_kept": False}
    if isinstance(where, Mapping) and set(where) == {"src"} and where["src"]:
        return {"archive": f"{directory}/{str(where['src']).rsplit('/', 1)[-1]}", "archive_follows": True}
    raise ImageRefused(
        f"engine_image_archives, {key}: {where!r} is neither a path on the host, nor {{once: path on the host}}, nor "
        "{src: path on the control node}"
    )


def unlocked(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """References that are pulled by their tag, because no digest is locked yet."""
    return [image["reference"] for image in images if image["source"] == "pull" and not image["lock"]]


def first_to_want(host: str, unlocked_by_host: Mapping[str, Sequence[str]]) -> list[str]:
    """The references that `host` pulls by tag for all hosts, because it is the first that wants them."""
    before = set()
    for other, references in unlocked_by_host.items():
        if other == host:
            return [reference for reference in references if reference not in before]
        before |= set(references)
    return []


def repositories(references: Sequence[str]) -> list[str]:
    """Repositories of `references`, for the policy of removal."""
    return sorted({parse(reference).name for reference in references})
