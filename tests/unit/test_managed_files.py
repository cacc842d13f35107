"""Small files: written, removed and put back on a real file system."""

import os
from pathlib import Path

import pytest

OWN = {"owner": str(os.getuid()), "group": str(os.getgid())}


def file(path: Path, content: str | None = None, **more) -> dict:
    return {"path": str(path), **({"content": content} if content is not None else {}), **OWN, **more}


def test_one_call_brings_all_files_to_their_state(tmp_path: Path, run_module):
    (tmp_path / "same").write_text("as it is\n")
    (tmp_path / "same").chmod(0o644)
    (tmp_path / "other").write_text("older\n")
    (tmp_path / "surplus").write_text("unwanted\n")
    files = [
        file(tmp_path / "same", "as it is\n"),
        file(tmp_path / "other", "newer\n", mode="0600"),
        file(tmp_path / "a/b/new", "new\n"),
        file(tmp_path / "surplus", state="absent"),
        file(tmp_path / "never", state="absent"),
    ]
    changed = [str(tmp_path / name) for name in ("other", "a/b/new", "surplus")]

    checked = run_module("managed_files", check=True, files=files)
    assert checked["changed_paths"] == changed
    assert (tmp_path / "other").read_text() == "older\n"
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "surplus").exists()

    assert run_module("managed_files", files=files)["changed_paths"] == changed
    assert (tmp_path / "other").read_text() == "newer\n"
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a/b/new").read_text() == "new\n"
    assert not (tmp_path / "surplus").exists()

    again = run_module("managed_files", files=files)
    assert (again["changed"], again["changed_paths"]) == (False, [])


def test_passwords_are_written_and_not_shown(tmp_path: Path, run_module):
    (tmp_path / "proxy").write_text('Proxy "http://me:older-secret@proxy:3128";\n')
    result = run_module(
        "managed_files", files=[file(tmp_path / "proxy", 'Proxy "http://me:newer-secret@proxy:3128";\n')]
    )
    assert "newer-secret" in (tmp_path / "proxy").read_text()
    (diff,) = result["diff"]
    assert diff["before"] == diff["after"] == 'Proxy "http://***@proxy:3128";\n'


def test_permissions_alone_are_a_change(tmp_path: Path, run_module):
    (tmp_path / "file").write_text("x\n")
    (tmp_path / "file").chmod(0o666)
    result = run_module("managed_files", files=[file(tmp_path / "file", "x\n")])
    assert result["changed_paths"] == [str(tmp_path / "file")]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_a_command_runs_only_after_its_files_changed(tmp_path: Path, run_module):
    files = [file(tmp_path / "one", "1\n"), file(tmp_path / "two", "2\n")]
    then = [
        {"argv": ["touch", str(tmp_path / "one ran")], "when_changed": [str(tmp_path / "one")]},
        {"argv": ["touch", str(tmp_path / "two ran")], "when_changed": [str(tmp_path / "two")]},
    ]
    (tmp_path / "two").write_text("2\n")
    (tmp_path / "two").chmod(0o644)
    checked = run_module("managed_files", check=True, files=files, then=then)
    assert checked["commands"] == [f"touch {tmp_path}/one ran"]
    assert not (tmp_path / "one ran").exists()
    run_module("managed_files", files=files, then=then)
    assert (tmp_path / "one ran").exists()
    assert not (tmp_path / "two ran").exists()


def test_a_failed_command_puts_its_files_back_so_that_the_next_run_tries_again(tmp_path: Path, run_module):
    (tmp_path / "there").write_text("older\n")
    files = [file(tmp_path / "there", "newer\n"), file(tmp_path / "new", "new\n"), file(tmp_path / "kept", "kept\n")]
    then = [
        {
            "argv": ["sh", "-c", "echo broken >&2; exit 3"],
            "when_changed": [str(tmp_path / "there"), str(tmp_path / "new")],
        }
    ]
    result = run_module("managed_files", files=files, then=then)
    assert "broken" in result["msg"]
    assert (tmp_path / "there").read_text() == "older\n"
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([{"path": "{tmp}/first", "content": "x"}, {"path": "{tmp}", "content": "x"}], "is a directory"),
        ([{"path": "{tmp}/first", "content": "x"}, {"path": "{tmp}/first", "content": "y"}], "more than once"),
        ([{"path": "{tmp}/first", "content": "x"}, {"path": "{tmp}/second"}], "content"),
    ],
)
def test_a_wrong_list_is_refused_before_anything_is_written(tmp_path: Path, run_module, files, message):
    files = [{key: value.replace("{tmp}", str(tmp_path)) for key, value in each.items()} | OWN for each in files]
    assert message in run_module("managed_files", files=files)["msg"]
    assert not (tmp_path / "first").exists()


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, run_module):
    (tmp_path / "plain").write_text("")
    files = [file(tmp_path / "good", "x\n"), file(tmp_path / "plain/below", "x\n")]
    message = run_module("managed_files", files=files)["msg"]
    assert f"{tmp_path}/plain/below" in message
    assert f"Written before: {tmp_path}/good" in message
