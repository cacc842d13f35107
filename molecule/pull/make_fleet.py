"""Make the repository of a fleet: make_fleet.py DIRECTORY. Leaves fleet.git.tar and vault-password there.

It holds a copy of this collection, and an inventory in which the lab's addresses, keys and digests stand.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO_ROOT = HERE.parents[1]
LAB = REPO_ROOT / "molecule/lab/lab.py"
sys.path.insert(0, str(LAB.parent))

from copy_collection import copy  # noqa: E402

GIT = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
DECLARATION = {
    "engine_image_disk_check": False,  # estimates are those of the real images
    "cuda_toolkit_enabled": False,
    "host_verification_disk_gib": {"/": 1},
    # Without cuda_runs, as no kernel can run here; molecule/site looks at the memory.
    "host_verification_checks": [
        "gpu_present",
        "driver_loaded",
        "docker_runs",
        "docker_cdi",
        "services_up",
        "services_answer",
    ],
    "serving_services": [
        {
            "name": "qwen",
            "engine": "sglang",
            "image": "sglang-cu129",
            "model": "Qwen/Qwen2.5-3B-Instruct",
            "port": 30002,
            "context_length": 4096,
        }
    ],
}


def run(*command: str | Path, at: Path = REPO_ROOT) -> str:
    return subprocess.run(command, cwd=at, capture_output=True, text=True, check=True).stdout


def main(directory: Path) -> None:
    fleet, password = directory / "fleet", directory / "vault-password"
    copy(fleet)
    addresses = json.loads(run(sys.executable, LAB, "mirror"))
    digests = json.loads(run(sys.executable, LAB, "registry"))["images"]
    written = {
        "hosts.yml": {"all": {"hosts": {"puller": {}, "another": {}}}},
        "group_vars/all/main.yml": DECLARATION,
        "group_vars/all/lab.yml": {name: addresses[name] for name in addresses if name != "changed"}
        | {"docker_engine_daemon_options": {"registry-mirrors": ["http://registry"]}},
        "group_vars/all/images.lock.yml": {
            "serving_image_locks": {name: {"digest": digest} for name, digest in digests.items()}
        },
        "group_vars/all/secret.yml": {"made_up_secret": "kept"},
    }
    for name, content in written.items():
        (fleet / "inventory/fleet" / name).parent.mkdir(parents=True, exist_ok=True)
        (fleet / "inventory/fleet" / name).write_text(json.dumps(content, indent=2) + "\n")
    password.write_text("made-up-password\n")
    vault = Path(sys.executable).with_name("ansible-vault")
    secret = fleet / "inventory/fleet/group_vars/all/secret.yml"
    run(vault, "encrypt", "--vault-password-file", password, secret)
    run(*GIT, "init", "--quiet", "--initial-branch=main", at=fleet)
    run(*GIT, "add", "--all", at=fleet)
    run(*GIT, "commit", "--quiet", "--message=fleet", at=fleet)
    bare = directory / "fleet.git"
    shutil.rmtree(bare, ignore_errors=True)
    run(*GIT, "clone", "--quiet", "--bare", fleet, bare)
    shutil.make_archive(str(bare), "tar", directory, bare.name)


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C.UTF-8"
    main(Path(sys.argv[1]))
