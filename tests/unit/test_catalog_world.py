"""The catalogues of GPUs, drivers and images agree with each other and with NVIDIA's rules."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils.gpu_code import any_runs_on, capability

CATALOG = Path(__file__).resolve().parents[2] / "catalog"
MIB_PER_GIB = 1024


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((CATALOG / f"{name}.yml").read_text())


GPUS = load("gpus")["gpus"]
UNSIZED = load("gpus")["unsized"]
MARGIN = load("gpus")["safety_margin"]
DRIVERS = load("drivers")
IMAGES = load("images")["images"]
USABLE_IMAGES = {key: image for key, image in IMAGES.items() if "blocked" not in image}
ON_THE_BUS = [(pci_id, gpu) for gpu in GPUS.values() for pci_id in gpu["pci_ids"]] + list(UNSIZED.items())

# Chip families by the high digits of their PCI device ids (github.com/pciutils/pciids) and their compute capability
# (developer.nvidia.com/cuda-gpus). A longer prefix comes before a shorter one of the same start.
CAPABILITY_BY_ID = {
    "2b0": "11.0",  # GB10B, Thor
    "29": "10.0",  # GB100, GB102
    "31": "10.3",  # GB110
    "2b": "12.0",  # GB202
    "2c": "12.0",  # GB203
    "2d": "12.0",  # GB206, GB207
    "2f": "12.0",  # GB205
    "2e": "12.1",  # GB20B
    "23": "9.0",  # GH100
    "26": "8.9",  # AD102
    "27": "8.9",  # AD103, AD104
    "20": "8.0",  # GA100
    "22": "8.6",  # GA102
}
ARCHITECTURE_BY_CAPABILITY = {
    "8.0": "ampere", "8.6": "ampere", "8.9": "ada", "9.0": "hopper",
    "10.0": "blackwell", "10.3": "blackwell", "12.0": "blackwell", "12.1": "blackwell",
}  # fmt: skip


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in str(text).split("."))


def smallest_seen(gpu: dict[str, Any]) -> float:
    return min([gpu["cuda_visible_gib"], *gpu.get("cuda_visible_range", [])])


def estimate_by_size(memory_mib: int) -> float:
    """GiB that CUDA sees, by the rule at the top of gpus.yml, for a card without a measured one of its size."""
    return math.floor((memory_mib - max(520, 0.016 * memory_mib)) / MIB_PER_GIB * 100) / 100


@pytest.mark.parametrize(("pci_id", "gpu"), ON_THE_BUS, ids=lambda value: value if isinstance(value, str) else "")
def test_pci_id_and_capability_belong_to_one_chip(pci_id: str, gpu: dict[str, Any]) -> None:
    chip = next(prefix for prefix in CAPABILITY_BY_ID if pci_id.startswith(prefix))
    assert gpu["compute_capability"] == CAPABILITY_BY_ID[chip]


def test_a_host_can_tell_every_gpu_from_every_other() -> None:
    """By PCI id, and where two products share one, by subdevice or by what nvidia-smi reports."""
    seen: dict[tuple[str, str, int], str] = {}
    for key, gpu in GPUS.items():
        for pci_id in gpu["pci_ids"]:
            for subdevice in gpu.get("pci_subdevices", [""]):
                same = seen.setdefault((pci_id, subdevice, gpu["memory_mib"]), key)
                assert same == key, f"{key} and {same} look alike"
    assert not {pci_id for pci_id, _, _ in seen} & set(UNSIZED)


@pytest.mark.parametrize("key", GPUS)
def test_gpu_names_its_architecture_and_its_sources(key: str) -> None:
    gpu = GPUS[key]
    assert gpu["architecture"] == ARCHITECTURE_BY_CAPABILITY[gpu["compute_capability"]]
    assert gpu["source"]
    assert all(gpu["source"])


@pytest.mark.parametrize("key", GPUS)
def test_cuda_sees_less_than_the_card_has_and_the_margin_covers_what_drivers_differ_by(key: str) -> None:
    gpu = GPUS[key]
    if not gpu.get("integrated"):
        assert gpu["cuda_visible_gib"] * MIB_PER_GIB < gpu["memory_mib"]
    low, high = gpu.get("cuda_visible_range", [gpu["cuda_visible_gib"]] * 2)
    assert low <= gpu["cuda_visible_gib"] <= high
    assert gpu["cuda_visible_gib"] * (1 - MARGIN) < low


@pytest.mark.parametrize("key", [key for key, gpu in GPUS.items() if gpu["cuda_visible"] == "estimated"])
def test_estimate_follows_the_stated_rule(key: str) -> None:
    size = GPUS[key]["memory_mib"]
    measured = [g for g in GPUS.values() if g["cuda_visible"] == "measured" and g["memory_mib"] == size]
    expected = min(map(smallest_seen, measured)) if measured else estimate_by_size(size)
    assert GPUS[key]["cuda_visible_gib"] == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(
    "key", [k for k, g in GPUS.items() if g["cuda_visible"] == "measured" and not g.get("integrated")]
)
def test_rule_promises_no_more_than_any_measured_card_gave_and_little_less(key: str) -> None:
    estimate = estimate_by_size(GPUS[key]["memory_mib"])
    assert 0.98 * smallest_seen(GPUS[key]) <= estimate <= smallest_seen(GPUS[key])


def test_newer_cuda_never_runs_on_an_older_driver() -> None:
    minimums = sorted(DRIVERS["cuda_min_driver"].items(), key=lambda item: version(item[0]))
    ordered = [version(entry["min_driver"]) for _, entry in minimums]
    assert ordered == sorted(ordered)
    for cuda, entry in minimums:
        for update, needed in entry.get("updates", {}).items():
            assert update.startswith(f"{cuda}.")
            assert version(needed) > version(entry["min_driver"])
        floor = DRIVERS["minor_version_compatibility"][cuda.split(".")[0]]["min_driver"]
        assert version(floor) <= version(entry["min_driver"])


@pytest.mark.parametrize("branch", DRIVERS["branches"])
def test_branch_is_the_one_that_its_cuda_came_with(branch: str) -> None:
    needed = DRIVERS["cuda_min_driver"].get(DRIVERS["branches"][branch]["cuda"])
    if needed:
        assert version(needed["min_driver"])[0] == int(branch)


def test_default_branch_drives_every_gpu_and_lives_longest() -> None:
    default = DRIVERS["default_branch"]
    branches = DRIVERS["branches"]
    assert branches[default]["kind"] == "lts"
    assert branches[default]["blackwell"]
    assert branches[default]["end_of_life"] == max(entry.get("end_of_life", "") for entry in branches.values())
    for pci_id, gpu in ON_THE_BUS:
        first = gpu.get("first_drivers")
        if first:
            assert min(version(driver)[0] for driver in first) <= int(default), pci_id


@pytest.mark.parametrize("key", IMAGES)
def test_image_needs_the_driver_of_its_cuda(key: str) -> None:
    assert IMAGES[key]["min_driver"] == DRIVERS["cuda_min_driver"][IMAGES[key]["cuda"]]["min_driver"]


@pytest.mark.parametrize("key", USABLE_IMAGES)
def test_options_of_the_images_engine_version_are_recorded(key: str) -> None:
    image = IMAGES[key]
    path = CATALOG / "engine_flags" / f"{image['engine']}-{image['engine_version']}.yml"
    recorded = yaml.safe_load(path.read_text())
    assert (recorded["engine"], str(recorded["version"])) == (image["engine"], image["engine_version"])


@pytest.mark.parametrize("key", [key for key, image in IMAGES.items() if "libraries" in image])
def test_image_runs_where_each_of_its_libraries_runs(key: str) -> None:
    image = IMAGES[key]
    for text in ARCHITECTURE_BY_CAPABILITY:
        target = capability(text)
        lacking = [name for name, code in image["libraries"].items() if not any_runs_on(code, target)]
        assert any_runs_on(image["gpu_code"], target) == (not lacking), f"{text}: {lacking}"


@pytest.mark.parametrize("key", IMAGES)
def test_image_says_what_was_looked_up_and_what_was_not(key: str) -> None:
    image = IMAGES[key]
    assert image["verified"] or image["unverified"]
    assert image["source"]


def test_images_are_told_apart_by_reference() -> None:
    assert len({image["reference"] for image in IMAGES.values()}) == len(IMAGES)


def test_stock_image_of_2025_is_refused_on_blackwell_and_works_before_it() -> None:
    code = IMAGES["sglang-2025-09-stock"]["gpu_code"]
    refused = {text for text in ARCHITECTURE_BY_CAPABILITY if not any_runs_on(code, capability(text))}
    assert refused == {text for text, name in ARCHITECTURE_BY_CAPABILITY.items() if name == "blackwell"}


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
@pytest.mark.parametrize("key", GPUS)
def test_every_gpu_has_an_image_that_the_default_driver_runs(key: str, engine: str) -> None:
    """Whoever takes the default driver branch and a catalogued GPU is not left without an image."""
    gpu = GPUS[key]
    field = "gpu_code_arm64" if gpu.get("host") == "arm64" else "gpu_code"
    default = int(DRIVERS["default_branch"])
    fitting = [
        name
        for name, image in USABLE_IMAGES.items()
        if image["engine"] == engine
        and version(image["min_driver"])[0] <= default
        and any_runs_on(image.get(field, []), capability(gpu["compute_capability"]))
    ]
    assert fitting
