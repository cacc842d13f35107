"""Device memory of tensors, by PyTorch's caching allocator with fixed and with expandable segments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.blackwell.serving.plugins.module_utils.cuda_allocator import DEFAULT, EXPANDABLE, allocator_of

RESULTS = Path(__file__).resolve().parents[1] / "gpu/results"
MIB = 1 << 20


@pytest.mark.parametrize("allocator", [DEFAULT, EXPANDABLE])
@pytest.mark.parametrize("count", [1, 7, 44, 72])
@pytest.mark.parametrize("mib", [0.001, 0.3, 1, 1.1, 2.79, 5.1, 9.99, 10, 18.5, 46])
def test_equal_buffers_take_what_the_allocator_reserves(mib, count, allocator):
    size = int(mib * MIB)
    assert allocator.buffers(size, count) == allocator.reserved([size] * count)


@pytest.mark.parametrize(
    ("freed", "size", "count", "left"),
    [
        (593.5, 658, 36, 594),  # Qwen2.5-3B under vLLM, alone on a card: too large to fit
        (593.5, 256, 36, 82),  # two fit
        (1002, 16, 32, 490),  # Llama-3.1-8B for eight requests: all fit
        (594, 0.5, 48, 570),  # small ones are no exception
    ],
)
def test_later_buffers_fill_the_segment_of_a_freed_tensor(freed, size, count, left):
    assert DEFAULT.unfilled(int(freed * MIB), int(size * MIB), count) == left * MIB
    assert EXPANDABLE.unfilled(int(freed * MIB), int(size * MIB), count) == 0


@pytest.mark.parametrize("allocator", [DEFAULT, EXPANDABLE])
@pytest.mark.parametrize("step", [512, 100_000, MIB])
def test_larger_buffers_never_take_less_beside_a_freed_tensor(step, allocator):
    sizes = sorted(base * MIB + offset * step for base in (0, 1, 9, 16, 148, 296, 593) for offset in range(40))
    taken = [allocator.buffers(size, 36) + allocator.unfilled(594 * MIB, size, 36) for size in sizes]
    assert taken == sorted(taken)


def test_an_expandable_segment_wastes_less_than_its_last_step():
    tensors = [11 * MIB + 1, 9 * MIB, 3 * MIB, 512, 700_000]
    small, large = 512 + 700_416, 23 * MIB + 512
    assert EXPANDABLE.allocated(tensors) == small + large
    assert EXPANDABLE.reserved(tensors) == 2 * MIB + 40 * MIB
    assert DEFAULT.reserved(tensors) == (12 + 20 + 2) * MIB


@pytest.mark.parametrize(
    ("environment", "expandable"),
    [
        ({}, False),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, True),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512, expandable_segments:True"}, True),
        ({"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, False),
        ({"PYTORCH_CUDA_ALLOC_CONF": "roundup_power2_divisions:[256:1,512:2],expandable_segments:True"}, True),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512", "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, False),
    ],
)
def test_allocator_of_an_environment(environment, expandable):
    assert (allocator_of(environment) is EXPANDABLE) == expandable


@pytest.mark.parametrize("name", ["tinyllama", "qwen"])
def test_weights_in_expandable_segments_are_what_a_real_engine_took(name, make_plan):
    """The field notes' services, which turn them on, as measured on a GPU."""
    recorded = json.loads((RESULTS / "notes.plan.json").read_text())["services"]
    measured = json.loads((RESULTS / "notes.json").read_text())["services"][name]["measured"]
    service = next(service for service in recorded if service["name"] == name)
    assert service["environment"]["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    declared = {"name": name, "engine": "sglang", "model": service["model"], "port": 30001, "context_length": 2048}
    fixed = make_plan([declared])["services"][0]["memory"]
    expandable = make_plan([declared | {"environment": service["environment"]}])["services"][0]["memory"]
    assert expandable["weights"] == pytest.approx(measured["weights"], abs=0.006)
    assert fixed["weights"] > measured["weights"] + 0.03
