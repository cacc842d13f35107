"""What the programs for the GPU box have in common: options, who takes what, and results that several of them write."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from card import Card, versions


def parser() -> argparse.ArgumentParser:
    """The options of a program that works on one GPU until a deadline."""
    options = argparse.ArgumentParser()
    options.add_argument("--sites", type=Path, required=True)
    options.add_argument("--prepared", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--gpu", type=int, default=0)
    options.add_argument("--deadline", type=float, default=float("inf"), help="seconds since 1970")
    return options


def claimed(out: Path, name: str) -> bool:
    """Whether this process may take what has that name: it is the first to ask."""
    try:
        (out / f"taken.{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def conditions_of(card: Card, sites: Mapping[str, Path]) -> dict[str, Any]:
    """When, on which card, and with which engines."""
    found = {"date": today(), "shown_gib": card.shown_gib, "gpu": card.product, "driver": card.driver}
    return {**found, "versions": versions(sites)}


def without_paths(found: Any, prepared: Path) -> Any:
    """The same with models named as on any box."""
    return json.loads(json.dumps(found).replace(f"{prepared}/models/", "MODELS/"))


@contextlib.contextmanager
def shared_result(file: Path, empty: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What the JSON file holds, or `empty` at first, to be changed; then it is written. One process at a time."""
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = json.loads(file.read_text()) if file.exists() else dict(empty)
        yield known
        file.write_text(json.dumps(known, indent=1) + "\n")
