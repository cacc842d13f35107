"""The releases of a stack on disk: what is current, what comes back, what is kept."""

import fcntl
import os
import subprocess
import sys

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.stack_releases import (
    FAILED,
    KEPT,
    Locked,
    Releases,
    unused,
)

DEFINITION = {"services": {"a": {}}}


@pytest.fixture
def releases(tmp_path) -> Releases:
    return Releases(str(tmp_path / "stack"))


def add(releases, text="x", serves=True):
    with releases.locked(0):
        release = releases.add({"compose.yaml": text, "plan.json": '{"services": []}'}, DEFINITION)
        if serves:
            releases.make_current(release)
    return release.name


def test_a_release_serves_only_once_it_is_made_current(releases):
    name = add(releases, serves=False)
    assert releases.current() is None
    with releases.locked(0):
        releases.make_current(releases.read(name))
    assert releases.current().name == name
    assert releases.current().definition == DEFINITION
    assert os.readlink(releases.link) == f"releases/{name}"


def test_what_an_interrupted_deployment_left_is_removed_by_the_next(releases):
    served = add(releases)
    add(releases, "interrupted", serves=False)
    assert releases.current().name == served
    later = add(releases, "later")
    assert releases.names() == [served, later]
    with open(releases.current().compose_files[0]) as stream:
        assert stream.read() == "later"


def test_a_half_written_release_does_not_count(releases):
    name = add(releases)
    os.unlink(os.path.join(releases.folder, name, "plan.json"))
    assert releases.current() is None


def test_the_one_before_is_the_newest_that_served_before_the_current_one(releases):
    first = add(releases)
    failed = add(releases, serves=False)
    releases.mark(os.path.join(releases.folder, failed), FAILED, DEFINITION)
    last = add(releases)
    assert releases.previous().name == first
    with releases.locked(0):
        releases.make_current(releases.read(first))
    assert releases.previous() is None
    assert releases.read(last) is not None


def test_old_releases_go_and_the_current_one_stays_however_old(releases):
    names = [add(releases) for _ in range(KEPT + 3)]
    with releases.locked(0):
        releases.make_current(releases.read(names[0]))
        gone = releases.prune()
    assert gone == names[1:3]
    assert releases.current().name == names[0]
    assert releases.names() == [names[0], *names[3:]]


def test_of_failed_releases_the_last_is_kept(releases):
    served = add(releases)
    failed = []
    for _ in range(3):
        failed.append(add(releases, serves=False))
        releases.mark(os.path.join(releases.folder, failed[-1]), FAILED, DEFINITION)
    releases.prune()
    assert releases.names() == [served, failed[-1]]


def test_two_do_not_change_the_stack_at_once(releases):
    with releases.locked(0):
        other = Releases(releases.directory)
        with pytest.raises(Locked, match=str(os.getpid())), other.locked(0):
            pass
    with releases.locked(0):
        pass


def test_the_unit_at_boot_holds_the_same_lock(releases):
    os.makedirs(releases.directory)
    with open(os.path.join(releases.directory, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Locked, match="boot"), releases.locked(0):
            pass


def test_a_deployment_that_was_killed_is_not_named_as_the_holder(releases):
    """It left its name in the lock; the unit, which writes none, has it now."""
    os.makedirs(releases.directory)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with open(os.path.join(releases.directory, "lock"), "w") as lock:
        lock.write(f"process {ended.pid}, since 2026-11-24T21:05:00Z\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Locked, match="boot"), releases.locked(0):
            pass


def test_releases_of_one_second_have_different_names():
    taken = []
    for _ in range(4):
        taken.append(unused("20261124T210500Z", taken))
    assert len(set(taken)) == 4
    assert taken == sorted(taken)
