"""Recipes for images that are built on the hosts: checked, changed as the user wants, and reduced to one digest."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .plan_error import did_you_mean

CHANGEABLE = ("recipe", "base", "packages", "mirrors")
RECIPE_KEYS = {
    "engine",
    "engine_version",
    "cuda",
    "base",
    "packages",
    "index_url",
    "steps",
    "distribution",
    "replace",
    "unwanted",
    "source",
}
STEP_KEYS = {"name", "cuda", "index_url", "dependencies", "requirements"}
CUDA_IN_BASE = re.compile(r"cuda:(\d+)\.(\d+)")
CUDA_IN_PACKAGE = re.compile(r"(?:\+|/)cu(\d\d)(\d)(?![0-9])")
PASSWORD_IN_URL = re.compile(r"://[^/\s@]*@")


class BuildRefused(Exception):
    """Says why nothing is built, and what to change."""


def recipe(reference: str, wish: Any, catalog: Mapping[str, Any], machine: str = "x86_64") -> dict[str, Any]:
    """The whole recipe for `reference`.

    `wish` is an entry of engine_image_builds: `recipe` (a key of catalog/builds.yml or a recipe), and what differs from
    it: `base`, further `packages`, and `mirrors` (beginnings of addresses, and what takes their place).
    """
    where = f"engine_image_builds, {reference}"
    if not isinstance(wish, Mapping) or "recipe" not in wish:
        raise BuildRefused(f"{where}: {wish!r} has no recipe. Allowed: {', '.join(sorted(catalog['builds']))}.")
    if unknown := sorted(set(wish) - set(CHANGEABLE)):
        raise BuildRefused(f"{where}: there is no key {unknown[0]}. Allowed: {', '.join(CHANGEABLE)}.")
    name = wish["recipe"]
    if isinstance(name, Mapping):
        found, name = dict(name), "inline"
    elif name in catalog["builds"]:
        found = dict(catalog["builds"][name])
    else:
        raise BuildRefused(
            f"{where}: {name!r} is not in catalog/builds.yml. Allowed: {did_you_mean(name, catalog['builds'])}."
        )
    _check_keys(where, found)
    packages = [*found.get("packages", catalog["packages"].get(found["engine"], [])), *wish.get("packages", [])]
    found = {"replace": {}, "unwanted": [], **found, "packages": list(dict.fromkeys(packages)), "name": str(name)}
    found["steps"] = [{"dependencies": True, "index_url": "", "cuda": "", **step} for step in found["steps"]]
    found["base"] = wish.get("base", found["base"])
    found.pop("source", None)
    problems = cuda_mismatches(found)
    if problems:
        raise BuildRefused(f"{where}: the recipe {name} mixes CUDA majors: {'; '.join(problems)}. Nothing was built.")
    found = _rewritten(found, {"{machine}": machine, **wish.get("mirrors", {})})
    if any(PASSWORD_IN_URL.search(text) for text in _texts(found)):
        raise BuildRefused(
            f"{where}: an address has a user or a password in it, which would stay in the image's history. Use a "
            "mirror that needs none, or build the image elsewhere and pull it."
        )
    return found


def _check_keys(where: str, found: Mapping[str, Any]) -> None:
    if missing := sorted(RECIPE_KEYS - {"packages", "replace", "unwanted", "source"} - set(found)):
        raise BuildRefused(f"{where}: the recipe lacks {', '.join(missing)}.")
    if unknown := sorted(set(found) - RECIPE_KEYS):
        raise BuildRefused(f"{where}: a recipe has no key {unknown[0]}. Allowed: {', '.join(sorted(RECIPE_KEYS))}.")
    for step in found["steps"]:
        if wrong := sorted({"name", "requirements"} - set(step)) or sorted(set(step) - STEP_KEYS):
            raise BuildRefused(f"{where}: step {step.get('name', '?')}: {wrong[0]} is missing or unknown.")


def cuda_mismatches(found: Mapping[str, Any]) -> list[str]:
    """The parts of a recipe that are of another CUDA major than the recipe is, or of which it is not known."""
    major = str(found["cuda"]).partition(".")[0]
    problems = []
    base = CUDA_IN_BASE.search(found["base"])
    if base and base[1] != major:
        problems.append(f"the base {found['base']} has CUDA {base[1]}.{base[2]}, the recipe is for {found['cuda']}")
    for step in found["steps"]:
        told = str(step.get("cuda") or "")
        if not told and step["name"] != "engine":
            problems.append(f"{step['name']} does not say its cuda")
        if told and told.partition(".")[0] != major:
            problems.append(f"{step['name']} is for CUDA {told}, the recipe for {found['cuda']}")
        for text in [*step["requirements"], step.get("index_url") or ""]:
            built = CUDA_IN_PACKAGE.search(text)
            if built and built[1] != major:
                problems.append(f"{text} is for CUDA {built[1]}.{built[2]}, the recipe for {found['cuda']}")
    return problems


def _rewritten(value: Any, replacements: Mapping[str, str]) -> Any:
    """`value` with each text replaced wherever it stands; the longest first."""
    if isinstance(value, Mapping):
        return {key: _rewritten(item, replacements) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rewritten(item, replacements) for item in value]
    if isinstance(value, str):
        for old in sorted(replacements, key=len, reverse=True):
            value = value.replace(old, replacements[old])
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)


def inputs_digest(dockerfile: str, files: Mapping[str, str]) -> str:
    """One digest of all that goes into a build. The same inputs are not built twice."""
    content = json.dumps([dockerfile, dict(sorted(files.items()))], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()
