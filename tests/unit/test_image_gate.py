"""Whether an image may start on a GPU. The images are made up; all else is the catalogue's."""

from typing import Any

import pytest
from ansible_collections.blackwell.serving.plugins.filter import image_decisions
from ansible_collections.blackwell.serving.plugins.module_utils.gpu_code import any_runs_on, capability
from ansible_collections.blackwell.serving.plugins.module_utils.image_gate import judged_on
from ansible_collections.blackwell.serving.plugins.plugin_utils import host_catalog

START_PATH = host_catalog.read_catalog("start_path")["start_path"]
LEFT_OUT = host_catalog.read_catalog("start_path")["left_out"]
IMAGES = host_catalog.read_catalog("images")["images"]
CAPABILITIES = {gpu["compute_capability"] for gpu in host_catalog.gpus().values()}
DIGEST, ID = "sha256:" + "a" * 64, "sha256:" + "b" * 64
BLACKWELL = ["sm_80", "sm_90", "sm_100", "sm_120"]
FA2 = ["sm_80", "compute_80"]


def image(engine: str = "vllm", cuda: str | None = "12.9", codes: dict[str, Any] | None = None, **changes) -> dict:
    """An image whose libraries are those of the start path, with code for Blackwell unless `codes` says otherwise."""
    codes = {"FlashAttention 2": FA2, "FlashAttention 3": ["sm_90a"]} | (codes or {})
    libraries = []
    for library in START_PATH[engine]:
        found = codes.get(library["name"], BLACKWELL)
        path = None if found is None else f"/packages/{library['files'][0]}"
        libraries.append({"name": library["name"], "path": path, "codes": found or []})
    made = {"reference": "registry.example/engine:1", "id": ID, "digests": [DIGEST], "architecture": "amd64"}
    return made | {"cuda": cuda, "torch": None, "size_bytes": 1, "libraries": libraries} | changes


def refusals(judged: dict, engine: str = "vllm", capabilities=("12.0",), driver="580.95.05", **wanted) -> list[str]:
    options = {"key": "my-image", "engine": engine, "capabilities": list(capabilities), "driver": driver} | wanted
    return image_decisions.image_refusals(judged, **options)


@pytest.mark.parametrize("engine", START_PATH)
@pytest.mark.parametrize("target", ["9.0", "10.0", "10.3", "12.0", "12.1"])
def test_an_image_that_has_everything_may_start(engine, target):
    assert refusals(image(engine), engine, [target]) == []


def test_a_library_without_code_is_named_with_what_it_has_and_what_would_do():
    (text,) = refusals(image(codes={"vllm/_moe_C": ["sm_80", "sm_90a"]}))
    assert "my-image (registry.example/engine:1)" in text
    assert "vllm/_moe_C (/packages/vllm/_moe_C" in text
    assert "sm_120" in text
    assert "sm_80, sm_90a" in text
    assert text.endswith("run there: vllm-cu129, vllm-0.24, vllm-cu130, vllm-0.10.1")


def test_every_library_and_every_capability_has_its_own_message():
    old = image(codes={"torch": ["sm_90"], "vllm/_C": ["sm_90"]})
    told = [text.partition(";")[0] for text in refusals(old, capabilities=["12.0", "10.0", "9.0", "12.0"])]
    assert [(" torch (" in text, text.rpartition("_")[2]) for text in told] == [
        (True, "100"),
        (False, "100"),
        (True, "120"),
        (False, "120"),
    ]


@pytest.mark.parametrize(
    ("codes", "target", "runs"),
    [
        (["sm_120a"], "12.0", True),
        (["sm_120a"], "12.1", False),
        (["sm_120f"], "12.1", True),
        (["sm_120"], "12.1", True),
        (["sm_100f"], "12.0", False),
        (["sm_90", "compute_90"], "12.0", True),
        (["sm_90a", "compute_90a"], "12.0", False),
        ([], "12.0", False),
    ],
)
def test_code_counts_by_nvidias_rules(codes, target, runs):
    assert (refusals(image(codes={"vllm/_C": codes}), capabilities=[target]) == []) == runs


def test_a_library_that_this_gpu_never_uses_is_not_judged():
    """FlashAttention 3 has nothing for Blackwell, and is used on Hopper alone."""
    assert refusals(image(codes={"FlashAttention 3": None})) == []
    (text,) = refusals(image(codes={"FlashAttention 3": None}), capabilities=["9.0"])
    assert "has no FlashAttention 3" in text
    assert "vllm_flash_attn/_vllm_fa3_C.abi3.so" in text


def test_a_library_that_arm_wheels_lack_is_not_asked_of_arm_images():
    without = image("sglang", codes={"FlashAttention 3": None})
    assert len(refusals(without, "sglang", ["9.0"])) == 1
    assert refusals(without | {"architecture": "arm64"}, "sglang", ["9.0"]) == []


def test_sglang_loads_another_library_on_hopper():
    for_hopper_only = {"sgl_kernel": ["sm_90a"], "sgl_kernel for Hopper": ["sm_90a"]}
    assert refusals(image("sglang", codes=for_hopper_only), "sglang", ["9.0"]) == []
    (text,) = refusals(image("sglang", codes=for_hopper_only), "sglang", ["12.0"])
    assert ": sgl_kernel (" in text


def test_a_missing_library_is_a_refusal_and_so_is_one_that_nobody_looked_for():
    (text,) = refusals(image(codes={"torch": None}))
    assert "has no torch, which vllm needs" in text
    assert "torch/lib/libtorch_cuda.so" in text
    assert len(refusals(image(libraries=[]))) == len(
        [each for each in START_PATH["vllm"] if judged_on(each, "12.0", "amd64")]
    )


def test_all_files_of_a_library_must_run():
    """A version between two layouts has both, and loads both."""
    judged = image()
    judged["libraries"].append({"name": "vllm/_C", "path": "/packages/vllm/_C.abi3.so", "codes": ["sm_90"]})
    (text,) = refusals(judged)
    assert "/packages/vllm/_C.abi3.so" in text


@pytest.mark.parametrize(
    ("cuda", "driver", "words"),
    [
        ("12.9", "575.51.03", None),
        ("12.9", "580.95.05", None),
        ("13.0", "580.65.06", None),
        ("13.0", "575.64.05", ["CUDA 13.0", "580.65.06", "575.64.05 is loaded", "vllm-cu129"]),
        ("13.2", "595.45.04", None),
        ("12.4", "580.95.05", None),
        ("14.0", "580.95.05", ["14.0", "not in catalog/drivers.yml"]),
        (None, "580.95.05", ["does not tell its CUDA version"]),
        ("12.9", None, ["no driver is loaded"]),
    ],
)
def test_cuda_within_reach_of_the_driver(cuda, driver, words):
    told = refusals(image(cuda=cuda), driver=driver)
    assert len(told) == (words is not None)
    assert all(word in told[0] for word in words or [])


def test_below_the_drivers_own_cuda_only_machine_code_counts():
    """Minor version compatibility: such a driver runs machine code, and cannot compile newer PTX."""
    assert refusals(image("sglang", cuda="12.9"), "sglang", driver="570.124.06") == []
    (text,) = refusals(image(cuda="12.9"), driver="570.124.06")
    assert "FlashAttention 2" in text
    assert "575.51.03" in text
    assert refusals(image(cuda="12.9", codes={"FlashAttention 2": BLACKWELL}), driver="570.124.06") == []


@pytest.mark.parametrize(
    ("lock", "found"),
    [
        (None, None),
        ({"digest": DIGEST}, None),
        ({"id": ID}, None),
        ({"digest": "sha256:" + "c" * 64}, DIGEST),
        ({"id": "sha256:" + "c" * 64}, ID),
    ],
)
def test_the_image_is_the_one_that_was_locked(lock, found):
    told = refusals(image(), lock=lock)
    assert len(told) == (found is not None)
    if found:
        assert "sha256:" + "c" * 64 in told[0]
        assert found in told[0]
        assert "serving_image_locks" in told[0]


def test_a_built_image_is_not_one_with_a_digest():
    (text,) = refusals(image(digests=[]), lock={"digest": DIGEST})
    assert "did not come from a registry" in text


@pytest.mark.parametrize(
    ("machine", "refused"), [("x86_64", False), ("amd64", False), ("aarch64", True), (None, False)]
)
def test_the_image_is_for_the_hosts_processors(machine, refused):
    told = refusals(image(), machine=machine)
    assert bool(told) == refused
    assert not refused or ("amd64" in told[0] and "arm64" in told[0])


def test_on_arm_hosts_other_images_would_do():
    (text,) = refusals(
        image(architecture="arm64", codes={"torch": ["sm_90"]}), capabilities=["12.1"], machine="aarch64"
    )
    named = text.rpartition(": ")[2].split(", ")
    assert named
    assert all(any_runs_on(IMAGES[key]["gpu_code_arm64"], capability("12.1")) for key in named)
    assert "vllm-0.10.1" not in named


def test_several_reasons_are_told_at_once():
    old = image(cuda="13.0", codes={"torch": ["sm_90"]})
    assert len(refusals(old, driver="575.64.05", lock={"id": DIGEST}, machine="aarch64")) == 4


def test_an_image_that_is_named_by_its_reference_is_named_once():
    (text,) = refusals(image(architecture="arm64"), key="registry.example/engine:1", machine="x86_64")
    assert text.count("registry.example/engine:1") == 1


@pytest.mark.parametrize("engine", START_PATH)
def test_the_start_path_is_about_gpus_that_the_catalogue_knows(engine):
    """Every capability has torch and a kernel library of the engine, and no library is for an unknown capability."""
    for target in CAPABILITIES:
        used = [library["name"] for library in START_PATH[engine] if judged_on(library, target, "arm64")]
        assert "torch" in used
        assert any(name.startswith(("sgl_kernel", "vllm/")) for name in used), target
    for library in START_PATH[engine]:
        assert set(library.get("only_on", [])) <= CAPABILITIES | {"9.0", "11.0"}
        assert library["source"]
        assert image_decisions.start_path(engine)[0].keys() == {"name", "files"}
    assert set(LEFT_OUT) == set(START_PATH)


@pytest.mark.parametrize("key", IMAGES)
def test_catalogue_and_gate_agree(key):
    """An image of which the catalogue knows the libraries runs by its list where it runs by theirs."""
    entry = IMAGES[key]
    for target in ("9.0", "10.0", "12.0", "12.1"):
        known = [any_runs_on(codes, capability(target)) for codes in entry.get("libraries", {}).values()]
        if known:
            assert any_runs_on(entry["gpu_code"], capability(target)) == all(known), target
