"""Send the files of a bundle to a host, or fetch a host's files for one, in pieces over Ansible's own connection."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.blackwell.serving.plugins.module_utils.bundle_store import BundleError, Store, pieces

display = Display()
GIB = 2**30
MODULE = "blackwell.serving.bundle_files"


class ActionModule(ActionBase):
    """``blackwell.serving.bundle_files``: see plugins/modules/bundle_files.py for its documentation."""

    TRANSFERS_FILES = False  # a directory on the host is made only where there is something to send
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        self.variables = task_vars or {}
        self.arguments = self._task.args
        self.most = int(self.arguments.get("piece_mib", 128)) << 20
        if self.arguments.get("state", "present") == "fetched":
            return result | self._fetch()
        return result | self._send()

    def _on_host(self, **arguments: Any) -> dict[str, Any]:
        given = {key: self.arguments[key] for key in ("directory", "keep_free_gib") if key in self.arguments}
        answer = self._execute_module(module_name=MODULE, module_args=given | arguments, task_vars=self.variables)
        if answer.get("failed"):
            raise AnsibleActionFail(answer.get("msg", "the host gave no reason"), result=answer)
        return answer

    def _send(self) -> dict[str, Any]:
        found = self._on_host(groups=self.arguments["groups"])
        found.pop("invocation", None)
        if self._task.diff:
            found["diff"] = {
                "before": "".join(f"{path}\n" for path in found["removed"]),
                "after": "".join(f"{file['path']}\n" for file in found["missing"]),
                "before_header": "files of an older bundle on the host",
                "after_header": "files of the bundle on the host",
            }
        if self._task.check_mode or not found["missing"]:
            return found
        source, done = Path(self.arguments["source"]), 0
        for segments in pieces(found["missing"], self.most):
            with tempfile.NamedTemporaryFile(prefix="bundle-") as piece:
                for segment in segments:
                    _append(piece, source / segment["path"], segment["offset"], segment["length"])
                piece.flush()
                remote = self._remote_piece()
                self._transfer_file(piece.name, remote)
                self._fixup_perms2((self._connection._shell.tmpdir, remote))
            self._on_host(operation="write", piece=remote, segments=segments)
            done += sum(segment["length"] for segment in segments)
            self._tell("sent", done, found["bytes"])
        return found

    def _fetch(self) -> dict[str, Any]:
        store = Store(self.arguments["source"])
        missing = store.missing(self.arguments["files"])
        size, done = sum(file["size"] - file["have"] for file in missing), 0
        result = {"changed": bool(missing), "missing": missing, "removed": [], "bytes": size}
        if self._task.check_mode:
            return result
        try:
            for segments in pieces(missing, self.most):
                remote = self._remote_piece()
                self._on_host(operation="read", piece=remote, segments=segments)
                with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
                    local = os.path.join(folder, "piece")
                    self._connection.fetch_file(remote, local)
                    store.write_piece(local, segments)
                done += sum(segment["length"] for segment in segments)
                self._tell("fetched", done, size)
            store.save()
        except BundleError as error:
            raise AnsibleActionFail(f"{error}.") from error
        return result

    def _remote_piece(self) -> str:
        shell = self._connection._shell
        if shell.tmpdir is None:
            self._make_tmp_path()
        return shell.join_path(shell.tmpdir, "piece")

    def _tell(self, what: str, done: int, total: int) -> None:
        host = self.variables.get("inventory_hostname", "")
        display.display(f"{host}: {done / GIB:.2f} of {total / GIB:.2f} GiB {what}")


def _append(target: Any, path: Path, offset: int, length: int) -> None:
    with path.open("rb") as stream:
        stream.seek(offset)
        while length:
            chunk = stream.read(min(1 << 22, length))
            if not chunk:
                raise AnsibleActionFail(f"{path} became shorter while it was sent")
            target.write(chunk)
            length -= len(chunk)
