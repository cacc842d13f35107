"""One model on several hosts: what each host is told, and what is refused before anything starts."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.module_utils.node_groups import (
    addresses_of_others,
    answers_requests,
    batch_sizes,
    group_problems,
    interface_of,
)
from ansible_collections.blackwell.serving.plugins.module_utils.plan_models import plan_models
from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import render

REPO_ROOT = Path(__file__).resolve().parents[2]
GROUP = [{"host": "one", "address": "10.0.0.1"}, {"host": "two", "address": "10.0.0.2"}]
BIG = {"name": "big", "engine": "sglang", "model": "Qwen/Qwen2.5-32B-Instruct", "port": 30001, "nodes": "pair",
       "tensor_parallel": 4, "context_length": 8192}  # fmt: skip
TINY = {"name": "tiny", "engine": "sglang", "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "port": 30002}


@pytest.fixture(scope="module")
def plan_of(catalog):
    """The plan of a host of the pair, with two GPUs."""

    def plan(host, services=(BIG,), gpus=("rtx_5090", "rtx_5090"), **declaration):
        declared = {
            "gpus": list(gpus),
            "services": list(services),
            "bind_address": "127.0.0.1",
            "node_groups": {"pair": GROUP},
            "fleet_interface": "eth1",
            **declaration,
        }
        return plan_host(host, declared, catalog)

    return plan


@pytest.fixture(scope="module")
def pair(plan_of):
    plans = {host: plan_of(host) for host in ("one", "two")}
    assert {plan["verdict"] for plan in plans.values()} == {"fits"}
    return plans


FACTS = {host: {"driver": {"loaded": {"version": "580.95.05"}}} for host in ("one", "two")}


def problems(host, plans, facts=FACTS, together=("one", "two"), forks=5):
    return group_problems(host, plans, facts, together, forks)


# ---- the plan ----------------------------------------------------------------------------------------


def test_the_hosts_are_told_the_same_but_for_their_rank_and_themselves(pair):
    one, two = (set(pair[host]["services"][0]["command"]) for host in ("one", "two"))
    assert one ^ two == {"--node-rank=0", "--node-rank=1"}
    rendezvous = pair["one"]["services"][0]["nodes"]["rendezvous"]
    assert {"--nnodes=2", f"--dist-init-addr={rendezvous}", "--tp-size=4"} <= one
    address, _, port = rendezvous.partition(":")
    assert address == "10.0.0.1"
    assert 20000 <= int(port) < 21000


def test_ranks_of_two_releases_do_not_meet(plan_of, pair):
    """While one host has the new release already, the other's container of the old one may start again."""
    image = pair["one"]["services"][0]["image"]
    changes = {
        "now": {},
        "context": {"services": [BIG | {"context_length": 4096}]},
        "pinned image": {"image_locks": {image: {"digest": "sha256:" + "a" * 64}}},
        "another image": {"image_locks": {image: {"digest": "sha256:" + "b" * 64}}},
        "ports": {"services": [BIG | {"nodes_port": 30000}]},
    }
    met = {}
    for name, change in changes.items():
        rendezvous = {plan_of(host, **change)["services"][0]["nodes"]["rendezvous"] for host in ("one", "two")}
        assert len(rendezvous) == 1, name
        met[name] = rendezvous.pop()
    assert len(set(met.values())) == len(changes)


def test_each_host_takes_its_part_of_the_gpus_and_of_the_weights(pair, make_plan):
    service = pair["two"]["services"][0]
    assert service["gpus"] == [0, 1]
    four = make_plan([{key: BIG[key] for key in BIG if key != "nodes"}], ["rtx_5090"] * 4)["services"][0]
    assert service["memory"] == four["memory"]
    assert service["kv_tokens"] == four["kv_tokens"]


def test_nccl_and_gloo_are_told_the_interface_and_a_person_may_tell_another(plan_of, pair):
    told = {host: pair[host]["services"][0]["environment"] for host in pair}
    assert told["one"] == {"SGLANG_HOST_IP": "10.0.0.1", "NCCL_SOCKET_IFNAME": "=eth1", "GLOO_SOCKET_IFNAME": "eth1"}
    assert told["two"]["SGLANG_HOST_IP"] == "10.0.0.2"
    own = plan_of("one", [BIG | {"environment": {"NCCL_SOCKET_IFNAME": "ib0"}}])["services"][0]["environment"]
    assert own["NCCL_SOCKET_IFNAME"] == "ib0"


def test_a_preview_that_does_not_know_the_interface_says_so(plan_of):
    plan = plan_of("one", fleet_interface="")
    assert plan["services"][0]["environment"] == {"SGLANG_HOST_IP": "10.0.0.1"}
    assert any("serving_fleet_interface" in warning for warning in plan["warnings"])
    (error,) = plan_of("one", fleet_interface="", mode="apply")["errors"]
    assert "10.0.0.1" in error["problem"]
    assert "serving_fleet_interface" in error["problem"]


def test_the_container_is_on_the_network_of_the_host(plan_of):
    plan = plan_of("two", [BIG, TINY], bind_address="10.0.0.2")
    services = yaml.safe_load(render(plan)["compose.yaml"])["services"]
    assert services["big"]["network_mode"] == "host"
    assert "ports" not in services["big"]
    assert {"--host=10.0.0.2", "--port=30001"} <= set(services["big"]["command"])
    assert "http://10.0.0.2:30001/health" in services["big"]["healthcheck"]["test"][-1]
    assert "network_mode" not in services["tiny"]
    assert services["tiny"]["ports"] == ["10.0.0.2:30002:8000"]


def test_every_text_says_who_serves(pair):
    files = render(pair["two"])
    for name in ("plan.txt", "report.html"):
        assert (
            f"rank 1 of one, two, which meet at {pair['two']['services'][0]['nodes']['rendezvous']}; one serves"
            in files[name]
        )


def test_only_the_first_host_answers_requests(pair):
    assert [answers_requests(pair[host]["services"][0]) for host in ("one", "two")] == [True, False]
    assert answers_requests({"name": "of a host alone"})


def test_a_service_that_starts_before_a_shared_one_is_warned_of(plan_of):
    late = plan_of("one", [TINY, BIG])["warnings"]
    assert any("big: its hosts wait" in warning and "tiny starts before it" in warning for warning in late)
    assert not any("starts before" in warning for warning in plan_of("one", [BIG, TINY])["warnings"])


def test_the_whole_model_is_fetched_on_each_host(pair, catalog):
    (wanted,) = plan_models(pair["one"], catalog.models["models"])
    (unknown,) = plan_models(pair["one"], {})
    assert unknown["size_bytes"] == pytest.approx(wanted["size_bytes"], rel=0.05)


@pytest.mark.parametrize(
    ("change", "declaration", "words"),
    [
        ({"engine": "vllm"}, {}, ["big, nodes", "vllm", "engine: sglang"]),
        ({"nodes": "trio"}, {}, ["nodes", "no hosts in a group trio"]),
        ({"nodes": "solo"}, {"node_groups": {"solo": GROUP[:1]}}, ["the group solo has one host"]),
        ({}, {"node_groups": {"pair": GROUP[1:] * 2}}, ["one is not in the group pair"]),
        ({"tensor_parallel": 3}, {}, ["tensor_parallel", "3 GPUs cannot be parted over the 2 hosts"]),
        ({"gpus": [0]}, {}, ["gpus", "1 GPUs are named for tensor_parallel 4 on 2 hosts"]),
        (
            {},
            {"node_groups": {"pair": [GROUP[0], {"host": "two", "address": ""}]}},
            ["two has no serving_fleet_address"],
        ),
        ({}, {"node_groups": {"pair": [GROUP[0], GROUP[0] | {"host": "two"}]}}, ["the same serving_fleet_address"]),
        ({"extra_args": {"node-rank": 1}}, {}, ["--node-rank", "what the planner sets", "nodes"]),
        ({"extra_args": {"dist-init-addr": "x:1"}}, {}, ["--dist-init-addr", "nodes_port"]),
        ({"nodes": 3}, {}, ["nodes", "3", "text"]),
    ],
)
def test_what_cannot_be_is_refused_with_a_message_that_says_why(plan_of, change, declaration, words):
    plan = plan_of("one", [BIG | change], **declaration)
    assert plan["verdict"] == "invalid"
    said = " ".join(error["problem"].replace("'", "") for error in plan["errors"])
    assert all(word in said for word in words), said


def test_too_few_gpus_are_refused(plan_of):
    plan = plan_of("one", gpus=["rtx_5090"])
    assert plan["verdict"] == "does_not_fit"
    assert "no set of GPUs" in plan["errors"][0]["problem"]


# ---- before anything starts --------------------------------------------------------------------------


def test_hosts_that_are_alike_have_no_problem(pair):
    assert problems("one", pair) == problems("two", pair) == []
    assert problems("one", {"one": {"host": "one", "services": []}}, together=("one",)) == []


def test_hosts_that_would_not_start_together_are_refused(pair):
    (problem,) = problems("two", pair, together=("two",))
    assert all(word in problem for word in ("big runs on one, two together", "one would not start with two", "serial"))


def test_more_hosts_than_ansible_works_on_at_a_time_would_wait_for_each_other_forever(pair):
    (problem,) = problems("one", pair, forks=1)
    assert "--forks 2" in problem


@pytest.mark.parametrize(
    ("declaration", "words"),
    [
        ({"gpus": ["rtx_5090_d"] * 2}, ["GPUs 2 × NVIDIA GeForce RTX 5090 D, not 2 × NVIDIA GeForce RTX 5090"]),
        ({"services": [BIG | {"image": "sglang-cu130"}]}, ["engine sglang 0.5", "image"]),
        ({"services": [BIG | {"model": "Qwen/Qwen3-32B"}]}, ["model Qwen/Qwen3-32B, not Qwen/Qwen2.5-32B-Instruct"]),
        ({"services": [BIG | {"context_length": 4096}]}, ["--context-length 4096, not 8192"]),
        ({"services": [BIG, TINY]}, ["--max-total-tokens"]),
        ({"services": [BIG | {"environment": {"A": "1"}}]}, ["A 1, not left out"]),
        ({"services": [TINY]}, []),
        ({"services": [BIG | {"name": "bigger"}]}, ["one has no such service"]),
    ],
)
def test_a_host_that_differs_from_the_first_is_named_with_what_differs(plan_of, pair, declaration, words):
    other = plan_of("two", **declaration)
    assert other["verdict"] == "fits", other["errors"]
    found = problems("two", pair | {"two": other})
    assert bool(found) is bool(words)
    for word in words:
        assert any(word in problem and " on two and one: " in problem for problem in found), found


def test_another_driver_or_image_digest_is_refused(pair):
    facts = FACTS | {"two": {"driver": {"loaded": {"version": "580.82.07"}}}}
    assert any("driver 580.82.07, not 580.95.05" in problem for problem in problems("two", pair, facts))
    other = copy.deepcopy(pair["two"])
    other["services"][0]["image"] += "@sha256:" + "0" * 64
    assert any("image" in problem for problem in problems("two", pair | {"two": other}))


def test_each_host_asks_for_all_others(pair):
    assert addresses_of_others(pair["one"]) == ["10.0.0.2"]
    assert addresses_of_others(pair["two"]) == ["10.0.0.1"]


def test_the_interface_is_the_one_that_has_the_address():
    facts = {
        "network": [{"interface": "eth0", "addresses": ["192.0.2.1"]}, {"interface": "ib0", "addresses": ["10.0.0.1"]}]
    }
    assert interface_of(facts, "10.0.0.1") == "ib0"
    assert interface_of(facts, "10.0.0.9") == interface_of({}, "10.0.0.1") == ""


# ---- batches -----------------------------------------------------------------------------------------

TEN = [f"h{number}" for number in range(10)]


@pytest.mark.parametrize(
    ("sizes", "groups", "expected"),
    [
        ([1, "25%", "100%"], [], [1, 2, 7]),
        ([1, "25%", "100%"], [("h0", "h1")], [2, 2, 6]),
        ([1, "25%", "100%"], [("h0", "h3")], [4, 2, 4]),
        ([1], [("h2", "h3"), ("h3", "h5")], [1, 1, 4, 1, 1, 1, 1]),
        (["50%"], [("h4", "h9")], [10]),
        ([3], [("h1", "elsewhere")], [3, 3, 3, 1]),
        ([0], [], [10]),
        (["5%"], [], [1] * 10),
    ],
)
def test_batches_never_part_the_hosts_of_a_group(sizes, groups, expected):
    assert batch_sizes(sizes, TEN, groups) == expected


@pytest.mark.parametrize("playbook", ["deploy.yml", "rollback.yml"])
def test_the_playbooks_start_a_group_in_one_batch(tmp_path, ansible_playbook, playbook):
    """With the play's own `serial`: on the example fleet, whose last two hosts share a model, and on a part of it."""
    plays = yaml.safe_load((REPO_ROOT / "playbooks" / playbook).read_text())
    (play,) = [play for play in plays if "serial" in play]
    tasks = [{"ansible.builtin.debug": {"msg": "BATCH {{ ansible_play_batch | join(',') }}"}, "run_once": True}]
    kept = {key: play[key] for key in ("hosts", "gather_facts", "serial", "vars")}
    # the look at the hosts, which makes the group that the play is for: here all of them differ
    name = next(iter(re.findall("rolling_[a-z]+(?=')", play["hosts"])))
    differ = {"ansible.builtin.group_by": {"key": name}}
    before = {"hosts": "all", "gather_facts": False, "tasks": [differ]}
    assert plays.index(play) > 0, "in the first play there are no hostvars"
    (tmp_path / "play.yml").write_text(yaml.safe_dump([before, kept | {"tasks": tasks}]))

    def batches(*words):
        done = ansible_playbook(tmp_path / "play.yml", "-i", REPO_ROOT / "inventory/examples/fleet", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return [batch.split(",") for batch in re.findall(r"BATCH ([\w,-]+)", done.stdout)]

    assert batches("-e", "serving_stack_batches=1") == [
        ["berlin-1"], ["berlin-2"], ["oslo-1"], ["oslo-2"], ["oslo-3"], ["oslo-4", "oslo-5"],
    ]  # fmt: skip
    assert batches("--limit", "oslo-1,llama_70b") == [["oslo-1"], ["oslo-4", "oslo-5"]]
    assert ansible_playbook("--syntax-check", REPO_ROOT / "playbooks" / playbook).returncode == 0
