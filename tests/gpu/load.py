#!/usr/bin/env python3
"""Send completions to one service and say how it went, as JSON on standard output.

    load.py URL MODEL --prompts 128,512,3500 --output 64 --requests 128 --concurrency 32 [--until FILE] [--seed 1]

Prompts are random token ids, in turn of the given lengths; each answer must have all its tokens, or the request failed.
With --until it goes on in rounds of --requests until FILE exists. The first token's time is that of the first streamed
piece; the time between tokens is what followed, over the tokens that followed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import json
import math
import random
import statistics
import time
import urllib.parse
from pathlib import Path
from typing import NamedTuple

TIMEOUT = 300
LOWEST_TOKEN, HIGHEST_TOKEN = 10, 30000  # in every model's vocabulary


class Outcome(NamedTuple):
    problem: str
    tokens: int
    first_s: float
    total_s: float

    @property
    def between_s(self) -> float | None:
        return (self.total_s - self.first_s) / (self.tokens - 1) if self.tokens > 1 else None


def streamed(lines) -> tuple[int, float | None, float]:
    """(completion tokens, time of the first piece, time of the last) from the lines of an event stream."""
    tokens, first, last = 0, None, time.monotonic()
    for line in lines:
        if not line.startswith(b"data:") or line.strip() == b"data: [DONE]":
            continue
        now, piece = time.monotonic(), json.loads(line[5:])
        if "error" in piece:
            raise ValueError(json.dumps(piece["error"])[:200])
        if piece.get("choices"):
            first, last = first or now, now
        if piece.get("usage"):
            tokens = piece["usage"]["completion_tokens"]
    return tokens, first, last


def ask(url: str, model: str, prompt: list[int], output: int) -> Outcome:
    where = urllib.parse.urlsplit(url)
    body = {"model": model, "prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": True}
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=TIMEOUT)
    begin = time.monotonic()
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            return Outcome(f"status {response.status}: {response.read(200).decode(errors='replace')}", 0, 0, 0)
        tokens, first, last = streamed(response)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        return Outcome(f"{type(error).__name__}: {error}", 0, 0, 0)
    finally:
        connection.close()
    problem = "" if tokens == output else f"{tokens} of {output} tokens"
    return Outcome(problem, tokens, (first or last) - begin, last - begin)


def summary(outcomes: list[Outcome], seconds: float) -> dict:
    """Figures of one run: failed requests are counted and named, and stay out of the medians."""
    good = [outcome for outcome in outcomes if not outcome.problem]
    between = [outcome.between_s for outcome in good if outcome.between_s is not None]
    return {
        "requests": len(outcomes),
        "failed": len(outcomes) - len(good),
        "problems": sorted({outcome.problem for outcome in outcomes if outcome.problem})[:5],
        "seconds": round(seconds, 2),
        "tokens_per_s": round(sum(outcome.tokens for outcome in good) / seconds, 1) if seconds else None,
        "first_token_ms": _median_ms([outcome.first_s for outcome in good]),
        "first_token_p99_ms": _p99_ms([outcome.first_s for outcome in good]),
        "between_tokens_ms": _median_ms(between),
    }


def _median_ms(seconds: list[float]) -> float | None:
    return round(1000 * statistics.median(seconds), 2) if seconds else None


def _p99_ms(seconds: list[float]) -> float | None:
    return round(1000 * sorted(seconds)[max(0, math.ceil(0.99 * len(seconds)) - 1)], 2) if seconds else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--output", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--until", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    dice = random.Random(options.seed)
    lengths = [int(length) for length in options.prompts.split(",")]

    def one(number: int) -> Outcome:
        if options.until and options.until.exists():
            return Outcome("not sent", 0, 0, 0)
        prompt = [dice.randint(LOWEST_TOKEN, HIGHEST_TOKEN) for _ in range(lengths[number % len(lengths)])]
        return ask(options.url, options.model, prompt, options.output)

    outcomes: list[Outcome] = []
    begin = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(options.concurrency) as pool:
        while True:
            outcomes += pool.map(one, range(len(outcomes), len(outcomes) + options.requests))
            if options.until is None or options.until.exists():
                break
    sent = [outcome for outcome in outcomes if outcome.problem != "not sent"]
    print(json.dumps(summary(sent, time.monotonic() - begin)))


if __name__ == "__main__":
    main()
