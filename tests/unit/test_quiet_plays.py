"""Which headings of plays are printed, by real runs."""

from pathlib import Path

import pytest
import yaml

PLAYS = [
    {"name": "Nobody", "hosts": "[]", "tasks": [{"ansible.builtin.debug": {}}]},
    {"name": "Ended", "hosts": "all", "tasks": [{"ansible.builtin.meta": "end_host"}, {"ansible.builtin.debug": {}}]},
    {"name": "Busy", "hosts": "all", "tasks": [{"name": "Say it", "ansible.builtin.debug": {"msg": "said"}}]},
    {"name": "Failing", "hosts": "all", "tasks": [{"name": "Fail", "ansible.builtin.fail": {"msg": "reason"}}]},
]


@pytest.mark.parametrize(
    ("words", "headings"),
    [([], ["Busy", "Failing"]), (["-v"], ["Nobody", "Ended", "Busy", "Failing"])],
)
def test_a_play_that_does_nothing_has_no_heading(words, headings, run_tool, tmp_path: Path):
    book = tmp_path / "book.yml"
    book.write_text(yaml.safe_dump([{"gather_facts": False, **play} for play in PLAYS]))
    done = run_tool("ansible-playbook", book, "-i", "localhost,", "-c", "local", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("[")[1].split("]")[0] for line in lines if line.startswith("PLAY [")] == headings
    assert ("skipping: no hosts matched" in done.stdout) == ("Nobody" in headings)
    places = [next(number for number, line in enumerate(lines) if line.startswith(begin)) for begin in
              ("PLAY [Busy]", "TASK [Say it]", "PLAY [Failing]", "TASK [Fail]", "PLAY RECAP")]  # fmt: skip
    assert places == sorted(places)
