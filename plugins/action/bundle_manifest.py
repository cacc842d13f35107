"""Write or verify a bundle's manifest, on the control node; the host itself is never contacted."""

from __future__ import annotations

import datetime
import threading
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.blackwell.serving.plugins.module_utils import bundle_manifest
from ansible_collections.blackwell.serving.plugins.module_utils.bundle_store import BundleError, Store, files_below
from ansible_collections.blackwell.serving.plugins.plugin_utils import bundle_collection

display = Display()
GIB = 2**30
ARGUMENTS = {
    "directory": {"type": "path", "required": True},
    "state": {"type": "str", "choices": ["verified", "begun", "written"], "default": "verified"},
    "sha256": {"type": "str", "default": ""},
    "parts": {"type": "dict", "default": {}},
    "files": {"type": "list", "elements": "dict", "default": []},
    "kept": {"type": "list", "elements": "str", "default": []},
}


class ActionModule(ActionBase):
    """``blackwell.serving.bundle_manifest``: see plugins/modules/bundle_manifest.py for its documentation."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result = super().run(tmp, task_vars)
        _, self.arguments = self.validate_argument_spec(argument_spec=ARGUMENTS)
        self.directory = Path(self.arguments["directory"])
        try:
            return result | getattr(self, f"_{self.arguments['state']}")()
        except BundleError as error:
            raise AnsibleActionFail(f"{error}\nNothing was changed on any host.") from error

    def _verified(self) -> dict[str, Any]:
        manifest, sha256 = bundle_manifest.read(self.directory, self.arguments["sha256"])
        bundle_manifest.refuse_damage(self.directory, manifest, self._progress(bundle_manifest.total_bytes(manifest)))
        return {"changed": False, "manifest": manifest, "sha256": sha256}

    def _progress(self, total: int) -> Any:
        """Say a line at each tenth of a bundle of more than a few GiB."""
        lock, state = threading.Lock(), {"done": 0, "told": 0}

        def seen(size: int) -> None:
            with lock:
                state["done"] += size
                tenth = state["done"] * 10 // total
                if total > 4 * GIB and tenth > state["told"]:
                    state["told"] = tenth
                    display.display(f"bundle: {state['done'] / GIB:.1f} of {total / GIB:.1f} GiB verified")

        return seen

    def _begun(self) -> dict[str, Any]:
        """An interrupted making leaves no manifest, and so no bundle."""
        path = self.directory / bundle_manifest.NAME
        if path.exists() and not self._task.check_mode:
            path.unlink()
        return {"changed": path.exists()}

    def _written(self) -> dict[str, Any]:
        expected = {file["path"]: file["sha256"] for file in self.arguments["files"]}
        version = bundle_collection.version()
        collection = f"collection/blackwell.serving-{version}.tar.gz"
        if self._task.check_mode:
            return {"changed": True, "sha256": "", "bytes": 0}
        place = self.directory / collection
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bundle_collection.archive())
        kept = (collection, *self.arguments["kept"])
        foreign = [
            path
            for path in files_below(self.directory)
            if path not in expected and not any(path == keep or path.startswith(f"{keep}/") for keep in kept)
        ]
        Store(str(self.directory)).remove(foreign)
        parts = {"systems": {}, "images": {}, "models": [], "control": {}} | self.arguments["parts"]
        parts["control"] = {"collection": collection, **parts["control"]}
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        manifest, text = bundle_manifest.written(self.directory, parts, now, f"blackwell.serving {version}")
        wrong = [path for path, sha256 in expected.items() if manifest["files"].get(path, {}).get("sha256") != sha256]
        if wrong:
            raise BundleError(f"{self.directory}: not what the host gave: {', '.join(wrong[:10])}. Run again")
        (self.directory / bundle_manifest.NAME).write_text(text, "utf-8")
        return {
            "changed": True,
            "sha256": bundle_manifest.sha256_of_text(text),
            "bytes": bundle_manifest.total_bytes(manifest),
            "manifest": manifest,
        }
