"""The file of the inventory that tuning writes: where Ansible reads it, never over something unread."""

import json
from pathlib import Path

import pytest
import yaml

TUNED = {"qwen": {"engine": "sglang", "engine_version": "0.5.19", "extra_args": {"attention-backend": "triton"}}}
OTHER = {"qwen": {"engine": "sglang", "engine_version": "0.5.19", "extra_args": {"attention-backend": "fa3"}}}


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    (tmp_path / "hosts.yml").write_text("all: {hosts: {box: {ansible_connection: local}}}\n")
    return tmp_path


@pytest.fixture
def write(inventory, run_tool):
    """`write(known, tuned)`: runs the module for host box; returns (its exit status, what it said)."""

    def run(known, tuned=None, *options):
        arguments = {"path": str(inventory / "host_vars/box/tuned.yml"), "known": known}
        arguments |= {"tuned": tuned} if tuned is not None else {}
        ran = run_tool(
            *("ansible", "box", "-i", str(inventory / "hosts.yml"), "-m", "blackwell.serving.tuned_services"),
            *("-a", json.dumps(arguments), *options),
        )
        return ran.returncode, ran.stdout + ran.stderr

    return run


def seen_by_ansible(inventory, run_tool):
    shown = run_tool("ansible-inventory", "-i", str(inventory / "hosts.yml"), "--host", "box")
    return json.loads(shown.stdout)


def test_ansible_reads_what_was_written(inventory, write, run_tool):
    status, said = write({}, TUNED)
    assert (status, "CHANGED" in said) == (0, True)
    assert seen_by_ansible(inventory, run_tool)["serving_tuned"] == TUNED


def test_writing_the_same_again_changes_nothing(inventory, write):
    write({}, TUNED)
    file = inventory / "host_vars/box/tuned.yml"
    before = file.stat().st_mtime_ns
    status, said = write(TUNED, TUNED)
    assert (status, "CHANGED" in said, file.stat().st_mtime_ns) == (0, False, before)


def test_check_mode_shows_it_and_writes_nothing(inventory, write):
    status, said = write({}, TUNED, "--check", "--diff")
    assert status == 0
    assert "+  qwen:" in said
    assert not (inventory / "host_vars").exists()


def test_a_file_that_this_run_has_not_read_is_left_alone(inventory, write):
    file = inventory / "host_vars/box/tuned.yml"
    file.parent.mkdir(parents=True)
    file.write_text(yaml.safe_dump({"serving_tuned": OTHER}))
    status, said = write({})
    assert status != 0
    assert "holds another serving_tuned than the variable of this host" in said
    assert write(OTHER)[0] == 0


def test_the_hosts_other_variables_are_not_hidden_from_ansible(inventory, write, run_tool):
    (inventory / "host_vars").mkdir()
    (inventory / "host_vars/box.yml").write_text("serving_mode: apply\n")
    status, said = write({}, TUNED)
    assert status != 0
    assert "box/main.yml" in said
    assert seen_by_ansible(inventory, run_tool)["serving_mode"] == "apply"
