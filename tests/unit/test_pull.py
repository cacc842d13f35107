"""ansible-pull with a repository that is a clone of this one, as docs/pull.md says; it plans, and changes no host."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
ANSIBLE_PULL = Path(sys.executable).with_name("ansible-pull")
HOSTS = """
all:
  hosts: {box1: , box2: }
  vars:
    serving_gpus: [rtx_5090]
    serving_services:
      - {name: qwen, engine: sglang, model: Qwen/Qwen2.5-3B-Instruct, port: 30002, context_length: 4096}
"""


def git(place: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false", *words]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def fleet(tmp_path) -> Path:
    """A repository with the files of this one and an inventory."""
    if not shutil.which("git"):
        pytest.skip("no git on this machine")
    place = tmp_path / "fleet"
    names = git(REPO_ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        source = REPO_ROOT / name
        if source.is_symlink() or source.is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, place / name, follow_symlinks=False)
    (place / "inventory/fleet").mkdir()
    (place / "inventory/fleet/hosts.yml").write_text(HOSTS)
    git(place, "init", "--quiet", "--initial-branch=main")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message=fleet")
    return place


def pull(fleet: Path, tmp_path: Path, host: str = "box1") -> str:
    words = [str(ANSIBLE_PULL), "-U", str(fleet), "-C", "main", "-d", str(tmp_path / "pulled"), "-i", "inventory/fleet"]
    words += ["-c", "local", "-l", host, "--only-if-changed", "-e", f"output_dir={tmp_path}/plans", "site.yml"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {"LC_ALL": "C.UTF-8", "PATH": f"{ANSIBLE_PULL.parent}:{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_host_plans_for_itself_when_git_has_something_new(fleet, tmp_path):
    pull(fleet, tmp_path)
    plans = tmp_path / "plans"
    assert {path.name for path in plans.iterdir()} == {"box1", "index.html"}
    first = (plans / "box1/plan.json").read_text()

    shutil.rmtree(plans)
    assert "Repository has not changed" in pull(fleet, tmp_path)
    assert not plans.exists()

    hosts = fleet / "inventory/fleet/hosts.yml"
    hosts.write_text(hosts.read_text().replace("context_length: 4096", "context_length: 8192"))
    git(fleet, "commit", "--quiet", "--all", "--message=longer")
    pull(fleet, tmp_path)
    assert (plans / "box1/plan.json").read_text() != first
