"""The recorder of engine flags, on parsers made here, and on the packages that the engines publish."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

REPO_ROOT = Path(__file__).resolve().parents[2]
CATALOG = REPO_ROOT / "catalog/engine_flags"
RECORDER = REPO_ROOT / "tests/tools/record_engine_flags.py"
CATALOGUES = sorted(CATALOG.glob("*.yml"))
# Of each engine the version of its default image; for vLLM that is also the smallest package.
RE_RECORDED = [("sglang", "0.5.19"), ("vllm", "0.24.0")]

ENGINE_SOURCE = """
import torch
from torch import nn
from transformers import AutoConfig
try:
    import numpy_of_another_vendor
except ImportError:
    numpy_of_another_vendor = None

class Layer(nn.Module):
    @torch.compile
    def double(self, x: torch.Tensor | None) -> int:
        return 2 * x

@torch.inference_mode()
def one():
    return 1

BACKENDS = {"rocm"} if torch.version.hip is not None else {"triton", "flashinfer"}

class ServerArgs:
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--attention-backend", choices=BACKENDS)
        parser.add_argument("--page-size", type=int, default=Layer().double(one()))
        if numpy_of_another_vendor:
            parser.add_argument("--never")
"""


class DeprecatedAction(argparse.Action):
    """As engines write it: stops when it has a message, else warns."""

    def __init__(self, *args, message=None, **options):
        super().__init__(*args, nargs=0, **options)
        self.message = message

    def __call__(self, parser, namespace, values, option_string=None):
        if self.message:
            parser.error(self.message)


@pytest.fixture(scope="module")
def engine_parser() -> ModuleType:
    spec = importlib.util.spec_from_file_location("engine_parser", REPO_ROOT / "tests/tools/engine_parser.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def describe(engine_parser: ModuleType) -> Callable[..., dict]:
    """Describe a parser with one option, as `add_argument` makes it."""

    def describe_one(*names: str, **options) -> dict:
        parser = argparse.ArgumentParser()
        parser.add_argument(*names, **options)
        return engine_parser.describe_parser(parser)

    return describe_one


def make_wheel(directory: Path, source: str, name: str = "sglang-9.9.9-py3-none-any.whl") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    wheel = directory / name
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sglang/__init__.py", "raise ImportError('the client API needs more packages')")
        archive.writestr("sglang/srt/server_args.py", source)
        archive.writestr("sglang-9.9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: sglang\nVersion: 9.9.9\n")
    return wheel


def run_recorder(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RECORDER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["--on"], {"action": "store_true"}, {"kind": "switch"}),
        (["--off"], {"action": "store_false"}, {"kind": "switch"}),
        (["--x"], {"action": argparse.BooleanOptionalAction}, {"kind": "toggle", "negative": "--no-x"}),
        (["--x"], {}, {"kind": "value", "type": "str"}),
        (["--x"], {"type": float, "required": True}, {"kind": "value", "type": "float", "required": True}),
        (["--x"], {"type": json.loads}, {"kind": "value", "type": "json"}),
        (["--x"], {"nargs": "?", "const": 1}, {"kind": "value", "type": "str", "value_optional": True}),
        (["--x"], {"nargs": "+", "type": int}, {"kind": "list", "type": "int"}),
        (["--x"], {"nargs": 2}, {"kind": "list", "type": "str", "count": 2}),
        (["--x"], {"action": "append"}, {"kind": "value", "type": "str", "repeatable": True}),
        (["-t", "--tp-size", "--tp"], {"type": int}, {"kind": "value", "type": "int", "aliases": ["--tp", "-t"]}),
        (["--x"], {"choices": {"b", "a"}}, {"kind": "value", "type": "str", "choices": ["a", "b"]}),
        (["--x"], {"choices": [16, 8], "type": int}, {"kind": "value", "type": "int", "choices": [8, 16]}),
        (["--x"], {"help": "[Deprecated] Use --y."}, {"kind": "value", "type": "str", "deprecated": True}),
        (["--x"], {"action": DeprecatedAction}, {"kind": "switch", "deprecated": True}),
    ],
)
def test_kind_of_option(describe, names, options, expected):
    described = describe(*names, **options)
    canonical = next(name for name in names if name.startswith("--"))
    assert described["flags"] == {canonical: expected}
    assert described["retired"] == {}


def optional(return_type: Callable) -> Callable:
    """As vLLM wraps the conversion of an option that may be None."""

    def convert(value: str):
        return None if value == "None" else return_type(value)

    return convert


def test_number_or_none(describe):
    described = describe("--x", type=optional(int))
    assert described["flags"]["--x"] == {"kind": "value", "type": "int", "nullable": True}


def test_choice_that_the_parser_itself_refuses_is_left_out(describe):
    described = describe("--x", choices=["a", "None"], type=optional(str))
    assert described["flags"]["--x"] == {"kind": "value", "type": "str", "choices": ["a"]}


def test_no_choices_where_the_value_is_rewritten_first(describe):
    described = describe("--x", choices=["flash_infer"], type=lambda value: value.lower().replace("-", "_"))
    assert described["flags"]["--x"] == {"kind": "value", "type": "str"}
    assert described["notes"] == ["--x: no choices, since the engine rewrites the value before it checks it"]


def test_option_that_stops_the_engine_is_retired(describe):
    described = describe("--old", action=DeprecatedAction, message="Use\n--new instead.")
    assert described["flags"] == {}
    assert described["retired"] == {"--old": "Use --new instead."}


def test_further_negative_spellings_of_a_toggle(engine_parser):
    class EnableDisable(argparse.BooleanOptionalAction):
        def __init__(self, option_strings, dest, **options):
            super().__init__(option_strings, dest, **options)
            self.negative_option_strings = {"--no-enable-x", "--disable-x"}
            self.option_strings = [*self.option_strings, "--disable-x"]

    parser = argparse.ArgumentParser()
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--enable-x", action=EnableDisable)
    described = engine_parser.describe_parser(parser)
    assert described["positionals"] == ["model_tag"]
    assert described["flags"] == {
        "--enable-x": {"kind": "toggle", "negative": "--no-enable-x", "negative_aliases": ["--disable-x"]}
    }


def test_record_a_package_whose_dependencies_are_not_installed(tmp_path):
    package = make_wheel(tmp_path, ENGINE_SOURCE)
    finished = run_recorder("sglang", "9.9.9", "--package", package, "--output", tmp_path / "flags.yml")
    assert finished.returncode == 0, finished.stderr
    recorded = yaml.safe_load((tmp_path / "flags.yml").read_text())
    assert recorded["source"]["file"] == package.name
    assert recorded["flags"] == {
        "--attention-backend": {"kind": "value", "type": "str", "choices": ["flashinfer", "triton"]},
        "--page-size": {"kind": "value", "type": "int"},
    }


def test_recording_twice_gives_the_same_bytes(tmp_path):
    """Sets of choices have another order in each process."""
    backends = [f"backend_{letter}" for letter in "abcdefgh"]
    package = make_wheel(tmp_path, ENGINE_SOURCE.replace('{"triton", "flashinfer"}', str(set(backends))))
    outputs = [tmp_path / "one.yml", tmp_path / "two.yml"]
    for output in outputs:
        finished = run_recorder("sglang", "9.9.9", "--package", package, "--output", output)
        assert finished.returncode == 0, finished.stderr
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.parametrize(
    ("wheel", "source", "message"),
    [
        ("sglang-9.9.8-py3-none-any.whl", ENGINE_SOURCE, "is not a wheel of sglang 9.9.9"),
        ("sglang-9.9.9-py3-none-any.whl", "import a_new_dependency", "No module named 'a_new_dependency'"),
    ],
)
def test_refused_package_writes_nothing(tmp_path, wheel, source, message):
    package = make_wheel(tmp_path, source, wheel)
    finished = run_recorder("sglang", "9.9.9", "--package", package, "--output", tmp_path / "flags.yml")
    assert finished.returncode == 1
    assert message in finished.stderr
    assert not (tmp_path / "flags.yml").exists()


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_no_spelling_belongs_to_two_options(path):
    catalogue = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert path.stem == f"{catalogue['engine']}-{catalogue['version']}"
    spellings = list(catalogue.get("retired", {}))
    for name, option in catalogue["flags"].items():
        spellings += [name, *option.get("aliases", []), *option.get("negative_aliases", [])]
        spellings += [option["negative"]] if "negative" in option else []
    assert len(spellings) == len(set(spellings))


@pytest.mark.package_index
@pytest.mark.parametrize(("engine", "version"), RE_RECORDED)
def test_recorded_again_from_the_published_package(tmp_path, timing, engine, version):
    output = tmp_path / "flags.yml"
    started = time.monotonic()
    finished = run_recorder(engine, version, "--output", output)
    assert finished.returncode == 0, finished.stderr
    timing(finished.stdout.strip().partition(": ")[2].partition(", fetched")[0], time.monotonic() - started, 300)
    assert output.read_bytes() == (CATALOG / f"{engine}-{version}.yml").read_bytes()
