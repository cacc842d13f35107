"""How far the work on many hosts came, and how to go on."""

from ansible_collections.blackwell.serving.plugins.filter import rolling as filters
from ansible_collections.blackwell.serving.plugins.module_utils import rolling

DONE, BEGUN = {"turn": "done"}, {"turn": "begun"}
FAILED = {"turn": "failed", "failure": "qwen: it cannot start.\n  cause …", "serves": "20261125T005339Z"}


def test_the_next_batch_begins_only_where_every_turn_is_done():
    assert rolling.may_go_on({"a": DONE, "b": {}, "c": {}})
    assert rolling.may_go_on({"a": {}})
    assert not rolling.may_go_on({"a": DONE, "b": FAILED, "c": {}})
    assert not rolling.may_go_on({"a": BEGUN, "b": {}}), "a host that was lost on the way is no host that is done"


def test_nothing_is_reported_where_all_are_done():
    assert rolling.report({"a": DONE, "b": DONE}) == ""


def test_the_report_names_done_failed_lost_and_untouched_hosts_and_what_serves():
    text = rolling.report({"a": DONE, "b": FAILED, "c": BEGUN, "d": {}})
    lines = text.splitlines()
    assert "1 of 4 hosts are done" in lines[0]
    assert lines[1] == "done: a"
    assert lines[2] == "failed: b: qwen: it cannot start. Release 20261125T005339Z serves there."
    assert lines[3].startswith("lost: c ")
    assert lines[4] == "untouched: d"
    assert "the same command again: hosts that are done are left alone" in lines[5]


def test_what_may_not_run_twice_is_resumed_on_the_hosts_that_are_left():
    text = rolling.report({"a": DONE, "b": FAILED, "c": {}}, idempotent=False)
    assert text.endswith("the same command again, with --limit b,c")


def test_hosts_of_a_group_come_in_the_order_of_the_inventory():
    groups = {"all": ["a", "b", "c", "d"], "rolling": ["d", "b"]}
    assert filters.rolling_hosts(groups, "rolling") == ["b", "d"]
    assert filters.rolling_hosts(groups, "no_such_group") == []


def test_batches_are_those_of_the_first_host():
    variables = {"a": {"batches": [2]}, "b": {}}
    assert filters.rolling_batches(variables, ["a", "b"], "batches", [1]) == [2]
    assert filters.rolling_batches(variables, ["b"], "batches", [1]) == [1]
    assert filters.rolling_batches({}, ["a"], "batches", [1]) == [1], "before a first play there are no variables"
    assert filters.rolling_batches(variables, [], "batches", [1]) == [1]
