#!/usr/bin/env python3
"""Write docs/performance.md from what tests/gpu recorded in tests/gpu/results/.

`make docs` runs it; a test compares.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/gpu/results"
PAGE = ROOT / "docs/performance.md"

sys.path.insert(0, str(ROOT / "tests/gpu"))

from verdicts import conditions, table  # noqa: E402

INTRODUCTION = """\
# What was measured on a real GPU

Real engines were started from plans and measured, by [`tests/gpu`](../tests/gpu/README.md). This page is written by
`tests/tools/performance.py` from the results that are recorded there; no table on it is typed.

Read the figures with care: the GPU is a Hopper card of which all but an RTX 5090's memory was held back. **Hopper is
not Blackwell**: what memory the engines take is comparable, speed is not, and neither are the kernels. Weights are made
up (`--load-format dummy`) and prompts are random tokens: memory and speed are measured, answers are not. Both engines
ran with Triton attention, the field notes' flags with torch_native. The hosts had two GPUs, and a stack on each: memory
is a GPU's own, the processor was shared. Planned sizes are those of the day; `docs/accuracy.md` scores today's planner.
"""
FIGURES = (
    ("tokens/s", "tokens_per_s"),
    ("time to first token, ms", "first_token_ms"),
    ("time between tokens, ms", "between_tokens_ms"),
)


def comparison_section(result: Mapping[str, Any]) -> str:
    """The tuned and the notes' flags side by side: the median of the rounds, and all of them."""
    variants, loads = result["measured"], result["loads"]
    lines = ["## Tuned flags against the field notes' flags", "", result["about"], ""]
    lines += [f"{conditions(result)} {_loads_text(result)}", ""]
    lines += [f"| | {' | '.join(variants)} |", f"|---|{'---|' * len(variants)}"]
    for label in loads:
        for title, figure in FIGURES:
            cells = [_median_and_rounds(variant, label, figure) for variant in variants.values()]
            lines.append(f"| {label}: {title} | {' | '.join(cells)} |")
    lines.append(f"| KV tokens | {' | '.join(format(v['start']['tokens'], ',') for v in variants.values())} |")
    lines.append(f"| failed requests | {' | '.join(_failures(variant) for variant in variants.values())} |")
    lines += ["", "A variant that gets faster from round to round had not settled: its median is on the low side.", ""]
    lines += ["Their commands, model path and port apart:", ""]
    lines += [f"- {name}: `{_command(variant['command'])}`" for name, variant in variants.items()]
    return "\n".join(lines) + "\n"


def _loads_text(result: Mapping[str, Any]) -> str:
    texts = [
        f"{label}: {_number(load['requests'])} requests, {load['prompts'][0]} tokens in and {load['output']} out"
        for label, load in result["loads"].items()
    ]
    rounds = (
        f"Median of {result['rounds']} rounds, in brackets the rounds; one variant was under load at a time, each on"
    )
    return f"{rounds} a GPU of its own of one host. {'; '.join(texts)}."


def _number(requests: int | str) -> str:
    return "as many as each takes" if requests == "highest" else str(requests)


def _median_and_rounds(variant: Mapping[str, Any], label: str, figure: str) -> str:
    rounds = ", ".join(f"{one[figure]:g}" for one in variant["rounds"][label])
    return f"{variant['medians'][label][figure]:g} ({rounds})"


def _failures(variant: Mapping[str, Any]) -> str:
    medians = variant["medians"].values()
    return f"{sum(one['failed'] for one in medians)} of {sum(one['requests'] for one in medians)}"


def _command(words: list[str]) -> str:
    hidden = ("--model-path=", "--host=", "--port=")
    return " ".join(word for word in words if not word.startswith(hidden))


def stack_sections() -> list[str]:
    """One section per recorded stack, in the order of tests/gpu/stacks.yml."""
    sections = []
    for name in _recorded():
        result = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
        plan = json.loads((RESULTS / f"{name}.plan.json").read_text("utf-8"))
        sections.append(table(result, plan))
    return sections


PARTS = ("context", "weights", "kv", "tables", "workspaces", "rest", "graphs", "resident", "under_load", "peak")
ALONE = """\
## Each part alone

One service alone on the card, one thing changed at a time: planned / measured, GiB. Constants of
[`catalog/overheads.yml`](../catalog/overheads.yml) come from here. Under SGLang `tables` is what it takes besides
weights and KV up to the end of its pools, `workspaces` what follows up to one request served; under vLLM `rest` is all
that it does not log, [what compilation leaves](design.md#the-memory-laws) among it, which was found with these figures
and is planned since. `under load` is what the process grew by, then.
"""


def alone_section(result: Mapping[str, Any]) -> str:
    """What each part of a process takes, by variant; a table for each card, driver and day."""
    order = {name: place for place, name in enumerate(_declared()["alone"])}
    found = sorted(result["variants"].items(), key=lambda item: order[item[0]])
    lines = [ALONE]
    for under in dict.fromkeys(conditions(variant) for _, variant in found):
        lines += [f"{under} Qwen2.5-3B-Instruct but where a name says otherwise.", ""]
        lines += [f"| | {' | '.join(part.replace('_', ' ') for part in PARTS)} |", f"|---|{'---|' * len(PARTS)}"]
        lines += [_alone_row(name, variant) for name, variant in found if conditions(variant) == under]
        lines.append("")
    return "\n".join(lines)


def _alone_row(name: str, variant: Mapping[str, Any]) -> str:
    parts = variant.get("parts", {})
    cells = [f"{parts[part]['planned']:.2f} / {parts[part]['measured']:.2f}" if part in parts else "" for part in PARTS]
    return f"| {name.replace('_', ' ')} | {' | '.join(cells)} |"


def tune_section(result: Mapping[str, Any]) -> str:
    """What was tried for one service, and what is kept by the rule of playbooks/benchmark.yml --tags tune."""
    now = result["trials"][0]
    lines = [
        "## What tuning tries, and keeps",
        "",
        result["about"],
        "",
        f"{conditions(result)} {_tune_text(result)}",
        "",
    ]
    lines += ["| | tokens/s | first token, ms (p99) | between tokens, ms | |", "|---|---|---|---|---|"]
    verdicts = {verdict["name"]: verdict["text"] for verdict in result["decision"]["verdicts"]}
    for trial in result["trials"]:
        figures = trial.get("medians")
        cells = (
            [f"{figures[key]:,.2f}" for key in ("tokens_per_s", "first_token_p99_ms", "between_tokens_ms")]
            if figures
            else [""] * 3
        )
        said = "as it was" if trial is now else verdicts.get(trial["name"], f"not tried: {trial.get('skipped')}")
        lines.append(f"| {trial['name']} | {' | '.join(cells)} | {said} |")
    return "\n".join([*lines, "", f"Kept: {result['decision']['winner'] or 'what it was'}.", ""])


def _tune_text(result: Mapping[str, Any]) -> str:
    load = result["load"]
    return (
        f"Median of {result['rounds']} rounds of {load['requests']} requests, {load['concurrency']} at once, of "
        f"{load['prompts'][0]} tokens in and {load['output']} out; trials on two GPUs of one host. Kept is what wins "
        f"by {100 * result['margin']:g}%, unless its first token (p99) is more than "
        f"{100 * result['first_token_margin']:g}% later."
    )


def _order() -> list[str]:
    return list(_declared()["stacks"])


def _declared() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "tests/gpu/stacks.yml").read_text("utf-8"))


def _recorded() -> list[str]:
    return [name for name in _order() if (RESULTS / f"{name}.json").exists()]


def page() -> str:
    """docs/performance.md."""
    comparison = json.loads((RESULTS / "comparison.json").read_text("utf-8"))
    not_run = [name for name in _order() if name not in _recorded()]
    alone = json.loads((RESULTS / "alone.json").read_text("utf-8"))
    parts = [INTRODUCTION, comparison_section(comparison), *stack_sections(), alone_section(alone)]
    if (RESULTS / "tune.json").exists():
        parts.append(tune_section(json.loads((RESULTS / "tune.json").read_text("utf-8"))))
    else:
        not_run.append("tune")
    not_run += [f"{name} (alone)" for name in _declared()["alone"] if name not in alone["variants"]]
    if not_run:
        parts.append(
            f"## Not run yet\n\nWhat `tests/gpu/stacks.yml` declares and has no result: {', '.join(not_run)}.\n"
        )
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
