"""Commands that read for long show how far they are, on stderr."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager

import pytest
from command_line import call

from tunesmith.data.look import open_place, stats
from tunesmith.telemetry import progress


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A file of which is read for long, as the bars have it."""
    monkeypatch.setattr("tunesmith.data.read.bar._LONG_BYTES", 1_000)
    monkeypatch.setattr("tunesmith.data.annotate.queue._MANY_ROWS", 10)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(
            json.dumps({"prompt": f"question {n}", "completion": f"answer {n} is long enough"})
            + "\n"
            for n in range(60)
        )
    )
    return file


def test_stats_diff_review_and_augment_say_how_far_they_have_read(many, tmp_path, capsys):
    size = f"reading: {many.stat().st_size // 1_000} kB"
    assert call("data", "stats", many) == 0
    assert capsys.readouterr().err.count(size) == 1
    assert call("data", "diff", many, many) == 0
    assert capsys.readouterr().err.count(size) == 2
    assert call("data", "review", many) == 0
    said = capsys.readouterr().err
    assert size in said
    assert "checking: 60 rows" in said
    more = tmp_path / "more.jsonl"
    assert call("data", "augment", many, "--rule", "noise", "--out", more) == 0
    assert size in capsys.readouterr().err


def test_the_bar_of_a_sealed_dataset_ends_at_the_size_of_its_splits(many, tmp_path, monkeypatch):
    words = ("data", "split", many, "--out", tmp_path / "sp", "--test", "5", "--validation", "5")
    assert call(*words) == 0
    bars = []

    @contextmanager
    def kept(title, total, **more):
        with progress(title, total, **more) as bar:
            bars.append(bar)
            yield bar

    monkeypatch.setattr("tunesmith.data.read.bar.progress", kept)
    stats(open_place(tmp_path / "sp"))
    splits = [tmp_path / f"sp/{name}.jsonl" for name in ("train", "validation", "test")]
    total = sum(split.stat().st_size for split in splits) // 1_000
    assert [(bar.total, bar.done) for bar in bars] == [(total, total)]
