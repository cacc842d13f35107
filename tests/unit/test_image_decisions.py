"""Which images a plan needs, how locks are read and kept, and what of it all is refused."""

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.filter.engine_image import (
    engine_image_refusals,
    first_to_want,
    image_plan,
)
from ansible_collections.blackwell.serving.plugins.module_utils.image_decisions import ImageRefused, checked_locks
from ansible_collections.blackwell.serving.plugins.module_utils.image_reference import parse
from ansible_collections.blackwell.serving.plugins.plugin_utils.lock_file import read_locks, text_of, why_not_writable

SGLANG, VLLM = "lmsysorg/sglang:v0.5.19-cu129", "vllm/vllm-openai:v0.24.0-cu129"
DIGEST, OTHER = "sha256:" + "d" * 64, "sha256:" + "e" * 64


def plan(*images: str, capability: str = "12.0") -> dict:
    services = [
        {"image": image, "image_key": image, "engine": "vllm" if "vllm" in image else "sglang", "gpus": [0]}
        for image in images
    ]
    return {"gpus": [{"index": 0, "compute_capability": capability}], "services": services}


def wanted(*images: str, locks=None, archives=None, builds=None, **options) -> dict:
    return image_plan(plan(*images), locks or {}, archives or {}, builds or {}, "/archives", **options)


@pytest.mark.parametrize(
    ("text", "name", "tag", "digest", "registry"),
    [
        ("debian", "debian", "latest", None, "docker.io"),
        ("docker.io/library/debian:13", "debian", "13", None, "docker.io"),
        (f"{SGLANG}@{DIGEST}", "lmsysorg/sglang", "v0.5.19-cu129", DIGEST, "docker.io"),
        (f"localhost:5000/a/b@{DIGEST}", "localhost:5000/a/b", None, DIGEST, "localhost:5000"),
        ("registry.example/vllm:1", "registry.example/vllm", "1", None, "registry.example"),
    ],
)
def test_names_of_images(text, name, tag, digest, registry):
    reference = parse(text)
    assert (reference.name, reference.tag, reference.digest, reference.registry) == (name, tag, digest, registry)


@pytest.mark.parametrize("text", ["", "UPPER/case", "a b", "x@sha256:12", ":tag"])
def test_what_is_no_name(text):
    with pytest.raises(ValueError, match="no name of an image"):
        parse(text)


def test_services_with_one_image_need_it_once():
    found = wanted(SGLANG, VLLM, SGLANG)
    assert [image["reference"] for image in found["images"]] == [SGLANG, VLLM]
    assert found["unlocked"] == [SGLANG, VLLM]
    assert "torch" in {library["name"] for library in found["images"][0]["libraries"]}


@pytest.mark.parametrize("image", [SGLANG, f"{SGLANG}@{DIGEST}"])
def test_a_lock_counts_whether_or_not_the_plan_names_it(image):
    found = wanted(image, locks={SGLANG: {"digest": DIGEST}})
    assert [(image["reference"], image["lock"]) for image in found["images"]] == [(SGLANG, {"digest": DIGEST})]
    assert found["unlocked"] == []
    assert wanted(image, locks={SGLANG: {"digest": DIGEST}}, refresh=True)["unlocked"] == [SGLANG]


def test_a_digest_that_the_user_wrote_beats_a_lock_and_a_refresh():
    found = wanted(f"{SGLANG}@{OTHER}", locks={SGLANG: {"digest": DIGEST}}, refresh=True)
    assert found["images"][0]["lock"] == {"digest": OTHER}
    assert wanted(f"lmsysorg/sglang@{OTHER}", refresh=True)["unlocked"] == []


def test_further_images_are_brought_and_locked_and_their_code_is_not_judged():
    found = wanted(SGLANG, also=["debian:trixie-slim", f"docker.io/{SGLANG}"], locks={SGLANG: {"digest": DIGEST}})
    assert [(image["reference"], bool(image["libraries"])) for image in found["images"]] == [
        (SGLANG, True),
        ("debian:trixie-slim", False),
    ]
    assert found["unlocked"] == ["debian:trixie-slim"]
    assert "debian" not in found["repositories"]  # never pruned
    assert "no name of an image" in wanted(SGLANG, also=["a b"])["refused"]


def test_where_images_come_from():
    (loaded,) = wanted(SGLANG, archives={f"docker.io/{SGLANG}": "/srv/sglang.tar"})["images"]
    assert (loaded["source"], loaded["archive"]) == ("load", "/srv/sglang.tar")
    (copied,) = wanted(SGLANG, archives={SGLANG: {"src": "files/sglang.tar"}})["images"]
    assert (copied["archive"], copied["archive_follows"]) == ("/archives/sglang.tar", True)
    (present,) = wanted(SGLANG, locks={SGLANG: {"id": DIGEST}})["images"]
    assert (present["source"], present["lock"]) == ("present", {"id": DIGEST})
    (built,) = wanted(SGLANG, builds={SGLANG: {"recipe": "sglang-cu129"}})["images"]
    assert (built["source"], built["lock"], built["build"]["recipe"]) == ("build", {}, "sglang-cu129")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"locks": {SGLANG: {"digest": "sha256:12"}}}, ["serving_image_locks", SGLANG, "sha256:12"]),
        ({"locks": {SGLANG: "sha256"}}, ["serving_image_locks", "{digest: sha256:...}"]),
        ({"locks": {"NO": {"id": DIGEST}}}, ["serving_image_locks", "'NO'"]),
        ({"locks": [SGLANG]}, ["serving_image_locks", "not a dictionary"]),
        ({"archives": {SGLANG: ["x"]}}, ["engine_image_archives", SGLANG, "{src:"]),
        ({"builds": {SGLANG: {"recipe": "none"}}}, ["engine_image_builds", SGLANG, "catalog/builds.yml"]),
        (
            {"builds": {SGLANG: {"recipe": "sglang-cu129"}}, "archives": {SGLANG: "/x"}},
            ["engine_image_builds", "engine_image_archives"],
        ),
    ],
)
def test_what_cannot_be_had_is_refused(options, words):
    refused = wanted(SGLANG, **options)["refused"]
    for word in words:
        assert word in refused


def test_only_engines_and_the_plan_are_pruned():
    repositories = wanted("registry.example/mine/sglang:1")["repositories"]
    assert {"lmsysorg/sglang", "vllm/vllm-openai", "registry.example/mine/sglang"} <= set(repositories)


def test_each_unlocked_image_is_pulled_by_one_host():
    unlocked = {"a": [SGLANG], "b": [SGLANG, VLLM], "c": [VLLM]}
    assert {host: first_to_want(host, unlocked) for host in unlocked} == {"a": [SGLANG], "b": [VLLM], "c": []}
    assert first_to_want("gone", unlocked) == []


def test_the_lock_file_is_what_ansible_reads(tmp_path):
    path = tmp_path / "images.lock.yml"
    assert read_locks(path) == ("", {})
    locks = {VLLM: {"digest": OTHER}, SGLANG: {"digest": DIGEST}}
    path.write_text(text_of(locks))
    assert yaml.safe_load(path.read_text()) == {"serving_image_locks": locks}
    assert text_of(dict(reversed(locks.items()))) == text_of(locks)
    assert read_locks(path)[1] == checked_locks(locks)


@pytest.mark.parametrize("text", ["other: 1\n", "- 1\n", "serving_image_locks: {x: 1}\n", "{"])
def test_a_file_that_is_something_else_is_refused(tmp_path, text):
    path = tmp_path / "images.lock.yml"
    path.write_text(text)
    with pytest.raises(ImageRefused):
        read_locks(path)


def test_a_directory_that_would_hide_the_users_variables_is_not_made(tmp_path):
    (tmp_path / "group_vars").mkdir()
    path = tmp_path / "group_vars/all/images.lock.yml"
    assert why_not_writable(path) == ""
    (tmp_path / "group_vars/all.yml").write_text("a: 1\n")
    assert "group_vars/all.yml" in why_not_writable(path)
    assert "main.yml" in why_not_writable(path)


def facts(driver="580.95.05", gpus=()) -> dict:
    loaded = {"version": driver} if driver else None
    return {"gpus": list(gpus), "driver": {"loaded": loaded}, "os": {"deb_architecture": "amd64"}}


def found(*codes: str, reference=VLLM, cuda="12.9") -> dict:
    libraries = [
        {"name": name, "path": f"/lib/{name}.so", "codes": list(codes)}
        for name in ("torch", "vllm/_C", "vllm/_moe_C", "FlashAttention 2", "FlashAttention 3")
    ]
    known = {"id": OTHER, "digests": [DIGEST], "architecture": "amd64", "size_bytes": 1, "torch": "2.11.0"}
    return {"reference": reference, "present": True, "cuda": cuda, "libraries": libraries, **known}


def test_the_gate_judges_what_was_read_against_the_gpus_of_the_host():
    assert engine_image_refusals([found("sm_120")], plan(VLLM), facts(), {}) == []
    (torch, *_) = engine_image_refusals([found("sm_90")], plan(VLLM), facts(), {})
    assert "sm_120" in torch
    assert "torch" in torch
    hopper = [{"index": 0, "compute_capability": "9.0"}]
    assert engine_image_refusals([found("sm_90")], plan(VLLM), facts(gpus=hopper), {}) == []
    (driver,) = engine_image_refusals([found("sm_120", cuda="13.0")], plan(VLLM), facts("575.64.05"), {})
    assert "575.64.05" in driver
    (lock,) = engine_image_refusals([found("sm_120")], plan(VLLM), facts(), {VLLM: {"digest": OTHER}})
    assert "serving_image_locks" in lock


def test_an_image_that_is_still_to_come_is_not_judged():
    absent = found("sm_90") | {"present": False}
    assert engine_image_refusals([absent], plan(VLLM), facts(), {}) == []
