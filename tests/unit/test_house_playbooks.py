"""The playbooks as a user runs them: in place, from an installed copy, over many hosts."""

import json
from pathlib import Path

import pytest
import yaml

SERVICE = {
    "name": "qwen",
    "engine": "sglang",
    "image": "sglang-cu129",
    "model": "Qwen/Qwen2.5-3B-Instruct",
    "port": 30002,
    "context_length": 4096,
    "max_concurrency": 4,
}
FILES = {"plan.json", "compose.yaml", "plan.txt", "report.html"}


@pytest.fixture
def inventory(tmp_path: Path):
    """Write an inventory of `hosts` hosts that nothing can connect to; returns its path."""

    def write(hosts: int, **variables) -> Path:
        path = tmp_path / "hosts.yml"
        declared = {"ansible_host": "192.0.2.1", "serving_gpus": ["rtx_5090"], "serving_services": [SERVICE]}
        names = {f"node{number:03}": None for number in range(hosts)}
        path.write_text(yaml.safe_dump({"all": {"hosts": names, "vars": declared | variables}}))
        return path

    return write


def written(output_dir: Path) -> dict[str, set[str]]:
    return {host.name: {file.name for file in host.iterdir()} for host in output_dir.iterdir() if host.is_dir()}


def test_a_few_hosts_are_shown_in_full(tmp_path: Path, inventory, ansible_playbook):
    done = ansible_playbook("playbooks/plan.yml", "-i", inventory(2), "-e", f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(tmp_path / "out") == {"node000": FILES, "node001": FILES}
    shown = [line.strip() for line in done.stdout.splitlines()]
    for line in (tmp_path / "out/node000/plan.txt").read_text().splitlines():
        assert line.strip() in shown


def test_many_hosts_are_shown_in_one_line_each(tmp_path: Path, inventory, ansible_playbook):
    done = ansible_playbook("playbooks/plan.yml", "-i", inventory(8), "-e", f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(tmp_path / "out") == {f"node{number:03}": FILES for number in range(8)}
    summaries = done.stdout.split("Show one line per host")[1].split("PLAY RECAP")[0]
    assert sum("node00" in line for line in summaries.splitlines()[1:]) >= 8


def test_a_second_run_and_check_mode_change_nothing(tmp_path: Path, inventory, ansible_playbook):
    arguments = ("playbooks/plan.yml", "-i", inventory(1), "-e", f"output_dir={tmp_path / 'out'}")
    checked = ansible_playbook(*arguments, "--check", "--diff")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "changed=2" in checked.stdout
    assert not (tmp_path / "out").exists()
    assert "changed=2" in ansible_playbook(*arguments).stdout
    assert "changed=0" in ansible_playbook(*arguments).stdout


def test_extra_variables_from_a_file_win(tmp_path: Path, inventory, ansible_playbook):
    extra = tmp_path / "extra.yml"
    extra.write_text(yaml.safe_dump({"serving_services": [SERVICE | {"name": "other", "port": 31000}]}))
    done = ansible_playbook(
        "playbooks/plan.yml", "-i", inventory(1), "-e", f"@{extra}", "-e", f"output_dir={tmp_path / 'out'}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads((tmp_path / "out/node000/plan.json").read_text())
    assert [(service["name"], service["port"]) for service in plan["services"]] == [("other", 31000)]


def test_one_impossible_host_does_not_stop_the_others(tmp_path: Path, inventory, ansible_playbook):
    hosts = inventory(2)
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/node000.yml").write_text(yaml.safe_dump({"serving_gpus": ["no_such_gpu"]}))
    done = ansible_playbook("playbooks/plan.yml", "-i", hosts, "-e", f"output_dir={tmp_path / 'out'}")
    assert done.returncode != 0
    assert written(tmp_path / "out") == {"node000": {"plan.json"}, "node001": FILES}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"ansible_connection": "local"}, "node000 is this machine"),
        ({"ansible_host": "127.0.0.1", "ansible_port": 1}, "UNREACHABLE"),
    ],
)
def test_apply_plans_nothing_for_a_host_that_it_could_not_provision(
    tmp_path: Path, inventory, ansible_playbook, variables, message
):
    hosts = inventory(1, serving_mode="apply", **variables)
    done = ansible_playbook("site.yml", "-i", hosts, "-e", f"output_dir={tmp_path / 'out'}")
    assert done.returncode != 0
    assert message in " ".join(done.stdout.split())
    assert not (tmp_path / "out").exists()


def test_preview_reaches_no_host(tmp_path: Path, inventory, ansible_playbook):
    hosts = inventory(2, ansible_host="127.0.0.1", ansible_port=1)
    done = ansible_playbook("site.yml", "-i", hosts, "-e", f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(tmp_path / "out") == {"node000": FILES, "node001": FILES}
    plays = [line.strip(" *") for line in done.stdout.splitlines() if line.startswith("PLAY ")]
    assert plays == ["PLAY [Plan what each host serves]", "PLAY [Show the plan]", "PLAY RECAP"]


def test_no_batch_is_provisioned_after_one_with_a_failure(tmp_path: Path, inventory, ansible_playbook):
    """node000 is refused before anything connects to it; the others could not be reached if their turn came."""
    hosts = inventory(4, ansible_host="127.0.0.1", ansible_port=1, gpu_host_batch=[1, 2])
    (tmp_path / "host_vars").mkdir()
    (tmp_path / "host_vars/node000.yml").write_text(yaml.safe_dump({"gpu_host_without_gpu": "perhaps"}))
    done = ansible_playbook("playbooks/provision.yml", "-i", hosts)
    assert done.returncode != 0
    assert "gpu_host_without_gpu" in done.stdout
    assert "UNREACHABLE" not in done.stdout


def test_preview_with_gateways_and_monitors_reaches_no_host(tmp_path: Path, ansible_playbook):
    hosts = {
        "hosts": {"box": {"serving_gpus": ["rtx_5090"], "serving_services": [SERVICE]}, "other": None},
        "vars": {"ansible_host": "127.0.0.1", "ansible_port": 1},
        "children": {
            "serving_gpu_hosts": {"hosts": {"box": None}},
            "serving_gateways": {"hosts": {"box": None, "other": None}},
            "serving_monitors": {"hosts": {"box": None, "other": None}},
        },
    }
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": hosts}))
    done = ansible_playbook("site.yml", "-i", tmp_path / "hosts.yml", "-e", f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(tmp_path / "out") == {"box": FILES}


def test_field_notes_plan(tmp_path: Path, ansible_playbook):
    done = ansible_playbook(
        "playbooks/plan.yml", "-i", "inventory/examples/field_notes", "-e", f"output_dir={tmp_path}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads((tmp_path / "rtx5090/plan.json").read_text())
    assert [(service["name"], service["fraction"]["value"]) for service in plan["services"]] == [
        ("tinyllama", 0.15),
        ("qwen", 0.25),
    ]
    compose = yaml.safe_load((tmp_path / "rtx5090/compose.yaml").read_text())["services"]
    assert {service["container_name"] for service in compose.values()} == {"sglang-tinyllama", "sglang-qwen"}


@pytest.mark.parametrize(
    ("failure", "explained"),
    [("stock_image", ["sm_120", "sglang-cu129"]), ("low_fraction", ["qwen", "mem_fraction_static"])],
)
def test_field_notes_failures_are_refused(tmp_path: Path, ansible_playbook, failure: str, explained: list[str]):
    done = ansible_playbook(
        "playbooks/plan.yml",
        "-i",
        "inventory/examples/field_notes",
        "-e",
        f"@inventory/examples/field_notes_failures/{failure}.yml",
        "-e",
        f"output_dir={tmp_path}",
    )
    assert done.returncode != 0
    assert written(tmp_path) == {"rtx5090": {"plan.json"}}
    for words in explained:
        assert words in done.stdout


def test_installed_collection_plans_in_another_directory(tmp_path: Path, fresh_copy: Path, inventory, run_tool):
    built = run_tool("ansible-galaxy", "collection", "build", "--output-path", tmp_path, cwd=fresh_copy)
    assert built.returncode == 0, built.stderr
    (archive,) = tmp_path.glob("blackwell-serving-*.tar.gz")
    collections = tmp_path / "collections"
    isolated = {"ANSIBLE_COLLECTIONS_PATH": str(collections), "HOME": str(tmp_path)}
    installed = run_tool(
        "ansible-galaxy", "collection", "install", archive, "-p", collections, "--offline", cwd=tmp_path, env=isolated
    )
    assert installed.returncode == 0, installed.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run_tool("ansible-playbook", "blackwell.serving.plan", "-i", inventory(1), cwd=elsewhere, env=isolated)
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(elsewhere / "build") == {"node000": FILES}
