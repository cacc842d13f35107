"""The acceptance run of tests/gpu, as far as no GPU is needed: recorded logs, recorded results, and a made-up box."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ACCEPTANCE, RESULTS = ROOT / "tests/gpu", ROOT / "tests/gpu/results"
BOX = ROOT / "tests/fixtures/gpu_box"
CARD = "NVIDIA H100 80GB HBM3"  # the box's
sys.path[:0] = [str(ACCEPTANCE), str(ROOT / "tests/tools")]

import performance  # noqa: E402
from card import largest, least  # noqa: E402
from commands import adapted, differences  # noqa: E402
from engine_log import figures, telling  # noqa: E402
from load import Outcome, streamed, summary  # noqa: E402
from parts import parts  # noqa: E402
from verdicts import checks, table  # noqa: E402

DECLARED = yaml.safe_load((ACCEPTANCE / "stacks.yml").read_text())["stacks"]
STACKS = sorted(path.name.removesuffix(".plan.json") for path in RESULTS.glob("*.plan.json"))


def recorded(stack):
    return tuple(json.loads((RESULTS / f"{stack}{suffix}.json").read_text()) for suffix in ("", ".plan"))


def log_lines(name):
    return (RESULTS / f"{name}.log").read_text().splitlines()


def test_figures_of_a_recorded_sglang_log():
    assert figures("sglang", log_lines("default.qwen")) == {
        "distributed": 0.09,
        "free": 26.26,
        "free_after": 20.38,
        "weights": 5.88,
        "kv": 3.24,
        "pool_end": 17.14,
        "decode_graphs": 0.11,
        "left": 16.94,
        "tokens": 94207,
    }


def test_figures_of_a_recorded_vllm_log():
    assert figures("vllm", log_lines("default.yi")) == {
        "free": 16.39,
        "weights": 11.29,
        "kv": 2.31,
        "decode_graphs": 0.15,
        "tokens": 37888,
    }


def test_figures_of_prefill_graphs_and_of_a_later_line():
    """As sglang 0.5.15.post1 prints them (model_runner.py, init_prefill_cuda_graph)."""
    line = "Capture target prefill CUDA graph end. elapsed=20.00 s, mem usage={} GB, avail mem=71.41 GB."
    lines = [line.format("0.65"), "nothing", line.format("0.70")]
    assert figures("sglang", lines) == {"prefill_graphs": 0.70}
    assert telling("sglang", lines) == [lines[0], lines[2]]


@pytest.mark.parametrize("stack", STACKS)
def test_recorded_commands_are_the_plans_own(stack):
    """The commands that the recorded logs begin with, against the plan: only what the results name differs."""
    result, plan = recorded(stack)
    for service in plan["services"]:
        command = log_lines(f"{stack}.{service['name']}")[0].split()
        found = differences(service, command)
        assert found == result["services"][service["name"]]["differences"]
        assert all(entry["allowed"] for entry in found)


def test_adapted_command_differs_where_it_has_to_and_says_so():
    _, plan = recorded("default")
    service = plan["services"][0]
    command = adapted(service, "MODELS/x", "127.0.0.1", 31001)
    assert command[:3] == service["entrypoint"]
    assert {entry["flag"] for entry in differences(service, command)} == {
        "--model-path",
        "--host",
        "--port",
        "--load-format",
        "--grammar-backend",
        "--skip-server-warmup",
    }
    changed = [word.replace("--max-total-tokens=65536", "--max-total-tokens=2048") for word in command]
    changed.remove("--sleep-on-idle")
    refused = [entry for entry in differences(service, changed) if not entry["allowed"]]
    assert refused == [
        {"flag": "--max-total-tokens", "planned": "65536", "used": "2048", "allowed": False},
        {"flag": "--sleep-on-idle", "planned": "given", "used": None, "allowed": False},
    ]


@pytest.mark.parametrize("stack", STACKS)
def test_verdict_of_a_recorded_stack(stack):
    """The verdict is what the recorded figures give, not what was once written beside them."""
    result, plan = recorded(stack)
    found = checks(plan, result, DECLARED[stack].get("least_use"))
    assert found == result["checks"]
    failed = [check for check in found if not check["ok"]]
    assert failed == []
    assert (result["verdict"], result["state"]) == ("holds", "done")


def spoiled(path, value):
    """The recorded default stack with one figure changed."""
    result, plan = recorded("default")
    result = copy.deepcopy(result)
    *way, last = path
    place = result
    for step in way:
        place = place[step]
    place[last] = value
    return result, plan


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("services", "qwen", "measured", "tokens"), 94206, "tokens"),
        (("services", "qwen", "measured", "weights"), 6.2, "weights"),
        (("services", "yi", "measured", "device_free_before"), 16.2, "free before"),
        (("services", "yi", "measured", "false_alarms"), ["a line"], "fatal"),
        (("load", "yi", "failed"), 1, "failed under load"),
        (("load", "yi", "requests"), 0, "failed under load"),
        (("peak_gib",), 30.4, "at most"),
        (("peak_gib",), 29.3, "at least"),
        (("peak_with_restarts_gib",), 30.4, "restarts included"),
        (("restarts", "qwen", "tokens"), 40000, "restarted alone"),
        (("restarts", "qwen", "load", "tinyllama", "failed"), 2, "while qwen restarted"),
        (("shown_before_gib",), 33.0, "the card shows"),
    ],
)
def test_one_broken_promise_is_found(path, value, words):
    result, plan = spoiled(path, value)
    broken = [check for check in checks(plan, result, least_use=0.92) if not check["ok"]]
    assert len(broken) == 1
    assert words in broken[0]["check"]
    shown = table({**result, "checks": broken, "verdict": "does not hold"}, plan)
    assert "does not hold: " in shown.splitlines()[-1]


def test_a_stack_that_should_fill_the_card_has_to():
    result, plan = recorded("exceeds")
    least = [check["planned"] for check in checks(plan, result, least_use=0.99) if check["check"].endswith("at least")]
    assert least == [pytest.approx(0.99 * 31.36, abs=0.001)]


def test_a_service_that_never_came_up_breaks_the_promise_of_its_tokens():
    result, plan = recorded("default")
    del result["services"]["yi"]
    assert [check["service"] for check in checks(plan, result) if not check["ok"]] == ["yi"]


def test_stream_of_an_answer():
    piece = b'data: {"choices": [{"text": "x"}], "usage": null}\n'
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n'
    tokens, first, last = streamed([piece, b"\n", piece, usage, b"data: [DONE]\n"])
    assert tokens == 2
    assert first <= last
    with pytest.raises(ValueError, match="too long"):
        streamed([b'data: {"error": {"message": "too long"}}\n'])


def test_summary_counts_failures_and_keeps_them_out_of_the_medians():
    outcomes = [Outcome("", 11, 0.1, 1.1), Outcome("", 11, 0.3, 2.3), Outcome("status 500: x", 0, 0, 0)]
    result = summary(outcomes, 2.0)
    assert (result["requests"], result["failed"], result["problems"]) == (3, 1, ["status 500: x"])
    assert (result["tokens_per_s"], result["first_token_ms"], result["between_tokens_ms"]) == (11.0, 200.0, 150.0)


def test_least_and_largest_within_a_time():
    samples = [(1.0, 5.0), (2.0, 3.0), (3.0, 4.0)]
    assert (least(samples, 2.5), least(samples, 0, 1.5)) == (4.0, 5.0)
    assert (largest(samples, 1.5), largest(samples, 9)) == (4.0, 0.0)


def test_small_kv_buffers_take_what_a_real_engine_took(catalog):
    """An fp8 cache of 72 buffers of 5.1 MiB: free after weights less free at the end of the pool."""
    sys.path.insert(0, str(ROOT / "tests/calibration"))
    import score

    row = next(row for row in score.recorded_rows() if row["id"] == "four/qwen")
    taken = row["measured"]["free_after"] - row["measured"]["pool_end"]
    planned = score.row_memory(row, catalog).pool_bytes(row["cap"]) / score.GIB
    assert planned == pytest.approx(taken, abs=0.015)


@pytest.mark.parametrize("stack", sorted(set(STACKS) - {"notes"}))  # its shares are pinned
def test_every_recorded_restart_grants_the_tokens_of_the_plan_of_today(stack, prepared):
    """By SGLang's rule, with the free memory that the engine itself measured then."""
    result, _ = recorded(stack)
    plan = json.loads((prepared / "plans" / CARD / f"{stack}.json").read_text())
    for service in plan["services"]:
        if service["engine"] != "sglang":
            continue
        measured = result["restarts"][service["name"]]
        left_alone = measured["free"] * (1 - service["fraction"]["value"])
        granted = (measured["free_after"] - left_alone) * 2**30 / service["kv_bytes_per_token"]
        assert granted >= service["kv_tokens"]


def test_performance_page_is_what_the_results_say(request):
    written = performance.page()
    if request.config.getoption("--update-docs"):
        performance.PAGE.write_text(written, encoding="utf-8")
    assert performance.PAGE.read_text(encoding="utf-8") == written


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """What prepare.py writes."""
    out = tmp_path_factory.mktemp("prepared")
    subprocess.run([sys.executable, ACCEPTANCE / "prepare.py", out], check=True)
    return out


def test_plan_for_a_held_back_card_is_the_plan_for_the_real_one(prepared, make_plan):
    """But for vLLM's utilisation, a share of the whole card."""
    import prepare

    held_back = json.loads((prepared / "plans" / CARD / "default.json").read_text())
    real = make_plan(prepare.load_stacks()["stacks"]["default"]["services"], ("rtx_5090",))
    for ours, theirs in zip(held_back["services"], real["services"], strict=True):
        differing = [entry["flag"] for entry in differences(theirs, [*ours["entrypoint"], *ours["command"]])]
        assert differing == ([] if ours["engine"] == "sglang" else ["--gpu-memory-utilization"])


def test_made_up_models_have_a_word_for_every_id(prepared):
    models = json.loads((prepared / "models.json").read_text())
    for folder in models.values():
        config = json.loads((prepared / "models" / folder / "config.json").read_text())
        vocabulary = json.loads((prepared / "models" / folder / "tokenizer.json").read_text())["model"]["vocab"]
        assert sorted(vocabulary.values()) == list(range(config["vocab_size"]))


def test_a_whole_run_on_a_made_up_box(prepared, tmp_path):
    """Starts, load, restarts, results. The box's memory never changes, so the second service's does not hold."""
    environment = {**os.environ, "PATH": f"{BOX / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(BOX / "site")}
    command = [sys.executable, ACCEPTANCE / "accept.py", "--sites", BOX / "sites", "--prepared", prepared]
    done = subprocess.run(
        [*command, "--out", tmp_path, "exceeds"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done.stderr
    result = json.loads((tmp_path / "exceeds.json").read_text())
    assert result["state"] == "done"
    assert {name: load["failed"] for name, load in result["load"].items()} == {"qwen": 0, "llama": 0}
    assert result["load"]["qwen"]["requests"] == result["wanted_load"]["qwen"]["requests"]
    assert set(result["restarts"]) == {"qwen", "llama"}
    assert all(load["failed"] == 0 for entry in result["restarts"].values() for load in entry["load"].values())
    broken = {(check["service"], check["check"]) for check in result["checks"] if not check["ok"]}
    assert ("llama", "free before it starts, GiB") in broken
    assert (None, "peak of all, GiB, at least") in broken
    assert not any("failed" in check for _, check in broken)
    assert str(prepared) not in (tmp_path / "exceeds.json").read_text()
    again = subprocess.run([*command, "--out", tmp_path, "exceeds"], env=environment, timeout=60)
    assert again.returncode == 0, "a stack that is taken is left alone"


def test_parts_measured_alone_on_a_made_up_box(prepared, tmp_path):
    """Each variant is started, loaded and taken apart; what the log says of a part stands beside what was planned."""
    environment = {**os.environ, "PATH": f"{BOX / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(BOX / "site")}
    few = json.loads((prepared / "stacks.json").read_text())
    few["alone"] = {name: few["alone"][name] for name in ("sglang", "vllm_graphs_8")}
    small = tmp_path / "prepared"
    small.mkdir()
    for entry in prepared.iterdir():
        (small / entry.name).symlink_to(entry)
    (small / "stacks.json").unlink()
    (small / "stacks.json").write_text(json.dumps(few))
    command = [sys.executable, ACCEPTANCE / "alone.py", "--sites", BOX / "sites", "--prepared", small]
    done = subprocess.run(
        [*command, "--out", tmp_path / "out"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "out/alone.json").read_text()
    result = json.loads(written)
    assert list(result["variants"]) == ["sglang", "vllm_graphs_8"]
    for variant in result["variants"].values():
        assert variant["load"]["failed"] == 0
        assert variant["parts"]["weights"]["measured"] == variant["start"]["weights"]
    assert str(small) not in written


def test_parts_are_differences_of_the_log_s_lines():
    """qwen of the recorded default stack: together they are what nvidia-smi saw go."""
    result, plan = recorded("default")
    service = next(entry for entry in plan["services"] if entry["name"] == "qwen")
    found = result["services"]["qwen"]
    told = parts(service, {"start": found["measured"], "process_peak": found["process_peak"]})
    start = found["measured"]
    assert told["tables"]["measured"] == pytest.approx(20.38 - 3.24 - 17.14, abs=0.001)
    whole = sum(told[part]["measured"] for part in ("context", "weights", "kv", "tables", "graphs", "workspaces"))
    assert whole == pytest.approx(start["device_free_before"] - start["device_free_after"], abs=0.02)


def test_tuning_on_a_made_up_box(prepared, tmp_path):
    """Trials that come up are measured, what is left out says why, and a decision stands beside them."""
    environment = {**os.environ, "PATH": f"{BOX / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(BOX / "site")}
    command = [sys.executable, ACCEPTANCE / "tune.py", "--sites", BOX / "sites", "--prepared", prepared]
    done = subprocess.run([*command, "--out", tmp_path], env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "tune.json").read_text())
    tried = [trial for trial in result["trials"] if "medians" in trial]
    assert [trial["name"] for trial in tried][:3] == ["as it is", "flashinfer attention", "fa3 attention"]
    assert all(trial["skipped"] for trial in result["trials"] if "medians" not in trial)
    assert len(result["decision"]["verdicts"]) == len(tried) - 1
    assert "## What tuning tries" in performance.tune_section(result)
