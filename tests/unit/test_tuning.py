"""What is tried for a service, what is kept, and how that comes into the next plan. The figures are made up."""

import copy

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils import tuning
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.plugin_utils import benchmark_files
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import COLLECTION_ROOT, load_catalog

CATALOG = load_catalog()
SERVICES = yaml.safe_load((COLLECTION_ROOT / "inventory/local/group_vars/all/main.yml").read_text())["serving_services"]
VERSION = str(CATALOG.images["images"]["sglang-cu129"]["engine_version"])
NOW = {"tokens_per_s": 100.0, "first_token_p99_ms": 50.0, "failed": 0, "requests": 10}


def declared(service="qwen", gpus=("rtx_5090",), tuned=None, **changes):
    services = copy.deepcopy(SERVICES)
    next(item for item in services if item["name"] == service).update(changes)
    return {"gpus": list(gpus), "services": services, "tuned": tuned or {}}


def found(declaration, service="qwen"):
    candidates = tuning.candidates("box", declaration, CATALOG, benchmark_files.tuning(), service)
    return {candidate["name"]: candidate for candidate in candidates}


def command(plan, service="qwen"):
    return next(entry["command"] for entry in plan["services"] if entry["name"] == service)


def tuned_with(extra_args, version=VERSION):
    return {"qwen": {"engine": "sglang", "engine_version": version, "extra_args": extra_args, "because": "measured"}}


def trial(name, speed, first=50.0, failed=0):
    return {
        "name": name,
        "medians": {"tokens_per_s": speed, "first_token_p99_ms": first, "failed": failed, "requests": 10},
    }


@pytest.mark.parametrize("service", ["qwen", "yi"])
def test_a_candidate_is_the_present_plan_but_for_its_option(service):
    declaration = declared(service)
    now = plan_host("box", declaration, CATALOG)
    tried = {name: candidate for name, candidate in found(declaration, service).items() if candidate["plan"]}
    assert tried
    for candidate in tried.values():
        assert not candidate["skipped"]
        assert command(candidate["plan"], service) != command(now, service)
        extra_args = candidate["tuned"][service]["extra_args"]
        for flag, value in extra_args.items():
            word = f"--{flag}" if isinstance(value, bool) else f"--{flag}={value}"
            assert (word in command(candidate["plan"], service)) == (value is not False)


def test_what_the_service_has_already_is_not_tried():
    assert found(declared())["flashinfer attention"]["skipped"] == "it is so already"


def test_what_the_service_decides_itself_is_left_alone():
    skipped = found(declared(extra_args={"attention_backend": "triton"}))["flashinfer attention"]["skipped"]
    assert skipped == "the service's own extra_args decide --attention-backend"


def test_what_the_gpu_cannot_do_is_not_tried():
    assert "compute capability 12.x" in found(declared())["fa3 attention"]["skipped"]
    assert found(declared(gpus=["h200"]))["fa3 attention"]["skipped"] == "it is so already"


def test_what_the_version_lacks_is_not_tried():
    old = found(declared(image="sglang-0.5.2"))
    assert "has no option" in old["prefill graphs"]["skipped"]


def test_what_does_not_fit_is_not_tried_and_the_reason_is_the_planners():
    fits, too_many = 32768, 1 << 22
    while too_many - fits > 1000:
        tokens = (fits + too_many) // 2
        good = plan_host("box", declared(kv_tokens=tokens), CATALOG)["verdict"] == "fits"
        fits, too_many = (tokens, too_many) if good else (fits, tokens)
    skipped = found(declared(kv_tokens=fits))["chunks of 16384"]["skipped"]
    assert "the services do not fit" in skipped


def test_a_candidate_comes_beside_what_was_tuned_before():
    candidate = found(declared(tuned=tuned_with({"sampling-backend": "pytorch"})))["triton attention"]
    assert candidate["tuned"]["qwen"]["extra_args"] == {"sampling-backend": "pytorch", "attention-backend": "triton"}


def test_the_fastest_that_is_fast_enough_wins():
    decision = tuning.decide(NOW, [trial("a", 104.0), trial("b", 120.0), trial("c", 110.0)], 0.03, 0.2)
    assert decision["winner"] == "b"
    assert [verdict["wins"] for verdict in decision["verdicts"]] == [True, True, True]


@pytest.mark.parametrize(
    ("loser", "reason"),
    [
        (trial("a", 102.9), "less than the 3 %"),
        (trial("a", 150.0, first=61.0), "comes 22 % later"),
        (trial("a", 150.0, failed=1), "1 of 10 requests"),
        ({"name": "a", "problem": "it cannot start"}, "failed: it cannot start"),
    ],
    ids=["margin", "first token", "failed requests", "crashed"],
)
def test_what_is_not_better_enough_loses(loser, reason):
    decision = tuning.decide(NOW, [loser], 0.03, 0.2)
    assert decision["winner"] is None
    assert reason in decision["verdicts"][0]["text"]


def test_the_first_of_two_equals_wins():
    assert tuning.decide(NOW, [trial("a", 120.0), trial("b", 120.0)], 0.03, 0.2)["winner"] == "a"


def test_the_plan_takes_what_was_tuned():
    plan = plan_host("box", declared(tuned=tuned_with({"attention-backend": "triton"})), CATALOG)
    assert "--attention-backend=triton" in command(plan)
    assert plan["warnings"] == plan_host("box", declared(), CATALOG)["warnings"]


def test_the_services_own_options_win():
    tuned = tuned_with({"attention-backend": "triton", "chunked-prefill-size": 2048})
    plan = plan_host("box", declared(tuned=tuned, extra_args={"attention_backend": "torch_native"}), CATALOG)
    assert {"--attention-backend=torch_native", "--chunked-prefill-size=2048"} <= set(command(plan))


def test_what_was_tuned_for_another_version_does_not_count_and_says_so():
    plan = plan_host("box", declared(tuned=tuned_with({"attention-backend": "triton"}, "0.5.2")), CATALOG)
    assert "--attention-backend=flashinfer" in command(plan)
    assert any("measured on sglang 0.5.2" in warning for warning in plan["warnings"])


def test_what_was_tuned_for_a_service_that_is_gone_is_said():
    tuned = {"gone": tuned_with({})["qwen"]}
    plan = plan_host("box", declared(tuned=tuned), CATALOG)
    assert plan["verdict"] == "fits"
    assert "serving_tuned: there is no service gone" in plan["warnings"]


@pytest.mark.parametrize("tuned", [["qwen"], {"qwen": "fast"}, {"qwen": {"engine": "sglang"}}])
def test_something_else_is_refused(tuned):
    plan = plan_host("box", {**declared(), "tuned": tuned}, CATALOG)
    assert plan["verdict"] == "invalid"
    assert plan["errors"][0]["key"] == "serving_tuned"
