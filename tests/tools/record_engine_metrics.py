#!/usr/bin/env python3
"""Record the names of an engine's Prometheus metrics from its published package.

usage: record_engine_metrics.py ENGINE VERSION WHEEL >catalog/engine_metrics/ENGINE-VERSION.yml

The wheel is read, not run: every call in its sources whose first argument or `name=` is a text such as "vllm:..." and
whose callee is named after a kind of metric. Counters are listed as a server shows them, with the ending _total.
"""

import ast
import sys
import zipfile
from collections.abc import Iterator

import yaml

KINDS = ("gauge", "counter", "histogram", "summary")


def metrics_of(source: str, prefix: str) -> Iterator[tuple[str, str]]:
    """(kind, name) of each metric that the source makes."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        named = [keyword.value for keyword in node.keywords if keyword.arg == "name"]
        for value in [*named, *node.args[:1]]:
            if isinstance(value, ast.Constant) and str(value.value).startswith(prefix):
                callee = ast.unparse(node.func).lower()
                kind = next((kind for kind in KINDS if kind in callee), None)
                if kind:
                    yield kind, value.value


def shown(kind: str, name: str) -> str:
    return f"{name.removesuffix('_total')}_total" if kind == "counter" else name


def main(engine: str, version: str, wheel: str) -> None:
    found: dict[str, set[str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for path in archive.namelist():
            if path.startswith(f"{engine}/") and path.endswith(".py"):
                source = archive.read(path).decode("utf-8", "replace")
                if f'"{engine}:' in source:
                    for kind, name in metrics_of(source, f"{engine}:"):
                        found.setdefault(kind, set()).add(shown(kind, name))
    print(f"# Metrics of {engine} {version}, recorded by tests/tools/record_engine_metrics.py from the wheel on PyPI.")
    print(yaml.safe_dump({kind: sorted(names) for kind, names in sorted(found.items())}, width=120), end="")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
