"""The loads that playbooks/benchmark.yml makes of a plan, as Ansible's variables give the wishes."""

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.blackwell.serving.plugins.filter.benchmark import benchmark_runs
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog

DECLARATION = {
    "gpus": ["rtx_5090"],
    "services": [
        {"name": "qwen", "engine": "sglang", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30001, "max_concurrency": 24},
        {"name": "yi", "engine": "vllm", "model": "01-ai/Yi-6B", "port": 30002, "max_concurrency": 8},
    ],
}
PLAN = plan_host("box", DECLARATION, load_catalog())


def runs(services=(), concurrencies=(1, 16), **more):
    return benchmark_runs(PLAN, services, concurrencies, 4, 3, 100, 512, 128, **more)


def places(found):
    return [(run["service"], run["load"]["concurrency"]) for run in found]


def test_each_service_is_measured_at_each_concurrency_and_at_its_highest():
    found = runs()
    assert places(found["runs"]) == [("qwen", 1), ("qwen", 16), ("qwen", 24), ("yi", 1), ("yi", 8)]
    assert places(found["highest"]) == [("qwen", 24), ("yi", 8)]
    assert {run["image"] for run in found["runs"]} == {PLAN["services"][0]["image"]}


def test_each_round_has_prompts_of_its_own():
    commands = [command for run in runs()["runs"][:1] for command in run["commands"]]
    assert len(commands) == 3
    assert len({next(word for word in command if word.startswith("--seed=")) for command in commands}) == 3


def test_the_command_line_of_ansible_gives_strings():
    assert places(runs("qwen", "1,16")["runs"]) == [("qwen", 1), ("qwen", 16), ("qwen", 24)]


def test_tuning_measures_the_highest_alone():
    assert places(runs(["yi"], highest_only=True)["runs"]) == [("yi", 8)]


def test_a_service_that_does_not_serve_is_named():
    with pytest.raises(AnsibleFilterError, match="no service qwem serves on this host, but qwen, yi"):
        runs(["qwem"])
