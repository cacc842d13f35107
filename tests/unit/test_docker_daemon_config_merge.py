"""Properties of the merge of daemon.json, for any settings of others and any wishes of ours."""

from ansible_collections.blackwell.serving.plugins.module_utils.daemon_json import (
    action_for,
    changed_keys,
    effective,
    merge,
    not_in_force,
    parse,
    render,
)
from hypothesis import given
from hypothesis import strategies as st

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "b"])
entries = st.lists(st.sampled_from(["a=1", "a=2", "b=1", "c", "d"]), max_size=3)
values = st.recursive(
    scalars | entries, lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3), max_leaves=6
)
keys = st.sampled_from(["runtimes", "features", "log-opts", "registry-mirrors", "labels", "dns", "debug", "data-root"])
settings = st.dictionaries(keys, values, max_size=5)


def paths(tree: dict, above: tuple = ()) -> dict:
    """The leaves of `tree` by their path."""
    found = {}
    for key, value in tree.items():
        found |= paths(value, (*above, key)) if isinstance(value, dict) and value else {(*above, key): value}
    return found


def json_of(tree: dict, key: str) -> str:
    return render({key: tree[key]}) if key in tree else ""


def touches(wanted: dict, path: tuple) -> bool:
    """Whether `wanted` sets `path`, something above it, or something below it."""
    return any(path[: len(other)] == other or other[: len(path)] == path for other in paths(wanted))


@given(foreign=settings, wanted=settings)
def test_foreign_keys_survive(foreign: dict, wanted: dict):
    merged, _ = merge(foreign, {}, wanted)
    for path, value in paths(foreign).items():
        if not touches(wanted, path):
            assert paths(merged)[path] == value


@given(foreign=settings, wanted=settings)
def test_our_values_are_there(foreign: dict, wanted: dict):
    merged, _ = merge(foreign, {}, wanted)
    for path, value in paths(wanted).items():
        there = paths(merged).get(path)
        if isinstance(value, list) and isinstance(there, list):
            assert set(value) <= set(there)
        elif value != {}:
            assert there == value


@given(foreign=settings, wanted=settings)
def test_twice_is_once(foreign: dict, wanted: dict):
    merged, record = merge(foreign, {}, wanted)
    assert merge(merged, record, wanted) == (merged, record)


@given(foreign=settings, wanted=settings)
def test_without_our_wish_the_foreign_state_is_back(foreign: dict, wanted: dict):
    merged, record = merge(foreign, {}, wanted)
    assert merge(merged, record, {}) == (foreign, {})


@given(foreign=settings, first=settings, second=settings)
def test_a_new_wish_does_not_depend_on_the_old_one(foreign: dict, first: dict, second: dict):
    merged, record = merge(foreign, {}, first)
    assert merge(merged, record, second) == merge(foreign, {}, second)


@given(foreign=settings, wanted=settings, key=keys, value=values)
def test_what_others_write_later_stays_too(foreign: dict, wanted: dict, key: str, value):
    merged, record = merge(foreign, {}, wanted)
    if key not in wanted:
        again, _ = merge(merged | {key: value}, record, wanted)
        assert again[key] == value


@given(before=settings, after=settings)
def test_changed_keys_name_what_differs(before: dict, after: dict):
    changed = {key.partition(".")[0] for key in changed_keys(before, after)}
    assert changed == {key for key in before | after if json_of(before, key) != json_of(after, key)}


@given(settings)
def test_text_is_read_back(content: dict):
    assert parse(render(content)) == content


def test_a_reload_is_enough_only_for_what_sighup_applies():
    after = {
        "features": {"cdi": True, "buildkit": True},
        "runtimes": {"nvidia": {}},
        "live-restore": True,
        "log-driver": "local",
    }
    assert {key: action_for(key, after) for key in changed_keys({}, after)} == {
        "features.cdi": "restart",
        "features.buildkit": "reload",
        "runtimes.nvidia": "reload",
        "live-restore": "reload",
        "log-driver": "restart",
    }


def test_a_key_that_disappears_keeps_its_value_until_a_restart():
    assert action_for("live-restore", {}) == "restart"
    assert action_for("max-concurrent-downloads", {}) == "reload"


def test_a_runtime_is_in_force_with_its_command_or_its_name():
    # What Engine 26.1.5 answers for these settings: nothing but the name where there is a runtimeType.
    info = {"Runtimes": {"kata": {}, "crun": {"path": "/usr/bin/crun", "runtimeArgs": ["--debug"]}}}
    runtimes = {
        "kata": {"runtimeType": "io.containerd.kata.v2"},
        "crun": {"path": "/usr/bin/crun"},
        "gone": {"path": "x"},
    }
    assert not_in_force(effective({"runtimes": runtimes}, info, str)) == ["runtimes.crun", "runtimes.gone"]
