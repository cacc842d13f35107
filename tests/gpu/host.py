#!/usr/bin/env python3
"""Run gpu_host_facts and host_verification_checks on a GPU box, as far as it goes without systemd and Docker.

    host.py COLLECTIONS SITE OUT

COLLECTIONS holds ansible_collections/blackwell/serving, SITE the package `ansible` (of which modules need module_utils
alone). Ansible itself does not run there: each module gets its parameters on standard input, as Ansible gives them. OUT
gets gpu_host_facts.json and host_verification_checks.json, each as the module printed it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CHECKS = ["gpu_present", "driver_loaded", "driver_open", "driver_installed", "gpu_capability", "cuda_on_path"]
CHECKS += ["cuda_compiles", "cuda_runs", "disk_space"]


def run(module: str, parameters: dict[str, object], python_path: str) -> str:
    name = f"ansible_collections.blackwell.serving.plugins.modules.{module}"
    done = subprocess.run(
        [sys.executable, "-m", name],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": parameters}),
        env={**os.environ, "PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    print(module, "ended with", done.returncode, done.stderr[-2000:])
    return done.stdout


def main() -> None:
    collections, site, out = map(Path, sys.argv[1:4])
    python_path = f"{collections}:{site}"
    (out / "gpu_host_facts.json").write_text(run("gpu_host_facts", {}, python_path))
    source = collections / "ansible_collections/blackwell/serving/roles/host_verification/files/vector_add.cu"
    parameters = {
        "checks": CHECKS,
        "capabilities": {"2330": "9.0", "2335": "9.0"},  # H100 SXM, H200 (catalog/gpus.yml)
        "capability_without_gpu": "12.0",
        "cuda_version": "13.0",
        "source": source.read_text(),
        "container_image": "none",
        "minimum": {"docker": "26.1", "compose": "2.26", "toolkit": "1.19.1"},
        "project": "serving",
        "disk": {"/": 1},
    }
    (out / "host_verification_checks.json").write_text(run("host_verification_checks", parameters, python_path))


if __name__ == "__main__":
    main()
