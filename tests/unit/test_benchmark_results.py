"""Records of benchmarks: kept, compared with the last one, shown in a table and a page. The figures are made up."""

import copy
import re

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import benchmark_results as results
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.plugin_utils import benchmark_files, plan_files
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog

DECLARATION = {
    "gpus": ["rtx_5090"],
    "services": [
        {"name": "qwen", "engine": "sglang", "model": "Qwen/Qwen2.5-3B-Instruct", "port": 30001},
        {"name": "yi", "engine": "vllm", "model": "01-ai/Yi-6B", "port": 30002},
    ],
}
FACTS = {"gpus": [{"name": "NVIDIA GeForce RTX 5090"}], "driver": {"loaded": {"version": "580.95.05"}}}
GENERATOR = {"name": "sglang.bench_serving", "version": "0.5.19", "image": "lmsysorg/sglang@sha256:1"}
PLAN = plan_host("box", DECLARATION, load_catalog())


def run(service, concurrency, speed, failed=0):
    load = {"concurrency": concurrency, "requests": 4 * concurrency, "input": 512, "output": 128}
    figures = {"tokens_per_s": speed, "first_token_ms": 20.0, "first_token_p99_ms": 30.0, "between_tokens_ms": 8.0}
    figures |= {"token_gap_p99_ms": 12.0, "requests": 4 * concurrency, "failed": failed}
    return {"service": service, "load": load, "together": False, "seeds": [1], "rounds": [figures], "medians": figures}


def record(speed=100.0, date="2026-11-25T01:02:03Z", facts=FACTS, plan=PLAN, generator=GENERATOR, more=()):
    runs = [run("qwen", 1, speed), run("qwen", 32, 20 * speed), run("yi", 32, 10 * speed), *more]
    return results.record("box", date, facts, plan, generator, runs)


def test_figures_are_compared_with_those_of_the_same_service_and_load():
    table = results.text(record(110.0), record(100.0, "2026-11-24T00:00:00Z"))
    lines = {tuple(line.split()[:2]): line for line in table.splitlines() if "at once" in line}
    assert "110.0 (+10.0 %)" in lines["qwen", "1"]
    assert "2,200.0 (+10.0 %)" in lines["qwen", "32"]
    assert "20.0 (same)" in lines["yi", "32"]
    assert "2026-11-24T00:00:00Z" in table
    assert "Not like with like" not in table


def test_the_first_run_has_nothing_to_compare_with():
    table = results.text(record(), None)
    assert "no earlier run" in table
    assert "%" not in table


def changed_plan(**changes):
    plan = copy.deepcopy(PLAN)
    plan["services"][0] |= changes
    return plan


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (record(facts={**FACTS, "gpus": [{"name": "NVIDIA H100"}]}), "GPUs: NVIDIA H100 then"),
        (record(facts={**FACTS, "driver": {"loaded": {"version": "575.1"}}}), "driver: 575.1 then, 580.95.05 now"),
        (record(generator={**GENERATOR, "version": "0.5.2"}), "load generator: sglang.bench_serving 0.5.2"),
        (record(plan=changed_plan(image="other@sha256:2")), "qwen: image other@sha256:2 then"),
        (
            record(plan=changed_plan(command=[*PLAN["services"][0]["command"], "--sleep-less"])),
            "qwen: flags: --sleep-less (gone)",
        ),
        (record(plan={**PLAN, "services": PLAN["services"][:1]}), "yi: it was not there then"),
    ],
    ids=["GPU", "driver", "generator", "image", "flags", "new service"],
)
def test_what_is_not_like_with_like_is_said(before, reason):
    now = record()
    assert any(text.startswith(reason) for text in results.unlike(now, before))
    assert reason in results.text(now, before)


def test_failures_are_in_the_table():
    failed = {"service": "yi", "load": {"concurrency": 1}, "together": False, "problem": "it stopped under this load"}
    table = results.text(record(more=[run("qwen", 16, 50.0, failed=3), failed]), None)
    assert "3 of 64 requests failed" in table
    assert re.search(r"yi +1 at once .*it stopped under this load", table)


def test_the_newest_whole_record_is_the_last_one(tmp_path):
    for day, text in (("24", '{"schema": 1, "date": "then"}'), ("25", "{"), ("26", "[]")):
        (tmp_path / f"202611{day}T000000Z.json").write_text(text)
    (tmp_path / "20261127T000000Z-tune.json").write_text('{"schema": 1}')
    assert benchmark_files.last_record(tmp_path) == {"schema": 1, "date": "then"}
    assert benchmark_files.last_record(tmp_path / "none") is None


def test_the_report_shows_what_was_measured_and_drawn_to_scale():
    now, before = record(110.0), record(100.0, "2026-11-24T00:00:00Z")
    page = plan_files.render(PLAN, {"measured": now, "before": before})["report.html"]
    section = page[page.index('id="benchmark"') : page.index('id="start"')]
    widths = [float(width) for width in re.findall(r'class="weights" x="0" y="\d+" width="([\d.]+)%"', section)]
    assert widths == pytest.approx([5, 100, 50], abs=0.01)
    assert section.count('class="context"') == 3
    assert "2,200.0 (+10.0 %)" in section
    assert "Measured with other flags" not in section


def test_the_report_says_that_the_plan_has_moved_on():
    page = plan_files.render(PLAN, {"measured": record(plan=changed_plan(command=["--old=1"])), "before": None})
    assert "Measured with other flags than this plan" in page["report.html"]


def test_a_report_without_a_benchmark_has_no_such_section():
    assert 'id="benchmark"' not in plan_files.render(PLAN)["report.html"]
