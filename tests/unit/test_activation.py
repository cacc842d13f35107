"""The module activation with stand-ins for modprobe and systemctl that note what they are asked."""

import os
import stat
from pathlib import Path

import pytest

SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >> {log}
[ "$1" = show ] || exit {status}
case "$3" in
    on.service) printf 'LoadState=loaded\\nActiveState=active\\nUnitFileState=enabled\\n' ;;
    off.service) printf 'LoadState=loaded\\nActiveState=inactive\\nUnitFileState=disabled\\n' ;;
    *) printf 'LoadState=not-found\\nActiveState=inactive\\nUnitFileState=\\n' ;;
esac
"""
MODPROBE = """#!/bin/sh
echo "modprobe $*" >> {log}
"""


@pytest.fixture
def activate(tmp_path: Path, run_module):
    """Run the module; returns its result and the commands that it ran, `systemctl show` left out."""

    def run(status: int = 0, **arguments):
        log = tmp_path / "log"
        log.write_text("")
        for name, text in (("systemctl", SYSTEMCTL), ("modprobe", MODPROBE)):
            program = tmp_path / name
            program.write_text(text.format(log=log, status=status))
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        result = run_module("activation", environment={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, **arguments)
        return result, [line for line in log.read_text().splitlines() if not line.startswith("systemctl show")]

    return run


def unit(name: str) -> dict:
    return {"name": name, "enabled": True, "started": True}


def test_only_what_is_lacking_is_done(activate):
    result, commands = activate(kernel_modules=["no_such_module"], units=[unit("on.service"), unit("off.service")])
    assert commands == ["modprobe no_such_module", "systemctl enable off.service", "systemctl start off.service"]
    assert result["actions"] == ["load no_such_module", "enable off.service", "start off.service"]


def test_nothing_to_do_is_no_change(activate):
    result, commands = activate(units=[unit("on.service")])
    assert (result["changed"], commands) == (False, [])


def test_check_mode_foretells_a_unit_that_is_not_there_yet(activate):
    result, commands = activate(check=True, kernel_modules=["no_such_module"], units=[unit("new.service")])
    assert result["actions"] == ["load no_such_module", "enable new.service", "start new.service"]
    assert commands == []


def test_a_unit_that_is_not_there_is_an_error(activate):
    result, commands = activate(units=[unit("new.service")])
    assert "new.service is not on this host" in result["msg"]
    assert commands == []


def test_a_failed_start_is_an_error(activate):
    result, _ = activate(status=1, units=[unit("off.service")])
    assert "systemctl enable off.service failed" in result["msg"]
