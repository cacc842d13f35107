#!/usr/bin/env python3
"""Write what the GPU box needs besides the engines: plans, models without weights, signatures of failures.

    prepare.py OUT

Runs where the collection is (PyYAML alone is needed). For every stack and every card of stacks.yml,
OUT/plans/CARD/STACK.json is the planner's own plan.json for a card of which all but `shown_gib` is held by
others; OUT/models/ has a config.json, from the catalogue, and a toy tokenizer of each model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / ".collections"))

from ansible_collections.blackwell.serving.plugins.module_utils.catalog_view import Catalog  # noqa: E402
from ansible_collections.blackwell.serving.plugins.module_utils.memory_plan import plan_host  # noqa: E402
from ansible_collections.blackwell.serving.plugins.module_utils.tuning import candidates  # noqa: E402
from ansible_collections.blackwell.serving.plugins.plugin_utils.catalog_files import load_catalog  # noqa: E402

OUTPUT_TOKENS = 64
PROMPTS = (128, 512, 1024, 3500)
ROUNDS = 4  # requests per place that the service has
# What engines read from config.json and what sizes no memory; the values are the models' own, or the architecture's.
COMPLETED = {
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "attention_dropout": 0.0,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TOKENIZER = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
}


def load_stacks() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("stacks.yml").read_text(encoding="utf-8"))


def declaration(
    services: list[dict[str, Any]], card: Mapping[str, Any], shown: float, catalog: Catalog
) -> dict[str, Any]:
    """For a card that shows `shown` GiB before any context; the first service sees less by its own."""
    context = catalog.overhead("context", services[0]["engine"], "gib")
    return {"gpus": [{**card, "measured_free_gib": round(shown - context, 3)}], "services": services}


def plan(services: list[dict[str, Any]], card: Mapping[str, Any], shown: float, catalog: Catalog) -> dict[str, Any]:
    return plan_host("acceptance", declaration(services, card, shown, catalog), catalog)


def trials(tune: Mapping[str, Any], card: Mapping[str, Any], shown: float, catalog: Catalog) -> list[dict[str, Any]]:
    """What the service has now, and the candidates of catalog/tuning.yml: {name, plan, skipped}."""
    service, tuning = tune["service"], yaml.safe_load((ROOT / "catalog/tuning.yml").read_text(encoding="utf-8"))
    engine = catalog.image(service["image"], service["engine"])
    known = {"engine": service["engine"], "engine_version": engine.engine_version, "extra_args": tune["tuned"]}
    declared = {**declaration([service], card, shown, catalog), "tuned": {service["name"]: known}}
    found = [{"name": "as it is", "plan": plan_host("acceptance", declared, catalog), "skipped": ""}]
    for one in candidates("acceptance", declared, catalog, tuning, service["name"]):
        found.append({"name": one["name"], "plan": one["plan"], "skipped": one["skipped"]})
    return found


def load_of(service: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Prompts up to the longest that fits, as many requests at once as the service takes."""
    longest = min(service["context_length"], service["kv_tokens"]) - OUTPUT_TOKENS - 16
    return {
        "prompts": sorted({min(prompt, longest) for prompt in PROMPTS}),
        "output": OUTPUT_TOKENS,
        "requests": ROUNDS * service["max_concurrency"],
        "concurrency": service["max_concurrency"],
        **wanted,
    }


def bytes_as_text() -> list[str]:
    """GPT-2's printable characters for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def toy_tokenizer(vocabulary: int) -> dict[str, Any]:
    """Bytes, and as many made-up words as the model has ids, so that whatever it answers can be written out."""
    special = ["<unk>", "<s>", "</s>"]
    words = [*special, *bytes_as_text()]
    words += [f"word{number}" for number in range(len(words), vocabulary)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    added = [
        {"id": index, "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for index, word in enumerate(special)
    ]
    model = {"type": "BPE", "unk_token": "<unk>", "vocab": {word: index for index, word in enumerate(words)}}
    model |= {"merges": [], "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    return {"version": "1.0", **empty, "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}


def write_model(folder: Path, config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        "config.json": COMPLETED | dict(config),
        "generation_config.json": {},
        "tokenizer_config.json": TOKENIZER | {"model_max_length": config["max_position_embeddings"]},
        "tokenizer.json": toy_tokenizer(config["vocab_size"]),
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def main() -> None:
    out, catalog, declared = Path(sys.argv[1]), load_catalog(), load_stacks()
    stacks = declared["stacks"]
    singles = {name: {"services": [service]} for name, service in declared["comparison"]["variants"].items()}
    alone = {f"alone_{name}": variant for name, variant in declared["alone"].items()}
    models: dict[str, str] = {}
    for product, card in declared["gpus"].items():
        folder = out / "plans" / product
        folder.mkdir(parents=True, exist_ok=True)
        tried = trials(declared["tune"], card, declared["shown_gib"], catalog)
        (folder / "tune.json").write_text(json.dumps(tried, indent=1) + "\n", encoding="utf-8")
        for name, stack in {**stacks, **singles, **alone}.items():
            made = plan(stack["services"], card, declared["shown_gib"], catalog)
            if made["verdict"] != "fits":
                sys.exit(f"{name} on {product}: {json.dumps(made['errors'], indent=1)}")
            (folder / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            if name in alone:
                service = made["services"][0]
                stack["load"] = load_of(service, {"requests": 2 * service["max_concurrency"], **stack.get("load", {})})
                continue
            stack["load"] = {
                service["name"]: load_of(service, stack.get("load", {}).get(service["name"], {}))
                for service in made["services"]
            }
            models |= {service["model"]: service["model"].rsplit("/", 1)[-1].lower() for service in made["services"]}
    for name, folder in models.items():
        write_model(out / "models" / folder, catalog.models["models"][name]["config"])
    failures = yaml.safe_load((ROOT / "catalog/failures.yml").read_text(encoding="utf-8"))
    (out / "failures.json").write_text(json.dumps(failures["failures"]), encoding="utf-8")
    (out / "models.json").write_text(json.dumps(models), encoding="utf-8")
    kept = {key: declared[key] for key in ("shown_gib", "stacks", "comparison", "alone", "tune")}
    (out / "stacks.json").write_text(json.dumps(kept, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
