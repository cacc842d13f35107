"""The private authority: what it signs holds in a real TLS handshake, and lasts as long as it should."""

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest
from ansible_collections.blackwell.serving.plugins.plugin_utils import private_ca
from ansible_collections.blackwell.serving.plugins.plugin_utils.private_ca import PrivateCa

NAMES = ["gw.example.internal", "10.0.0.10", "127.0.0.1"]


@pytest.fixture
def authority(tmp_path: Path) -> PrivateCa:
    found = PrivateCa(tmp_path / "ca")
    found.issue("gw1", NAMES)
    return found


def handshake(authority: PrivateCa, trusted: Path, name: str) -> str:
    """Empty, or why a client that trusts `trusted` does not believe the gateway."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(authority.path("gw1", "crt"), authority.path("gw1", "key"))
    one, other = socket.socketpair()

    def serve():
        try:
            server.wrap_socket(one, server_side=True).close()
        except OSError:
            one.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ssl.create_default_context(cafile=trusted).wrap_socket(other, server_hostname=name).close()
    except ssl.SSLError as problem:
        return str(problem)
    finally:
        other.close()
        thread.join()
    return ""


def test_clients_that_trust_the_authority_believe_the_gateway(authority, tmp_path):
    for name in NAMES:
        assert handshake(authority, authority.path("ca", "crt"), name) == ""
    assert "mismatch" in handshake(authority, authority.path("ca", "crt"), "elsewhere.example.internal")
    stranger = PrivateCa(tmp_path / "other")
    stranger.issue("gw1", NAMES)
    assert "verify failed" in handshake(authority, stranger.path("ca", "crt"), NAMES[0])


def test_keys_are_for_their_owner_alone_and_out_of_git(authority):
    for name in ("ca", "gw1"):
        assert authority.path(name, "key").stat().st_mode & 0o777 == 0o600
    assert (authority.directory / ".gitignore").read_text() == "*.key\n"


def test_a_certificate_is_kept_until_names_change_or_it_ends_soon(authority, monkeypatch):
    assert authority.is_current("gw1", NAMES)
    assert authority.is_current("gw1", reversed(NAMES))
    assert not authority.is_current("gw1", NAMES[:2])
    assert not authority.is_current("gw2", NAMES)
    now = datetime.datetime.now(datetime.UTC)
    for days, kept in ((366, True), (368, False)):
        monkeypatch.setattr(private_ca, "_now", lambda days=days: now + datetime.timedelta(days=days))
        assert authority.is_current("gw1", NAMES) is kept


def test_a_second_gateway_has_the_same_authority(authority):
    before = authority.path("ca", "crt").read_bytes()
    authority.issue("gw2", NAMES)
    assert authority.path("ca", "crt").read_bytes() == before


def test_a_certificate_of_another_authority_is_not_current(authority, tmp_path):
    other = PrivateCa(tmp_path / "other")
    other.issue("gw1", NAMES)
    for suffix in ("crt", "key"):
        authority.path("ca", suffix).write_bytes(other.path("ca", suffix).read_bytes())
    assert not authority.is_current("gw1", NAMES)


def test_a_gateway_goes_and_with_the_last_one_the_authority(authority):
    authority.issue("gw2", NAMES)
    assert {path.name for path in authority.of("gw1")} == {"gw1.crt", "gw1.key"}
    authority.remove(authority.of("gw1"))
    assert authority.is_current("gw2", NAMES)
    assert authority.of("gw1") == []
    authority.remove(authority.of("gw2"))
    assert not authority.directory.exists()


def test_an_authority_of_others_and_files_of_others_stay(tmp_path, authority, monkeypatch):
    monkeypatch.setattr(private_ca, "CA_NAME", "Example Corp")
    theirs = PrivateCa(tmp_path / "theirs")
    theirs.issue("gw1", NAMES)
    monkeypatch.undo()
    theirs.remove(theirs.of("gw1"))
    assert {path.name for path in theirs.directory.iterdir()} == {".gitignore", "ca.crt", "ca.key"}
    (authority.directory / "notes").write_text("mine")
    authority.remove(authority.of("gw1"))
    assert {path.name for path in authority.directory.iterdir()} == {".gitignore", "notes"}


def test_the_action_takes_nothing_in_check_mode(authority, ansible_playbook, tmp_path):
    play = tmp_path / "play.yml"
    play.write_text(
        "- {hosts: gw1, gather_facts: false, tasks: [{blackwell.serving.gateway_certificate: "
        f"{{state: absent, directory: {authority.directory}, name: gw1}}}}]}}\n"
    )
    for options, there in ((["--check"], True), ([], False)):
        done = ansible_playbook(play, "-i", "gw1,", *options)
        assert "changed=1" in done.stdout, done.stdout + done.stderr
        assert authority.directory.exists() == there
    assert "changed=0" in ansible_playbook(play, "-i", "gw1,").stdout
