"""A bundle: pieces that travel, a manifest that refuses damage, and whether a bundle fits a host."""

import json
import os
import re
from pathlib import Path

import pytest
from ansible_collections.blackwell.serving.plugins.filter import bundle as filters
from ansible_collections.blackwell.serving.plugins.module_utils import (
    apt_bundle,
    bundle_fit,
    bundle_manifest,
    model_archive,
)
from ansible_collections.blackwell.serving.plugins.module_utils.bundle_store import (
    BundleError,
    Store,
    digest_of,
    pieces,
)
from ansible_collections.blackwell.serving.plugins.module_utils.hub_download import complete, write_marker

CONTENTS = {"packages/debian13-amd64/a.deb": b"a" * 700, "images/amd64/engine.tar": b"e" * 5000, "models/m/empty": b""}


def tree(root: Path, contents=None) -> Path:
    for path, data in (contents or CONTENTS).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def listed(root: Path) -> list[dict]:
    return [{"path": path, "size": (root / path).stat().st_size, "sha256": digest_of(root / path)} for path in CONTENTS]


def send(source: Path, store: Store, piece: Path, most: int, stop_after: int | None = None) -> int:
    """Carry what the store lacks, piece by piece; how many pieces went."""
    parcels = pieces(store.missing(listed(source)), most)[:stop_after]
    for segments in parcels:
        with piece.open("wb") as stream:
            for segment in segments:
                data = (source / segment["path"]).read_bytes()
                stream.write(data[segment["offset"] : segment["offset"] + segment["length"]])
        store.write_piece(str(piece), segments)
    return len(parcels)


# Pieces


@pytest.mark.parametrize("most", [1, 999, 1000, 1 << 20])
def test_files_arrive_whole_in_pieces_of_any_size(tmp_path, most):
    source, store = tree(tmp_path / "source"), Store(str(tmp_path / "host"))
    most = max(most, 100)
    send(source, store, tmp_path / "piece", most)
    assert store.missing(listed(source)) == []
    assert {path: (tmp_path / "host" / path).read_bytes() for path in CONTENTS} == CONTENTS
    assert not list((tmp_path / "host").rglob("*.part"))


def test_what_was_cut_off_goes_on_with_the_piece_that_is_missing(tmp_path):
    source, host = tree(tmp_path / "source"), str(tmp_path / "host")
    whole = send(source, Store(str(tmp_path / "other")), tmp_path / "piece", 1000)
    first = send(source, Store(host), tmp_path / "piece", 1000, stop_after=3)
    rest = send(source, Store(host), tmp_path / "piece", 1000)
    assert first + rest == whole
    assert Store(host).missing(listed(source)) == []


def test_a_file_that_arrives_damaged_is_refused_and_asked_for_again(tmp_path):
    source, store = tree(tmp_path / "source"), Store(str(tmp_path / "host"))
    (segments,) = pieces(store.missing(listed(source)), 1 << 20)
    (tmp_path / "piece").write_bytes(b"a" * 699 + b"X" + b"e" * 5000)
    with pytest.raises(BundleError, match=r"a\.deb arrived damaged: expected SHA-256 \w{64}, found \w{64}"):
        store.write_piece(str(tmp_path / "piece"), segments)
    assert [file["have"] for file in store.missing(listed(source))] == [0, 0, 0]


def test_a_file_that_was_changed_on_the_host_is_missing_again(tmp_path):
    source, host = tree(tmp_path / "source"), tmp_path / "host"
    store = Store(str(host))
    send(source, store, tmp_path / "piece", 1 << 20)
    store.save()
    (host / "images/amd64/engine.tar").write_bytes(b"f" * 5000)
    os.utime(host / "images/amd64/engine.tar", (1, 1))
    assert [file["path"] for file in Store(str(host)).missing(listed(source))] == ["images/amd64/engine.tar"]


def test_files_of_an_older_bundle_are_stale_and_parts_of_this_one_are_not(tmp_path):
    store = Store(str(tree(tmp_path, {"old/x": b"x", "new/y.part": b"y", ".verified.json": b"{}"})))
    assert store.stale(["new/y"]) == ["old/x"]
    store.remove(["old/x"])
    assert not (tmp_path / "old").exists()


@pytest.mark.parametrize("path", ["../etc/passwd", "/etc/passwd", "a/../../b", "a//b", ""])
def test_no_path_leads_out_of_the_directory(tmp_path, path):
    with pytest.raises(BundleError, match="no path inside a bundle"):
        Store(str(tmp_path)).missing([{"path": path, "size": 1, "sha256": "0"}])


def test_pieces_are_read_as_they_are_written(tmp_path):
    source, store = tree(tmp_path / "maker"), Store(str(tmp_path / "control"))
    for segments in pieces(store.missing(listed(source)), 1500):
        Store(str(source)).read_piece(str(tmp_path / "piece"), segments)
        store.write_piece(str(tmp_path / "piece"), segments)
    assert store.missing(listed(source)) == []


# Manifest


@pytest.fixture
def bundle(tmp_path) -> Path:
    root = tree(tmp_path / "bundle")
    parts = {"systems": {}, "images": {}, "models": [], "control": {}}
    _, text = bundle_manifest.written(root, parts, "2026-11-25T00:00:00Z", "blackwell.serving 0.1.0")
    (root / "manifest.json").write_text(text)
    return root


def verify(root: Path, sha256: str = "") -> None:
    manifest, _ = bundle_manifest.read(root, sha256)
    bundle_manifest.refuse_damage(root, manifest)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGE = {
    "a flipped bit": (lambda root: flip(root / "images/amd64/engine.tar"), r"engine\.tar: expected SHA-256 \w+, found"),
    "cut off": (lambda root: os.truncate(root / "packages/debian13-amd64/a.deb", 699), "expected 700 bytes, found 699"),
    "missing": (lambda root: (root / "models/m/empty").unlink(), "models/m/empty: missing"),
    "foreign": (lambda root: (root / "images/more").write_text("x"), "images/more: not in the manifest"),
    "a link": (
        lambda root: ((root / "models/m/empty").unlink(), (root / "models/m/empty").symlink_to("/dev/null")),
        "models/m/empty: is no plain file",
    ),
    "a linked directory": (lambda root: (root / "other").symlink_to("/etc"), "other: not in the manifest"),
    "no JSON": (lambda root: (root / "manifest.json").write_text('{"schema"'), "is damaged"),
    "another schema": (lambda root: (root / "manifest.json").write_text('{"schema": 2}'), "of schema 2"),
    "none": (lambda root: (root / "manifest.json").unlink(), "is no bundle"),
}


def test_a_sound_bundle_is_taken_and_every_byte_was_read(bundle):
    seen = []
    manifest, sha256 = bundle_manifest.read(bundle)
    bundle_manifest.refuse_damage(bundle, manifest, seen.append)
    assert sum(seen) == bundle_manifest.total_bytes(manifest) == 5700
    verify(bundle, f"sha256:{sha256.upper()}".replace("SHA256:", "sha256:"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_with_the_file_and_what_was_expected(bundle, damage):
    spoil, said = DAMAGE[damage]
    spoil(bundle)
    with pytest.raises(BundleError, match=said):
        verify(bundle)


def test_the_manifest_must_be_the_demanded_one(bundle):
    with pytest.raises(BundleError, match="not the expected one: serving_bundle_sha256 is 00"):
        verify(bundle, "00" * 32)


# Fit


FACTS = {
    "os": {"id": "debian", "version_id": "13", "deb_architecture": "amd64", "name": "Debian 13"},
    "kernel": {"release": "6.12.57+deb13-amd64"},
    "packages": {"dkms": "3.2"},
}
SYSTEM = {
    "kernels": ["6.12.48+deb13-amd64"],
    "packages": {"nvidia-driver-cuda": ["595.91.07-1"], "linux-headers-6.12.48+deb13-amd64": ["1"]},
    "sources": [],
}
IMAGE = {"archive": "images/amd64/e.tar", "digest": "sha256:" + "1" * 64, "id": "sha256:" + "2" * 64, "size_bytes": 9}
MANIFEST = {
    "systems": {"debian13-amd64": SYSTEM},
    "images": {"amd64": {"example/engine:1": IMAGE}},
    "models": [{"name": "a/b", "revision": "main"}],
    "files": {"images/amd64/e.tar": {"size": 9, "sha256": "3" * 64}},
}
OTHER_BRANCH = {"name": "nvidia-driver-cuda", "version": "580.*"}
NEEDED = {"images": [{"reference": "example/engine:1"}], "models": [{"name": "a/b", "revision": "main"}]}


def lacks(facts=FACTS, wishes=None, needed=NEEDED, locks=None) -> str:
    system = filters.bundle_system(facts)
    return "\n".join(bundle_fit.lacking(MANIFEST, system, facts, wishes or {}, needed, locks or {}))


def test_a_bundle_fits_what_it_was_made_for():
    wishes = {"nvidia_driver": [{"name": "nvidia-driver-cuda", "version": "595.*"}, "dkms"]}
    assert lacks(wishes=wishes, locks={"example/engine:1": {"digest": IMAGE["digest"]}}) == ""


@pytest.mark.parametrize(
    ("wanting", "said"),
    [
        ({"wishes": {"nvidia_driver": [OTHER_BRANCH]}}, r"no nvidia-driver-cuda 580\.\*.*it has 595"),
        ({"wishes": {"nvidia_driver": ["linux-headers-6.12.57+deb13-amd64"]}}, "Add that to serving_bundle_kernels"),
        ({"facts": FACTS | {"os": FACTS["os"] | {"version_id": "12"}}}, "debian13-amd64, and this host is debian12"),
        ({"facts": FACTS | {"os": FACTS["os"] | {"deb_architecture": "arm64"}}}, "this host is debian13-arm64"),
        ({"needed": NEEDED | {"images": [{"reference": "o/e:2"}]}}, "no image o/e:2 for amd64; it has example/engine"),
        ({"needed": NEEDED | {"models": [{"name": "a/c", "revision": "v2"}]}}, r"no model a/c \(v2\); it has a/b"),
        ({"locks": {"example/engine:1": {"digest": "sha256:" + "9" * 64}}}, "the inventory locks sha256:999"),
    ],
)  # fmt: skip
def test_what_a_host_needs_and_the_bundle_lacks_is_named(wanting, said):
    assert re.search(said, lacks(**wanting))


def test_what_services_need_is_known_without_a_plan():
    services = [
        {"name": "q", "engine": "sglang", "image": "sglang-cu129", "model": "Qwen/Qwen2.5-3B-Instruct"},
        {"name": "r", "engine": "sglang", "model": {"name": "own/model", "config": {}}, "revision": "v1"},
        {"name": "d", "engine": "vllm", "model": "/srv/models/own"},
    ]
    needed = filters.bundle_needs(services, also=["docker.io/library/debian:trixie-slim"])
    assert [image["reference"] for image in needed["images"]] == [
        "lmsysorg/sglang:v0.5.19-cu129",
        "vllm/vllm-openai:v0.24.0-cu129",
        "debian:trixie-slim",
    ]
    assert [(model["name"], model["revision"]) for model in needed["models"]] == [
        ("Qwen/Qwen2.5-3B-Instruct", "main"),
        ("own/model", "v1"),
    ]


def test_an_image_that_is_named_by_digest_alone_is_refused():
    image = {"reference": "x/y@sha256:" + "1" * 64, "engine_version": "0.5.19", "cuda": "12.9", "gpu_code": ["sm_120"]}
    with pytest.raises(filters.AnsibleFilterError, match=r"service 'q', image: .*an archive keeps no digest"):
        filters.bundle_needs([{"name": "q", "engine": "sglang", "image": image, "model": "a/b"}])


def test_a_host_is_sent_what_it_needs_and_nothing_else():
    _, image, model = bundle_fit.groups(MANIFEST, "debian13-amd64", "amd64", NEEDED, "serving_cache")
    assert [file["path"] for file in image["files"]] == ["images/amd64/e.tar"]
    assert image["image"] == {"reference": "example/engine:1", "id": IMAGE["id"]}
    assert model["model"] == {"name": "a/b", "revision": "main", "volume": "serving_cache"}
    assert bundle_fit.loaded_images(MANIFEST, "amd64", NEEDED, "/srv/b") == {
        "archives": {"example/engine:1": {"once": "/srv/b/images/amd64/e.tar"}},
        "locks": {"example/engine:1": {"id": IMAGE["id"]}},
    }


# apt. The texts are apt 3.0's own, printed by a Debian 13 test host for a made-up mirror.

URIS = """Reading package lists...
'http://mirror/debian/pool/main/d/dkms/dkms_3.2.2-1%7edeb13u1_all.deb' dkms_3.2.2-1~deb13u1_all.deb 60084 MD5Sum:ea15
'http://mirror/nvidia/debian13/x86_64/./nvidia-open_610.57.04-1_amd64.deb' nvidia-open_610.57.04-1_amd64.deb 658 MD5:b
'http://mirror/debian/pool/main/m/mokutil_0.7.2_amd64.deb' mokutil_2%3a0.7.2_amd64.deb 10 SHA256:aa
"""
TARGETS = (
    "Packages|main/binary-amd64/Packages|/l/mirror_debian_dists_trixie_main_binary-amd64_Packages.lz4|http://mirror/debian/"
    "|http://mirror/debian/dists/trixie/|trixie|main|amd64|/usr/share/keyrings/debian-archive-keyring.gpg\n"
    "Translations|main/i18n/Translation-en|/l/x|http://mirror/debian/|http://mirror/debian/dists/trixie/|trixie|main||\n"
    "Packages|Packages|/l/mirror_nvidia_debian13_x86%5f64_Packages|http://mirror/nvidia/debian13/x86_64/"
    "|http://mirror/nvidia/debian13/x86_64/||$(COMPONENT)|$(ARCHITECTURE)|/etc/apt/keyrings/own.gpg\n"
)


def test_archives_and_their_places_are_read_from_what_apt_prints():
    archives = apt_bundle.parse_uris(URIS)
    assert [(archive["package"], archive["version"]) for archive in archives] == [
        ("dkms", "3.2.2-1~deb13u1"),
        ("nvidia-open", "610.57.04-1"),
        ("mokutil", "2:0.7.2"),
    ]
    targets = apt_bundle.parse_targets(TARGETS)
    names = apt_bundle.repository_names(targets, {"http://mirror/nvidia": "nvidia"})
    assert names == {
        "http://mirror/debian/": "distribution/mirror_debian",
        "http://mirror/nvidia/debian13/x86_64/": "nvidia/debian13/x86_64",
    }
    assert [apt_bundle.place_of(archive["uri"], names)[1] for archive in archives[:2]] == [
        "pool/main/d/dkms/dkms_3.2.2-1~deb13u1_all.deb",
        "./nvidia-open_610.57.04-1_amd64.deb",
    ]


def test_an_index_is_the_compression_that_the_release_file_lists_first_in_apt_s_order():
    release = "Origin: x\nMD5Sum:\n 00 1 Packages.xz\nSHA256:\n aa 851 Packages\n bb 414 Packages.gz\nSigned: no\n"
    assert apt_bundle.listed_index(release, "Packages") == ("Packages.gz", "bb")
    assert apt_bundle.listed_index(release, "main/Packages") is None


def test_a_source_for_each_suite_names_the_directory_and_the_key_that_came_along():
    targets = apt_bundle.parse_targets(TARGETS)
    sources = apt_bundle.sources_of(targets, apt_bundle.repository_names(targets, {}))
    assert [apt_bundle.own_key(source["signed_by"]) for source in sources] == [None, "keys/own.gpg"]
    sources[1]["signed_by"] = "keys/own.gpg"
    suite, flat = bundle_fit.apt_source(sources, "/srv/b").split("\n\n")
    assert "URIs: file:/srv/b/distribution/mirror_debian\nSuites: trixie\nComponents: main\n" in suite
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in suite
    assert "Suites: /\n" in flat
    assert "Components" not in flat
    assert "Signed-By: /srv/b/keys/own.gpg\n" in flat


def test_files_of_apt_move_below_another_root_with_the_keys_they_name():
    files = [
        {"path": "/etc/apt/sources.list.d/x.sources", "content": "Signed-By: /etc/apt/keyrings/x.gpg\n"},
        {"path": "/etc/profile.d/cuda.sh", "content": "export A=1\n"},
    ]
    assert filters.below_root(files, "/private") == [
        {"path": "/private/etc/apt/sources.list.d/x.sources", "content": "Signed-By: /private/etc/apt/keyrings/x.gpg\n"}
    ]


# Models


def cache_with(home: Path, name: str) -> dict:
    snapshot = home / "hub" / ("models--" + name.replace("/", "--")) / "snapshots" / ("c" * 40)
    tree(snapshot, {"config.json": b"{}", "deep/model.safetensors": b"w" * 50})
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("c" * 40)
    write_marker(str(home), name, "main", "c" * 40, {"config.json": 2, "deep/model.safetensors": 50})
    return complete(str(home), name, "main")


def test_a_model_travels_from_one_cache_to_another(tmp_path):
    marker = cache_with(tmp_path / "maker", "a/b")
    archive = model_archive.ModelArchive(str(tmp_path / "bundle"), "a/b", "main")
    assert archive.take_from(str(tmp_path / "maker"))
    assert not archive.take_from(str(tmp_path / "maker"))  # it is laid out already
    (tmp_path / "host").mkdir()
    assert model_archive.of(str(tmp_path / "bundle"), "a/b", "main").move_into(str(tmp_path / "host")) == marker
    assert complete(str(tmp_path / "host"), "a/b", "main") == marker
    assert model_archive.of(str(tmp_path / "bundle"), "a/b", "main") is None


def test_a_model_that_is_not_complete_does_not_travel(tmp_path):
    cache_with(tmp_path / "maker", "a/b")
    (tmp_path / "maker/hub/models--a--b/snapshots" / ("c" * 40) / "config.json").unlink()
    with pytest.raises(ValueError, match="not complete in the cache"):
        model_archive.ModelArchive(str(tmp_path / "bundle"), "a/b", "main").take_from(str(tmp_path / "maker"))


def test_the_collection_is_packed_the_same_each_time_and_runs_in_place(tmp_path):
    import io
    import tarfile

    from ansible_collections.blackwell.serving.plugins.plugin_utils import bundle_collection

    root = tree(tmp_path, {"site.yml": b"x", ".git/config": b"secret", "build/a": b"", "galaxy.yml": b""})
    (root / "galaxy.yml").write_text(json.dumps({"version": "1.2.3", "build_ignore": [".collections", "build"]}))
    (root / ".collections").mkdir()
    (root / ".collections/serving").symlink_to("..")
    packed = bundle_collection.archive(root)
    os.utime(root / "site.yml", (1, 1))
    assert bundle_collection.archive(root) == packed
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        names = tar.getnames()
    assert names == [f"blackwell.serving/{name}" for name in (".collections/serving", "galaxy.yml", "site.yml")]
    assert bundle_collection.version(root) == "1.2.3"
