"""Benchmarks that `make bench` alone runs."""

from pathlib import Path

import pytest

TAKES_MINUTES = {"test_hosts.py"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if collection_path.name in TAKES_MINUTES and not config.getoption("--full-benchmarks") else None
