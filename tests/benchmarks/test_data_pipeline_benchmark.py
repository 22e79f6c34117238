"""The benchmark of the whole data step: equal rows for all, what is not tried, and what the table says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "data"


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER.parent / "throughput"))
    monkeypatch.syspath_prepend(str(FOLDER))
    import pipeline

    return pipeline


def record(contestant: str, rows: int, **more: Any) -> dict[str, Any]:
    return {
        "contestant": contestant,
        "rows_in": rows,
        "limit_seconds": 120,
        "loaded": False,
        "peak_tree_bytes": 2**30,
        "stages": {"read": 1.0},
        **more,
    }


def test_all_tools_are_given_the_same_rows(pipeline: Any, tmp_path: Path) -> None:
    pipeline.write(tmp_path, 50, 0)
    rows, alpaca = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("rows.jsonl", "alpaca.jsonl")
    )
    assert [(row["prompt"], row["completion"]) for row in rows] == [
        (row["instruction"], row["output"]) for row in alpaca
    ]
    assert [row["row"] for row in rows] == list(range(50))


def test_what_must_be_far_over_the_limit_is_not_tried_and_the_start_is_no_part_of_it(
    pipeline: Any,
) -> None:
    args = argparse.Namespace(limit=120, skip=1.5)
    slow = record("soup", 10_000, wall_seconds=30.0)
    assert pipeline.least_seconds([slow], 100_000, args) == {"rows": 10_000, "seconds": 30.0}
    assert pipeline.least_seconds([slow], 20_000, args) is None
    start = record("axolotl", 10_000, wall_seconds=30.0, stages={"start": 13.0})
    assert pipeline.least_seconds([start], 100_000, args) is None
    over = record("datatrove", 1_000, over=True, wall_seconds=121.0)
    assert pipeline.least_seconds([over], 10_000, args) == {"rows": 1_000, "seconds": 120}


def test_the_table_says_what_was_over_not_tried_or_failed(pipeline: Any) -> None:
    records = [
        record("tunesmith", 1_000, wall_seconds=9.0),
        record("tunesmith", 1_000, wall_seconds=4.0, rows_out={"train": 752, "test": 94}),
        record("datatrove", 1_000, over=True, wall_seconds=120.4),
        record("soup", 1_000, not_tried={"rows": 100, "seconds": 30.0}),
        record("axolotl", 1_000, error="exit 1: a\nValueError: no"),
    ]
    text = pipeline.report(records, {"tunesmith": "82 of 82"}, {"soup": {"long": 0.5}})
    assert "| tunesmith | 4.0 | 1024 MiB | train 752; test 94 | read 1.0 |" in text
    assert "| datatrove | over 120 |" in text
    assert "| soup | not tried: 100 rows took 30 |" in text
    assert "| axolotl | ValueError: no |" in text
    (own,) = [line for line in text.splitlines() if line.startswith("| tunesmith | yes")]
    assert "82 of 82" in own
    assert "| 50.0% |" in text


def test_every_contestant_has_a_function_that_runs_it_and_known_steps(pipeline: Any) -> None:
    import pipeline_peer

    for name, contestant in pipeline.CONTESTANTS.items():
        assert callable(getattr(pipeline_peer, name))
        assert set(contestant.steps) <= set(pipeline.STEPS)
