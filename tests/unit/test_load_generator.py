"""The engines' load generators: which is taken, how it is called, what is read of its result.

The results are made up, with the fields that sglang/benchmark/serving.py (0.5.19) and vllm/benchmarks/serve.py (0.24.0)
write.
"""

import json
import sys

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils import load_generator as lg
from ansible_collections.blackwell.serving.plugins.plugin_utils import benchmark_files

SGLANG = {
    "name": "qwen",
    "engine": "sglang",
    "engine_version": "0.5.19",
    "image": "lmsysorg/sglang@sha256:1",
    "model": "Qwen/Qwen2.5-3B-Instruct",
    "served_name": "Qwen/Qwen2.5-3B-Instruct",
    "container_name": "qwen",
    "container_port": 8000,
    "context_length": 32768,
    "max_concurrency": 32,
}
VLLM = {**SGLANG, "name": "yi", "engine": "vllm", "engine_version": "0.24.0", "image": "vllm/vllm-openai@sha256:2"}
LOAD = {"concurrency": 16, "requests": 64, "input": 512, "output": 128}
RECORDED = sorted(
    path.stem.split("-", 1) for path in (benchmark_files.COLLECTION_ROOT / "catalog/generator_flags").glob("*.yml")
)
SGLANG_RESULT = {
    "tag": None,
    "backend": "sglang-oai",
    "dataset_name": "random-ids",
    "request_rate": float("inf"),
    "max_concurrency": 16,
    "duration": 8.5,
    "completed": 64,
    "total_input_tokens": 32704,
    "total_output_tokens": 8192,
    "total_output_tokens_retokenized": 8190,
    "output_throughput": 963.76471,
    "median_ttft_ms": 88.5,
    "p99_ttft_ms": 120.25,
    "median_tpot_ms": 15.9,
    "median_itl_ms": 15.1,
    "p99_itl_ms": 22.5,
}
VLLM_RESULT = {
    "date": "20261125-010203",
    "endpoint_type": "openai",
    "label": "openai",
    "num_prompts": 64,
    "duration": 8.0,
    "completed": 60,
    "failed": 4,
    "total_output_tokens": 7680,
    "output_throughput": 960.0,
    "median_ttft_ms": 70.0,
    "p99_ttft_ms": 99.0,
    "median_tpot_ms": 15.0,
    "p99_itl_ms": 30.0,
}


def chosen(*services):
    return lg.choose_generator(services, benchmark_files.generators())


def command(services, service, result="/results/7.json"):
    generator = chosen(*services)
    flags = benchmark_files.generator_flags(generator["engine"], generator["version"])
    return lg.command(generator, flags, service, LOAD, 7, result)


@pytest.mark.parametrize(
    ("services", "image"),
    [([SGLANG], SGLANG["image"]), ([VLLM], VLLM["image"]), ([VLLM, SGLANG], SGLANG["image"])],
    ids=["sglang", "vllm", "both"],
)
def test_one_generator_from_the_hosts_own_images_measures_all(services, image):
    assert chosen(*services)["image"] == image


def test_a_host_without_a_known_engine_has_no_generator():
    with pytest.raises(lg.GeneratorProblem, match="measures other"):
        chosen({**SGLANG, "engine": "other"})


@pytest.mark.parametrize(("engine", "version"), RECORDED)
def test_every_recorded_version_takes_the_command_line(engine, version):
    from ansible_collections.blackwell.serving.plugins.module_utils.engine_flags import EngineFlags

    service = {**(SGLANG if engine == "sglang" else VLLM), "engine_version": version}
    recorded = benchmark_files.generator_flags(engine, version)
    flags = EngineFlags(recorded, {"flags": {}, "tunable": {}}, version)
    words = command([service], service)
    options = [word for word in words if word.startswith("--")]
    assert options
    for word in options:
        name, given, value = word.partition("=")
        flags.checked(name, value if given else True)  # raises where the version lacks it, or refuses the value


def test_catalogued_images_have_a_recorded_generator():
    from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog

    images = load_catalog().images["images"].values()
    missing = [image for image in images if [image["engine"], str(image["engine_version"])] not in RECORDED]
    assert not missing


def test_the_command_line_names_server_model_load_and_file():
    words = command([SGLANG, VLLM], VLLM)
    assert words[:3] == ["python3", "-m", "sglang.bench_serving"]
    assert {"--backend=vllm", "--base-url=http://127.0.0.1:8000", f"--tokenizer={VLLM['model']}"} <= set(words)
    assert {"--max-concurrency=16", "--num-prompts=64", "--random-input-len=512", "--seed=7"} <= set(words)
    assert "--output-file=/results/7.json" in words
    assert {"--result-dir=/results", "--result-filename=7.json"} <= set(command([VLLM], VLLM))


def test_an_option_that_a_version_lacks_is_named():
    flags = {"flags": {"--backend": {"kind": "value"}}}
    with pytest.raises(lg.GeneratorProblem, match=r"has no option .*--base-url"):
        lg.command(chosen(SGLANG), flags, SGLANG, LOAD, 7, "/results/7.json")


def test_a_version_that_is_not_recorded_is_named():
    with pytest.raises(lg.GeneratorProblem, match=r"0\.0\.1 are not recorded"):
        lg.command(chosen({**SGLANG, "engine_version": "0.0.1"}), None, SGLANG, LOAD, 7, "/results/7.json")


@pytest.mark.parametrize(
    ("highest", "expected"), [(32, [1, 16, 32]), (16, [1, 16]), (8, [1, 8]), (1, [1])], ids=["32", "16", "8", "1"]
)
def test_loads_end_with_the_highest_that_the_service_takes(highest, expected):
    loads = lg.loads_of({**SGLANG, "max_concurrency": highest}, [16, 1], 4, 512, 128)
    assert [load["concurrency"] for load in loads] == expected
    assert all(load["requests"] == 4 * load["concurrency"] for load in loads)


def test_loads_leave_room_in_a_short_context():
    (load,) = lg.loads_of({**SGLANG, "max_concurrency": 1, "context_length": 1024}, [], 4, 4096, 4096)
    assert load["input"] + load["output"] <= 1024 // 2


def test_the_last_appended_result_counts():
    text = "\n".join(json.dumps(one) for one in ({**SGLANG_RESULT, "output_throughput": 1.0}, SGLANG_RESULT))
    found = lg.parse(text + "\n", chosen(SGLANG)["figures"], LOAD)
    assert found["tokens_per_s"] == 963.765
    assert (found["first_token_ms"], found["between_tokens_ms"], found["token_gap_p99_ms"]) == (88.5, 15.9, 22.5)
    assert (found["requests"], found["failed"]) == (64, 0)


def test_failed_requests_are_counted():
    assert lg.parse(json.dumps(VLLM_RESULT), chosen(VLLM)["figures"], LOAD)["failed"] == 4


def test_a_run_without_an_answer_has_no_figures():
    nothing = {**SGLANG_RESULT, "completed": 0, "median_tpot_ms": float("nan"), "output_throughput": 0.0}
    found = lg.parse(json.dumps(nothing), chosen(SGLANG)["figures"], LOAD)
    assert found["between_tokens_ms"] is None
    result = lg.medians([found])
    assert (result["tokens_per_s"], result["failed"]) == (None, 64)
    assert lg.summary_line("qwen", LOAD, result) == "qwen, 16 at once: none of 64 requests was answered"


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[]", '{"completed": 1}', json.dumps({**SGLANG_RESULT, "duration": "8"})]
)
def test_another_output_is_refused(text):
    with pytest.raises(lg.GeneratorProblem, match="its result"):
        lg.parse(text, chosen(SGLANG)["figures"], LOAD)


def test_the_median_of_the_rounds_counts():
    figures = chosen(SGLANG)["figures"]
    rounds = [
        lg.parse(json.dumps({**SGLANG_RESULT, "output_throughput": speed, "completed": done}), figures, LOAD)
        for speed, done in ((900.0, 64), (1000.0, 63), (800.0, 64))
    ]
    found = lg.medians(rounds)
    assert (found["tokens_per_s"], found["failed"], found["requests"]) == (900.0, 1, 192)
    assert "1 of 192 requests failed" in lg.summary_line("qwen", LOAD, found)


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.syspath_prepend(benchmark_files.COLLECTION_ROOT / "tests/tools")
    import record_load_generators

    yield record_load_generators
    sys.modules.pop("record_load_generators", None)


def test_options_are_read_from_source(recorder):
    source = """
group.add_argument("--requests", "-n", type=int, default=3)
parser.add_argument("--save", action="store_true")
parser.add_argument("--plot", action=argparse.BooleanOptionalAction)
parser.add_argument("--kind", choices=["a", "b"])
parser.add_argument("positional")
"""
    assert recorder.options_in(source) == {
        "--requests": {"kind": "value", "type": "int", "aliases": ["-n"]},
        "--save": {"kind": "switch"},
        "--plot": {"kind": "toggle", "negative": "--no-plot"},
        "--kind": {"kind": "value", "choices": ["a", "b"]},
    }


@pytest.mark.package_index
@pytest.mark.parametrize(("engine", "version"), [("sglang", "0.5.19"), ("vllm", "0.24.0")])
def test_recorded_again_from_the_published_package(recorder, engine, version):
    path = benchmark_files.COLLECTION_ROOT / f"catalog/generator_flags/{engine}-{version}.yml"
    assert recorder.text_of(engine, version) == path.read_text("utf-8")
