"""Writes Debian packages and signed apt repositories. Standard library and gpg only."""

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

EPOCH = 1_735_689_600  # the date of every file in every package


class Link(str):
    """A file's content that is a symbolic link to this path."""


@dataclass
class Package:
    """A binary package. `files` maps absolute paths to text, bytes or a Link.

    A file is executable if it begins with `#!` or lies in a directory for programs.
    """

    name: str
    version: str
    description: str
    architecture: str = "amd64"
    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, str | bytes] = field(default_factory=dict)
    scripts: dict[str, str] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        return f"{self.name}_{self.version.split(':')[-1]}_{self.architecture}.deb"

    def control(self, **more: str) -> str:
        fields = {
            "Package": self.name,
            "Version": self.version,
            "Architecture": self.architecture,
            "Maintainer": "blackwell.serving test lab <lab@example.invalid>",
            "Installed-Size": "1",
            "Section": "misc",
            "Priority": "optional",
            **self.fields,
            **more,
            "Description": self.description,
        }
        return "".join(f"{name}: {text}\n" for name, text in fields.items())

    def to_bytes(self) -> bytes:
        conffiles = "".join(f"{path}\n" for path in self.files if path.startswith("/etc/"))
        control = {
            "/control": self.control(),
            **{f"/{name}": f"#!/bin/sh\nset -e\n{text}\n" for name, text in self.scripts.items()},
        }
        if conffiles:
            control["/conffiles"] = conffiles
        parts = [("debian-binary", b"2.0\n"), ("control.tar.gz", _tar(control)), ("data.tar.gz", _tar(self.files))]
        packed = b"!<arch>\n"
        for name, content in parts:
            packed += (
                f"{name:<16}{EPOCH:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
                + content
                + b"\n" * (len(content) % 2)
            )
        return packed


def _tar(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    made = set()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, content in sorted(files.items()):
            for parent in reversed(Path(path.lstrip("/")).parents[:-1]):
                if parent not in made:
                    made.add(parent)
                    entry = tarfile.TarInfo(f"./{parent}")
                    entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, EPOCH
                    archive.addfile(entry)
            entry = tarfile.TarInfo(f".{path}")
            entry.mtime = EPOCH
            if isinstance(content, Link):
                entry.type, entry.linkname = tarfile.SYMTYPE, str(content)
                archive.addfile(entry)
                continue
            data = content.encode() if isinstance(content, str) else content
            executable = data.startswith(b"#!") or Path(path).parent.name in ("bin", "sbin", "cli-plugins")
            entry.size, entry.mode = len(data), 0o755 if executable else 0o644
            archive.addfile(entry, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), compresslevel=1, mtime=EPOCH)


def packages_index(root: Path, directory: str, packages: list[Package]) -> str:
    """Write the packages below root/directory and return their stanzas, with file names relative to `root`."""
    (root / directory).mkdir(parents=True, exist_ok=True)
    stanzas = []
    for package in packages:
        content, name = package.to_bytes(), os.path.normpath(f"{directory}/{package.file_name}")
        (root / name).write_bytes(content)
        sums = {
            "SHA256": hashlib.sha256(content).hexdigest(),
            "Size": str(len(content)),
            "Filename": f"./{name}" if directory == "." else name,
        }
        stanzas.append(package.control(**sums))
    return "\n".join(stanzas)


def write_flat(root: Path, packages: list[Package], key: "Key", **release: str) -> None:
    """A flat repository (`Suites: /`) in `root`."""
    index = packages_index(root, ".", packages)
    _write_release(root, {"Packages": index}, key, release)


def write_suite(root: Path, codename: str, component: str, packages: list[Package], key: "Key", **release: str) -> None:
    """A suite in root/dists/CODENAME with one component, its packages beside it as in Docker's repository."""
    index = packages_index(root, f"dists/{codename}/pool/{component}/amd64", packages)
    fields = {"Suite": codename, "Codename": codename, "Components": component, **release}
    _write_release(root / "dists" / codename, {f"{component}/binary-amd64/Packages": index}, key, fields)


def _write_release(root: Path, indices: dict[str, str], key: "Key", fields: dict[str, str]) -> None:
    sums = []
    for name, text in indices.items():
        for path, content in ((name, text.encode()), (f"{name}.gz", gzip.compress(text.encode(), mtime=0))):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
            sums.append(f" {hashlib.sha256(content).hexdigest()} {len(content)} {path}\n")
    fields = {**fields, "Architectures": "amd64", "Date": formatdate(usegmt=True)}
    text = "".join(f"{name}: {value}\n" for name, value in fields.items()) + "SHA256:\n" + "".join(sums)
    (root / "Release").write_text(text)
    (root / "InRelease").write_bytes(key.clear_sign(text.encode()))
    (root / "Release.gpg").write_bytes(key.detached_signature(text.encode()))


class Key:
    """A throw-away OpenPGP key pair in a GnuPG home of its own, made if there is none."""

    def __init__(self, home: Path, owner: str) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._home = home
        self._gpg_words = [
            "gpg",
            "--homedir",
            str(home),
            "--batch",
            "--quiet",
            "--no-tty",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ]
        if not self._gpg("--list-keys"):
            self._gpg("--quick-generate-key", owner, "rsa3072", "sign", "0")
        listing = self._gpg("--with-colons", "--list-keys").decode()
        self.fingerprint = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr"))
        self.public = self._gpg("--armor", "--export")
        self.keyring = self._gpg("--export")

    def _gpg(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        return subprocess.run([*self._gpg_words, *arguments], input=stdin, capture_output=True, check=True).stdout

    def close(self) -> None:
        """End the key agent that gpg started for this home."""
        subprocess.run(["gpgconf", "--homedir", str(self._home), "--kill", "all"], check=False)

    def clear_sign(self, text: bytes) -> bytes:
        return self._gpg("--digest-algo", "SHA512", "--clearsign", stdin=text)

    def detached_signature(self, text: bytes) -> bytes:
        return self._gpg("--digest-algo", "SHA512", "--armor", "--detach-sign", stdin=text)
