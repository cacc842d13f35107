"""inventory/examples/fleet: a newcomer copies it, previews all of it, and keeps secrets in Vault."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

REPO_ROOT = Path(__file__).resolve().parents[2]
FLEET = REPO_ROOT / "inventory/examples/fleet"
VAULT = "group_vars/all/vault.yml"
SECRET = "hf_made_up_for_this_test"


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A copy of the example, as its user has it."""
    return shutil.copytree(FLEET, tmp_path / "mine")


@pytest.fixture
def preview(tmp_path: Path, ansible_playbook):
    """Preview an inventory; the finished process."""

    def run(inventory: Path, *options: str):
        return ansible_playbook(
            "playbooks/plan.yml", "-i", inventory, "-e", f"output_dir={tmp_path / 'build'}", *options
        )

    return run


def services_of(build: Path, host: str) -> dict[str, dict]:
    return {service["name"]: service for service in json.loads((build / host / "plan.json").read_text())["services"]}


def test_all_hosts_of_the_example_fit_and_a_second_preview_changes_nothing(tmp_path: Path, preview):
    first = preview(FLEET)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "7 hosts: 7 fit" in first.stdout
    assert "warning" not in first.stdout
    page = (tmp_path / "build/index.html").read_text()
    for group in ("berlin", "oslo", "rtx_5090", "rtx_pro_6000", "llama_70b"):
        assert f'<th scope="row">{group}</th>' in page
    assert len(re.findall(r"changed=0 ", preview(FLEET).stdout)) == 7


def test_groups_and_hosts_change_what_the_example_says_they_change(tmp_path: Path, preview):
    preview(FLEET)
    hosts = {
        host: services_of(tmp_path / "build", host) for host in ("berlin-1", "berlin-2", "oslo-1", "oslo-3", "oslo-5")
    }
    assert set(hosts["berlin-1"]) == {"chat", "code", "small"}
    assert set(hosts["berlin-2"]) == {"chat", "code"}
    assert (hosts["berlin-1"]["chat"]["context_length"], hosts["berlin-2"]["chat"]["context_length"]) == (16384, 8192)
    # a layer of the site, over services of two kinds of host
    assert (hosts["berlin-1"]["chat"]["max_concurrency"], hosts["oslo-1"]["chat"]["max_concurrency"]) == (32, 48)
    assert {"--log-level=info", "--schedule-policy=lpm"} <= set(hosts["oslo-1"]["chat"]["command"])
    assert (hosts["oslo-3"]["chat"]["max_concurrency"], hosts["oslo-3"]["chat"]["port"]) == (48, 30012)
    assert hosts["oslo-3"]["large"]["gpus"] == [0, 1]
    assert hosts["oslo-5"]["llama"]["nodes"]["rank"] == 1


def test_a_host_that_does_not_fit_is_on_the_page_with_what_is_short(tmp_path: Path, fleet: Path, preview):
    path = fleet / "host_vars/oslo-1.yml"
    changed = yaml.safe_load(path.read_text()) | {
        "serving_service_overrides": {"chat": {"model": "Qwen/Qwen2.5-14B-Instruct"}}
    }
    path.write_text(yaml.safe_dump(changed))
    done = preview(fleet)
    assert done.returncode != 0
    assert "7 hosts: 6 fit, 1 do not fit" in done.stdout
    assert "does not fit: oslo-1" in done.stdout
    refused = (tmp_path / "build/index.html").read_text().split('id="refused"')[1].split("</section>")[0]
    assert re.search(r"<b>oslo-1</b>.*?[\d.]+ GiB short", refused)
    assert "Would help" in refused


def test_the_committed_vault_holds_placeholders_alone():
    assert set(yaml.safe_load((FLEET / VAULT).read_text()).values()) == {""}


def test_a_secret_is_encrypted_read_by_the_playbooks_and_written_nowhere(
    tmp_path: Path, fleet: Path, preview, run_tool
):
    (fleet / VAULT).write_text(f"---\nvault_huggingface_token: {SECRET}\n")
    (tmp_path / "password").write_text("made up\n")
    encrypted = run_tool("ansible-vault", "encrypt", "--vault-password-file", tmp_path / "password", fleet / VAULT)
    assert encrypted.returncode == 0, encrypted.stderr
    assert (fleet / VAULT).read_text().startswith("$ANSIBLE_VAULT;1.1;AES256")

    refused = preview(fleet)
    assert refused.returncode != 0
    assert "vault" in (refused.stdout + refused.stderr).lower()

    words = ("--vault-password-file", str(tmp_path / "password"))
    seen = run_tool("ansible", "berlin-1", "-i", fleet, *words, "-m", "ansible.builtin.debug",
                    "-a", "var=serving_stack_huggingface_token")  # fmt: skip
    assert SECRET in seen.stdout
    done = preview(fleet, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert not any(SECRET in path.read_text() for path in (tmp_path / "build").rglob("*") if path.is_file())
