"""Signing keys: fingerprints against GnuPG's own, and the module on key files made here."""

import base64
import itertools
import subprocess
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


def test_module_trusts_the_right_key_once(gnupg, tmp_path: Path, run_module):
    fingerprint = gnupg.fingerprints[0]
    (tmp_path / "key.asc").write_bytes(gnupg("--armor", "--export", fingerprint))
    arguments = {
        "url": f"file://{tmp_path}/key.asc",
        "fingerprints": [fingerprint.lower()],
        "path": f"{tmp_path}/keyrings/key.gpg",
    }
    checked = run_module("apt_signing_key", check=True, **arguments)
    assert (checked["changed"], checked["fingerprints"]) == (True, [fingerprint])
    assert not (tmp_path / "keyrings").exists()
    assert run_module("apt_signing_key", **arguments)["changed"]
    written = (tmp_path / "keyrings/key.gpg").read_bytes()
    assert base64.b64encode(written) == base64.b64encode(gnupg("--export", fingerprint))
    (tmp_path / "key.asc").unlink()
    again = run_module("apt_signing_key", **arguments)
    assert (again["changed"], again["downloaded"]) == (False, False)


@pytest.mark.parametrize("exported", [(1,), (0, 1)], ids=["another key", "one key too many"])
def test_module_refuses_any_other_key_and_names_both(gnupg, tmp_path: Path, run_module, exported):
    keys = [gnupg.fingerprints[index] for index in exported]
    (tmp_path / "key.gpg").write_bytes(gnupg("--export", *keys))
    (tmp_path / "there.gpg").write_bytes(b"older")
    result = run_module(
        "apt_signing_key",
        url=f"file://{tmp_path}/key.gpg",
        fingerprints=[gnupg.fingerprints[0]],
        path=f"{tmp_path}/there.gpg",
    )
    assert f"expected {gnupg.fingerprints[0]}, found {', '.join(keys)}" in result["msg"]
    assert (tmp_path / "there.gpg").read_bytes() == b"older"


def test_module_says_that_the_key_cannot_be_had(tmp_path: Path, run_module):
    result = run_module(
        "apt_signing_key", url=f"file://{tmp_path}/none", fingerprints=["A" * 40], path=f"{tmp_path}/key.gpg"
    )
    assert "cannot be downloaded" in result["msg"]
    assert not (tmp_path / "key.gpg").exists()
