"""Filters that turn a plan into the images that its host needs; catalogues and recipes stay on the control node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.blackwell.serving.plugins.filter.image_decisions import image_refusals
from ansible_collections.blackwell.serving.plugins.module_utils import image_decisions
from ansible_collections.blackwell.serving.plugins.module_utils.image_builds import BuildRefused
from ansible_collections.blackwell.serving.plugins.module_utils.image_decisions import ImageRefused
from ansible_collections.blackwell.serving.plugins.module_utils.image_reference import parse
from ansible_collections.blackwell.serving.plugins.plugin_utils import image_build_files
from ansible_collections.blackwell.serving.plugins.plugin_utils.host_catalog import read_catalog


def image_plan(
    plan: Mapping[str, Any],
    locks: Any,
    archives: Mapping[str, Any],
    builds: Mapping[str, Any],
    archive_directory: str,
    machine: str = "x86_64",
    refresh: bool = False,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """{images, unlocked, repositories, locks}; a refusal is `{refused: why}`, else `refused` is empty."""
    try:
        capabilities = [gpu["compute_capability"] for gpu in plan["gpus"]]
        wishes = {image_decisions.lock_key(parse(str(text))): wish for text, wish in builds.items()}

        def build(key: str) -> dict[str, Any] | None:
            return image_build_files.build_of(key, wishes[key], capabilities, machine) if key in wishes else None

        catalog = read_catalog("images")
        checked = image_decisions.checked_locks(locks)
        images = image_decisions.wanted_images(
            plan["services"],
            checked,
            archives,
            build,
            catalog["estimated_gib"],
            read_catalog("start_path")["start_path"],
            archive_directory,
            refresh,
            also,
        )
        return {
            "refused": "",
            "images": images,
            "unlocked": image_decisions.unlocked(images),
            "locks": checked,
            "repositories": image_decisions.repositories(
                [entry["reference"] for entry in catalog["images"].values()]
                + [image["reference"] for image in images if image["libraries"]]
            ),
        }
    except (ImageRefused, BuildRefused, ValueError) as refusal:
        return {"refused": str(refusal), "images": [], "unlocked": [], "locks": {}, "repositories": []}


def engine_image_refusals(
    found: Sequence[Mapping[str, Any]], plan: Mapping[str, Any], facts: Mapping[str, Any], locks: Mapping[str, Any]
) -> list[str]:
    """Why images that are there may not start on the GPUs that the plan gives them; see image_gate.

    What nvidia-smi says of a GPU's capability beats the plan. Images that are not there yet are left out.
    """
    told = {gpu["index"]: gpu["compute_capability"] for gpu in facts.get("gpus", [])}
    planned = {gpu["index"]: gpu["compute_capability"] for gpu in plan["gpus"]}
    loaded = facts["driver"]["loaded"] or {}
    images = {image["reference"]: image for image in found if image["present"]}
    asked: dict[tuple[str, str, str], set[str]] = {}
    for service in plan["services"]:
        use = (image_decisions.lock_key(parse(service["image"])), service["engine"], service["image_key"])
        asked.setdefault(use, set()).update(told.get(index) or planned[index] for index in service["gpus"])
    refusals = [
        refusal
        for (reference, engine, key), capabilities in asked.items()
        if reference in images
        for refusal in image_refusals(
            dict(images[reference]),
            key=key,
            engine=engine,
            capabilities=sorted(capabilities),
            driver=loaded.get("version"),
            lock=locks.get(reference),
            machine=facts["os"]["deb_architecture"],
        )
    ]
    return list(dict.fromkeys(refusals))


def first_to_want(host: str, unlocked_by_host: Mapping[str, Sequence[str]]) -> list[str]:
    return image_decisions.first_to_want(host, unlocked_by_host)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "image_plan": image_plan,
            "engine_image_refusals": engine_image_refusals,
            "first_to_want": first_to_want,
        }
