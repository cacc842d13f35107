"""Runs every molecule scenario, each on hosts of its own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = sorted(path.parent.name for path in REPO_ROOT.glob("molecule/*/molecule.yml"))


@pytest.fixture(scope="session")
def docker_engine() -> None:
    """A Docker engine that answers; without one there are no test hosts."""
    lab = REPO_ROOT / "molecule/lab/lab.py"
    answer = subprocess.run([sys.executable, lab, "status"], capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(answer.stderr.strip())


@pytest.mark.molecule
@pytest.mark.usefixtures("docker_engine")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_scenario(scenario: str, run_tool) -> None:
    """`molecule test` of the scenario passes; the message of a failure is the run's own words."""
    done = run_tool("molecule", "test", "--scenario-name", scenario, timeout=1800)
    words = re.sub(r"\n\s*\n+", "\n", done.stdout + done.stderr)
    assert done.returncode == 0, words[-12000:]
