"""diagnosis.py and catalog/failures.yml: recorded lines are told apart, and a good start raises no alarm."""

import re
import string
from pathlib import Path

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.diagnosis import diagnose, first_fatal, signatures
from hypothesis import given
from hypothesis import strategies as st

REPO_ROOT = Path(__file__).resolve().parents[2]
ENTRIES = yaml.safe_load((REPO_ROOT / "catalog/failures.yml").read_text())["failures"]
FAILURES = {entry["id"]: entry for entry in ENTRIES}
SIGNATURES = signatures(ENTRIES)
LOGS = REPO_ROOT / "tests/fixtures/engine_logs"
ENGINES = ("sglang", "vllm")
RECORDED = [
    pytest.param(name, line["text"], source, id=f"{name}-{number}-{source}")
    for name, entry in FAILURES.items()
    for number, line in enumerate(entry["lines"])
    for source in entry["sources"]
]
HEALTHY = [
    pytest.param(engine, line, id=f"{engine}-{number}")
    for engine in ENGINES
    for number, line in enumerate((LOGS / f"{engine}.log").read_text("utf-8").splitlines())
    if line and not line.startswith("#")
]


def engines_of(name):
    return FAILURES[name].get("engines", ENGINES)


@pytest.mark.parametrize(("name", "line", "source"), RECORDED)
def test_recorded_line_is_diagnosed_as_its_own_entry(name, line, source):
    for engine in engines_of(name):
        (found,) = diagnose([line], SIGNATURES, engine, source)
        assert found["id"] == name
        assert found["line"] == line
        groups = set(re.compile(FAILURES[name]["pattern"]).groupindex)
        for text in (found["cause"], found["remedy"]):
            assert not groups & set(re.findall(r"\{(\w+)\}", text)), "a placeholder is left"


@pytest.mark.parametrize("name", FAILURES)
def test_entry_is_whole(name):
    entry = FAILURES[name]
    assert [other["id"] for other in ENTRIES].count(name) == 1
    assert set(entry) <= {"id", "pattern", "sources", "engines", "fatal", "generic", "cause", "remedy", "lines"}
    assert set(entry["sources"]) <= {"engine", "docker", "kernel", "driver", "host"}
    assert set(engines_of(name)) <= set(ENGINES)
    groups = set(re.compile(entry["pattern"]).groupindex)
    used = set(re.findall(r"\{(\w+)\}", entry["cause"] + entry["remedy"]))
    assert used <= groups, "a placeholder that the pattern does not fill"
    assert all(
        re.match(r"github\.com/\S+/(issues|pull)/\d+|message: |printed by ", line["source"]) for line in entry["lines"]
    )


def test_variables_and_images_that_remedies_name_exist():
    specs = "".join(path.read_text() for path in REPO_ROOT.glob("roles/*/meta/argument_specs.yml"))
    images = yaml.safe_load((REPO_ROOT / "catalog/images.yml").read_text())["images"]
    remedies = " ".join(entry["remedy"] for entry in FAILURES.values())
    variables = set(re.findall(r"\b(?:gpu_host|docker_engine|nvidia_driver|serving)_\w+", remedies))
    assert len(variables) > 3
    assert {name for name in variables if f"      {name}:\n" not in specs} == set()
    assert set(re.findall(r"\b(?:sglang|vllm)-cu\d+\b", remedies)) <= set(images)


@pytest.mark.parametrize(("engine", "line"), HEALTHY)
def test_nothing_fatal_in_a_start_that_went_well(engine, line):
    assert first_fatal(line, SIGNATURES, engine) is None
    assert diagnose([line], SIGNATURES, engine) == []


def test_first_fatal_follows_the_catalogue():
    for name, entry in FAILURES.items():
        if "engine" not in entry["sources"]:
            continue
        for engine in engines_of(name):
            found = first_fatal(entry["lines"][0]["text"], SIGNATURES, engine)
            assert (found.id if found else None) == (name if entry["fatal"] else None)


def test_field_notes_first_day():
    """A warning first, then the error: the error is the cause, and the warning says why."""
    log = [
        "NVIDIA GeForce RTX 5090 with CUDA capability sm_120 is not compatible with the current PyTorch installation.",
        "The current PyTorch install supports CUDA capabilities sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90.",
        "[2025-09-17 10:00:00] Scheduler hit an exception: Traceback (most recent call last):",
        "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device",
        "[2025-09-17 10:00:01] Received sigquit from a child process. It usually means the child failed.",
    ]
    found = diagnose(log, SIGNATURES, "sglang")
    assert [finding["id"] for finding in found] == [
        "no_kernel_image",
        "capability_not_in_pytorch",
        "sglang_process_ended",
    ]
    assert found[1]["cause"].startswith("the image's PyTorch has no sm_120 code, which NVIDIA GeForce RTX 5090 needs")
    assert found[2]["count"] == 2


def test_earliest_of_two_fatal_ones_comes_first():
    oom = FAILURES["torch_out_of_memory"]["lines"][0]["text"]
    illegal = FAILURES["illegal_memory_access"]["lines"][0]["text"]
    assert [found["id"] for found in diagnose([illegal, oom], SIGNATURES)] == [
        "illegal_memory_access",
        "torch_out_of_memory",
    ]
    assert [found["id"] for found in diagnose([oom, illegal, oom], SIGNATURES)] == [
        "torch_out_of_memory",
        "illegal_memory_access",
    ]


def test_values_of_the_line_are_in_the_answer():
    (found,) = diagnose([FAILURES["vllm_free_below_utilization"]["lines"][0]["text"]], SIGNATURES, "vllm")
    assert "31.44 of 47.38 GiB were free, and --gpu-memory-utilization=0.95 asks for 45.01 GiB" in found["cause"]
    assert "pinned: {gpu_memory_utilization: 0.95}" in found["remedy"]


def test_other_engines_and_other_logs_are_left_out():
    line = FAILURES["vllm_no_cache_blocks"]["lines"][0]["text"]
    assert diagnose([line], SIGNATURES, "sglang") == []
    assert diagnose([line], SIGNATURES, "vllm", source="kernel") == []
    assert [found["id"] for found in diagnose([line], SIGNATURES)] == ["vllm_no_cache_blocks"]


def test_colours_do_not_hide_a_line():
    (found,) = diagnose(["\x1b[1;31mOSError: [Errno 28] No space \x1b[0mleft on device"], SIGNATURES)
    assert found["id"] == "disk_full"
    assert found["line"] == "OSError: [Errno 28] No space left on device"


@given(
    st.text(max_size=300), st.sampled_from([None, *ENGINES]), st.sampled_from(["engine", "docker", "kernel", "driver"])
)
def test_any_text_is_taken(text, engine, source):
    for found in diagnose(text.splitlines(), SIGNATURES, engine, source):
        assert found["cause"]
    first_fatal(text, SIGNATURES, engine)


@given(st.data())
def test_recorded_lines_with_noise_around_them_are_taken(data):
    """Cut and framed at random, as logs do it."""
    name = data.draw(st.sampled_from(sorted(FAILURES)))
    line = data.draw(st.sampled_from(FAILURES[name]["lines"]))["text"]
    noise = st.text(string.printable, max_size=40)
    cut = line[data.draw(st.integers(0, len(line))) :]
    for found in diagnose([data.draw(noise) + cut + data.draw(noise)], SIGNATURES, source=FAILURES[name]["sources"][0]):
        assert found["id"] in FAILURES
