#!/usr/bin/python
"""Trust a repository's signing key, known by its fingerprint."""

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_signing_key
short_description: Trust a package repository's signing key, known by its fingerprint
version_added: 0.2.0
description:
  - Downloads an OpenPGP key file, armoured or binary, checks the fingerprint of every primary key in it, and writes it
    in binary form, for the C(Signed-By) field of a deb822 source.
  - A file with any other key, or without one that is listed, is refused before anything is written.
  - A file on disk that holds exactly these primary keys is left alone, and nothing is downloaded.
  - Fingerprints are computed here (SHA-1 for version 4 keys, SHA-256 for version 6 keys); the host needs no GnuPG.
options:
  url:
    description: Where the key file is (http, https or file). Proxies are taken from the environment.
    type: str
    required: true
  fingerprints:
    description: Fingerprints of the primary keys that the file must hold, no more and no fewer.
    type: list
    elements: str
    required: true
  path:
    description: Where to write the key file; missing directories are made.
    type: path
    required: true
  refresh:
    description: Download again though the file on disk holds the right keys, for instance after one was prolonged.
    type: bool
    default: false
  timeout:
    description: Seconds to wait for the server.
    type: int
    default: 30
attributes:
  check_mode:
    support: full
    description: The key is downloaded and checked, and not written.
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Trust Docker's signing key
  blackwell.serving.apt_signing_key:
    url: https://download.docker.com/linux/debian/gpg
    fingerprints: [9DC8 5822 9FC7 DD38 854A  E2D8 8D81 803C 0EBF CD88]
    path: /etc/apt/keyrings/docker.gpg
"""

RETURN = r"""
path:
  description: The key file on the host.
  returned: success
  type: str
fingerprints:
  description: Fingerprints of the primary keys in it.
  returned: success
  type: list
  elements: str
downloaded:
  description: Whether the key was downloaded.
  returned: success
  type: bool
"""

import os
import tempfile
from urllib.error import URLError

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.blackwell.serving.plugins.module_utils import openpgp


def fingerprints_on_disk(path: str) -> list[str]:
    try:
        with open(path, "rb") as stream:
            return openpgp.primary_fingerprints(stream.read())
    except (OSError, openpgp.KeyFileError):
        return []


def downloaded(module: AnsibleModule, url: str) -> bytes:
    try:
        with open_url(url, timeout=module.params["timeout"], http_agent="blackwell.serving") as answer:
            return answer.read()
    except (OSError, URLError, ValueError) as error:
        module.fail_json(msg=f"{url}: cannot be downloaded: {error}; nothing was changed.")


def write(module: AnsibleModule, path: str, key: bytes) -> None:
    try:
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(handle, "wb") as stream:
            stream.write(key)
        module.atomic_move(temporary, path)
    except OSError as error:
        module.fail_json(msg=f"{path}: cannot be written: {error}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "fingerprints": {"type": "list", "elements": "str", "required": True, "no_log": False},
            "path": {"type": "path", "required": True},
            "refresh": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    url, path = module.params["url"], module.params["path"]
    try:
        expected = sorted({openpgp.normalised(fingerprint) for fingerprint in module.params["fingerprints"]})
    except openpgp.KeyFileError as error:
        module.fail_json(msg=f"fingerprints: {error}.")
    if not expected:
        module.fail_json(msg="fingerprints: at least one is needed.")

    before = fingerprints_on_disk(path)
    as_it_should_be = sorted(before) == expected
    key = None
    if module.params["refresh"] or not as_it_should_be:
        key_file = downloaded(module, url)
        try:
            found = openpgp.primary_fingerprints(key_file)
            key = openpgp.dearmoured(key_file)
        except openpgp.KeyFileError as error:
            module.fail_json(msg=f"{url}: {error}; nothing was changed.")
        if sorted(found) != expected:
            module.fail_json(
                msg=f"{url}: not the expected key: expected {', '.join(expected)}, found {', '.join(found)}; "
                "nothing was changed."
            )
    else:
        found = before

    content_differs = False
    if key is not None:
        try:
            with open(path, "rb") as stream:
                content_differs = stream.read() != key
        except OSError:
            content_differs = True
        if content_differs and not module.check_mode:
            write(module, path, key)

    attributes = {"path": path, "owner": "root", "group": "root", "mode": "0644", "secontext": None, "attributes": None}
    if os.geteuid() != 0:
        attributes |= {"owner": None, "group": None}
    attributes_differ = False
    if os.path.exists(path):
        attributes_differ = module.set_fs_attributes_if_different(attributes, changed=False)
    module.exit_json(
        changed=content_differs or attributes_differ,
        path=path,
        fingerprints=found,
        downloaded=key is not None,
        diff={
            "before_header": path,
            "after_header": path,
            "before": "".join(f"{fingerprint}\n" for fingerprint in before),
            "after": "".join(f"{fingerprint}\n" for fingerprint in found),
        },
    )


if __name__ == "__main__":
    main()
