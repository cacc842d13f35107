"""Dockerfiles that are rendered from recipes, with the files that they copy in."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from ansible_collections.blackwell.serving.plugins.module_utils import image_builds
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import COLLECTION_ROOT
from ansible_collections.blackwell.serving.plugins.plugin_utils.host_catalog import read_catalog

# Copied into the image as they are.
MODULE_FILES = ("cuda_fatbin.py", "gpu_code.py")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
SCRIPTS = ("engine_requirements.py", "check_gpu_code.py")


@functools.lru_cache(maxsize=1)
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(COLLECTION_ROOT / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["quoted"] = lambda text: "'" + str(text).replace("'", "'\\''") + "'"
    return environment


def build_of(reference: str, wish: Mapping[str, Any], capabilities: Sequence[str], machine: str) -> dict[str, Any]:
    """What engine_images is told to build `reference` for GPUs of `capabilities`: dockerfile, files, inputs, recipe."""
    recipe = image_builds.recipe(reference, wish, read_catalog("builds"), machine)
    dockerfile = (
        _templates()
        .get_template(f"Dockerfile.{recipe['engine']}.j2")
        .render(recipe=recipe, capabilities=sorted(set(capabilities)))
    )
    files = {name: _text(f"plugins/module_utils/{name}") for name in MODULE_FILES}
    files |= {name: _text(f"templates/image/{name}") for name in SCRIPTS}
    files["replacements.json"] = json.dumps(
        {"replace": recipe["replace"], "unwanted": recipe["unwanted"]}, indent=2, sort_keys=True
    )
    files["libraries.json"] = json.dumps(
        _libraries(recipe["engine"], ARCHITECTURES.get(machine, machine)), indent=2, sort_keys=True
    )
    return {
        "dockerfile": dockerfile,
        "files": files,
        "inputs": image_builds.inputs_digest(dockerfile, files),
        "recipe": recipe["name"],
    }


def _libraries(engine: str, architecture: str) -> list[dict[str, Any]]:
    """The libraries of the engine's start path, without what only people read."""
    return [
        {key: library[key] for key in ("name", "files", "only_on") if key in library}
        for library in read_catalog("start_path")["start_path"][engine]
        if architecture in library.get("only_for", [architecture])
    ]


def _text(path: str) -> str:
    return Path(COLLECTION_ROOT, path).read_text("utf-8")
