"""Build the command-line parser of an unpacked inference engine and print its options as JSON.

A child process of record_engine_flags.py:  python -I engine_parser.py ENGINE DIRECTORY

The engine's own code builds the parser; this file only supplies what that code imports, which is one of
- the engine itself, from DIRECTORY, and the standard library;
- INSTALLED: small packages that decide types and choices, installed beside this tool;
- STAND_INS: packages that a full installation has but that do not decide what the parser accepts;
- anything else is absent, even if it happens to be installed here: the engine treats it as an optional extra.
Stand-ins describe a machine with one NVIDIA GPU, for which the published images are built. A package that a new engine
version cannot do without shows up as ModuleNotFoundError and belongs into one of the two lists.
"""

import abc
import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

INSTALLED = frozenset(
    ("annotated_types", "msgspec", "packaging", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection")
)
# fmt: off
STAND_INS = frozenset((
    "aiohttp", "blake3", "cachetools", "cbor2", "cloudpickle", "cpuinfo", "dill", "fastapi", "huggingface_hub",
    "IPython", "jinja2", "llguidance", "numpy", "openai", "openai_harmony", "orjson", "partial_json_parser", "PIL",
    "prometheus_client", "psutil", "pybase64", "requests", "safetensors", "sentencepiece", "setproctitle",
    "starlette", "torch", "torchvision", "tqdm", "transformers", "triton", "urllib3", "uvloop", "xgrammar", "yaml",
    "zmq",
))
# fmt: on
# Parts of the engine that only register kernels or ask the driver.
ENGINE_STAND_INS = frozenset({"vllm.ir", "vllm.kernels", "vllm.third_party.pynvml"})
VALUES: dict[str, Any] = {
    "dill.dumps": lambda *_args: b"",
    "torch.cuda.get_device_capability": lambda *_args: (12, 0),
    "torch.cuda.get_device_name": lambda *_args: "NVIDIA GeForce RTX 5090",
    "torch.cuda.is_available": lambda: True,
    "torch.library.Library.m.name": "sglang",
    "torch.version.cuda": "12.9",
    "torch.version.hip": None,
    "torch.version.xpu": None,
    "triton.runtime.driver.active.get_current_target": lambda: types.SimpleNamespace(backend="cuda", arch=120),
}
ABSENT = frozenset({"torch.hpu", "torch.mps", "torch.musa", "torch.npu", "torch.xpu"})
# fmt: off
UNCHANGED_BY = (
    "abs", "add", "and", "floordiv", "lshift", "mod", "mul", "neg", "or", "pow", "radd", "rand", "rfloordiv", "rmul",
    "rpow", "rshift", "rsub", "rtruediv", "sub", "truediv",
)
# fmt: on
OPERATORS: dict[str, Callable] = {
    **dict.fromkeys(UNCHANGED_BY, lambda self, *_others: self),
    **dict.fromkeys(("ge", "gt"), lambda *_args: True),
    **dict.fromkeys(("contains", "le", "lt"), lambda *_args: False),
    **dict.fromkeys(("index", "int"), lambda _self: 1),
    "float": lambda _self: 1.0,
    "getitem": lambda self, _key: self,
    "iter": lambda _self: iter(()),
    "len": lambda _self: 0,
    "setitem": lambda *_args: None,
}
required_versions: dict[str, str] = {}


class StandInType(abc.ABCMeta):
    """Makes stand-in classes, which the engine may subclass, call, index, compare or use as decorators."""

    def __getattr__(cls, name: str) -> Any:
        if "_path" not in vars(cls):
            raise AttributeError(name)
        value = attribute_of(vars(cls)["_path"], name)
        setattr(cls, name, value)
        return value

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "_path" in vars(cls) and is_decorator_call(args, kwargs):
            return args[0]
        return super().__call__(*args, **kwargs)

    def register(cls, *args: Any, **kwargs: Any) -> Any:
        return cls if "_path" in vars(cls) else super().register(*args, **kwargs)


class StandIn(metaclass=StandInType):
    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __init_subclass__(cls, **_kwargs: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return attribute_of(vars(type(self)).get("_path", "stand-in"), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if is_decorator_call(args, kwargs) else self

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.any_schema()


for _operator, _method in OPERATORS.items():
    setattr(StandIn, f"__{_operator}__", _method)
    if _operator != "or":  # `torch.dtype | str` in an annotation stays a union
        setattr(StandInType, f"__{_operator}__", _method)


class StandInModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        value = attribute_of(self.__name__, name)
        setattr(self, name, value)
        return value


def attribute_of(owner: str, name: str) -> Any:
    path = f"{owner}.{name}"
    if path in VALUES:
        return VALUES[path]
    if name == "__version__" and owner in required_versions:
        return required_versions[owner]
    if path in ABSENT or (name.startswith("__") and name.endswith("__")):
        raise AttributeError(path)
    return StandInType(name, (StandIn,), {"__module__": owner, "_path": path})


def is_decorator_call(args: tuple, kwargs: dict) -> bool:
    if len(args) != 1 or kwargs or isinstance(args[0], StandInType):
        return False
    return isinstance(args[0], types.FunctionType | type)


class ImportGate(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Decides for every import which of the kinds in the module docstring it is."""

    def __init__(self, engine: str, directory: Path) -> None:
        self.engine = engine
        self.directory = directory

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        top = name.partition(".")[0]
        is_engine = top == self.engine
        if top in STAND_INS or name in ENGINE_STAND_INS or (is_engine and self.is_extension_module(name)):
            if name in ABSENT:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        if is_engine or top in INSTALLED or top in sys.stdlib_module_names or top.startswith("_sysconfigdata_"):
            return None
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    def is_extension_module(self, name: str) -> bool:
        return any(self.directory.glob(f"{name.replace('.', '/')}.*so"))

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandInModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def report_required_versions(directory: Path) -> None:
    """Let stand-ins have the versions that the engine's own metadata asks for."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    metadata = importlib.metadata.PathDistribution(next(directory.glob("*.dist-info")))
    for requirement in map(Requirement, metadata.requires or []):
        bounds = [Version(spec.version) for spec in requirement.specifier if spec.operator in ("==", ">=", "~=")]
        if bounds:
            required_versions[canonicalize_name(requirement.name)] = str(max(bounds))
    installed_version = importlib.metadata.version
    importlib.metadata.version = lambda name: required_versions.get(canonicalize_name(name)) or installed_version(name)


def build_sglang_parser(directory: Path) -> tuple[argparse.ArgumentParser, list[str]]:
    # The package's own __init__ sets up the client API and patches transformers; the parser needs neither.
    package = types.ModuleType("sglang")
    package.__path__ = [str(directory / "sglang")]
    sys.modules["sglang"] = package
    parser = argparse.ArgumentParser(prog="sglang serve")
    importlib.import_module("sglang.srt.server_args").ServerArgs.add_cli_args(parser)
    return parser, ["sglang.srt.server_args"]


def build_vllm_parser(directory: Path) -> tuple[argparse.ArgumentParser, list[str]]:
    sys.modules["regex"] = re
    arguments = first_module(directory, "vllm.entrypoints.common.cli_args", "vllm.entrypoints.openai.cli_args")
    utilities = first_module(directory, "vllm.utils.argparse_utils", "vllm.utils")
    parser = importlib.import_module(utilities).FlexibleArgumentParser(prog="vllm serve")
    return importlib.import_module(arguments).make_arg_parser(parser), [arguments, "vllm.engine.arg_utils"]


def first_module(directory: Path, *names: str) -> str:
    for name in names:
        path = directory / name.replace(".", "/")
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            return name
    raise FileNotFoundError(f"none of {', '.join(names)} in this package")


def describe_parser(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return {flags, positionals, retired, notes} of a parser, in the format of catalog/engine_flags."""
    names: dict[int, list[str]] = {}
    actions: dict[int, argparse.Action] = {}
    for name, action in parser._option_string_actions.items():
        names.setdefault(id(action), []).append(name)
        actions[id(action)] = action
    flags: dict[str, dict] = {}
    retired: dict[str, str] = {}
    notes: list[str] = []
    for key, action in actions.items():
        if isinstance(action, argparse._HelpAction | argparse._VersionAction):
            continue
        long_names = [name for name in names[key] if name.startswith("--")]
        canonical = (long_names or names[key])[0]
        if message := refusal(parser, action, canonical):
            retired.update(dict.fromkeys(names[key], message))
            continue
        flags[canonical], note = describe_option(parser, action, canonical, names[key])
        if note:
            notes.append(note)
    positionals = [action.dest for action in parser._actions if not action.option_strings]
    return {"flags": flags, "positionals": positionals, "retired": retired, "notes": sorted(notes)}


def describe_option(
    parser: argparse.ArgumentParser, action: argparse.Action, canonical: str, names: list[str]
) -> tuple[dict[str, Any], str | None]:
    option: dict[str, Any] = {"kind": kind_of(action)}
    note = None
    negative = negatives_of(action, names)
    if option["kind"] == "toggle":
        option["negative"] = negative[0]
        if negative[1:]:
            option["negative_aliases"] = sorted(negative[1:])
    elif option["kind"] != "switch":
        option["type"] = type_name(conversion(action))
        if option["type"] in ("int", "float") and accepts_none(action):
            option["nullable"] = True
        if action.nargs == argparse.OPTIONAL:
            option["value_optional"] = True
        if isinstance(action.nargs, int):
            option["count"] = action.nargs
        if isinstance(action, argparse._AppendAction):
            option["repeatable"] = True
        if action.choices is not None:
            choices = accepted_choices(parser, action)
            if choices is None:
                note = f"{canonical}: no choices, since the engine rewrites the value before it checks it"
            else:
                option["choices"] = choices
    if aliases := sorted(set(names) - {canonical} - set(negative)):
        option["aliases"] = aliases
    if action.required:
        option["required"] = True
    if is_deprecated(parser, action):
        option["deprecated"] = True
    return option, note


def kind_of(action: argparse.Action) -> str:
    if isinstance(action, argparse.BooleanOptionalAction):
        return "toggle"
    if action.nargs == 0:
        return "switch"
    return "value" if action.nargs in (None, argparse.OPTIONAL) else "list"


def negatives_of(action: argparse.Action, names: list[str]) -> list[str]:
    if not isinstance(action, argparse.BooleanOptionalAction):
        return []
    own = getattr(action, "negative_option_strings", ())
    return [name for name in names if name in own or (name.startswith("--no-") and f"--{name[5:]}" in names)]


def conversion(action: argparse.Action) -> Callable:
    """Return what converts the value; vLLM wraps it in a function that lets the word None through."""
    convert = action.type or str
    while isinstance(convert, types.FunctionType) and "return_type" in convert.__code__.co_freevars:
        convert = convert.__closure__[convert.__code__.co_freevars.index("return_type")].cell_contents
    return convert


def type_name(convert: Callable) -> str:
    if convert is json.loads:
        return "json"
    return "str" if convert.__name__ == "<lambda>" else convert.__name__


def accepts_none(action: argparse.Action) -> bool:
    try:
        return action.type("None") is None
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False


def accepted_choices(parser: argparse.ArgumentParser, action: argparse.Action) -> list | None:
    """Return the choices as written on the command line, or None where other spellings may be accepted as well."""
    if conversion(action) not in (str, int, float):
        return None
    accepted = []
    for choice in action.choices:
        try:
            parser._check_value(action, parser._get_value(action, str(choice)))
        except argparse.ArgumentError:
            continue
        accepted.append(choice if isinstance(choice, int | float) else str(choice))
    return sorted(accepted, key=lambda choice: (isinstance(choice, str), choice)) or None


def is_deprecated(parser: argparse.ArgumentParser, action: argparse.Action) -> bool:
    return (
        type(action).__name__.startswith("Deprecated")
        or action in getattr(parser, "_deprecated", ())
        or getattr(action, "deprecated", False)
        or re.match(r"(\W*|\s*--[\w-]+ is )deprecated\b", action.help or "", re.IGNORECASE) is not None
    )


def refusal(parser: argparse.ArgumentParser, action: argparse.Action, name: str) -> str | None:
    """Return the message with which the engine stops when it meets a retired option, else None."""
    if not type(action).__name__.startswith("Deprecated") or action.nargs != 0:
        return None

    def raise_message(message: str) -> None:
        raise ValueError(message)

    parser.error = raise_message
    try:
        action(parser, argparse.Namespace(), [], name)
    except ValueError as error:
        return " ".join(str(error).split())
    finally:
        del parser.error
    return None


BUILDERS: dict[str, Callable[[Path], tuple[argparse.ArgumentParser, list[str]]]] = {
    "sglang": build_sglang_parser,
    "vllm": build_vllm_parser,
}


def main(engine: str, directory: Path) -> None:
    result_stream, sys.stdout = sys.stdout, sys.stderr
    sys.argv = [engine]
    sys.path.insert(0, str(directory))
    report_required_versions(directory)
    sys.meta_path.insert(0, ImportGate(engine, directory))
    parser, modules = BUILDERS[engine](directory)
    json.dump({"read_from": modules, **describe_parser(parser)}, result_stream)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
