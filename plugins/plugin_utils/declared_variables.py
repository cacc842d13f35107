"""Which ``serving_*`` variables there are: the options of the roles' argument specs. Anything else is a typo."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.plan_error import PlanError, did_you_mean
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import COLLECTION_ROOT, YAML_LOADER

PREFIX = "serving_"
# Any number of variables, each named by its user.
OPEN_PREFIX = "serving_service_overrides_"


@functools.lru_cache(maxsize=1)
def declared_names() -> frozenset[str]:
    names: set[str] = set()
    for path in sorted((COLLECTION_ROOT / "roles").glob("*/meta/argument_specs.yml")):
        specs = yaml.load(path.read_text(encoding="utf-8"), Loader=YAML_LOADER)["argument_specs"]
        for entry_point in specs.values():
            names |= set(entry_point.get("options") or {})
    return frozenset(names)


def unknown_variables(variables: Iterable[str]) -> list[PlanError]:
    """One error per variable that begins with ``serving_`` and that no role declares."""
    known = declared_names()
    unknown: list[Any] = sorted(
        name for name in variables if name.startswith(PREFIX) and name not in known and not name.startswith(OPEN_PREFIX)
    )
    return [
        PlanError(
            "there is no such variable",
            key=name,
            allowed=did_you_mean(name, (other for other in known if other.startswith(PREFIX)), 40),
        )
        for name in unknown
    ]
