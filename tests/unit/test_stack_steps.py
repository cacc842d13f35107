"""What compose_stack decides: which service is made anew, started or left alone, and why. Containers are made up."""

import json

import pytest
import yaml
from ansible_collections.blackwell.serving.plugins.module_utils import stack_steps
from ansible_collections.blackwell.serving.plugins.module_utils.stack_steps import Step, containers_of, steps_to
from hypothesis import given
from hypothesis import strategies as st

IMAGE = "lmsysorg/sglang:v1"


def service(**changes):
    command = ["--model-path=m", "--context-length=2048", "--enable-metrics"]
    return {"image": IMAGE, "command": command, "depends_on": {}, "environment": {}} | changes


def definition(**services):
    return {"name": "serving", "services": {name: content or service() for name, content in services.items()}}


def inspected(name, content=None, *, image="sha256:1", status="running", health="healthy", project="serving", **labels):
    return {
        "Id": f"id-{name}",
        "Name": f"/{name}",
        "Image": image,
        "State": {"Status": status, "Health": {"Status": health}},
        "Config": {
            "Labels": {
                stack_steps.PROJECT_LABEL: project,
                stack_steps.SERVICE_LABEL: name,
                stack_steps.SPEC_LABEL: stack_steps.spec_digest(content or service()),
            }
            | labels
        },
    }


def decide(wanted, *containers, restarts=None, images=None, before=None):
    found = containers_of("serving", containers)
    known = {IMAGE: "sha256:1"} if images is None else images
    return steps_to(wanted, list(wanted["services"]), restarts or {}, found, known, before)


def actions(steps):
    return [(step.service, step.action) for step in steps]


def test_what_runs_as_planned_is_left_alone():
    assert decide(definition(a=None, b=None), inspected("a"), inspected("b")) == []


def test_services_are_created_in_start_order():
    steps = decide(definition(b=None, a=None, c=None), inspected("a"))
    assert actions(steps) == [("b", "create"), ("c", "create")]


@pytest.mark.parametrize(
    ("container", "action", "reason"),
    [
        pytest.param({"status": "exited"}, "start", "exited", id="ended"),
        pytest.param({"status": "created"}, "start", "not running", id="never started"),
        pytest.param({"status": "restarting"}, "restart", "restarting", id="crash loop"),
        pytest.param({"health": "unhealthy"}, "restart", "unhealthy", id="unhealthy"),
        pytest.param({"health": "starting"}, "wait", "starting", id="starting by itself"),
        pytest.param({"image": "sha256:old"}, "recreate", "another image", id="tag moved"),
        pytest.param({stack_steps.SPEC_LABEL: ""}, "recreate", "not made from a plan", id="made by hand"),
    ],
)
def test_each_state_has_its_step(container, action, reason):
    (step,) = decide(definition(a=None), inspected("a", **container))
    assert step.action == action
    assert reason in step.reason


def test_a_missing_image_is_no_reason_to_stop_what_runs():
    assert decide(definition(a=None), inspected("a"), images={IMAGE: None}) == []


def test_the_reason_names_what_changed_in_the_command():
    old = service()
    new = service(
        command=["--model-path=m", "--context-length=4096", "--sleep-on-idle"], environment={"HF_HUB_OFFLINE": "1"}
    )
    (step,) = decide(definition(a=new), inspected("a", old), before=definition(a=old))
    assert step.action == "recreate"
    for word in ("--context-length 2048 -> 4096", "--sleep-on-idle (new)", "--enable-metrics (gone)", "environment"):
        assert word in step.reason


def test_the_start_order_alone_makes_nothing_anew():
    moved = service(depends_on={"b": {"condition": "service_healthy"}})
    assert decide(definition(a=moved), inspected("a", service())) == []


def test_orphans_go_first_and_other_projects_are_not_seen():
    steps = decide(definition(a=None), inspected("old"), inspected("theirs", project="other"))
    assert actions(steps) == [("old", "remove"), ("a", "create")]


def test_a_run_by_hand_is_not_an_orphan():
    assert decide(definition(a=None), inspected("a"), inspected("once", **{stack_steps.ONE_OFF_LABEL: "True"})) == []


def test_a_second_container_of_a_service_is_not_left_beside_it():
    twin = inspected("a") | {"Id": "id-a2", "Name": "/a-2"}
    assert actions(decide(definition(a=None), inspected("a"), twin)) == [("a", "recreate")]


def test_services_whose_memory_depends_on_an_earlier_one_restart_after_it():
    wanted = definition(a=service(command=["--new"]), b=None, c=None)
    running = [inspected(name) for name in "abc"]
    steps = decide(wanted, *running, restarts={"a": ["b"]})
    assert actions(steps) == [("a", "recreate"), ("b", "restart")]
    assert "a" in steps[1].reason


def test_waiting_for_a_service_restarts_no_other():
    steps = decide(definition(a=None, b=None), inspected("a", health="starting"), inspected("b"), restarts={"a": ["b"]})
    assert actions(steps) == [("a", "wait")]
    assert not steps[0].changes


@given(st.dictionaries(st.text(min_size=1), st.one_of(st.text(), st.integers(), st.lists(st.text()))), st.randoms())
def test_the_digest_does_not_depend_on_the_order_of_keys(content, random):
    keys = list(content)
    random.shuffle(keys)
    shuffled = {key: content[key] for key in keys}
    assert stack_steps.spec_digest(content) == stack_steps.spec_digest(shuffled)


def test_secrets_are_not_shown():
    wanted = definition(a=service(environment={"HF_TOKEN": "hf_abc", "LANG": "C.UTF-8"}))
    steps = decide(wanted)
    shown = json.dumps(stack_steps.diff_of(None, wanted, steps))
    assert "hf_abc" not in shown
    assert "C.UTF-8" in shown
    assert "a: create" in shown


def test_labels_hold_the_digest_of_each_service():
    wanted = definition(a=None, b=service(command=["--other"]))
    written = yaml.safe_load(stack_steps.labels_file(wanted))
    labels = {name: content["labels"][stack_steps.SPEC_LABEL] for name, content in written["services"].items()}
    assert labels == {name: stack_steps.spec_digest(content) for name, content in wanted["services"].items()}
    assert labels["a"] != labels["b"]


def test_a_container_of_others_with_the_same_name_is_named():
    wanted = definition(a=service(container_name="qwen"))
    foreign = inspected("qwen", project="other")
    (conflict,) = stack_steps.name_conflicts(wanted, "serving", [foreign, inspected("a")])
    assert "service a" in conflict
    assert "qwen" in conflict
    assert "project other" in conflict


def test_only_removals_and_recreations_clear_containers():
    assert [
        Step("a", action, "").clears for action in ("remove", "recreate", "restart", "start", "create", "wait")
    ] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def publishing(name, port, address="0.0.0.0", project="other"):
    ports = {"80/tcp": [{"HostIp": address, "HostPort": str(port)}], "81/tcp": None}
    return inspected(name, project=project) | {"NetworkSettings": {"Ports": ports}}


@pytest.mark.parametrize(
    ("container", "conflicts"),
    [
        pytest.param(publishing("web", 30001), 1, id="on every address"),
        pytest.param(publishing("web", 30001, "127.0.0.1"), 1, id="on the same address"),
        pytest.param(publishing("web", 30001, "192.0.2.1"), 0, id="on another address"),
        pytest.param(publishing("web", 30009), 0, id="another port"),
        pytest.param(publishing("a", 30001, project="serving"), 0, id="our own"),
        pytest.param(inspected("web", project="other"), 0, id="does not run"),
    ],
)
def test_a_container_of_others_with_the_same_port_is_named(container, conflicts):
    planned = [{"name": "a", "port": 30001, "bind_address": "127.0.0.1"}]
    found = stack_steps.port_conflicts(planned, "serving", [container, None])
    assert len(found) == conflicts
    assert all("service a wants port 30001, which container web has" in text for text in found)
