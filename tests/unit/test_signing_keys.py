"""Signing keys: fingerprints against GnuPG's own, and managed_files on key files made here."""

import base64
import itertools
import json
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import openpgp

# RFC 9580, appendix A.3: a version 6 certificate (Ed25519 and X25519) and the fingerprint of its primary key.
RFC_9580_CERTIFICATE = """-----BEGIN PGP PUBLIC KEY BLOCK-----

xioGY4d/4xsAAAAg+U2nu0jWCmHlZ3BqZYfQMxmZu52JGggkLq2EVD34laPCsQYf
GwoAAABCBYJjh3/jAwsJBwUVCg4IDAIWAAKbAwIeCSIhBssYbE8GCaaX5NUt+mxy
KwwfHifBilZwj2Ul7Ce62azJBScJAgcCAAAAAK0oIBA+LX0ifsDm185Ecds2v8lw
gyU2kCcUmKfvBXbAf6rhRYWzuQOwEn7E/aLwIwRaLsdry0+VcallHhSu4RN6HWaE
QsiPlR4zxP/TP7mhfVEe7XWPxtnMUMtf15OyA51YBM4qBmOHf+MZAAAAIIaTJINn
+eUBXbki+PSAld2nhJh/LVmFsS+60WyvXkQ1wpsGGBsKAAAALAWCY4d/4wKbDCIh
BssYbE8GCaaX5NUt+mxyKwwfHifBilZwj2Ul7Ce62azJAAAAAAQBIKbpGG2dWTX8
j+VjFM21J0hqWlEg+bdiojWnKfA5AQpWUWtnNwDEM0g12vYxoWM8Y81W+bHBw805
I8kWVkXU6vFOi+HWvv/ira7ofJu16NnoUkhclkUrk0mXubZvyl4GBg==
-----END PGP PUBLIC KEY BLOCK-----
"""
RFC_9580_FINGERPRINT = "CB186C4F0609A697E4D52DFA6C722B0C1F1E27C18A56708F6525EC27BAD9ACC9"


@pytest.fixture(scope="module")
def gnupg(tmp_path_factory):
    """Make two keys; `gnupg(*arguments)` runs gpg, `gnupg.fingerprints` are what it says they are."""
    home = tmp_path_factory.mktemp("g")
    home.chmod(0o700)

    def run(*arguments: str) -> bytes:
        command = ["gpg", "--homedir", str(home), "--batch", "--quiet", *arguments]
        return subprocess.run(command, capture_output=True, check=True).stdout

    for name, algorithm in (("old@example.org", "rsa2048"), ("new@example.org", "ed25519")):
        run("--pinentry-mode", "loopback", "--passphrase", "", "--quick-generate-key", name, algorithm, "default", "1d")
    listed = run("--with-colons", "--fingerprint", "--list-keys").decode().splitlines()
    records = [line.split(":") for line in listed]
    run.fingerprints = [record[9] for previous, record in itertools.pairwise(records) if previous[0] == "pub"]
    return run


@pytest.mark.parametrize("options", [(), ("--armor",)])
def test_fingerprints_are_those_that_gnupg_names(gnupg, options):
    assert openpgp.primary_fingerprints(gnupg(*options, "--export")) == gnupg.fingerprints
    assert len(gnupg.fingerprints) == 2


def test_version_6_fingerprint_is_that_of_the_standard():
    assert openpgp.primary_fingerprints(RFC_9580_CERTIFICATE.encode()) == [RFC_9580_FINGERPRINT]


def test_several_armoured_blocks_count_all(gnupg):
    blocks = b"".join(gnupg("--armor", "--export", name) for name in gnupg.fingerprints)
    assert openpgp.primary_fingerprints(blocks) == gnupg.fingerprints


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"<html>not found</html>", "no OpenPGP"),
        (b"", "no public key"),
        (b"\xc6\x05abc", "ends within"),
        (b"\xc6\x03\x03ab", "version 3"),
        (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n!!!!\n-----END PGP PUBLIC KEY BLOCK-----\n", "armour"),
    ],
)
def test_what_is_no_key_file_is_refused(content: bytes, why: str):
    with pytest.raises(openpgp.KeyFileError, match=why):
        openpgp.primary_fingerprints(content)


def test_every_truncation_is_refused_or_has_the_whole_primary_key(gnupg):
    whole = gnupg("--export", gnupg.fingerprints[1])
    for length in range(len(whole)):
        try:
            found = openpgp.primary_fingerprints(whole[:length])
        except openpgp.KeyFileError:
            continue
        assert found == [gnupg.fingerprints[1]]


def test_a_secret_key_is_refused(gnupg):
    secret = gnupg("--pinentry-mode", "loopback", "--passphrase", "", "--export-secret-keys", gnupg.fingerprints[1])
    with pytest.raises(openpgp.KeyFileError, match="secret"):
        openpgp.primary_fingerprints(secret)


def key(path: Path, source: Path, *fingerprints: str) -> dict:
    owner = {"owner": str(os.getuid()), "group": str(os.getgid())}
    return {"path": str(path), "signing_key": {"url": f"file://{source}", "fingerprints": fingerprints}, **owner}


def test_the_right_key_is_trusted_once(gnupg, tmp_path: Path, run_module):
    fingerprint, source, target = gnupg.fingerprints[0], tmp_path / "key.asc", tmp_path / "keyrings/key.gpg"
    source.write_bytes(gnupg("--armor", "--export", fingerprint))
    files = [key(target, source, fingerprint.lower())]
    checked = run_module("managed_files", check=True, files=files)
    assert (checked["changed_paths"], checked["diff"][0]["after"]) == ([str(target)], f"{fingerprint}\n")
    assert not target.parent.exists()
    assert run_module("managed_files", files=files)["changed"]
    assert base64.b64encode(target.read_bytes()) == base64.b64encode(gnupg("--export", fingerprint))
    source.unlink()
    assert not run_module("managed_files", files=files)["changed"]
    target.write_bytes(target.read_bytes()[:40])
    assert "cannot be downloaded" in run_module("managed_files", files=files)["msg"]


def test_a_check_foretells_a_key_that_an_earlier_task_would_bring(tmp_path: Path, run_module):
    files = [key(tmp_path / "key.gpg", tmp_path / "bundle/key.asc", "A" * 40)]
    checked = run_module("managed_files", check=True, files=files)
    assert checked["changed_paths"] == [str(tmp_path / "key.gpg")]
    assert "cannot be downloaded" in run_module("managed_files", files=files)["msg"]


def test_a_key_comes_through_the_proxy_whose_password_nobody_sees(gnupg, tmp_path: Path, run_module):
    fingerprint, asked = gnupg.fingerprints[1], []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers["Proxy-Authorization"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(gnupg("--armor", "--export", fingerprint))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wanted = key(tmp_path / "key.gpg", tmp_path, fingerprint)
        wanted["signing_key"]["url"] = "http://keys.invalid/key.asc"
        proxy = {"http": f"http://me:secret@127.0.0.1:{server.server_port}"}
        result = run_module("managed_files", files=[wanted], proxy=proxy)
        server.shutdown()
    assert result["changed"]
    assert asked == [("http://keys.invalid/key.asc", f"Basic {base64.b64encode(b'me:secret').decode()}")]
    assert "me:secret" not in json.dumps(result)


@pytest.mark.parametrize("exported", [(1,), (0, 1)], ids=["another key", "one key too many"])
def test_any_other_key_is_refused_before_anything_is_written(gnupg, tmp_path: Path, run_module, exported):
    keys = [gnupg.fingerprints[index] for index in exported]
    (tmp_path / "key.gpg").write_bytes(gnupg("--export", *keys))
    (tmp_path / "there.gpg").write_bytes(b"older")
    first = {"path": f"{tmp_path}/first", "content": "first\n"}
    files = [first, key(tmp_path / "there.gpg", tmp_path / "key.gpg", gnupg.fingerprints[0])]
    result = run_module("managed_files", files=files)
    assert f"expected {gnupg.fingerprints[0]}, found {', '.join(keys)}" in result["msg"]
    assert (tmp_path / "there.gpg").read_bytes() == b"older"
    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize("fingerprints", [[], ["3BF863CC"]])
def test_a_key_needs_a_whole_fingerprint(tmp_path: Path, run_module, fingerprints):
    result = run_module("managed_files", files=[key(tmp_path / "key.gpg", tmp_path / "none", *fingerprints)])
    assert "fingerprint" in result["msg"]


def test_a_key_that_is_no_longer_wanted_is_removed_without_a_download(tmp_path: Path, run_module):
    (tmp_path / "key.gpg").write_bytes(b"older")
    files = [key(tmp_path / "key.gpg", tmp_path / "none", "A" * 40) | {"state": "absent"}]
    assert run_module("managed_files", files=files)["changed"]
    assert not (tmp_path / "key.gpg").exists()
