"""Metrics are declared, the event log survives a crash, and progress goes to stderr."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.telemetry import (
    METRICS,
    EventLog,
    Recorder,
    peak_rss_bytes,
    progress,
    read_events,
    visible,
)

LOSS = "tunesmith_train_loss_nats"


def test_names_carry_their_stage_and_counters_end_in_total():
    for name, metric in METRICS.items():
        assert name.startswith(("tunesmith_train_", "tunesmith_serve_"))
        assert (metric.kind == "counter") == name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)


def test_an_undeclared_metric_is_refused(tmp_path):
    with (
        Recorder(EventLog(tmp_path / "events.jsonl"), tmp_path / "board") as recorder,
        pytest.raises(KeyError),
    ):
        recorder.record("step", 1, {"tunesmith_train_invented": 1.0})


def test_a_half_written_line_is_dropped_when_the_log_is_opened_again(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("step", step=1)
    log.close()
    with path.open("a") as stream:
        stream.write('{"event": "st')
    log = EventLog(path)
    log.write("step", step=2)
    log.close()
    assert [event["step"] for event in read_events(path)] == [1, 2]


def test_records_reach_the_log_and_tensorboard(tmp_path):
    with Recorder(EventLog(tmp_path / "events.jsonl"), tmp_path / "board") as recorder:
        recorder.record("step", 3, {LOSS: 1.5})
    assert next(read_events(tmp_path / "events.jsonl"))["loss_nats"] == 1.5
    (board,) = (tmp_path / "board").iterdir()
    assert LOSS.encode() in board.read_bytes()


def test_attempts_in_the_same_second_have_files_of_their_own(tmp_path):
    for attempt in range(3):
        log = EventLog(tmp_path / "events.jsonl")
        with Recorder(log, tmp_path / "board", first_step=attempt) as recorder:
            recorder.record("step", attempt + 1, {LOSS: 1.5})
    boards = list((tmp_path / "board").iterdir())
    assert len(boards) == 3
    assert all(LOSS.encode() in board.read_bytes() for board in boards)


@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["buffered", "unbuffered"])
def test_progress_outlives_the_reader_of_stderr(unbuffered):
    code = (
        "from tunesmith.telemetry import console, progress\n"
        "with progress('work', 2) as bar:\n"
        "    bar.print('first')\n"
        "    bar.print('second')\n"
        "    console().print('third')\n"
        "print('done')\n"
    )
    reads, writes = os.pipe()
    os.close(reads)
    try:
        found = subprocess.run(
            [sys.executable, *unbuffered, "-c", code],
            stdout=subprocess.PIPE,
            stderr=writes,
            check=False,
        )
    finally:
        os.close(writes)
    assert (found.returncode, found.stdout) == (0, b"done\n")


def test_progress_leaves_stdout_to_results(capsys):
    with progress("work", 2, unit="rows") as bar:
        bar.advance(note="half")
        bar.print("said")
    out, err = capsys.readouterr()
    assert out == ""
    assert "work: 2 rows" in err
    assert "said" in err
    with progress("work", 1, unit="rows"):
        pass
    assert "work: 1 row\n" in capsys.readouterr().err


def test_events_are_json_lines(tmp_path):
    log = EventLog(tmp_path / "e.jsonl")
    log.write("note", text="zwei\nZeilen")
    log.close()
    (line,) = (tmp_path / "e.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["text"] == "zwei\nZeilen"


@given(st.text())
def test_visible_text_can_neither_steer_a_terminal_nor_hide(text):
    shown = visible(text)
    steering = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u061c\u202a-\u202e\ufeff]"
    assert not re.search(steering, shown)
    assert visible(shown) == shown
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m\rb", "a\\x1b[31m\\x0db"),
        ("\u202edlrow", "\\u202edlrow"),
        ("\U000e0041", "\\U000e0041"),
        ("zwei\n\tZeilen", "zwei\n\tZeilen"),
        ("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),
    ],
)
def test_controls_are_spelled_out_and_text_stays(text, shown):
    assert visible(text) == shown


def test_the_peak_is_in_bytes_and_no_less_than_what_the_process_holds_now():
    # The kernel counts pages of each thread apart and sums them now and then.
    assert peak_rss_bytes() > 0.9 * psutil.Process().memory_info().rss


def test_peak_memory_is_not_that_of_the_program_that_started_this_one():
    held = bytearray(b"x") * (600 << 20)
    code = "from tunesmith.telemetry import peak_rss_bytes; print(peak_rss_bytes())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert peak_rss_bytes() > len(held)
    assert int(found.stdout) < len(held) // 2


def test_a_full_disk_reaches_the_caller_and_never_makes_it_wait(tmp_path):
    """A thousand points to a device that is always full: an error, not a queue that nobody empties."""
    recorder = Recorder(EventLog(tmp_path / "events.jsonl"), tmp_path / "board")
    (board,) = (tmp_path / "board").iterdir()
    recorder._board.close()
    recorder._board._writer._writer = Path("/dev/full").open("wb")  # noqa: SIM115

    def record_many() -> None:
        with recorder:
            for step in range(1000):
                recorder.record("step", step, {LOSS: 1.5})

    with pytest.raises(OSError, match="No space left"):
        record_many()
    assert board.exists()


def test_an_error_in_flight_is_not_replaced_by_one_of_closing(tmp_path):
    recorder = Recorder(EventLog(tmp_path / "events.jsonl"), tmp_path / "board")
    recorder._board.close()
    recorder._board._writer._writer = Path("/dev/full").open("wb")  # noqa: SIM115

    def fail() -> None:
        with recorder:
            recorder.record("step", 1, {LOSS: 1.5})
            raise KeyError("what happened")

    with pytest.raises(KeyError, match="what happened"):
        fail()


def test_curves_of_two_attempts_can_be_read_and_the_later_one_hides_what_it_does_again(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    for first in (0, 2):
        log = EventLog(tmp_path / "events.jsonl")
        with Recorder(log, tmp_path / "board" / str(first), first_step=first) as recorder:
            recorder.record("step", first + 1, {LOSS: 1.5})
    events = []
    for board in sorted((tmp_path / "board").glob("*/*")):
        data = board.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            events.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    kinds = [(e.file_version, e.step, [v.tag for v in e.summary.value]) for e in events]
    assert kinds == [
        ("brain.Event:2", 0, []),
        ("", 1, [LOSS]),
        ("brain.Event:2", 0, []),
        ("", 3, []),
        ("", 3, [LOSS]),
    ]
    assert events[3].session_log.status == SessionLog.START
