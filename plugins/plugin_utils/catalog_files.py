"""The catalogues of this collection, read on the control node and handed to the planner as dictionaries."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.catalog_view import Catalog

COLLECTION_ROOT = Path(__file__).resolve().parents[2]
SUBJECTS = ("gpus", "drivers", "images", "models", "overheads", "profiles")
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _read(path: Path) -> Any:
    with path.open(encoding="utf-8") as stream:
        return yaml.load(stream, Loader=YAML_LOADER)


class _RecordedFlags(Mapping[tuple[str, str], Any]):
    """catalog/engine_flags by (engine, version); a file is read when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._paths = {}
        for path in sorted(folder.glob("*-*.yml")):
            engine, _, version = path.stem.partition("-")
            self._paths[engine, version] = path
        self._read = functools.lru_cache(maxsize=None)(_read)

    def __getitem__(self, key: tuple[str, str]) -> Any:
        return self._read(self._paths[key])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


@functools.lru_cache(maxsize=1)
def load_catalog(root: Path = COLLECTION_ROOT) -> Catalog:
    """The catalogues of this collection, read once per process."""
    folder = root / "catalog"
    return Catalog(
        *(_read(folder / f"{subject}.yml") for subject in SUBJECTS), flags=_RecordedFlags(folder / "engine_flags")
    )


def read_ahead() -> None:
    """Read the catalogues, and the options of the default engines."""
    catalog = load_catalog()
    for name, engine in catalog.profiles["engines"].items():
        catalog.engine_flags(catalog.image(engine["default_image"], name))
