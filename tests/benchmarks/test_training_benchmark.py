"""The harness of the training benchmarks: what it goes on from, what it counts, what it reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "throughput"


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def record(contestant: str, repetition: int, speed: float, **more: object) -> dict[str, object]:
    machine = {"cpu": "c", "cores": 2, "memory_gib": 4, "python": "3", "revision": "r"}
    return {
        "scenario": "lora",
        "contestant": contestant,
        "repetition": repetition,
        "size": 8,
        "settings": {},
        "note": "",
        "loaded": False,
        "load_average": 0.1,
        "machine": machine | {"versions": {}, "omp": {}},
        "tokens_per_second": speed,
        "rows_per_second": speed / 100,
        "peak_tree_bytes": 2**30,
        "train_seconds": 1.0,
        "wall_seconds": 2.0,
        **more,
    }


def test_a_run_in_the_journal_is_not_done_again_but_a_failed_one_is(tmp_path: Path) -> None:
    from harness import Journal

    journal = Journal(tmp_path / "results.jsonl")
    journal.append(record("tunesmith", 1, 400.0))
    journal.append(record("trl-best", 1, 100.0, error="exit 1"))
    journal.append(record("trl-defaults", 1, 60.0, loaded=True))
    assert journal.done(allow_load=False) == {("lora", "tunesmith", 1, 8)}
    assert ("lora", "trl-defaults", 1, 8) in journal.done(allow_load=True)


def test_the_report_takes_medians_and_says_where_a_target_is_missed(tmp_path: Path) -> None:
    import report
    from harness import Journal

    journal = Journal(tmp_path / "results.jsonl")
    for repetition, speed in enumerate((390.0, 400.0, 900.0), 1):
        journal.append(record("tunesmith", repetition, speed))
        journal.append(record("trl-defaults", repetition, 80.0, peak_tree_bytes=2 * 2**30))
    report.write(journal, tmp_path)
    text = (tmp_path / "throughput" / "results.md").read_text(encoding="utf-8")
    assert ">= 4x tokens/s | 5.00x (n=3, 4.88x to 11.25x) | reached |" in text
    assert "<= 40% of its peak memory | 50% (n=3, 50% to 50%) | short |" in text
    assert (tmp_path / "memory" / "memory.png").is_file()


def test_runs_on_a_loaded_machine_never_reach_a_target(tmp_path: Path) -> None:
    import report
    from harness import Journal

    journal = Journal(tmp_path / "results.jsonl")
    journal.append(record("tunesmith", 1, 900.0, loaded=True))
    journal.append(record("trl-defaults", 1, 80.0, loaded=True))
    report.write(journal, tmp_path)
    text = (tmp_path / "throughput" / "results.md").read_text(encoding="utf-8")
    assert "11.25x (n=1) | loaded machine |" in text


def test_the_counter_of_products_sees_forward_and_backward() -> None:
    import torch
    from share import Products

    x = torch.randn(6, 5, requires_grad=True)
    weight = torch.randn(7, 5, requires_grad=True)
    with Products() as products:
        (x @ weight.T).sum().backward()
    assert products.flops() == 3 * 2 * 6 * 5 * 7


def test_pairs_seen_follow_the_tree_of_segments() -> None:
    import numpy as np
    from share import _pairs

    class Batch:
        """A prefix of 3 positions that segments of 2 and of 1 continue."""

        segment_lengths = np.array([3, 2, 1])
        segment_parents = np.array([-1, 0, 0])

    assert _pairs(Batch()) == 6 + (3 + 2 * 3) + (1 + 3)


def test_every_contestant_of_every_scenario_can_be_run(tmp_path: Path) -> None:
    import contestant
    import scenarios
    from harness import Journal

    journal = Journal(tmp_path / "none.jsonl")
    for name, make in scenarios.SCENARIOS.items():
        made = make(journal)
        assert len({one.name for one in made}) == len(made) > 0, name
        assert {one.kind for one in made} <= set(contestant.KINDS), name
        assert json.loads(json.dumps([one.settings for one in made]))
        assert name in scenarios.SIZES
        assert name in scenarios.QUICK


def test_the_time_of_growth_is_that_of_whole_warm_steps() -> None:
    import plots

    assert plots.whole_step({"step_seconds": [9.0, 4.0, 4.2, 1.7]}) == pytest.approx(4.1)
    assert plots.whole_step({"step_seconds": [9.0, 4.0, 1.7]}) == 4.0
    assert plots.whole_step({"step_seconds": [9.0, 1.7]}) == 9.0
