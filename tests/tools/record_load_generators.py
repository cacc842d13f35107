#!/usr/bin/env python3
"""Record the options of the load generator that an engine's published package carries, in catalog/generator_flags/.

    record_load_generators.py sglang 0.5.19

The package is fetched as record_engine_flags.py does. The options are read from the calls of add_argument in its
source; nothing is imported or run. The format is that of catalog/engine_flags (record_engine_flags.py), with the names
of the classes that convert values left out.
"""

import ast
import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import yaml
from record_engine_flags import DEFAULT_CACHE, fetch_package

REPO_ROOT = Path(__file__).resolve().parents[2]
# Where the generator's parser is; a module moved between versions, so the first ones that are there count.
SOURCES = {
    "sglang": [["sglang/benchmark/serving.py", "sglang/bench_serving.py"]],
    "vllm": [["vllm/benchmarks/serve.py"], ["vllm/benchmarks/datasets/datasets.py", "vllm/benchmarks/datasets.py"]],
}
HEADER = "# Written by tests/tools/record_load_generators.py; do not edit.\n"


def options_in(source: str) -> dict[str, Any]:
    """Every option that the source adds to a parser or to a group of one."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"):
            continue
        names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        if names and names[0].startswith("--"):
            found[names[0]] = entry_of({word.arg: word.value for word in node.keywords}, names)
    return found


def entry_of(words: dict[str | None, ast.expr], names: list[str]) -> dict[str, Any]:
    action = ast.unparse(words["action"]) if "action" in words else ""
    entry: dict[str, Any] = {"kind": "value"}
    if "store_" in action:
        entry["kind"] = "switch"
    elif action.endswith("BooleanOptionalAction"):
        entry |= {"kind": "toggle", "negative": f"--no-{names[0][2:]}"}
    elif "nargs" in words:
        entry["kind"] = "list"
    converter = ast.unparse(words["type"]) if "type" in words else ""
    if converter in ("int", "float"):
        entry["type"] = converter
    if isinstance(words.get("choices"), (ast.List, ast.Tuple)):
        entry["choices"] = ast.literal_eval(words["choices"])
    if names[1:]:
        entry["aliases"] = names[1:]
    return entry


def record(engine: str, version: str, package: Path) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    read = []
    with zipfile.ZipFile(package) as wheel:
        for candidates in SOURCES[engine]:
            texts = ((name, wheel.read(name).decode()) for name in candidates if name in wheel.namelist())
            name, text = next((name, text) for name, text in texts if "add_argument" in text)
            flags |= options_in(text)
            read.append(name)
    source = {"file": package.name, "sha256": hashlib.sha256(package.read_bytes()).hexdigest(), "read_from": read}
    return {"engine": engine, "version": version, "source": source, "flags": dict(sorted(flags.items()))}


def text_of(engine: str, version: str) -> str:
    """The file in catalog/generator_flags/."""
    cache = DEFAULT_CACHE.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    recorded = record(engine, version, fetch_package(engine, version, cache))
    return HEADER + yaml.safe_dump(recorded, sort_keys=False, default_flow_style=None, width=110)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    path = REPO_ROOT / f"catalog/generator_flags/{sys.argv[1]}-{sys.argv[2]}.yml"
    path.write_text(text_of(*sys.argv[1:]), "utf-8")


if __name__ == "__main__":
    main()
