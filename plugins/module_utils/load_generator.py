"""The load generators of catalog/load_generators.yml: how one is called, and what it found.

Pure functions. `parse` and `summary_line` also run on the host, under its own Python, 3.9 or newer.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Of the figures of a round, those of which the median of all rounds is given.
MEDIANS = ("tokens_per_s", "first_token_ms", "first_token_p99_ms", "between_tokens_ms", "token_gap_p99_ms")
# Prompts become text and are read again by the engine, which may give more tokens than were meant.
CONTEXT_PARTS = 4


class GeneratorProblem(Exception):
    """There is no load generator for these services, or its output is not what it should be."""


def choose_generator(services: Sequence[Mapping[str, Any]], generators: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{entry of the catalogue, image, version}: one generator for all services, from an image that one of them uses."""
    engines = {service["engine"] for service in services}
    for generator in generators:
        owner = next((service for service in services if service["engine"] == generator["engine"]), None)
        if owner and engines <= set(generator["targets"]):
            return {**generator, "image": owner["image"], "version": str(owner["engine_version"])}
    raise GeneratorProblem(f"no load generator of the catalogue measures {', '.join(sorted(engines))}")


def loads_of(
    service: Mapping[str, Any], concurrencies: Sequence[int], requests_each: int, input_tokens: int, output_tokens: int
) -> list[dict[str, int]]:
    """The loads of a service: at each concurrency that it takes, and at the highest; lengths that fit its context.

    `requests_each`: requests that each of the concurrent clients sends, one after another.
    """
    highest = int(service["max_concurrency"])
    room = int(service["context_length"]) // CONTEXT_PARTS
    return [
        {
            "concurrency": concurrency,
            "requests": concurrency * requests_each,
            "input": min(int(input_tokens), room),
            "output": min(int(output_tokens), room),
        }
        for concurrency in sorted({*(at for at in map(int, concurrencies) if 1 <= at < highest), highest})
    ]


def command(
    generator: Mapping[str, Any],
    flags: Mapping[str, Any] | None,
    service: Mapping[str, Any],
    load: Mapping[str, int],
    seed: int,
    result: str,
) -> list[str]:
    """The generator's command line; `result` is the path of the file that it writes.

    `flags`: the recorded options of its version (catalog/generator_flags). Raises GeneratorProblem where they are not
    recorded, or lack one that is needed.
    """
    known = (flags or {}).get("flags") or {}
    if not known:
        raise GeneratorProblem(
            f"the options of {generator['name']} {generator['version']} are not recorded: "
            f"tests/tools/record_load_generators.py {generator['engine']} {generator['version']}"
        )
    directory, _, name = result.rpartition("/")
    words = {
        "target": generator["targets"][service["engine"]],
        "url": f"http://127.0.0.1:{service['container_port']}",
        "served_name": service["served_name"],
        "model": service["model"],
        "seed": seed,
        "result": result,
        "result_directory": directory,
        "result_name": name,
        **load,
    }
    missing = [option for option in map(_option, generator["arguments"]) if option not in known]
    refused = [option for option in missing if option not in generator.get("optional", ())]
    if refused:
        raise GeneratorProblem(f"{generator['name']} {generator['version']} has no option {', '.join(refused)}")
    arguments = [argument for argument in generator["arguments"] if _option(argument) not in missing]
    return [*generator["command"], *(argument.format(**words) for argument in arguments)]


def _option(argument: str) -> str:
    return argument.partition("=")[0]


def parse(text: str, figures: Mapping[str, str], load: Mapping[str, int]) -> dict[str, Any]:
    """The figures of one run from the file that the generator wrote: a JSON object, the last where it appends lines.

    `figures`: our names and the generator's. Raises GeneratorProblem where the file is something else.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(lines[-1] if lines else "")
        values = {ours: found[theirs] for ours, theirs in figures.items()}
    except (ValueError, KeyError, TypeError, IndexError) as problem:
        raise GeneratorProblem(f"its result is not the one that was expected: {problem!r}") from problem
    odd = [name for name, value in values.items() if isinstance(value, bool) or not isinstance(value, (int, float))]
    if odd:
        raise GeneratorProblem(f"its result has no number for {', '.join(figures[name] for name in odd)}")
    failed = load["requests"] - int(values["completed"])
    rounded = {name: _rounded(value) for name, value in values.items()}
    return {**rounded, "requests": load["requests"], "failed": failed}


def _rounded(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return round(value, 3) if math.isfinite(value) else None


def medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds in which requests were answered; requests and failures added up."""
    answered = [one for one in rounds if one["completed"]]
    result: dict[str, Any] = {
        name: round(statistics.median(one[name] for one in answered), 2) if answered else None for name in MEDIANS
    }
    return {**result, **{key: sum(one[key] for one in rounds) for key in ("requests", "failed")}}


def summary_line(service: str, load: Mapping[str, int], figures: Mapping[str, Any]) -> str:
    """One line for the terminal."""
    where = f"{service}, {load['concurrency']} at once"
    if figures["tokens_per_s"] is None:
        return f"{where}: none of {figures['requests']} requests was answered"
    text = (
        f"{where}: {figures['tokens_per_s']:,.1f} tokens/s, first token {figures['first_token_ms']:,.1f} ms, "
        f"then {figures['between_tokens_ms']:,.2f} ms each"
    )
    return text + (f", {figures['failed']} of {figures['requests']} requests failed" if figures["failed"] else "")
