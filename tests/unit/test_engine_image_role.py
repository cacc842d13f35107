"""The role on two hosts that are this machine, each with a made-up docker and made-up facts of its own."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

MADE_UP_DOCKER = Path(__file__).resolve().parents[1] / "fixtures/made_up_docker.py"
NAME = "lmsysorg/sglang:v0.5.19-cu129"
DIGEST, OTHER_DIGEST = "sha256:" + "d" * 64, "sha256:" + "e" * 64
ID, OTHER_ID = "sha256:" + "1" * 64, "sha256:" + "2" * 64
SERVICE = {
    "name": "qwen",
    "engine": "sglang",
    "image": "sglang-cu129",
    "model": "Qwen/Qwen2.5-3B-Instruct",
    "port": 30002,
    "context_length": 4096,
    "max_concurrency": 4,
}
PLAY = """
- hosts: all
  gather_facts: false
  environment:
    PATH: "{{ tools }}:{{ lookup('ansible.builtin.env', 'PATH') }}"
  tasks:
    - name: Make up the facts of a host
      ansible.builtin.set_fact:
        cacheable: true
        gpu_host:
          gpus: []
          driver: {loaded: {version: 580.95.05}}
          os: {deb_architecture: amd64}
    - ansible.builtin.include_role:
        name: blackwell.serving.serving
    - ansible.builtin.include_role:
        name: blackwell.serving.engine_image
    - ansible.builtin.debug:
        msg: "brought {{ __engine_image_result.images | map(attribute='digest') | join }}"
"""


class Fleet:
    def __init__(self, home: Path, ansible_playbook) -> None:
        self.home, self.ansible_playbook = home, ansible_playbook
        self.lock_file = home / "inventory/group_vars/all/images.lock.yml"
        (home / "play.yml").write_text(PLAY)
        hosts = {}
        for name in ("one", "two"):
            tools = home / name / "bin"
            tools.mkdir(parents=True)
            command = f'MADE_UP_DOCKER={home / name} exec {sys.executable} -S {MADE_UP_DOCKER} "$@"'
            (tools / "docker").write_text(f"#!/bin/sh\n{command}\n")
            (tools / "docker").chmod(0o755)
            hosts[name] = {"tools": str(tools)}
            self.write(name, local=[], registry={}, containers=[], buildx=True)
        variables = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "serving_gpus": ["rtx_5090"],
            "serving_services": [SERVICE],
            "engine_image_keep_free_gib": 0,
            "engine_image_disk_check": False,
            "engine_image_retry_delay": 0,
            "engine_image_progress_path": str(home / "images.log"),
            "engine_image_cache_path": "{{ tools }}/../image_code.json",
        }
        (home / "inventory").mkdir()
        (home / "inventory/hosts.yml").write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": variables}}))
        self.publish()

    def state(self, host: str) -> dict:
        path = self.home / host / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def write(self, host: str, **changes) -> None:
        (self.home / host / "state.json").write_text(json.dumps(self.state(host) | changes))

    def publish(self, digest: str = DIGEST, identity: str = ID, **more) -> None:
        for host in ("one", "two"):
            self.write(host, registry={NAME: {"digest": digest, "id": identity, **more}})

    def pulled(self, host: str) -> list[str]:
        path = self.home / host / "calls"
        calls = [json.loads(line)["argv"] for line in path.read_text().splitlines()] if path.exists() else []
        return [call[1] for call in calls if call[0] == "pull"]

    def run(self, *arguments: str, inventory: str = "inventory", **variables):
        cache = {"engine_image_archive_directory": str(self.home / "archives"), **variables}
        return self.ansible_playbook(
            self.home / "play.yml",
            *("-i", self.home / inventory),
            *("-e", f"output_dir={self.home / 'out'}"),
            *("-e", json.dumps(cache)),
            *arguments,
            env={"HOME": str(self.home), "ANSIBLE_DEPRECATION_WARNINGS": "false"},
        )


@pytest.fixture
def fleet(tmp_path: Path, ansible_playbook) -> Fleet:
    return Fleet(tmp_path, ansible_playbook)


def test_a_tag_is_pulled_once_locked_once_and_the_same_for_all(fleet: Fleet):
    done = fleet.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load(fleet.lock_file.read_text()) == {"serving_image_locks": {NAME: {"digest": DIGEST}}}
    assert fleet.pulled("one") == [NAME]
    assert fleet.pulled("two") == [f"{NAME}@{DIGEST}"]

    text, seen = fleet.lock_file.read_text(), os.stat(fleet.lock_file)
    fleet.publish(OTHER_DIGEST, OTHER_ID)
    again = fleet.run(inventory="inventory/hosts.yml")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("changed=0") == 2
    assert (fleet.lock_file.read_text(), os.stat(fleet.lock_file)) == (text, seen)
    assert len(fleet.pulled("one")) == len(fleet.pulled("two")) == 1

    done = fleet.run(engine_image_refresh_locks=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load(fleet.lock_file.read_text()) == {"serving_image_locks": {NAME: {"digest": OTHER_DIGEST}}}
    assert fleet.pulled("two")[-1] == f"{NAME}@{OTHER_DIGEST}"


def test_a_lock_file_elsewhere_counts_though_ansible_does_not_read_it(fleet: Fleet):
    elsewhere = {"engine_image_lock_file": str(fleet.home / "locks/mine.yml")}
    assert fleet.run(**elsewhere).returncode == 0
    fleet.publish(OTHER_DIGEST, OTHER_ID)
    for host in ("one", "two"):
        fleet.write(host, local=[])
    done = fleet.run(**elsewhere)
    assert "manifest unknown" in done.stdout
    assert fleet.pulled("one")[1:] == fleet.pulled("two")[1:] == [f"{NAME}@{DIGEST}"]


def test_the_playbook_leaves_this_machine_alone(tmp_path: Path, ansible_playbook):
    done = ansible_playbook("playbooks/image.yml", "-e", f"output_dir={tmp_path}")
    assert done.returncode != 0
    assert "gpu_host_local_allowed" in done.stdout
    assert not list(tmp_path.iterdir())


def test_check_mode_foretells_and_writes_nothing(fleet: Fleet):
    done = fleet.run("--check", "--diff")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{NAME} (pull, not known yet)" in done.stdout
    assert not fleet.lock_file.exists()
    assert fleet.pulled("one") == fleet.pulled("two") == []


def test_locks_that_cannot_be_kept_stop_before_a_pull(fleet: Fleet):
    (fleet.home / "inventory/group_vars").mkdir()
    (fleet.home / "inventory/group_vars/all.yml").write_text("mine: 1\n")
    done = fleet.run()
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "group_vars/all.yml" in said
    assert "Nothing was pulled" in said
    assert fleet.pulled("one") == fleet.pulled("two") == []


def test_the_gate_names_all_that_lacks_code_and_starts_nothing(fleet: Fleet):
    fleet.write("two", codes=["sm_90"])
    done = fleet.run()
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "two: no container was started" in said
    assert "one: no container was started" not in said
    for library in ("torch", "sgl_kernel"):
        assert f"{library} (/made-up/{library}.so) has no code for sm_120" in said


def test_a_first_host_that_fails_leaves_the_others_without_a_guess(fleet: Fleet):
    fleet.write("one", registry={})
    done = fleet.run()
    assert done.returncode != 0
    assert "has no such image" in " ".join(done.stdout.split())
    assert "the host that was to pull it first failed" in " ".join(done.stdout.split())
    assert fleet.pulled("two") == []


def test_an_archive_of_the_control_node_is_copied_where_it_is_missing(fleet: Fleet):
    archive = fleet.home / "sglang.tar"
    archive.write_text(json.dumps([{"name": NAME, "id": ID}]))
    locked = {"serving_image_locks": {NAME: {"id": ID}}, "engine_image_archives": {NAME: {"src": str(archive)}}}
    done = fleet.run(**locked)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (fleet.home / "archives/sglang.tar").exists()
    again = fleet.run(**locked)
    assert again.stdout.count("changed=0") == 2, again.stdout
    assert fleet.pulled("one") == fleet.pulled("two") == []


def test_a_recipe_is_built_on_each_host_once(fleet: Fleet):
    builds = {"engine_image_builds": {NAME: {"recipe": "sglang-cu129"}}}
    done = fleet.run(**builds)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((fleet.home / "two/context.json").read_text())["Dockerfile"].startswith("# Written by")
    assert fleet.run(**builds, engine_image_prune=True).stdout.count("changed=0") == 2


def test_a_password_is_shown_nowhere(fleet: Fleet):
    secret = {"engine_image_registry_username": "lab", "engine_image_registry_password": "correct horse"}
    done = fleet.run("-vvv", "--diff", **secret)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "correct horse" not in done.stdout.replace(json.dumps(secret), "")
    for path in fleet.home.rglob("*"):
        if path.is_file() and path.stat().st_size < 10**6 and "ansible" not in path.name:
            assert b"correct horse" not in path.read_bytes(), path
