"""The plan as series: what node_exporter would read."""

import re

from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.module_utils.stack_metrics import GIB, host_metrics, plan_metrics
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog

SERVICES = [
    {"name": "wide", "engine": "sglang", "model": "01-ai/Yi-6B", "port": 1, "tensor_parallel": 2},
    {"name": "qwen", "engine": "vllm", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 2},
]


def samples(text):
    """Value by name and labels."""
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_every_service_has_its_planned_memory_on_each_of_its_gpus():
    plan = plan_host("box1", {"gpus": ["rtx_5090", "rtx_5090"], "services": SERVICES}, load_catalog())
    found = samples(plan_metrics(plan))
    for service in plan["services"]:
        for gpu in service["gpus"]:
            name = f'blackwell_planned_memory_bytes{{service="{service["name"]}",gpu="{gpu}",when="peak"}}'
            assert abs(found[name] / GIB - service["memory"]["peak"]) < 1e-6
    for gpu in plan["gpus"]:
        planned = found[f'blackwell_planned_gpu_memory_bytes{{gpu="{gpu["index"]}"}}']
        assert abs(planned / GIB - gpu["planned_gib"] - gpu["reserved_gib"]) < 1e-6


def test_labels_are_escaped():
    facts = {"driver": {"installed": {"version": 'a"b\\c\nd'}}}
    (name,) = samples(host_metrics(facts))
    assert re.fullmatch(r'blackwell_installed_driver_info\{version="a\\"b\\\\c\\nd"\}', name)


def test_a_host_without_a_driver_has_no_such_series():
    assert samples(host_metrics({"driver": {"installed": None}})) == {}
