"""Histograms of how long requests took, under the names that both engines use after their prefix."""

import threading
import time
from collections.abc import Iterator

BUCKETS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 80, 160)
FIRST, NEXT, ALL = "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"


class Timings:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts = {name: [0] * (len(BUCKETS) + 1) for name in (FIRST, NEXT, ALL)}
        self.sums = dict.fromkeys(self.counts, 0.0)

    def observe(self, name: str, seconds: float) -> None:
        with self.lock:
            place = next((place for place, bound in enumerate(BUCKETS) if seconds <= bound), len(BUCKETS))
            self.counts[name][place] += 1
            self.sums[name] += seconds

    def timed(self, generation: Iterator) -> Iterator:
        """The same, a Generation and then its words, each of which is timed."""
        last = started = time.monotonic()
        yield next(generation)
        name = FIRST
        for word in generation:
            now = time.monotonic()
            self.observe(name, now - last)
            name, last = NEXT, now
            yield word
        self.observe(ALL, time.monotonic() - started)

    def text(self, prefix: str, labels: str) -> str:
        lines = []
        with self.lock:
            for name, counts in self.counts.items():
                full, total = f"{prefix}:{name}", 0
                lines.append(f"# TYPE {full} histogram")
                for bound, count in zip((*BUCKETS, "+Inf"), counts, strict=True):
                    total += count
                    lines.append(f'{full}_bucket{{{labels},le="{bound}"}} {total}')
                lines += [f"{full}_sum{{{labels}}} {self.sums[name]}", f"{full}_count{{{labels}}} {total}"]
        return "\n".join(lines) + "\n"
