"""The front's configuration on a real file system."""

import os
import stat

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.gateway_files import (
    Front,
    FrontFile,
    digest_of,
    replace_file,
)

FILES = {"nginx.conf": FrontFile("http {}\n", 0o644), "keys.conf": FrontFile("secret\n", 0o600)}


@pytest.fixture
def front(tmp_path) -> Front:
    return Front(str(tmp_path))


def test_what_is_written_is_read_again_with_its_permissions(front):
    front.write(FILES)
    assert front.files() == FILES
    assert stat.S_IMODE(os.stat(front.path).st_mode) == 0o700
    front.write({"nginx.conf": FILES["nginx.conf"]})
    assert list(front.files()) == ["nginx.conf"]


def test_a_file_that_stays_the_same_is_not_touched(front):
    front.write(FILES)
    before = os.stat(os.path.join(front.path, "nginx.conf")).st_ino
    front.write(FILES | {"keys.conf": FrontFile("other\n", 0o600)})
    assert os.stat(os.path.join(front.path, "nginx.conf")).st_ino == before
    assert front.files()["keys.conf"].content == "other\n"


def test_a_trial_leaves_nothing(front):
    front.write(FILES)
    front.write_trial({"keys.conf": FrontFile("new secret\n", 0o600)})
    assert stat.S_IMODE(os.stat(front.trial).st_mode) == 0o700
    assert front.files() == FILES
    front.drop_trial()
    assert not os.path.exists(front.trial)


def test_whether_nginx_has_to_reload_is_remembered(front):
    front.write(FILES)
    assert front.applied() != digest_of(FILES)
    front.set_applied(digest_of(FILES))
    assert front.applied() == digest_of(front.files())


@pytest.mark.parametrize(
    "other",
    [
        {"nginx.conf": FILES["nginx.conf"]},
        FILES | {"nginx.conf": FrontFile("http { }\n", 0o644)},
        FILES | {"keys.conf": FrontFile("secret\n", 0o644)},
        {"nginx.conf": FrontFile("secret\n", 0o644), "keys.conf": FrontFile("http {}\n", 0o600)},
    ],
)
def test_every_difference_has_another_digest(other):
    assert digest_of(other) != digest_of(FILES)


def test_a_failed_write_leaves_the_older_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "keys.conf"
    path.write_text("older\n")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        replace_file(str(path), "newer\n", 0o600)
    assert path.read_text() == "older\n"
    assert os.listdir(tmp_path) == ["keys.conf"]
