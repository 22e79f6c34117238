"""Rows on their way: the spool on the disk, and the map over worker processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import closing

import pytest

from tunesmith.data.check import Checker
from tunesmith.data.clean.plan import CleanPlan
from tunesmith.data.intake import Intake, Piece, digest
from tunesmith.data.parallel import ordered_map, serve
from tunesmith.data.read import Limits, open_source
from tunesmith.data.schemas import Options, tell
from tunesmith.data.spool import FOLDER, spooling
from tunesmith.errors import CapacityError, ConfigError, DataError
from tunesmith.store import Run

SQUARE = "test_workers:square"
WORK = """
import os, time
from tunesmith.errors import DataError

def square(job, n):
    if n == job.get("wrong"):
        raise DataError(f"{n} is wrong", why="w", fix="f")
    if n == job.get("dies"):
        os.kill(os.getpid(), 9)
    print("this goes to stderr")
    time.sleep(0.01 * (n % 3))
    return n * n

def pid(job, n):
    return os.getpid()
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """A module that worker processes can import."""
    (tmp_path / "test_workers.py").write_text(WORK, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("test_workers", None)


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def gone(pids):
    """Whether all of them end within ten seconds."""
    for _ in range(1000):
        if not any(map(is_there, pids)):
            return True
        time.sleep(0.01)
    return False


def test_one_process_is_this_one(workers):
    assert set(ordered_map("test_workers:pid", {}, range(5), processes=1)) == {os.getpid()}
    assert set(ordered_map("test_workers:pid", {}, range(3))) == {os.getpid()}


def test_no_process_is_refused():
    with pytest.raises(ConfigError, match="processes=0"):
        list(ordered_map(SQUARE, {}, [1], processes=0))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_results_come_in_order_whatever_the_number_of_processes(workers, processes):
    expected = [n * n for n in range(40)]
    assert list(ordered_map(SQUARE, {}, range(40), processes=processes)) == expected


@pytest.mark.slow
def test_items_are_taken_as_results_are_taken(workers):
    taken = []

    def items():
        for n in range(1000):
            taken.append(n)
            yield n

    with closing(ordered_map(SQUARE, {}, items(), processes=2)) as found:
        next(found)
        assert len(taken) <= 6


@pytest.mark.slow
def test_workers_end_when_the_map_is_left(workers):
    with closing(ordered_map("test_workers:pid", {}, range(1000), processes=2)) as found:
        pids = {next(found) for _ in range(20)}
        assert os.getpid() not in pids
    assert gone(pids)


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here_with_all_its_parts(workers):
    with pytest.raises(DataError, match="7 is wrong") as caught:
        list(ordered_map(SQUARE, {"wrong": 7}, range(20), processes=2))
    assert (caught.value.why, caught.value.fix) == ("w", "f")
    assert "in a worker process" in caught.value.__notes__[0]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told_with_a_way_out(workers):
    with pytest.raises(CapacityError, match="SIGKILL") as caught:
        list(ordered_map(SQUARE, {"dies": 7}, range(20), processes=2))
    assert "--processes 1" in caught.value.fix


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(workers, tmp_path):
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from tunesmith.data.parallel import ordered_map\n"
        "for found in ordered_map('test_workers:pid', {}, iter(int, 1), processes=2):\n"
        "    print(found, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        pids = {int(parent.stdout.readline()) for _ in range(30)}
        parent.kill()
    assert parent.pid not in pids
    assert gone(pids)


@pytest.mark.slow
def test_a_script_without_a_main_guard_may_use_workers(workers, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from tunesmith.data.parallel import ordered_map\n"
        "print(list(ordered_map('test_workers:square', {}, range(8), processes=2)))\n"
    )
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert found.stdout == f"{[n * n for n in range(8)]}\n", found.stderr


def test_a_worker_without_work_ends_quietly():
    found = subprocess.run(
        [sys.executable, "-c", "from tunesmith.data.parallel import serve; serve()"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")
    assert callable(serve)


def test_the_spool_is_gone_when_its_block_ends_however_it_ends(tmp_path):
    with Run.open(tmp_path / "x", "data", inputs={}) as at:
        (at.path(FOLDER) / "left").mkdir(parents=True)
        with pytest.raises(ZeroDivisionError), spooling(at) as spool:  # noqa: PT012
            assert not (spool.folder / "left").exists()
            spool.add_side("dropped", b"{}\n")
            assert spool.side("dropped").read_bytes() == b"{}\n"
            assert spool.side("changed") is None
            raise ZeroDivisionError
        assert not (tmp_path / "x" / FOLDER).exists()


def test_what_is_known_of_a_row_does_not_depend_on_where_its_file_is_divided(lines):
    rows = [
        {"prompt": f"What about the {'big ' * (n % 9)}number {n % 40}?", "completion": f"a {n}"}
        for n in range(300)
    ]
    path = lines("a.jsonl", rows)
    clean = CleanPlan(exact=True, near=True, normalize=True)
    intake = Intake(Options(), group="prompt", by_template=True, sketches=True, clean=clean)
    found = []
    for chunk_bytes in (700, 5_000, 2**20):
        source = open_source(path, limits=Limits(chunk_bytes=chunk_bytes))
        made = [digest(intake, Piece(c, tell([]), 0, 0)) for c in source.chunks()]
        checker = Checker(intake.check)
        for one in made:
            checker.merge(one.checker)
        found.append(
            (
                b"".join(one.rows for one in made),
                b"".join(one.facts.tobytes() for one in made),
                b"".join(one.sketches.tobytes() for one in made),
                checker.finish(),
            )
        )
        assert (len(made) > 1) == (chunk_bytes < 2**20)
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
def test_equal_input_gives_equal_files_whatever_the_number_of_processes(tmp_path, monkeypatch):
    from tunesmith import data
    from tunesmith.config import recipe_from

    path = tmp_path / "a.jsonl"
    rows = [
        {"prompt": f"{'word ' * (n % 7)}number {n} of {n % 50}", "completion": "x" * 400, "n": n}
        for n in range(5_000)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    section = {
        "source": {"kind": "files", "train": str(path)},
        "clean": {"exact": "drop", "near": "drop"},
        "max_train_rows": 2_000,
    }
    recipe = recipe_from({"data": section})
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    found = []
    for processes in (1, 2, 3):
        place = tmp_path / str(processes)
        result = data.build(recipe, place, processes=processes)
        files = {name: entry.sha256 for name, entry in result.artifact.files.items()}
        found.append((files, result.artifact.sha256))
    assert found[0] == found[1] == found[2]
    assert sum(result.rows.values()) > 1_000


@pytest.mark.slow
def test_a_file_of_the_folder_is_not_taken_for_a_module(workers, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "here/json.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path / "here")
    assert list(ordered_map(SQUARE, {}, range(3), processes=2)) == [0, 1, 4]
