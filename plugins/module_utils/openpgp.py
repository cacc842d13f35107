"""Read OpenPGP public key files (RFC 4880 and RFC 9580) far enough to know whose keys they hold."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

SECRET_KEY, PUBLIC_KEY, SECRET_SUBKEY = 5, 6, 7
ARMOUR = re.compile(
    rb"^-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(.*?)^-----END PGP PUBLIC KEY BLOCK-----",
    re.DOTALL | re.MULTILINE,
)


class KeyFileError(ValueError):
    """What was read is no OpenPGP public key file."""


def normalised(fingerprint: str) -> str:
    """A fingerprint as 40 (version 4 keys) or 64 (version 6 keys) upper-case hexadecimal digits.

    Raises KeyFileError for anything else; spaces, colons, lower case and a leading 0x are allowed.
    """
    digits = re.sub(r"[\s:]", "", fingerprint).upper().removeprefix("0X")
    if not re.fullmatch(r"[0-9A-F]{40}|[0-9A-F]{64}", digits):
        raise KeyFileError(f"'{fingerprint}' is no fingerprint: 40 or 64 hexadecimal digits are")
    return digits


def dearmoured(data: bytes) -> bytes:
    """The binary form of a key file; of several armoured blocks, all of them in order."""
    blocks = ARMOUR.findall(data)
    if not blocks:
        return data
    return b"".join(_decoded_block(block) for block in blocks)


def primary_fingerprints(key_file: bytes) -> list[str]:
    """Fingerprints of the primary keys in a key file, armoured or binary, in their order.

    Raises KeyFileError when it is no sequence of OpenPGP packets, holds no public key, a secret one, or one of a
    version whose fingerprint is not defined in RFC 4880 or RFC 9580.
    """
    found = []
    for tag, body in _packets(dearmoured(key_file)):
        if tag in (SECRET_KEY, SECRET_SUBKEY):
            raise KeyFileError("holds a secret key")
        if tag == PUBLIC_KEY:
            found.append(_fingerprint(body))
    if not found:
        raise KeyFileError("holds no public key")
    return found


def _decoded_block(block: bytes) -> bytes:
    lines = [line.strip() for line in block.replace(b"\r\n", b"\n").split(b"\n")]
    start = lines.index(b"") + 1 if b"" in lines else 0
    encoded = b"".join(line for line in lines[start:] if not line.startswith(b"="))
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise KeyFileError(f"has a damaged armour: {error}") from error


def _fingerprint(body: bytes) -> str:
    if not body:
        raise KeyFileError("holds an empty key packet")
    if body[0] == 4:
        return hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body).hexdigest().upper()
    if body[0] == 6:
        return hashlib.sha256(b"\x9b" + len(body).to_bytes(4, "big") + body).hexdigest().upper()
    raise KeyFileError(f"holds a key of version {body[0]}, which this cannot check")


def _packets(data: bytes):
    """(tag, body) of each packet."""
    position = 0
    while position < len(data):
        header = data[position]
        if not header & 0x80:
            raise KeyFileError("is no OpenPGP key file")
        position += 1
        if header & 0x40:
            tag = header & 0x3F
            length, position = _new_length(data, position)
        else:
            tag = header >> 2 & 0x0F
            octets = {0: 1, 1: 2, 2: 4}.get(header & 0x03)
            if octets is None:
                raise KeyFileError("holds a packet of indeterminate length")
            length, position = _number(data, position, octets)
        if position + length > len(data):
            raise KeyFileError("ends within a packet")
        yield tag, data[position : position + length]
        position += length


def _new_length(data: bytes, position: int) -> tuple[int, int]:
    first, position = _number(data, position, 1)
    if first < 192:
        return first, position
    if first < 224:
        second, position = _number(data, position, 1)
        return (first - 192 << 8) + second + 192, position
    if first == 255:
        return _number(data, position, 4)
    raise KeyFileError("holds a packet of partial length")


def _number(data: bytes, position: int, octets: int) -> tuple[int, int]:
    if position + octets > len(data):
        raise KeyFileError("ends within a packet")
    return int.from_bytes(data[position : position + octets], "big"), position + octets
