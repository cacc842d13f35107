"""serving_service_overrides: what a host changes of the services that are declared for many."""

from __future__ import annotations

import json

import pytest
import yaml

QWEN = {"name": "qwen", "engine": "sglang", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30002,
        "extra_args": {"log-level": "info", "schedule-policy": "lpm"}, "environment": {"A": "1", "B": "2"}}  # fmt: skip
TINY = {"name": "tiny", "engine": "sglang", "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "port": 30001}


def planned(make_plan, *layers, services=(TINY, QWEN)):
    names = [f"serving_service_overrides_{number}" for number in range(len(layers))]
    plan = make_plan(list(services), service_overrides=dict(zip(names, layers, strict=True)))
    return {service["name"]: service for service in plan["services"]} or plan["errors"]


def test_keys_are_replaced_and_mappings_merged(make_plan):
    change = {"context_length": 4096, "extra_args": {"log-level": "warning"}, "environment": {"B": "3", "C": "4"}}
    qwen = planned(make_plan, {"qwen": change})["qwen"]
    assert qwen["context_length"] == 4096
    assert {"--log-level=warning", "--schedule-policy=lpm"} <= set(qwen["command"])
    assert qwen["environment"] == {"A": "1", "B": "3", "C": "4"}


def test_null_takes_a_key_or_an_entry_away(make_plan):
    short = QWEN | {"context_length": 2048}
    change = {"context_length": None, "environment": {"A": None}, "extra_args": None}
    qwen = planned(make_plan, {"qwen": change}, services=[short])["qwen"]
    assert qwen["context_length"] == planned(make_plan, services=[QWEN])["qwen"]["context_length"]
    assert qwen["environment"] == {"B": "2"}
    assert not any(argument.startswith("--log-level") for argument in qwen["command"])


@pytest.mark.parametrize("left_out", [None, {"absent": True}])
def test_a_service_is_left_out_and_the_others_get_its_memory(make_plan, left_out):
    both, alone = planned(make_plan), planned(make_plan, {"tiny": left_out})
    assert set(alone) == {"qwen"}
    assert alone["qwen"]["kv_tokens"] > both["qwen"]["kv_tokens"]


def test_a_later_layer_wins_and_what_it_does_not_name_stays(make_plan):
    group = {
        "qwen": {"context_length": 4096, "max_concurrency": 4, "extra_args": {"log-level": "warning"}},
        "tiny": None,
    }
    host = {"qwen": {"context_length": 8192, "extra_args": {"schedule-policy": None}}, "tiny": {"absent": False}}
    services = planned(make_plan, group, host)
    assert set(services) == {"tiny", "qwen"}
    assert (services["qwen"]["context_length"], services["qwen"]["max_concurrency"]) == (8192, 4)
    assert "--log-level=warning" in services["qwen"]["command"]
    assert not any(argument.startswith("--schedule-policy") for argument in services["qwen"]["command"])


def test_an_override_of_a_service_that_was_left_out_does_not_bring_it_back(make_plan):
    assert set(planned(make_plan, {"tiny": None}, {"tiny": {"max_concurrency": 4}})) == {"qwen"}


def test_the_declaration_stays_as_it_is(make_plan):
    services = [TINY, QWEN]
    before = json.dumps(services)
    make_plan(services, service_overrides={"serving_service_overrides": {"qwen": {"environment": {"A": None}}}})
    assert json.dumps(services) == before


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ({"qwen": "off"}, ["serving_service_overrides_0.qwen", "'off'", "absent: true"]),
        ({"qwen": {"contxt_length": 1}}, [".qwen.contxt_length", "no such key", "context_length"]),
        ({"qwen": {"name": "other"}}, [".qwen.name", "keeps its name"]),
        ({"qwen": {"absent": "maybe"}}, [".qwen.absent", "maybe", "true alone"]),
        ({"qwen": {"absent": True, "port": 1}}, [".qwen.absent", "true alone"]),
        ({"qwen": {"environment": ["A=1"]}}, [".qwen.environment", "A=1", "mapping"]),
        (["qwen"], ["serving_service_overrides_0", "no dictionary"]),
        ({"qwen": {"port": 70000}}, ["qwen", "port", "70000", "65535"]),
        ({"qwen": None, "tiny": None}, ["serving_services", "at least one service"]),
    ],
)
def test_a_bad_override_is_refused_with_a_message_that_says_why(make_plan, layer, words):
    (error,) = planned(make_plan, layer)
    assert all(word in error["problem"] for word in words), error["problem"]


def test_a_host_s_own_override_names_a_service_of_that_host(make_plan):
    plan = make_plan([TINY, QWEN], service_overrides={"serving_service_overrides": {"qwem": {"port": 1}}})
    (error,) = plan["errors"]
    assert all(word in error["problem"] for word in ("serving_service_overrides.qwem", "no service", "qwen"))


def test_a_layer_may_name_a_service_that_this_host_lacks_and_the_plan_says_so(make_plan):
    plan = make_plan([TINY], service_overrides={"serving_service_overrides_oslo": {"qwen": {"port": 1}}})
    assert plan["verdict"] == "fits"
    assert any("serving_service_overrides_oslo" in warning and "'qwen'" in warning for warning in plan["warnings"])


def test_variables_of_groups_and_of_the_host_are_laid_over_in_the_order_of_their_names(tmp_path, ansible_playbook):
    """A group's layer, a host's layer, and serving_service_overrides last, as Ansible gives them to each host."""
    variables = {
        "group_vars/all.yml": {"serving_gpus": ["rtx_5090"], "serving_services": [TINY, QWEN]},
        "group_vars/site_a.yml": {
            "serving_service_overrides_a_site": {"qwen": {"context_length": 4096, "max_concurrency": 8}},
            "short": 1024,
        },
        "host_vars/one.yml": {
            "serving_service_overrides_b_tuned": {"qwen": {"context_length": 8192}},
            "serving_service_overrides": {"tiny": {"context_length": "{{ short }}"}},
        },
        "host_vars/two.yml": {"serving_service_overrides": {"tiny": None}},
        "hosts.yml": {"all": {"children": {"site_a": {"hosts": {"one": None, "two": None}}}, "hosts": {"three": None}}},
    }
    for name, content in variables.items():
        path = tmp_path / "inventory" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    done = ansible_playbook(
        "playbooks/plan.yml", "-i", tmp_path / "inventory/hosts.yml", "-e", f"output_dir={tmp_path}/out"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = {}
    for host in ("one", "two", "three"):
        plan = json.loads((tmp_path / f"out/{host}/plan.json").read_text())
        told[host] = {s["name"]: (s["context_length"], s["max_concurrency"]) for s in plan["services"]}
    assert told == {
        "one": {"tiny": (1024, 32), "qwen": (8192, 8)},
        "two": {"qwen": (4096, 8)},
        "three": {"tiny": (2048, 32), "qwen": (32768, 32)},
    }
