"""The command line of one engine version, as catalog/engine_flags has it (tests/tools/record_engine_flags.py)."""

import argparse
import json

SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def human_readable_int(text: str) -> int:
    """vLLM: 1k is 1000, 1K is 1024."""
    scale = SUFFIXES.get(text[-1:], 1)
    return int(float(text[:-1]) * scale) if scale != 1 else int(text)


def human_readable_int_or_auto(text: str) -> int:
    return -1 if text.lower() == "auto" else human_readable_int(text)


CONVERTERS = {
    "int": int,
    "float": float,
    "human_readable_int": human_readable_int,
    "human_readable_int_or_auto": human_readable_int_or_auto,
}


class Toggle(argparse.Action):
    """On under its own spellings, off under the negative ones."""

    def __init__(self, option_strings, dest, negatives=(), **options):
        super().__init__([*option_strings, *negatives], dest, nargs=0, **options)
        self.negatives = negatives

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, option_string not in self.negatives)


def converter(entry: dict):
    kind = CONVERTERS.get(entry.get("type"))
    if kind is None or not entry.get("nullable"):
        return kind

    def nullable(text: str):
        return None if text == "None" else kind(text)

    nullable.__name__ = kind.__name__
    return nullable


def build_parser(recording: dict, program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program)
    for name in recording.get("positionals", []):
        parser.add_argument(name, nargs="?")
    for name, entry in recording["flags"].items():
        spellings = [name, *entry.get("aliases", [])]
        options = {"dest": name.lstrip("-").replace("-", "_"), "required": entry.get("required", False)}
        if entry["kind"] == "switch":
            parser.add_argument(*spellings, action="store_true", **options)
            continue
        if entry["kind"] == "toggle":
            negatives = [*filter(None, [entry.get("negative")]), *entry.get("negative_aliases", [])]
            parser.add_argument(*spellings, action=Toggle, negatives=negatives, default=None, **options)
            continue
        if kind := converter(entry):
            options["type"] = kind
        if entry.get("choices"):
            options["choices"] = [kind(choice) if kind else choice for choice in map(str, entry["choices"])]
        if entry["kind"] == "list":
            options["nargs"] = entry.get("count", "*")
        elif entry.get("value_optional"):
            options["nargs"] = "?"
        if entry.get("repeatable"):
            options["action"] = "append"
        parser.add_argument(*spellings, **options)
    return parser


def parse(recording: dict, program: str, words: list[str]) -> argparse.Namespace:
    """What the engine reads from its command line; leaves with argparse's message and status 2 where it refuses."""
    parser = build_parser(recording, program)
    if recording["engine"] == "vllm":
        words = list(map(dashes, words))
    for word in words:
        if message := recording.get("retired", {}).get(word.split("=")[0]):
            parser.error(message)
    return parser.parse_args(words)


def dashes(word: str) -> str:
    """vLLM's parser takes --max_model_len for --max-model-len."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def as_json(options: argparse.Namespace) -> dict:
    return json.loads(json.dumps(vars(options), default=str))
