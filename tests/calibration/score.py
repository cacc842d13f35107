"""Score the planner on start-up logs (startup_logs.yml) and write the result as docs/accuracy.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.catalog_view import Catalog
from ansible_collections.blackwell.serving.plugins.module_utils.declaration import Gpu, catalogue_gpu, parse_services
from ansible_collections.blackwell.serving.plugins.module_utils.engines import EngineMemory, engine_memory
from ansible_collections.blackwell.serving.plugins.module_utils.engines.sglang import granted_tokens
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host
from ansible_collections.blackwell.serving.plugins.module_utils.units import GIB, from_gib

LOGS = Path(__file__).with_name("startup_logs.yml")
ACCEPTANCE = Path(__file__).resolve().parents[1] / "gpu"
KV_SHARE, KV_GIB = 0.05, 0.25
TOKEN_SHARE = 0.01


@dataclass(frozen=True)
class Score:
    """Planned against measured, for one start. Sizes in GiB; None where the log has no figure."""

    row: Mapping[str, Any]
    weights: float
    law_tokens: int | None
    tokens: int
    kv: float
    measured_kv: float
    left: float | None
    resident: float
    peak: float

    @property
    def measured(self) -> Mapping[str, Any]:
        return self.row["measured"]

    @property
    def law_error(self) -> float | None:
        """Relative error of the tokens when free memory, weights and fraction are the log's own."""
        return None if self.law_tokens is None else self.law_tokens / self.measured["tokens"] - 1

    @property
    def kv_error(self) -> float:
        """Error of the KV pool in GiB when weights come from config.json."""
        return self.kv - self.measured_kv

    @property
    def kv_tolerance(self) -> float:
        return max(KV_GIB, KV_SHARE * self.measured_kv)


def load_logs() -> dict[str, Any]:
    """startup_logs.yml, with a row for every service that tests/gpu has started on a real GPU."""
    logs = yaml.safe_load(LOGS.read_text(encoding="utf-8"))
    logs["rows"] += recorded_rows()
    return logs


def recorded_rows() -> Iterator[dict[str, Any]]:
    """The services of tests/gpu/results: declared there, started as planned then, scored with today's planner."""
    declared = yaml.safe_load((ACCEPTANCE / "stacks.yml").read_text(encoding="utf-8"))
    yield from _rows_of_stacks(declared["stacks"])
    alone = json.loads((ACCEPTANCE / "results/alone.json").read_text(encoding="utf-8"))["variants"]
    for name, variant in declared["alone"].items():
        if name not in alone:
            continue
        found = alone[name]
        card = declared["gpus"][found["gpu"]]
        yield _row(
            f"alone/{name}",
            {"key": card["gpu"], "total": card["measured_total_gib"]},
            variant["services"][0],
            found["command"].split(),
            {**found["start"], "peak": found["process_peak"]},
        )


def _rows_of_stacks(stacks: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, stack in stacks.items():
        path = ACCEPTANCE / "results" / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        plan = json.loads(path.with_suffix(".plan.json").read_text(encoding="utf-8"))
        gpu = plan["gpus"][0]
        for declared, planned in zip(stack["services"], plan["services"], strict=True):
            entry = result["services"][declared["name"]]
            yield _row(
                f"{name}/{declared['name']}",
                {"key": gpu["key"], "total": gpu["cuda_visible_gib"]},
                declared,
                planned["command"],
                {**entry["measured"], "peak": entry["process_peak"]},
            )


def _row(
    name: str,
    gpu: Mapping[str, Any],
    declared: Mapping[str, Any],
    command: Sequence[str],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    told = dict(word.partition("=")[::2] for word in command)
    return {
        "id": name,
        "source": "recorded",
        "gpu": gpu["key"],
        "total": gpu["total"],
        "free": measured["free"],
        "fraction": float(told.get("--mem-fraction-static") or told["--gpu-memory-utilization"]),
        "cap": int(told.get("--max-total-tokens", 0)),
        "kv_bytes": int(told.get("--kv-cache-memory-bytes", 0)),
        "service": declared,
        "measured": measured,
    }


def row_memory(row: Mapping[str, Any], catalog: Catalog) -> EngineMemory:
    """Sizes of the row's service on the row's card."""
    gpu = catalogue_gpu(0, row["gpu"], catalog, from_gib(row["total"]))
    several = [Gpu(**{**vars(gpu), "index": index}) for index in range(row["service"].get("tensor_parallel", 1))]
    service = parse_services([{"name": "row", "port": 8000, **row["service"]}], catalog, several)[0]
    return engine_memory(service, gpu, catalog)


def granted(row: Mapping[str, Any], law: EngineMemory) -> int:
    """Tokens that the law grants with the row's flags: weights from config.json, free memory from the log."""
    if law.service.engine == "vllm":
        return law.granted(law.gpu.total, row["fraction"], row.get("kv_bytes"))
    free = from_gib(row["free"]) if "free" in row else law.gpu.total - law.footprint.context
    return law.granted(free, row["fraction"], row.get("cap"))


def score(row: Mapping[str, Any], catalog: Catalog) -> Score:
    law = row_memory(row, catalog)
    tokens, measured = granted(row, law), row["measured"]
    law_tokens = left = None
    if law.service.engine == "sglang":
        law_tokens = granted_tokens(
            row["free"] * GIB, measured["weights"] * GIB, row["fraction"], law.cell, cap=row.get("cap"), page=law.page
        )
        footprint = law.footprint
        first = from_gib(catalog.overhead("sglang", "first_request", "gib"))
        taken = footprint.fixed - footprint.context - first + law.pool_bytes(measured["tokens"])
        left = row["free"] - taken / GIB
    weights = law.weights if law.service.engine == "sglang" else law.profiled_weights
    measured_kv = measured.get("kv", measured["tokens"] * law.cell / GIB)
    pool, compiled = law.pool_bytes(measured["tokens"]), law.compilation_bytes(measured["tokens"])
    resident, peak = law.footprint.fixed + compiled + pool, law.footprint.peak(compiled) + pool
    kv = tokens * law.cell / GIB
    return Score(row, weights / GIB, law_tokens, tokens, kv, measured_kv, left, resident / GIB, peak / GIB)


INTRODUCTION = """\
# How accurate is the plan?

    make test          # scores the planner again; this page is its output

Every row is a start of a real engine whose log is known. All sizes are GiB. Nothing is tuned to a row: weights, KV and
the rest come from `config.json`, the catalogue and the law of the engine's version. Hopper, Ada and Ampere are not
Blackwell: rows from there show that the law holds, not what a process takes on a Blackwell card. Rows F1 to F9 are
Blackwell.
"""
START_UP = """
| | engine, model | GPU | fraction | weights: planned / measured | tokens by the law / measured | error \
| KV from config.json / measured | error |
|---|---|---|---|---|---|---|---|---|
"""


def accuracy_page(catalog: Catalog) -> str:
    """docs/accuracy.md."""
    logs = load_logs()
    scores = [score(row, catalog) for row in logs["rows"] if "measured" in row]
    requirements = f"""
**Tokens by the law**: free memory, weights and fraction as the log gives them; within {TOKEN_SHARE:.0%} is required.
**KV from config.json**: weights worked out, not read; the larger of {KV_SHARE:.0%} and {KV_GIB} GiB is allowed.
"""
    refused = [row for row in logs["rows"] if row.get("refused")]
    lines = [_start_up_row(result) for result in scores]
    lines += ["", "What is left after start-up (`available_gpu_mem`), with workspaces, tables and graphs:", ""]
    lines += ["| | planned | measured | error |", "|---|---|---|---|"]
    lines += [_left_row(result) for result in scores if result.left is not None and "left" in result.measured]
    lines += ["", "One process, after one request and at its peak under load (nvidia-smi):", ""]
    lines += ["| | resident: planned / measured | error | peak: planned / measured | error |", "|---|---|---|---|---|"]
    lines += [_process_row(result) for result in scores if "peak" in result.measured]
    lines += ["", "Starts that failed, and that the planner refuses:", ""]
    lines += [
        f"- {row['id']}: {row['service']['engine']}, {_model(row)}, fraction {row['fraction']}" for row in refused
    ]
    lines += ["", "Not reproducible, for lack of a figure:", ""]
    lines += [f"- {entry['about']}: {entry['missing']}" for entry in logs["not_reproducible"]]
    for stack in logs["stacks"]:
        lines += ["", "## A stack that was planned first and then started", "", *_stack_lines(stack, catalog)]
    lines += ["", "## Where the rows come from", ""]
    for source, about in logs["sources"].items():
        rows = [row for row in logs["rows"] if row["source"] == source]
        lines.append(f"- {', '.join(row['id'] for row in rows)}: {about}")
        lines += [f"  - {row['id']}: {row['about']}" for row in rows if "about" in row]
    lines += ["", "Constants that no formula gives stand in `catalog/overheads.yml`, each with its measurement.", ""]
    return INTRODUCTION + requirements + START_UP + "\n".join(lines)


def stack_plan(stack: Mapping[str, Any], catalog: Catalog) -> dict[str, Any]:
    """What the planner makes of a measured stack's declaration today."""
    return plan_host("measured", {"gpus": [stack["gpu"]], "services": stack["services"]}, catalog)


def _stack_lines(stack: Mapping[str, Any], catalog: Catalog) -> list[str]:
    plan, measured = stack_plan(stack, catalog), stack["measured"]
    alone = measured["restarted_alone"]
    lines = [
        f"{stack['about']}. Started with the plan's own commands, but for {stack['substituted']}.",
        "",
        "| | free before its start: planned / measured | tokens: planned / granted | restarted alone, under load |",
        "|---|---|---|---|",
    ]
    for service in plan["services"]:
        name = service["name"]
        free = f"{service['free_before_gib']:.2f} / {measured['free_before'][name]:.2f}"
        tokens = f"{service['kv_tokens']:,} / {measured['tokens'][name]:,}"
        again = f"{alone[name]:,} tokens" if name in alone else "not tried"
        lines.append(f"| {name} | {free} | {tokens} | {again} |")
    lines += [
        "",
        f"Peak of all under load: planned {plan['gpus'][0]['planned_gib']:.2f}, measured {measured['peak']:.2f}.",
    ]
    return lines


def _start_up_row(result: Score) -> str:
    row, measured = result.row, result.measured
    law = law_error = ""
    if result.law_tokens is not None:
        law = f"{result.law_tokens:,} / {measured['tokens']:,}"
        law_error = f"{result.law_error:+.2%}"
    weights = f"{result.weights:.2f} / " + (f"{measured['weights']:.2f}" if "weights" in measured else "-")
    kv = f"{result.kv:.2f} / {result.measured_kv:.2f} | {result.kv_error:+.2f}"
    what = f"{row['service']['engine']}, {_model(row)} | {row['gpu']} | {row['fraction']}"
    return f"| {row['id']} | {what} | {weights} | {law} | {law_error} | {kv} |"


def _left_row(result: Score) -> str:
    measured = result.measured["left"]
    return f"| {result.row['id']} | {result.left:.2f} | {measured:.2f} | {result.left - measured:+.2f} |"


def _process_row(result: Score) -> str:
    cells = []
    for planned, measured in ((result.resident, result.measured["resident"]), (result.peak, result.measured["peak"])):
        cells += [f"{planned:.2f} / {measured:.2f}", f"{planned - measured:+.2f}"]
    return f"| {result.row['id']} | {' | '.join(cells)} |"


def _model(row: Mapping[str, Any]) -> str:
    model = row["service"]["model"]
    return model["name"] if isinstance(model, Mapping) else model
