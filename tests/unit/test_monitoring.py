"""Monitoring's rules, targets and dashboards, as promtool and Prometheus' own parser judge them."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.filter.monitoring import monitoring_project
from ansible_collections.blackwell.serving.plugins.module_utils import monitoring_files

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "roles/monitoring/files"
DASHBOARDS = sorted((SHIPPED / "dashboards").glob("*.yml"))
SETTINGS = {
    "prometheus": "global: {}\n",
    "prometheus_secret": False,
    "alerts": {},
    "extra_rules": [],
    "alertmanager": {"route": {"receiver": "nobody"}, "receivers": [{"name": "nobody"}]},
    "grafana": True,
    "grafana_admin_password": "correct horse",
    "datasource": "apiVersion: 1\n",
}
SERVICES = [{"name": "qwen", "engine": "sglang", "port": 30002, "bind_address": "10.0.0.11"}]
KNOWN = {"address": "10.0.0.11", "ports": {"node": 9100, "gpu": 9835}, "services": SERVICES}


@pytest.fixture(scope="module")
def promtool():
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: prometheus)")

    def run(*words):
        done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def alerts():
    return yaml.safe_load((SHIPPED / "rules/alerts.yml").read_text("utf-8"))


def expressions():
    """(where, expression) of every rule and panel."""
    for path in sorted((SHIPPED / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                yield rule.get("alert") or rule["record"], rule["expr"]
    for path in DASHBOARDS:
        for panel in yaml.safe_load(path.read_text("utf-8"))["panels"]:
            for query in panel["queries"]:
                yield f"{path.stem}: {panel['title']}", query["expr"]


# ---- rules ---------------------------------------------------------------------------------------------


def test_alerts_fire_as_they_should_and_only_then(promtool):
    status, said = promtool("test", "rules", ROOT / "tests/monitoring/alerts_test.yml")
    assert status == 0, said


def test_every_alert_is_fired_by_a_test(alerts):
    tested = (ROOT / "tests/monitoring/alerts_test.yml").read_text("utf-8")
    names = [rule["alert"] for group in alerts["groups"] for rule in group["rules"]]
    assert [name for name in names if f'alertname="{name}"' not in tested] == []


def test_every_alert_is_on_the_page_that_says_what_to_do(alerts):
    page = (ROOT / "docs/monitoring.md").read_text("utf-8")
    assert [rule["alert"] for group in alerts["groups"] for rule in group["rules"] if rule["alert"] not in page] == []


def test_engines_have_the_series_that_rules_and_dashboards_read():
    recorded: dict[str, set[str]] = {"sglang": set(), "vllm": set()}
    for path in (ROOT / "catalog/engine_metrics").glob("*.yml"):
        for kind, names in yaml.safe_load(path.read_text("utf-8")).items():
            shown = [f"{name}_bucket" for name in names] if kind == "histogram" else names
            recorded[path.stem.partition("-")[0]].update(shown)
    unknown = [
        (where, name)
        for where, expression in expressions()
        for name in re.findall(r"(?:sglang|vllm):\w+", expression)
        if name not in recorded[name.partition(":")[0]]
    ]
    assert unknown == []


def test_exporters_have_the_series_that_rules_and_dashboards_read():
    catalog = yaml.safe_load((ROOT / "catalog/monitoring.yml").read_text("utf-8"))
    recorded = {name for names in catalog["series"].values() for name in names}
    read = {name for _, text in expressions() for name in re.findall(r"\b(?:nvidia_smi_\w+|DCGM_FI_DEV_\w+)", text)}
    patterns = {name for name in read if name.endswith("_")}  # the start of a regular expression
    assert read - patterns - recorded == set()
    assert {name for name in catalog["series"]["dcgm"] if name not in catalog["dcgm_counters"]} == set()


def test_changes_to_alerts_are_made_and_the_others_stay(alerts, promtool, tmp_path):
    changes = {"EngineDown": {"for": "5s", "labels": {"team": "llm"}}, "HostMemoryLow": False}
    changed = monitoring_files.alert_rules(alerts, changes)
    rules = {rule["alert"]: rule for group in changed["groups"] for rule in group["rules"]}
    assert rules["EngineDown"]["for"] == "5s"
    assert rules["EngineDown"]["labels"] == {"severity": "critical", "team": "llm"}
    assert "HostMemoryLow" not in rules
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(changed))
    status, said = promtool("check", "rules", tmp_path / "alerts.yml")
    assert status == 0, said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"EngineDwn": False}, "no alert EngineDwn; there are AlertsNotDelivered"),
        ({"EngineDown": {"fr": "1m"}}, "key fr"),
    ],
)
def test_a_typo_is_no_silent_alert(alerts, changes, said):
    with pytest.raises(monitoring_files.MonitoringError, match=re.escape(said)):
        monitoring_files.alert_rules(alerts, changes)


@pytest.mark.parametrize(
    "more",
    [{}, {"monitoring_extra_scrape_configs": [{"job_name": "gateway", "static_configs": [{"targets": ["a:1"]}]}]}],
)
def test_prometheus_takes_the_whole_configuration(promtool, run_tool, tmp_path, more):
    """As the role would write it on a monitor, foretold by check mode."""
    play = [
        {
            "hosts": "all",
            "gather_facts": False,
            "tasks": [
                {"ansible.builtin.include_role": {"name": "blackwell.serving.monitoring"}},
                {
                    "ansible.builtin.copy": {
                        "dest": str(tmp_path / "diff.json"),
                        "content": "{{ __monitoring_result.diff | to_json }}",
                    },
                    "check_mode": False,
                },
            ],
        }
    ]
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "serving_services": SERVICES}
    host |= {"monitoring_grafana_admin_password": "correct horse", "monitoring_directory": str(tmp_path / "monitoring")}
    inventory = {"all": {"hosts": {"box1": host | more}}}
    (tmp_path / "play.yml").write_text(json.dumps(play))
    (tmp_path / "hosts.yml").write_text(json.dumps(inventory))
    done = run_tool("ansible-playbook", str(tmp_path / "play.yml"), "-i", str(tmp_path / "hosts.yml"), "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    for entry in json.loads((tmp_path / "diff.json").read_text()):
        path = Path(entry["after_header"])
        if "/prometheus/" in str(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(entry["after"].replace("/etc/prometheus", str(tmp_path / "monitoring/prometheus")))
    configuration = tmp_path / "monitoring/prometheus/prometheus.yml"
    if more:  # it is a secret then, which no diff shows
        assert configuration.read_text() == "(another secret)\n"
        return
    status, said = promtool("check", "config", configuration)
    assert status == 0, said
    assert "2 rule files found" in said


# ---- targets -------------------------------------------------------------------------------------------


def test_targets_are_what_serves_and_what_was_declared_where_a_host_was_not_reached():
    declared = {"serving_fleet_address": "10.0.0.12", "serving_services": [SERVICES[0] | {"bind_address": None}]}
    made = monitoring_project(
        {"box1": {"__monitoring_known": KNOWN}, "box2": declared}, ["box1", "box2"], "watch", SETTINGS
    )
    files = {file["path"]: file["content"] for file in made["files"]}
    engines = json.loads(files["prometheus/targets/engines.json"])
    assert [(entry["targets"], entry["labels"]["host"]) for entry in engines] == [
        (["10.0.0.11:30002"], "box1"),
        (["10.0.0.12:30002"], "box2"),
    ]
    node = json.loads(files["prometheus/targets/node.json"])
    assert [entry["targets"] for entry in node] == [["10.0.0.11:9100"], ["10.0.0.12:9100"]]


def test_a_host_that_listens_on_loopback_alone_is_refused_unless_it_is_the_monitor_itself():
    alone = {"box1": {"__monitoring_known": KNOWN | {"address": "127.0.0.1"}}}
    assert "Set serving_fleet_address" in monitoring_project(alone, ["box1"], "watch", SETTINGS)["refused"]
    assert monitoring_project(alone, ["box1"], "box1", SETTINGS)["refused"] == ""


@pytest.mark.parametrize(
    ("names", "exporter"),
    [
        (["NVIDIA GeForce RTX 5090"], "nvidia_gpu_exporter"),
        (["NVIDIA RTX PRO 6000 Blackwell Server Edition"], "nvidia_gpu_exporter"),
        (["NVIDIA B200", "NVIDIA B200"], "dcgm"),
        ([], "none"),
    ],
)
def test_the_exporter_fits_the_gpus(names, exporter):
    assert monitoring_files.gpu_exporter({"gpus": [{"name": name} for name in names], "pci": names}) == exporter


def test_secrets_are_no_ordinary_files_and_only_their_program_reads_them():
    settings = SETTINGS | {"prometheus_secret": True}
    made = monitoring_project({"box1": {"__monitoring_known": KNOWN}}, ["box1"], "watch", settings)
    secrets = {file["path"]: file for file in made["secrets"]}
    assert set(secrets) == {
        "alertmanager/alertmanager.yml",
        "prometheus/prometheus.yml",
        "secrets/grafana_admin_password",
    }
    assert {file["mode"] for file in secrets.values()} == {"0400"}
    assert "correct horse" not in json.dumps(made["files"])


# ---- dashboards ----------------------------------------------------------------------------------------


def test_panels_ask_what_prometheus_can_parse(promtool, tmp_path):
    rules = []
    for number, (_, expression) in enumerate(expressions()):
        for name, value in {"$host": ".*", "$service": ".*", "$__rate_interval": "1m"}.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"panel:{number}", "expr": expression})
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    status, said = promtool("check", "rules", tmp_path / "panels.yml")
    assert status == 0, said


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_lie_side_by_side_and_use_only_variables_that_there_are(path):
    description = yaml.safe_load(path.read_text("utf-8"))
    made = json.loads(monitoring_files.dashboard(description))
    taken = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    variables = {variable["name"] for variable in made["templating"]["list"]}
    used = set(re.findall(r"\$(?!__)(\w+)", json.dumps(description)))
    assert used <= variables
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
