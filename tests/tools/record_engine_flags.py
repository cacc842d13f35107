#!/usr/bin/env python3
"""Record the command-line flags of one inference engine version in catalog/engine_flags/.

    record_engine_flags.py sglang 0.5.19
    record_engine_flags.py vllm 0.24.0 --package vllm-0.24.0-cp38-abi3-manylinux_2_28_x86_64.whl --output flags.yml

The flags come from the parser that the package's own code builds (engine_parser.py), in a child process: no GPU, no
PyTorch and none of the engine's other dependencies are needed. Needs pip, PyYAML, packaging,
pydantic >= 2.12 and msgspec.
The same package gives the same bytes on every machine and on CPython 3.11 to 3.13.

Format of the file, beside `engine`, `version` and `source` (the package file, its SHA-256, the modules that were run):

flags          one entry per option, under its first long spelling:
  kind             switch (no value) | toggle (no value, `negative` turns it off) | value | list (several values)
  type             what converts the value: str, int, float, json, or the name of the engine's own function.
                   Only int and float can be checked without the engine.
  choices          the accepted values, where the engine accepts no others
  negative         spelling that turns a toggle off; negative_aliases: more of them
  aliases          other spellings
  nullable         true: an int or float that also takes the word None
  value_optional   true: the option may stand without its value
  count            number of values that a list must have
  repeatable       true: may be given several times, each adds a value
  required, deprecated   true where the engine says so
positionals    arguments without a spelling, in order (vLLM: the model)
retired        options that the engine still knows but stops at, with its message
notes          what the reader of this file should know about it
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import yaml

REPO_ROOT = Path(__file__).resolve().parents[2]
PARSER = Path(__file__).with_name("engine_parser.py")
ENGINES = ("sglang", "vllm")
DEFAULT_CACHE = Path("~/.cache/blackwell-serving/packages")
# The wheel for CPython 3.12 on x86_64: every recorded version has one.
PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux1_x86_64")
HEADER = "# Written by tests/tools/record_engine_flags.py; do not edit.\n"


class RecordingError(Exception):
    """The package could not be fetched, or its parser could not be built."""


def fetch_package(engine: str, version: str, cache_dir: Path) -> Path:
    """Return the path of the published wheel, downloaded once into `cache_dir`."""
    folder = cache_dir / f"{engine}-{version}"
    if cached := sorted(folder.glob("*.whl")):
        return cached[0]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version=3.12", "--implementation=cp", *(f"--platform={name}" for name in PLATFORMS)]
    with tempfile.TemporaryDirectory(dir=cache_dir) as download:
        finished = subprocess.run(
            [*command, f"--dest={download}", f"{engine}=={version}"], capture_output=True, text=True, check=False
        )
        if finished.returncode != 0:
            raise RecordingError(f"pip could not download {engine} {version}:\n{finished.stderr.strip()}")
        wheel = next(Path(download).glob("*.whl"))
        return wheel.rename(folder / wheel.name)


def unpack_sources(package: Path, directory: Path) -> None:
    """Unpack Python files and metadata; of each compiled module only an empty file that shows that it exists."""
    with zipfile.ZipFile(package) as wheel:
        for member in wheel.infolist():
            if member.filename.endswith(".py") or member.filename.endswith(".dist-info/METADATA"):
                wheel.extract(member, directory)
            elif member.filename.endswith(".so"):
                placeholder = directory / member.filename
                placeholder.parent.mkdir(parents=True, exist_ok=True)
                placeholder.touch()


def read_parser(engine: str, package: Path) -> dict[str, Any]:
    """Return what engine_parser.py reports about the parser in `package`."""
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch, "sources")
        unpack_sources(package, sources)
        finished = subprocess.run(
            [sys.executable, "-B", "-I", str(PARSER), engine, str(sources)],
            env={"HOME": scratch, "TMPDIR": scratch, "PATH": os.defpath, "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
    if finished.returncode != 0:
        raise RecordingError(f"{package.name}: its parser could not be built:\n{finished.stderr.strip()}")
    return json.loads(finished.stdout)


def record(engine: str, version: str, package: Path) -> str:
    """Return the text of catalog/engine_flags/<engine>-<version>.yml."""
    if not package.name.startswith(f"{engine}-{version}-"):
        raise RecordingError(f"{package.name} is not a wheel of {engine} {version}")
    parser = read_parser(engine, package)
    with package.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    source = {"package": engine, "version": version, "file": package.name, "sha256": sha256}
    source["read_from"] = parser.pop("read_from")
    head = {"engine": engine, "version": version, "source": source}
    head |= {key: parser[key] for key in ("notes", "positionals", "retired") if parser[key]}
    flags = {"flags": dict(sorted(parser["flags"].items()))}
    return HEADER + to_yaml(head, default_flow_style=False) + to_yaml(flags, default_flow_style=None)


def to_yaml(data: dict[str, Any], default_flow_style: bool | None) -> str:
    return yaml.safe_dump(data, default_flow_style=default_flow_style, sort_keys=False, width=100, allow_unicode=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("version")
    parser.add_argument(
        "--package", type=Path, metavar="FILE", help="a wheel; default: fetch it from the package index"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: catalog/engine_flags/ENGINE-VERSION.yml")
    parser.add_argument(
        "--cache-dir", type=Path, default=DEFAULT_CACHE, help="of fetched packages (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    output = options.output or REPO_ROOT / f"catalog/engine_flags/{options.engine}-{options.version}.yml"
    try:
        started = time.monotonic()
        package = options.package or fetch_package(options.engine, options.version, options.cache_dir.expanduser())
        fetched = time.monotonic()
        text = record(options.engine, options.version, package)
    except RecordingError as error:
        print(error, file=sys.stderr)
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(
        f"{output.name}: {package.name}, {package.stat().st_size / 1e6:.0f} MB, fetched in {fetched - started:.1f} s, "
        f"recorded in {time.monotonic() - fetched:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
