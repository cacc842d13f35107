"""compose.yaml says what plan.json says, read by a real Docker Compose."""

from __future__ import annotations

import itertools
import json
import subprocess

import pytest

SERVICES = [
    {
        "name": "tiny",
        "engine": "sglang",
        "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "port": 30001,
        "container_name": "sglang-tiny",
        "environment": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "ODD": "a $HOME: # 'b'", "NUMBER": 1},
        "shm_size": "16g",
    },
    {"name": "qwen", "engine": "sglang", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30002, "container_port": 9000},
    {
        "name": "yi",
        "engine": "vllm",
        "model": "01-ai/Yi-6B",
        "port": 30003,
        "trust_remote_code": True,
        "revision": "d" * 40,
    },
]


@pytest.fixture(params=["cdi", "deploy"])
def gpu_request(request):
    return request.param


@pytest.fixture
def rendered(make_plan, gpu_request, docker_compose, tmp_path):
    """A plan and what `docker compose config` makes of its compose.yaml."""
    from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import render

    model = tmp_path / "my model"
    model.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_hidden_layers": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
    }
    (model / "config.json").write_text(json.dumps(config))
    wide = {"name": "wide", "engine": "vllm", "model": str(model), "port": 30004, "tensor_parallel": 2}
    plan = make_plan([*SERVICES, wide], ["rtx_5090", "rtx_5090"], gpu_request=gpu_request, bind_address="192.0.2.7")
    (tmp_path / "compose.yaml").write_text(render(plan)["compose.yaml"])
    command = [*docker_compose, "-f", "compose.yaml", "config", "--format", "json"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    return plan, json.loads(answer.stdout)


def seconds(duration):
    minutes, _, rest = duration.rpartition("m")
    return int(minutes or 0) * 60 + int(rest.rstrip("s") or 0)


def test_compose_agrees_with_the_plan_service_by_service(rendered, gpu_request):
    plan, compose = rendered
    assert compose["name"] == plan["project_name"]
    assert list(compose["services"]) == sorted(service["name"] for service in plan["services"])
    for planned in plan["services"]:
        service = compose["services"][planned["name"]]
        assert service["image"] == planned["image"]
        assert service["container_name"] == planned["container_name"]
        assert service["entrypoint"] == planned["entrypoint"]
        assert service["command"] == planned["command"]
        assert service.get("environment", {}) == {
            key: value.replace("$", "$$") for key, value in planned["environment"].items()
        }
        assert [(port["host_ip"], port["published"], port["target"]) for port in service["ports"]] == [
            ("192.0.2.7", str(planned["port"]), planned["container_port"])
        ]
        assert service["shm_size"] == str(int(planned["shm_size"].rstrip("g")) * 2**30)
        device = service["deploy"]["resources"]["reservations"]["devices"][0]
        names = [f"nvidia.com/gpu={gpu}" if gpu_request == "cdi" else str(gpu) for gpu in planned["gpus"]]
        assert device["device_ids"] == names
        assert device["driver"] == ("cdi" if gpu_request == "cdi" else "nvidia")
        assert {name: entry["condition"] for name, entry in service.get("depends_on", {}).items()} == dict.fromkeys(
            planned["depends_on"], "service_healthy"
        )
        check = service["healthcheck"]
        assert planned["healthcheck"]["url"] in check["test"][-1]
        for key in ("interval", "timeout", "start_period", "start_interval"):
            assert seconds(check[key]) == planned["healthcheck"][f"{key}_s"]
        assert check["retries"] == planned["healthcheck"]["retries"]


def test_every_service_is_confined(rendered):
    _, compose = rendered
    for service in compose["services"].values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
        assert service["restart"] == "on-failure:3"
        assert service["logging"]["options"]["max-size"]
        assert all(volume["type"] == "volume" or volume["read_only"] for volume in service["volumes"])


def test_start_order_follows_the_plan_on_every_gpu(rendered):
    """Whatever order Compose picks within its rules, services of one GPU come up in the plan's order."""
    plan, compose = rendered
    for gpu in plan["gpus"]:
        names = [service["name"] for service in plan["services"] if gpu["index"] in service["gpus"]]
        for before, after in itertools.pairwise(names):
            assert before in compose["services"][after]["depends_on"]


def test_a_health_check_waits_longer_than_the_engine_itself(make_plan):
    """SGLang's /health generates a token and gives up after 20 s; a probe that ends earlier would call it dead."""
    for service in make_plan(SERVICES)["services"]:
        if service["engine"] == "sglang":
            assert service["healthcheck"]["timeout_s"] > 20


def test_a_larger_model_is_given_longer_to_start(make_plan):
    tiny, qwen, yi = make_plan(SERVICES)["services"]
    periods = [service["healthcheck"]["start_period_s"] for service in (tiny, qwen, yi)]
    assert periods == sorted(periods)
    assert periods[0] < periods[2]


def test_the_health_probe_reports_what_the_server_says(make_plan, tmp_path):
    """The probe itself, run against a server that is well, ill, and absent."""
    import http.server
    import sys
    import threading

    import yaml
    from ansible_collections.blackwell.serving.plugins.plugin_utils.plan_files import render

    class Engine(http.server.BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            self.send_response(self.status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Engine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    plan = make_plan([SERVICES[0] | {"container_port": server.server_port}])
    probe = yaml.safe_load(render(plan)["compose.yaml"])["services"]["tiny"]["healthcheck"]["test"]
    command = [sys.executable, *probe[2:]]

    def healthy():
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0

    assert probe[:2] == ["CMD", "python3"]
    assert healthy()
    Engine.status = 503
    assert not healthy()
    server.shutdown()
    server.server_close()
    assert not healthy()


def test_engines_whose_models_are_there_ask_no_hub_and_keep_their_names(make_plan):
    asked, offline = make_plan(SERVICES), make_plan(SERVICES, models_offline=True)
    for before, service in zip(asked["services"], offline["services"], strict=True):
        assert "HF_HUB_OFFLINE" not in before["environment"]
        assert service["environment"]["HF_HUB_OFFLINE"] == "1"
        assert f"--served-model-name={service['model']}" in service["command"]
        assert service["served_name"] == service["model"]
    chosen = make_plan([SERVICES[0] | {"environment": {"HF_HUB_OFFLINE": "0"}}], models_offline=True)
    assert chosen["services"][0]["environment"]["HF_HUB_OFFLINE"] == "0"
