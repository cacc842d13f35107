"""A stand-in for the load generators in the engines' packages (sglang.bench_serving, `vllm bench serve`).

It has their command line (catalog/generator_flags), sends real requests over HTTP, measures their times, and writes a
file with the fields of theirs that catalog/load_generators.yml reads. A token is a word here, as in the simulated
engines.
"""

import concurrent.futures
import http.client
import json
import os
import random
import statistics
import sys
import time
import urllib.parse
from typing import NamedTuple

from . import flags, machine

DATA_SETS = {"sglang": "random-ids", "vllm": "random"}
VOCABULARY = 30000


class Answer(NamedTuple):
    """Times in seconds: from the request to each piece with text."""

    times: list[float]
    error: str = ""


def main(engine: str, words: list[str]) -> None:
    recording = machine.image()["generator_flags"]
    options = flags.build_parser(recording, f"{engine} load generator").parse_args(words)
    if options.dataset_name != DATA_SETS[engine]:
        sys.exit(f"stand-in: the data set {options.dataset_name} is not simulated; {DATA_SETS[engine]} is")
    dice = random.Random(options.seed)
    prompts = [prompt(dice, options.random_input_len) for _ in range(options.num_prompts)]
    warm = options.warmup_requests if engine == "sglang" else options.num_warmups
    run(options, prompts[:1] * int(warm or 0), min(32, options.random_output_len))
    begin = time.perf_counter()
    answers = run(options, prompts, options.random_output_len)
    result = figures(answers, time.perf_counter() - begin, options)
    if engine == "sglang":
        with open(options.output_file, "a") as file:
            file.write(json.dumps(result) + "\n")
    else:
        with open(os.path.join(options.result_dir, options.result_filename), "w") as file:
            json.dump(result, file)
    print(f"(a stand-in for {engine}'s load generator) {json.dumps(result)}")


def prompt(dice: random.Random, tokens: int) -> str:
    return " ".join(f"w{dice.randrange(VOCABULARY)}" for _ in range(tokens))


def run(options, prompts: list[str], output: int) -> list[Answer]:
    with concurrent.futures.ThreadPoolExecutor(options.max_concurrency or len(prompts) or 1) as pool:
        return list(pool.map(lambda text: ask(options, text, output), prompts))


def ask(options, text: str, output: int) -> Answer:
    where = urllib.parse.urlsplit(options.base_url)
    body = {"model": options.model, "prompt": text, "max_tokens": output, "temperature": 0}
    body |= {"ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=600)
    begin, times = time.perf_counter(), []
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return Answer([], f"status {response.status}")
        for line in response:
            if line.startswith(b"data: {") and any(choice["text"] for choice in json.loads(line[6:])["choices"]):
                times.append(time.perf_counter() - begin)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as problem:
        return Answer([], repr(problem))
    finally:
        connection.close()
    return Answer(times, "" if len(times) == output else f"{len(times)} of {output} tokens")


def figures(answers: list[Answer], seconds: float, options) -> dict:
    good = [answer for answer in answers if not answer.error]
    first = [answer.times[0] for answer in good]
    between = [
        (answer.times[-1] - answer.times[0]) / (len(answer.times) - 1) for answer in good if len(answer.times) > 1
    ]
    gaps = [later - earlier for answer in good for earlier, later in zip(answer.times, answer.times[1:], strict=False)]
    tokens = sum(len(answer.times) for answer in good)
    result = {
        "simulated": True,
        "duration": seconds,
        "completed": len(good),
        "max_concurrency": options.max_concurrency,
    }
    result |= {"total_output_tokens": tokens, "output_throughput": tokens / seconds}
    for name, values in (("ttft", first), ("tpot", between), ("itl", gaps)):
        milliseconds = sorted(1000 * value for value in values) or [0.0]
        result[f"median_{name}_ms"] = statistics.median(milliseconds)
        result[f"p99_{name}_ms"] = milliseconds[round(0.99 * (len(milliseconds) - 1))]
    return result
