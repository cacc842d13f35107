"""Filters that turn the plan that serves into loads to measure, and what was measured into a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.blackwell.serving.plugins.module_utils import load_generator, tuning
from ansible_collections.blackwell.serving.plugins.plugin_utils import benchmark_files

RESULT_DIRECTORY = "/results"


def benchmark_runs(
    plan: Mapping[str, Any],
    services: Sequence[str],
    concurrencies: Sequence[int],
    requests_each: int,
    rounds: int,
    seed: int,
    input_tokens: int,
    output_tokens: int,
    highest_only: bool = False,
) -> dict[str, Any]:
    """{generator, runs, highest}: each run is one item of `runs` of the module service_benchmark.

    `highest` has each service's load at the highest concurrency. A round has a seed of its own, so that no prompt is in
    a prefix cache because it was sent before.
    """
    services, concurrencies = _items(services), _items(concurrencies)
    wanted = [service for service in plan["services"] if not services or service["name"] in services]
    unknown = sorted(set(services) - {service["name"] for service in wanted})
    if unknown:
        names = ", ".join(service["name"] for service in plan["services"])
        raise AnsibleFilterError(
            f"benchmark_services: no service {', '.join(unknown)} serves on this host, but {names}"
        )
    try:
        generator = load_generator.choose_generator(plan["services"], benchmark_files.generators())
        flags = benchmark_files.generator_flags(generator["engine"], generator["version"])
        runs, highest = [], []
        for service in wanted:
            loads = load_generator.loads_of(
                service, [] if highest_only else concurrencies, requests_each, input_tokens, output_tokens
            )
            made = [_run(service, load, generator, flags, rounds, seed) for load in loads]
            runs += made
            highest.append(made[-1])
    except load_generator.GeneratorProblem as problem:
        raise AnsibleFilterError(str(problem)) from problem
    return {"generator": generator, "runs": runs, "highest": highest}


def _items(value: Any) -> list[Any]:
    """`-e name=1,16` gives one string."""
    return value.split(",") if isinstance(value, str) else list(value)


def _run(
    service: Mapping[str, Any],
    load: Mapping[str, int],
    generator: Mapping[str, Any],
    flags: Mapping[str, Any] | None,
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    seeds = [seed + number for number in range(rounds)]
    return {
        "service": service["name"],
        "engine": service["engine"],
        "container": service["container_name"],
        "image": generator["image"],
        "load": dict(load),
        "seeds": seeds,
        "commands": [
            load_generator.command(generator, flags, service, load, one, f"{RESULT_DIRECTORY}/{one}.json")
            for one in seeds
        ],
        "figures": generator["figures"],
    }


def tuning_decision(
    now: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], margin: float, first_token_margin: float
) -> dict[str, Any]:
    """Which trial to keep; see tuning.decide."""
    return tuning.decide(now, trials, float(margin), float(first_token_margin))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"benchmark_runs": benchmark_runs, "tuning_decision": tuning_decision}
