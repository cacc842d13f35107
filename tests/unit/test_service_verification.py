"""The checks of running services, against a stand-in for the engines' endpoints and made-up containers."""

import http.server
import json
import threading

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.host_facts.gather import gather
from ansible_collections.blackwell.serving.plugins.module_utils.host_verification import (
    STACK_CHECKS,
    Verification,
    Wanted,
    exit_code,
    table,
)
from ansible_collections.blackwell.serving.plugins.module_utils.service_verification import PROMPT, ask

STACK = "/opt/blackwell-serving/stack"
SMI_ROW = (
    "0, GPU-00000000-0000-0000-0000-000000000005, NVIDIA GeForce RTX 5090, 00000000:01:00.0, 0x2B8510DE, 0x8A5C1043, "
    "580.95.05, 12.0, 32607, 498, {used}, 100, Enabled, [N/A], [N/A], 575.00\n"
)
DECLARED = [
    {"name": "qwen", "engine": "sglang", "image": "sglang-cu129", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30002}
    | {"context_length": 32768, "max_concurrency": 32},
    {"name": "tinyllama", "engine": "vllm", "image": "vllm-cu129", "model": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"}
    | {"port": 30001, "context_length": 2048, "max_concurrency": 8},
]


class StandIn:
    """Plays an engine's endpoints on a port of its own; `routes`: by path, (status, body) or a function of the body."""

    def __init__(self):
        self.routes, self.asked = {}, []
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                stand_in.asked.append((self.path, body))
                route = stand_in.routes.get(self.path, (404, "{}"))
                status, text = route(body) if callable(route) else route
                content = (text if isinstance(text, str) else json.dumps(text)).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = answer

            def log_message(self, *_arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.server.handle_error = lambda *_arguments: None  # a caller that gave up is no news
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def engines(make_plan):
    """A plan of two services, and a stand-in for each that reports what was planned."""
    plan = make_plan(DECLARED)
    assert plan["verdict"] == "fits"
    qwen, tinyllama = StandIn(), StandIn()
    stand_ins = {"qwen": qwen, "tinyllama": tinyllama}
    for service in plan["services"]:
        stand_in = stand_ins[service["name"]]
        service |= {"port": stand_in.port, "served_name": f"our-{service['name']}"}
        completion = {"choices": [{"text": " Paris, which is\nlarge."}], "usage": {"completion_tokens": 6}}
        stand_in.routes |= {
            "/v1/models": (200, {"data": [{"id": service["served_name"]}]}),
            "/v1/completions": (200, completion),
        }
    planned = {service["name"]: service for service in plan["services"]}
    # The keys as SGLang 0.5.15.post1 answered on an H100 (measured for this project, 2026-11-22).
    usage = {"weight": planned["qwen"]["memory"]["weights"], "kvcache": planned["qwen"]["memory"]["kv"], "graph": 0.1}
    usage["token_capacity"] = planned["qwen"]["kv_tokens"]
    info = {"max_total_num_tokens": planned["qwen"]["kv_tokens"], "internal_states": [{"memory_usage": usage}]}
    qwen.routes["/server_info"] = (200, info)
    blocks = planned["tinyllama"]["kv_tokens"] // 16
    tinyllama.routes["/metrics"] = (200, metrics(block_size=16, num_gpu_blocks=blocks))
    yield plan, stand_ins
    qwen.close()
    tinyllama.close()


def metrics(**labels):
    """The form of vLLM's /metrics."""
    named = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f'# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{cache_dtype="auto",{named}}} 1.0\n'


def container(status="running", health="healthy", restarts=0, code=0, **state):
    health = {"Health": {"Status": health}} if health else {}
    return {"State": {"Status": status, "ExitCode": code, **health, **state}, "RestartCount": restarts}


@pytest.fixture
def host(fake_host, engines):
    plan, _ = engines
    return fake_host(
        files={
            "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  x\n",
            f"{STACK}/current/plan.json": json.dumps(plan),
        },
        commands={
            "nvidia-smi --query-gpu": (0, SMI_ROW.format(used=20000), ""),
            "nvidia-smi --query-compute-apps": (0, "", ""),
        },
        docker={
            "/info": {"ServerVersion": "29.9.0", "Runtimes": {}, "CDISpecDirs": []},
            "/containers/json": [],
            "/containers/qwen/json": container(restarts=2),
            "/containers/tinyllama/json": container(),
        },
    )


def verify(host, required=False):
    wanted = Wanted(
        gpu_required=False, capabilities={}, capability_without_gpu="12.0", cuda_version="12.9", container_image="x",
        pull=False, minimum={}, ports=[], project="serving", disk={}, stack_dir=STACK, stack_required=required,
    )  # fmt: skip
    verification = Verification(host, gather(host), wanted, "/scratch", "/var/run/docker.sock")
    return {check["id"]: check for check in verification.run(STACK_CHECKS)}, verification


def test_services_that_do_what_was_planned(host, engines):
    plan, stand_ins = engines
    checks, verification = verify(host)
    assert list(checks) == ["services_up", "services_answer", "services_memory"]
    assert {check["status"] for check in checks.values()} == {"ok"}, table(list(checks.values()))
    assert "qwen is running and healthy, 2 restarts" in checks["services_up"]["message"]
    assert 'qwen: "Paris, which is large." in 0.' in checks["services_answer"]["message"]
    assert "GPU 0 uses 19.5 of" in checks["services_memory"]["message"]
    planned = {service["name"]: service for service in plan["services"]}
    figures = {service["name"]: service for service in verification.services}
    assert [service["name"] for service in verification.services] == [service["name"] for service in plan["services"]]
    assert figures["qwen"]["restarts"] == 2
    assert figures["qwen"]["answer"] == " Paris, which is\nlarge."
    assert figures["qwen"]["completion_seconds"] < 10
    for name in planned:
        assert figures[name]["kv_tokens"] == pytest.approx(planned[name]["kv_tokens"], abs=15)
    assert figures["qwen"]["weights_gib"] == planned["qwen"]["memory"]["weights"]
    assert "weights_gib" not in figures["tinyllama"], "vLLM does not tell"
    request = next(body for path, body in stand_ins["qwen"].asked if path == "/v1/completions")
    assert request["model"] == "our-qwen"
    assert request["prompt"] == PROMPT


def test_without_a_stack_the_checks_are_left_out_or_say_so(host):
    del host.files[f"{STACK}/current/plan.json"]
    assert verify(host)[0] == {}
    checks, verification = verify(host, required=True)
    assert {check["status"] for check in checks.values()} == {"could_not_check"}
    assert f"there is no {STACK}/current/plan.json" in checks["services_up"]["message"]
    assert exit_code(checks.values()) == 2
    assert verification.services == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"services": 1}'])
def test_plan_that_cannot_be_read(host, text):
    host.files[f"{STACK}/current/plan.json"] = text
    checks, _ = verify(host)
    assert {check["status"] for check in checks.values()} == {"could_not_check"}
    assert "is not a plan" in checks["services_up"]["message"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (container("exited", "", 3, 1), "qwen has exited with status 1, 3 restarts"),
        (container("exited", "", 0, 137, OOMKilled=True), "out of the host's memory"),
        (container("running", "unhealthy"), "qwen is running and unhealthy"),
        (container("running", "starting"), "qwen is running and starting"),
        (container("restarting", "", 2, 1), "qwen has ended with status 1, 2 restarts"),
        (None, "qwen does not exist"),
    ],
)
def test_container_that_is_not_well(host, answer, says):
    host.docker["/containers/qwen/json"] = answer
    checks, _ = verify(host)
    assert checks["services_up"]["status"] == "failed"
    assert says in checks["services_up"]["message"]
    assert "tinyllama" not in checks["services_up"]["message"], "only what is not well"
    assert "--tags diagnose" in checks["services_up"]["remedy"]


def test_container_without_health_check_runs(host):
    host.docker["/containers/qwen/json"] = container(health="")
    assert verify(host)[0]["services_up"]["status"] == "ok"


def test_docker_that_does_not_answer(host):
    host.docker = {}
    checks, _ = verify(host)
    assert checks["services_up"]["status"] == "could_not_check"
    assert checks["services_up"]["remedy"] == "See docker_runs."


@pytest.mark.parametrize(
    ("path", "answer", "status", "says"),
    [
        ("/v1/models", (200, {"data": [{"id": "other"}]}), "failed", "lists other, not our-qwen"),
        ("/v1/models", (200, "not JSON"), "failed", "lists no model, not our-qwen"),
        ("/v1/models", (401, ""), "could_not_check", "/v1/models wants an API key"),
        ("/v1/models", (503, ""), "failed", "/v1/models does not answer: status 503"),
        ("/v1/completions", (500, ""), "failed", "/v1/completions does not answer: status 500"),
        ("/v1/completions", (200, {"choices": [{"text": ""}]}), "failed", "completed the prompt by no token"),
        ("/v1/completions", (200, {"choices": []}), "failed", "completed the prompt by no token"),
        ("/v1/completions", (200, [1]), "failed", "completed the prompt by no token"),
    ],
)
def test_service_that_does_not_answer_as_it_should(host, engines, path, answer, status, says):
    engines[1]["qwen"].routes[path] = answer
    checks, _ = verify(host)
    assert checks["services_answer"]["status"] == status
    assert checks["services_answer"]["message"] == f"qwen: {says}"
    assert checks["services_answer"]["remedy"]
    assert checks["services_up"]["status"] == checks["services_memory"]["status"] == "ok"


def test_service_that_another_host_answers_for(host, engines):
    plan, stand_ins = engines
    next(s for s in plan["services"] if s["name"] == "qwen")["nodes"] = {"rank": 1, "hosts": ["one", "two"]}
    host.files[f"{STACK}/current/plan.json"] = json.dumps(plan)
    stand_ins["qwen"].routes.clear()
    checks, _ = verify(host)
    for check in ("services_answer", "services_memory"):
        assert checks[check]["status"] == "ok"
        assert "qwen: one answers for it" in checks[check]["message"]
    assert stand_ins["qwen"].asked == []


def test_service_that_nobody_listens_for(host, engines):
    engines[1]["tinyllama"].close()
    checks, _ = verify(host)
    assert checks["services_answer"]["status"] == "failed"
    assert (
        "tinyllama: /v1/models does not answer: [Errno 111] Connection refused" in checks["services_answer"]["message"]
    )
    assert checks["services_memory"]["status"] == "could_not_check"
    assert checks["services_memory"]["remedy"] == "See services_answer."


def test_service_that_hangs_ends_by_the_time_limit(engines):
    plan, stand_ins = engines
    release = threading.Event()
    stand_ins["qwen"].routes["/hang"] = lambda _body: (release.wait(10), (200, "{}"))[1]
    service = next(service for service in plan["services"] if service["name"] == "qwen")
    answer = ask(service, "/hang", timeout=0.2)
    release.set()
    assert answer.status is None
    assert "timed out" in answer.text


@pytest.mark.parametrize(
    ("bind_address", "reached"), [("0.0.0.0", True), ("127.0.0.1", True), ("", True), ("127.0.0.2", False)]
)
def test_service_is_asked_where_it_is_published(engines, bind_address, reached):
    service = dict(engines[0]["services"][0], bind_address=bind_address)
    assert (ask(service, "/v1/models").status == 200) is reached


def sglang_reports(engines, **changes):
    """The stand-in of SGLang with a changed answer: tokens, weight or kvcache."""
    _, info = engines[1]["qwen"].routes["/server_info"]
    usage = info["internal_states"][0]["memory_usage"]
    usage.update({name: value for name, value in changes.items() if name != "tokens"})
    info["max_total_num_tokens"] = changes.get("tokens", info["max_total_num_tokens"])


def planned_of(engines, name):
    return next(service for service in engines[0]["services"] if service["name"] == name)


@pytest.mark.parametrize(("share", "status"), [(0.9895, "failed"), (0.9905, "ok"), (1.5, "ok")])
def test_tokens_are_at_least_the_planned_ones_within_a_percent(host, engines, share, status):
    sglang_reports(engines, tokens=int(planned_of(engines, "qwen")["kv_tokens"] * share))
    checks, _ = verify(host)
    assert checks["services_memory"]["status"] == status
    engines[1]["tinyllama"].routes["/metrics"] = (
        200,
        metrics(
            kv_cache_size_tokens=int(planned_of(engines, "tinyllama")["kv_tokens"] * share),
            block_size=8,
            num_gpu_blocks=1,
        ),
    )
    sglang_reports(engines, tokens=planned_of(engines, "qwen")["kv_tokens"])
    assert verify(host)[0]["services_memory"]["status"] == status


def test_a_kv_cache_that_leaves_room_is_right_when_it_has_its_tokens(host, engines):
    sglang_reports(engines, kvcache=planned_of(engines, "qwen")["memory"]["kv"] * 0.9)
    assert verify(host)[0]["services_memory"]["status"] == "ok"


@pytest.mark.parametrize(("what", "direction"), [("weights", -1), ("weights", 1), ("kv", 1)])
def test_sizes_differ_by_three_percent_or_a_tenth_of_a_gib_at_most(host, engines, what, direction):
    size = planned_of(engines, "qwen")["memory"][what]
    allowed = max(0.03 * size, 0.1)
    key = {"weights": "weight", "kv": "kvcache"}[what]
    sglang_reports(engines, **{key: size + direction * (allowed - 0.005)})
    assert verify(host)[0]["services_memory"]["status"] == "ok"
    sglang_reports(engines, **{key: size + direction * (allowed + 0.005)})
    checks, _ = verify(host)
    assert checks["services_memory"]["status"] == "failed"
    assert f"GiB of {what}, planned are {size:.2f}" in checks["services_memory"]["message"]


def test_older_sglang_is_asked_by_the_older_path(host, engines):
    routes = engines[1]["qwen"].routes
    routes["/get_server_info"] = routes.pop("/server_info")
    assert verify(host)[0]["services_memory"]["status"] == "ok"


@pytest.mark.parametrize(
    ("name", "path", "body"),
    [
        ("qwen", "/server_info", "[]"),
        ("qwen", "/server_info", {"internal_states": []}),
        ("tinyllama", "/metrics", ""),
        ("tinyllama", "/metrics", metrics(num_gpu_blocks="None", block_size=16)),
        ("tinyllama", "/metrics", 'vllm:cache_config_info{broken="'),
    ],
)
def test_engine_that_does_not_tell_its_memory(host, engines, name, path, body):
    engines[1][name].routes[path] = (200, body)
    checks, _ = verify(host)
    assert checks["services_memory"]["status"] == "could_not_check"
    assert f"{name}: {path}" in checks["services_memory"]["message"]


def test_gpu_that_is_used_beyond_its_plan(host, engines):
    planned = engines[0]["gpus"][0]["planned_gib"]
    host.commands["nvidia-smi --query-gpu"] = (0, SMI_ROW.format(used=int((planned + 0.5) * 1024)), "")
    checks, _ = verify(host)
    assert checks["services_memory"]["status"] == "failed"
    assert f"of {planned:.1f} planned GiB" in checks["services_memory"]["message"]
    assert "nvidia-smi --query-compute-apps" in checks["services_memory"]["remedy"]


def test_driver_that_does_not_tell_used_memory(host):
    host.commands["nvidia-smi --query-gpu"] = (9, "", "NVIDIA-SMI has failed\n")
    checks, _ = verify(host)
    assert checks["services_memory"]["status"] == "could_not_check"
    assert "GPU 0 does not tell its memory" in checks["services_memory"]["message"]
