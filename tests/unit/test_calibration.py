"""The planner against what real engines reported when they started."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "calibration"))
import score as scoring

ROWS = {row["id"]: row for row in scoring.load_logs()["rows"]}
MEASURED = [row for row in ROWS.values() if "measured" in row]
WEIGHED = [row for row in MEASURED if "weights" in row["measured"]]
RECORDED = [row for row in MEASURED if row["source"] == "recorded"]
LOADED = [row for row in MEASURED if "peak" in row["measured"] and row not in RECORDED]
SGLANG = [row for row in MEASURED if row["service"]["engine"] == "sglang"]


def ids(rows):
    return [row["id"] for row in rows]


@pytest.mark.parametrize("row", SGLANG, ids=ids(SGLANG))
def test_the_law_gives_the_tokens_that_the_log_shows(row, catalog):
    assert abs(scoring.score(row, catalog).law_error) <= scoring.TOKEN_SHARE


@pytest.mark.parametrize("row", MEASURED, ids=ids(MEASURED))
def test_kv_from_config_json_alone(row, catalog):
    result = scoring.score(row, catalog)
    assert abs(result.kv_error) <= result.kv_tolerance


@pytest.mark.parametrize("row", WEIGHED, ids=ids(WEIGHED))
def test_weights_from_config_json_alone(row, catalog):
    result = scoring.score(row, catalog)
    assert result.weights == pytest.approx(row["measured"]["weights"], abs=0.1)


@pytest.mark.parametrize("row", LOADED, ids=ids(LOADED))
def test_size_of_a_process_after_one_request_and_under_load(row, catalog):
    result = scoring.score(row, catalog)
    assert result.resident == pytest.approx(row["measured"]["resident"], rel=0.02)
    assert result.peak == pytest.approx(row["measured"]["peak"], rel=0.03)


@pytest.mark.parametrize("row", RECORDED, ids=ids(RECORDED))
def test_no_process_under_load_takes_more_than_planned(row, catalog):
    """Within 0.05 GiB; that a plan is not wasteful either is what the stacks and the other rows show."""
    assert scoring.score(row, catalog).peak >= row["measured"]["peak"] - 0.05


@pytest.mark.parametrize("stack", scoring.load_logs()["stacks"], ids=lambda stack: stack["gpu"]["gpu"])
def test_a_stack_that_was_started_as_planned(stack, catalog):
    """Free memory before each start within 2 %, no service with fewer tokens than planned, the peak within 3 %."""
    plan, measured = scoring.stack_plan(stack, catalog), stack["measured"]
    for service in plan["services"]:
        name = service["name"]
        assert service["free_before_gib"] == pytest.approx(measured["free_before"][name], rel=0.02)
        assert measured["tokens"][name] >= service["kv_tokens"]
        assert measured["restarted_alone"].get(name, service["kv_tokens"]) >= service["kv_tokens"]
    assert plan["gpus"][0]["planned_gib"] == pytest.approx(measured["peak"], rel=0.03)


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.get("refused")], ids=lambda row: row["id"])
def test_what_failed_is_refused(row, catalog):
    assert scoring.granted(row, scoring.row_memory(row, catalog)) <= 0


@pytest.mark.parametrize(("row", "cold"), [("A1", 0.114), ("A2", 0.311), ("A3", 0.798)])
def test_cold_fraction_from_free_memory_and_weights(row, cold, catalog):
    """The exact share that each of three services on one card needed in its place of the order."""
    law = scoring.row_memory(ROWS[row], catalog)
    static = ROWS[row]["measured"]["weights"] * scoring.GIB + law.cell * ROWS[row]["measured"]["tokens"]
    assert static / (ROWS[row]["free"] * scoring.GIB) == pytest.approx(cold, abs=0.002)
    assert law.least_fraction(ROWS[row]["measured"]["tokens"], ROWS[row]["free"] * scoring.GIB) == pytest.approx(
        cold, abs=0.002
    )


def test_accuracy_page_is_what_the_scores_say(catalog, repo_root, request):
    page = repo_root / "docs" / "accuracy.md"
    written = scoring.accuracy_page(catalog)
    if request.config.getoption("--update-docs"):
        page.write_text(written, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == written
