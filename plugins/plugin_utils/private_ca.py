"""A private certificate authority in a directory of the control node: one key, one certificate for each gateway.

    ca.crt  ca.key          the authority, for ten years
    <name>.crt  <name>.key  a gateway's certificate, made anew before it ends or when its names change

Needs the package cryptography, which ansible-core requires as well.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_NAME = "blackwell.serving private CA"
CA_DAYS = 3650
# What browsers and Apple's systems accept at most: support.apple.com/102028
CERTIFICATE_DAYS = 397
RENEW_DAYS = 30
IGNORED = "*.key\n"


class PrivateCa:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.changes: list[str] = []

    def path(self, name: str, suffix: str) -> Path:
        return self.directory / f"{name}.{suffix}"

    def is_current(self, name: str, names: Iterable[str]) -> bool:
        """Whether the gateway's certificate is of this authority, for these names, and good for a while."""
        try:
            authority = x509.load_pem_x509_certificate(self.path("ca", "crt").read_bytes())
            certificate = x509.load_pem_x509_certificate(self.path(name, "crt").read_bytes())
            key = serialization.load_pem_private_key(self.path(name, "key").read_bytes(), None)
            certificate.verify_directly_issued_by(authority)
            alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, x509.ExtensionNotFound):
            return False
        except Exception as problem:  # InvalidSignature, of another authority
            if type(problem).__name__ != "InvalidSignature":
                raise
            return False
        return (
            set(alternative) == set(_alternatives(names))
            and key.public_key() == certificate.public_key()
            and certificate.not_valid_after_utc > _now() + datetime.timedelta(days=RENEW_DAYS)
        )

    def issue(self, name: str, names: Iterable[str]) -> None:
        names = list(names)
        self.directory.mkdir(parents=True, exist_ok=True)
        ignored = self.directory / ".gitignore"
        if not ignored.exists():
            ignored.write_text(IGNORED, encoding="utf-8")
        if not self.path("ca", "crt").exists():
            self._make_authority()
        authority = x509.load_pem_x509_certificate(self.path("ca", "crt").read_bytes())
        signer = serialization.load_pem_private_key(self.path("ca", "key").read_bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(names[0], authority.subject, key.public_key(), CERTIFICATE_DAYS)
        builder = builder.add_extension(x509.SubjectAlternativeName(_alternatives(names)), False)
        builder = builder.add_extension(x509.BasicConstraints(False, None), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        builder = builder.add_extension(_usage(sign=False), True)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        self._write(name, key, builder.sign(signer, hashes.SHA256()))

    def of(self, name: str) -> list[Path]:
        """What there is of a gateway's, and, where it is the last one, of the authority, if that was made here."""
        found = [path for path in (self.path(name, "crt"), self.path(name, "key")) if path.exists()]
        others = {path.stem for path in self.directory.glob("*.crt")} - {"ca", name}
        if others or not self._made_here():
            return found
        return [*found, *(path for path in (self.path("ca", "crt"), self.path("ca", "key")) if path.exists())]

    def remove(self, paths: Iterable[Path]) -> None:
        """And the directory, where nothing else is in it."""
        for path in paths:
            path.unlink()
        ignored = self.directory / ".gitignore"
        if [*self.directory.iterdir()] == [ignored] and ignored.read_text(encoding="utf-8") == IGNORED:
            ignored.unlink()
            self.directory.rmdir()

    def _made_here(self) -> bool:
        try:
            authority = x509.load_pem_x509_certificate(self.path("ca", "crt").read_bytes())
        except (OSError, ValueError):
            return False
        return authority.subject == _name(CA_NAME)

    def _make_authority(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(CA_NAME, _name(CA_NAME), key.public_key(), CA_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(True, 0), True)
        builder = builder.add_extension(_usage(sign=True), True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        self._write("ca", key, builder.sign(key, hashes.SHA256()))

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _replace(self.path(name, "key"), private, 0o600)
        _replace(self.path(name, "crt"), certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        self.changes.append(str(self.path(name, "crt")))


def _replace(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
    os.chmod(temporary, mode)
    os.replace(temporary, path)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternatives(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def _builder(subject: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - datetime.timedelta(hours=1))
        .not_valid_after(_now() + datetime.timedelta(days=days))
    )


def _usage(sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )
