#!/usr/bin/python
"""Write several small files in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Write or remove several small files in one call
version_added: 0.2.0
description:
  - Brings a list of small files to their content, mode and owner. One call takes the place of as many tasks.
  - A file is replaced in one step; a reader sees the old or the new one.
  - A file can be the signing key of a package repository, known by its fingerprint. Such keys are downloaded and
    checked before any file is written, in check mode as well. The host needs no GnuPG.
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Where the file is; missing directories are made with mode 0755.
        type: path
        required: true
      content:
        description: What it holds. This or O(files[].signing_key) is required unless O(files[].state=absent).
        type: str
      signing_key:
        description:
          - An OpenPGP key file, written in binary form for the C(Signed-By) field of a deb822 source.
          - One on disk that holds exactly these primary keys is left alone, and nothing is downloaded. Delete it to
            have it fetched anew, for instance after a key was prolonged.
        type: dict
        suboptions:
          url:
            description: Where it is (http, https or file), armoured or binary.
            type: str
            required: true
          fingerprints:
            description:
              - Fingerprints of the primary keys that it must hold, no more and no fewer. Any other file is refused.
            type: list
            elements: str
            required: true
      state:
        description: Whether the file is there.
        type: str
        choices: [present, absent]
        default: present
      mode:
        description: Its permissions.
        type: str
        default: "0644"
      owner:
        description: Its owner.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
  then:
    description: Commands to run, in this order, after certain files changed.
    type: list
    elements: dict
    default: []
    suboptions:
      argv:
        description: The command and its arguments.
        type: list
        elements: str
        required: true
      when_changed:
        description: It runs if one of these files changed. If it fails, they are put back; the next run tries again.
        type: list
        elements: path
        required: true
  part:
    description:
      - Whose the files are, V(services) or what V(provisioning) needs. The module M(blackwell.serving.take_away) takes
        one part away again.
    type: str
    choices: [provisioning, services]
    default: provisioning
  record:
    description: Where the host remembers which files were written here, and what was there before.
    type: path
    default: /var/lib/blackwell-serving/put_there.json
  backup:
    description: Keep the older version beside a file whose content is replaced.
    type: bool
    default: false
  proxy:
    description:
      - Proxies for downloads, with the keys C(http), C(https) and C(no_proxy); without them, those of the environment.
      - A play's C(environment) is no place for a password, because sudo writes it into its log.
    type: dict
    default: {}
attributes:
  diff_mode:
    support: full
    description: Shows what changed, or would change, without the passwords of addresses.
extends_documentation_fragment: blackwell.serving.full_support
author:
  - The blackwell.serving maintainers
"""

EXAMPLES = r"""
- name: Keep nouveau off the GPU and the packages at their branch
  blackwell.serving.managed_files:
    files:
      - path: /etc/modprobe.d/nouveau.conf
        content: |
          blacklist nouveau
      - path: /etc/apt/keyrings/docker.gpg
        signing_key:
          url: https://download.docker.com/linux/debian/gpg
          fingerprints: [9DC8 5822 9FC7 DD38 854A  E2D8 8D81 803C 0EBF CD88]
      - path: /etc/apt/sources.list.d/older.list
        state: absent
    then:
      - argv: [update-initramfs, -u]
        when_changed: [/etc/modprobe.d/nouveau.conf]
"""

RETURN = r"""
changed_paths:
  description: Paths that were, or in check mode would be, written, removed or given other permissions.
  returned: success
  type: list
  elements: str
files:
  description: Path, state and whether it changed, of each file.
  returned: success
  type: list
  elements: dict
commands:
  description: Commands of O(then) that ran, or in check mode would run.
  returned: success
  type: list
  elements: str
"""

import os
import tempfile
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import url2pathname

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.blackwell.serving.plugins.module_utils import openpgp
from ansible_collections.blackwell.serving.plugins.module_utils.addresses import (
    proxy_environment,
    without_passwords,
)
from ansible_collections.blackwell.serving.plugins.module_utils.put_there import Record


def text_of(path: str) -> str | None:
    """The file's text; None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def write(module: AnsibleModule, path: str, content: str) -> None:
    """Write beside the old file first, so that a full disk leaves that one as it was."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=f".{os.path.basename(path)}.")
    module.add_cleanup_file(temporary)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.chmod(temporary, 0o600)
    module.atomic_move(temporary, path)


def fingerprints_in(text: str) -> list[str]:
    """Fingerprints of the primary keys in a key file as `text_of` reads it; none where it is no key file."""
    try:
        return openpgp.primary_fingerprints(text.encode("utf-8", "surrogateescape"))
    except openpgp.KeyFileError:
        return []


def downloaded(module: AnsibleModule, url: str) -> bytes:
    try:
        with open_url(url, timeout=30, http_agent="blackwell.serving") as answer:
            return answer.read()
    except (OSError, URLError, ValueError) as error:
        module.fail_json(msg=f"{url}: cannot be downloaded: {error}; nothing was changed.")


def key_file(module: AnsibleModule, path: str, url: str, fingerprints: list[str]) -> str:
    """The file on disk if it holds exactly these keys, else the one at `url`, if that does."""
    try:
        expected = sorted({openpgp.normalised(fingerprint) for fingerprint in fingerprints})
    except openpgp.KeyFileError as error:
        module.fail_json(msg=f"{path}: fingerprints: {error}.")
    if not expected:
        module.fail_json(msg=f"{path}: fingerprints: at least one is needed.")
    before = text_of(path)
    if before is not None and sorted(fingerprints_in(before)) == expected:
        return before
    if module.check_mode and url.startswith("file:") and not os.path.exists(url2pathname(urlsplit(url).path)):
        return ""  # an earlier task would have brought it: that the file changes is all that can be foretold
    data = downloaded(module, url)
    try:
        found, key = openpgp.primary_fingerprints(data), openpgp.dearmoured(data)
    except openpgp.KeyFileError as error:
        module.fail_json(msg=f"{url}: {error}; nothing was changed.")
    if sorted(found) != expected:
        module.fail_json(
            msg=f"{url}: not the expected key: expected {', '.join(expected)}, found {', '.join(found)}; "
            "nothing was changed."
        )
    return key.decode("utf-8", "surrogateescape")


def shown(wanted: dict, content: str | None) -> str:
    """What a diff shows of a file: of a key its fingerprints, of an address no password."""
    if wanted["signing_key"]:
        return "".join(f"{fingerprint}\n" for fingerprint in fingerprints_in(content or ""))
    return without_passwords(content or "")


def bring_to_state(module: AnsibleModule, wanted: dict, diffs: list[dict]) -> bool:
    """Whether the file was, or in check mode would be, changed."""
    path = wanted["path"]
    before = text_of(path)
    after = wanted["content"] if wanted["state"] == "present" else None
    replaced = before != after
    if replaced:
        diffs.append(
            {
                "before_header": path if before is not None else f"{path} (absent)",
                "after_header": path if after is not None else f"{path} (absent)",
                "before": shown(wanted, before),
                "after": shown(wanted, after),
            }
        )
        if not module.check_mode:
            # The record goes first: without the file it is harmless, the file without it would stay for ever.
            record = Record(module.params["record"])
            mode = os.stat(path).st_mode & 0o7777 if before is not None else 0
            record.file(path, module.params["part"], before, mode, after)
            record.save()
            if before is not None and module.params["backup"]:
                module.backup_local(path)
            if after is None:
                os.unlink(path)
            else:
                write(module, path, after)
    if after is None or not os.path.exists(path):
        return replaced
    attributes = {name: wanted[name] for name in ("path", "owner", "group", "mode")}
    return (
        module.set_fs_attributes_if_different(attributes | {"secontext": None, "attributes": None}, changed=False)
        or replaced
    )


def put_back(module: AnsibleModule, before: dict[str, str | None]) -> None:
    for path, content in before.items():
        if content is not None:
            write(module, path, content)
        elif os.path.exists(path):
            os.unlink(path)


def run_commands(module: AnsibleModule, changed_paths: list[str], before: dict[str, str | None]) -> list[str]:
    """Command lines that ran; a failed one ends the module."""
    done = []
    for command in module.params["then"]:
        concerned = [path for path in command["when_changed"] if path in changed_paths]
        if not concerned:
            continue
        line = " ".join(command["argv"])
        done.append(line)
        if module.check_mode:
            continue
        code, out, err = module.run_command(command["argv"])
        if code:
            put_back(module, {path: before[path] for path in concerned})
            reason = "\n".join((out + err).strip().splitlines()[-10:])
            module.fail_json(
                msg=f"{line} failed after {', '.join(concerned)} changed, which was put back:\n{reason}", changed=True
            )
    return done


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str"},
                    "signing_key": {
                        "type": "dict",
                        "no_log": False,
                        "options": {
                            "url": {"type": "str", "required": True},
                            "fingerprints": {"type": "list", "elements": "str", "required": True, "no_log": False},
                        },
                    },
                    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                    "mode": {"type": "str", "default": "0644"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                },
                "required_if": [("state", "present", ["content", "signing_key"], True)],
                "mutually_exclusive": [("content", "signing_key")],
            },
            "then": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "argv": {"type": "list", "elements": "str", "required": True},
                    "when_changed": {"type": "list", "elements": "path", "required": True},
                },
            },
            "part": {"type": "str", "choices": ["provisioning", "services"], "default": "provisioning"},
            "record": {"type": "path", "default": "/var/lib/blackwell-serving/put_there.json"},
            "backup": {"type": "bool", "default": False},
            "proxy": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    paths = [wanted["path"] for wanted in module.params["files"]]
    for path in paths:
        if not os.path.isabs(path):
            module.fail_json(msg=f"{path}: must be an absolute path; nothing was changed.")
        if os.path.isdir(path):
            module.fail_json(msg=f"{path}: is a directory; nothing was changed.")
        if paths.count(path) > 1:
            module.fail_json(msg=f"{path}: is listed more than once; nothing was changed.")

    os.environ.update(proxy_environment(module.params["proxy"]))
    all_wanted = [
        wanted | {"content": key_file(module, wanted["path"], **wanted["signing_key"])}
        if wanted["signing_key"] and wanted["state"] == "present"
        else wanted
        for wanted in module.params["files"]
    ]
    files, diffs, before = [], [], {}
    for wanted in all_wanted:
        try:
            before[wanted["path"]] = text_of(wanted["path"])
            changed = bring_to_state(module, wanted, diffs)
        except OSError as error:
            done = [file["path"] for file in files if file["changed"]]
            module.fail_json(
                msg=f"{wanted['path']}: {error.strerror or error}. Written before: {', '.join(done) or 'nothing'}.",
                changed=bool(done),
            )
        files.append({"path": wanted["path"], "state": wanted["state"], "changed": changed})
    changed_paths = [file["path"] for file in files if file["changed"]]
    commands = run_commands(module, changed_paths, before)
    module.exit_json(
        changed=bool(changed_paths), changed_paths=changed_paths, files=files, commands=commands, diff=diffs
    )


if __name__ == "__main__":
    main()
