"""Whatever goes wrong while a dataset is built: nothing is half sealed, the reason is told, a rerun works."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith import data
from tunesmith.config import recipe_from
from tunesmith.errors import DataError, InterruptedRun, StorageError, TunesmithError
from tunesmith.store import MANIFEST, Artifact, Run
from tunesmith.store.failpoints import VARIABLE, arm

POINTS = ("data-chunk", "data-spool", "data-settle", "data-write", "seal-begin", "seal-manifest")
SIDES = ("dropped", "changed", "findings")


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    arm("")


def write(path, count, width=10):
    rows = [{"prompt": f"what is number {n}?", "completion": f"{n} " * width} for n in range(count)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path):
    path = write(tmp_path / "a.jsonl", 200)
    return recipe_from({"data": {"source": {"kind": "files", "train": str(path)}}})


def build(recipe, place, **options):
    return data.build(recipe, place, **options)


def hashes(artifact):
    return {name: entry.sha256 for name, entry in artifact.files.items()}


def is_clean(place):
    """Nothing is sealed or half written."""
    if not place.is_dir():
        return True
    left = {p.name for p in place.rglob("*") if p.is_file()} - {"run.json", ".lock"}
    return not left


def is_unsealed(place):
    """Whole files may be there, no seal and nothing half written."""
    left = [*place.rglob("*.part"), *place.glob("scratch/rows"), *place.glob(MANIFEST)]
    return not left


@pytest.mark.parametrize("point", POINTS)
def test_a_full_disk_at_any_point_seals_nothing_and_with_room_it_goes_on(recipe, tmp_path, point):
    whole = build(recipe, tmp_path / "whole").artifact
    place = tmp_path / "x"
    arm(f"{point}=enospc")
    if point in ("data-chunk", "data-settle"):
        # No disk is written there: the system's error is passed on as it is.
        with pytest.raises(OSError, match="No space"):
            build(recipe, place)
    else:
        with pytest.raises(StorageError, match="cannot write") as caught:
            build(recipe, place)
        assert "the disk is full" in caught.value.why
    assert not (place / MANIFEST).exists()
    assert not list(place.rglob("*.part"))
    assert not (place / "scratch" / "rows").exists()
    assert hashes(build(recipe, place, resume=True).artifact) == hashes(whole)


CODE = """
import sys
from tunesmith import data
from tunesmith.config import recipe_from
from tunesmith.errors import TunesmithError
recipe = recipe_from({"data": {"source": {"kind": "files", "train": sys.argv[1]}}})
print("ready", flush=True)
try:
    data.build(recipe, sys.argv[2], resume=True, processes=int(sys.argv[3]))
except TunesmithError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(error.exit_code)
"""


def start(path, place, processes=1, point=""):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment |= {VARIABLE: point} if point else {}
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(path), str(place), str(processes)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


@pytest.mark.slow
@pytest.mark.parametrize("point", [*POINTS, "seal-end"])
def test_a_kill_at_any_point_leaves_nothing_half_sealed_and_a_rerun_seals(recipe, tmp_path, point):
    path, place = tmp_path / "a.jsonl", tmp_path / "x"
    code, _ = end(start(path, place, point=point))
    assert code == -signal.SIGKILL
    assert (place / MANIFEST).exists() == (point == "seal-end")
    if point != "seal-end":
        assert end(start(path, place))[0] == 0
    assert hashes(Artifact.open(place)) == hashes(build(recipe, tmp_path / "whole").artifact)
    Artifact.open(place).verify()


@pytest.mark.slow
def test_a_killed_worker_is_told_and_seals_nothing(recipe, tmp_path):
    code, said = end(start(tmp_path / "a.jsonl", tmp_path / "x", 2, "data-chunk"))
    assert code == 9
    assert "a worker process of the data stage ended by SIGKILL" in said
    assert "--processes 1" in said
    assert is_clean(tmp_path / "x")
    assert end(start(tmp_path / "a.jsonl", tmp_path / "x", 2))[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_at_a_random_moment_seals_nothing_or_all(tmp_path, number):
    path, place = write(tmp_path / "a.jsonl", 3_000), tmp_path / "x"
    moments = random.Random(int(number))
    for _ in range(4):
        process = start(path, place, moments.choice((1, 2)))
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.1, 1.5))
        process.send_signal(number)
        code, said = end(process)
        if (place / MANIFEST).exists():
            break  # The signal came when all was done.
        # Before the stage begins, and after it ended, SIGTERM ends Python as it always does.
        assert code == 130 or (code == -number and not said), said
        assert code != 130 or ("InterruptedRun" in said and "--resume" in said)
        assert is_unsealed(place)
    else:
        assert end(start(path, place))[0] == 0
    Artifact.open(place).verify()


def test_an_interrupt_is_told_with_the_way_to_go_on(recipe, tmp_path):
    arm("data-settle=term")
    with pytest.raises(InterruptedRun) as caught:
        build(recipe, tmp_path / "x")
    assert "--resume" in caught.value.fix
    assert is_clean(tmp_path / "x")
    assert build(recipe, tmp_path / "x", resume=True).rows["train"] == 160


@pytest.mark.slow
@pytest.mark.parametrize("point", ["data-spool", "data-settle"])
def test_a_file_that_changes_while_it_is_read_is_refused(recipe, tmp_path, point):
    path, place = tmp_path / "a.jsonl", tmp_path / "x"
    process = start(path, place, point=f"{point}=stop")
    _, state = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(state)
    path.write_text(path.read_text().replace("number 7?", "number 8?"))
    process.send_signal(signal.SIGCONT)
    code, said = end(process)
    if point == "data-settle":  # All is read by then.
        assert code == 0, said
        sealed = [file.read_text() for file in place.glob("*.jsonl")]
        assert "number 7?" in "".join(sealed)
        return
    assert "DataError" in said
    assert "changed while it was read" in said
    assert is_clean(place)


def test_a_file_that_is_gone_when_it_is_to_be_read_is_named(recipe, tmp_path):
    path, parents = tmp_path / "a.jsonl", data.sources(recipe)
    path.unlink()
    with Run.open(tmp_path / "y", "data", inputs={}, parents=parents) as at:
        with pytest.raises(TunesmithError, match=r"a\.jsonl"):
            data.run(recipe, at)
        assert is_clean(tmp_path / "y")


@pytest.mark.slow
def test_a_real_full_disk_seals_nothing_and_with_more_room_it_goes_on(recipe, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    write(tmp_path / "a.jsonl", 3_000, width=40)
    size = ["-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)]
    if subprocess.run(["mount", *size], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        with pytest.raises(StorageError) as caught:
            build(recipe, disk / "x")
        assert "the disk is full" in caught.value.why
        assert is_clean(disk / "x")
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        result = build(recipe, disk / "x", resume=True)
        result.artifact.verify()
        del result
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_folder_that_is_a_file_is_a_storage_error(recipe, tmp_path):
    (tmp_path / "x").write_text("here already")
    with pytest.raises(StorageError, match="cannot write"):
        build(recipe, tmp_path / "x")
    assert (tmp_path / "x").read_text() == "here already"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_storage_error(recipe, tmp_path):
    place = tmp_path / "closed"
    place.mkdir(mode=0o500)
    with pytest.raises(StorageError):
        build(recipe, place / "x")


def test_a_refused_build_leaves_the_folder_free_for_the_mended_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "completion": ""}\n')
    recipe = recipe_from({"data": {"source": {"kind": "files", "train": str(path)}}})
    with pytest.raises(DataError):
        build(recipe, tmp_path / "x")
    write(path, 50)
    assert build(recipe, tmp_path / "x").rows["train"] == 40


words = st.sampled_from(
    ["red", "green", "blue", "How many?", "What is 7?", "Éire", "x" * 30, "Cafe\u0301"]
)
texts = st.lists(words, min_size=1, max_size=4).map(" ".join)
row = st.fixed_dictionaries(
    {
        "prompt": texts,
        "completion": texts,
        "label": st.sampled_from("ab"),
        "user": st.integers(0, 9),
    }
)
clean = st.fixed_dictionaries(
    {},
    optional={
        "exact": st.just("drop"),
        "near": st.just("drop"),
        "max_answer_characters": st.integers(5, 60),
        "normalize": st.booleans(),
        "drop_where": st.just({"label": "a"}),
    },
)
split = st.fixed_dictionaries(
    {},
    optional={
        "stratify": st.sampled_from(["label", "answer"]),
        "group": st.just("user"),
        "by_template": st.booleans(),
        "near_duplicates": st.booleans(),
    },
)
section = st.fixed_dictionaries(
    {"clean": clean, "split": split},
    optional={
        "require": st.just({"label": "b"}),
        "max_train_rows": st.integers(1, 20),
        "test_rows": st.integers(1, 8),
    },
)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.lists(row, min_size=8, max_size=60), section=section)
def test_no_row_is_lost_or_invented(tmp_path_factory, rows, section):
    folder = tmp_path_factory.mktemp("lost")
    path = folder / "a.jsonl"
    numbered = [{**made, "n": n} for n, made in enumerate(rows)]
    path.write_text("".join(f"{json.dumps(made)}\n" for made in numbered), encoding="utf-8")
    recipe = recipe_from({"data": {"source": {"kind": "files", "train": str(path)}, **section}})
    try:
        result = build(recipe, folder / "x")
    except DataError:
        assert is_clean(folder / "x")
        return
    kept = [made for name in result.rows for made in lines_of(result, name)]
    dropped, changed = lines_of(result, "dropped"), lines_of(result, "changed")
    found = [made["meta"]["n"] for made in [*kept, *(one["row"] for one in dropped)]]
    assert sorted(found) == list(range(len(rows)))
    assert all(one["row"] == as_it_came(numbered[one["row"]["meta"]["n"]]) for one in dropped)
    others = [made for made in kept if made != as_it_came(numbered[made["meta"]["n"]])]
    assert sorted(one["to"]["meta"]["n"] for one in changed) == sorted(
        m["meta"]["n"] for m in others
    )
    assert all(one["to"] in others for one in changed)
    assert all(one["row"] == as_it_came(numbered[one["to"]["meta"]["n"]]) for one in changed)
    assert all(one["where"] == f"{path}:{one['row']['meta']['n'] + 1}" for one in dropped)
    assert result.report["rows_read"] == len(rows)
    assert sum(result.report["left_out"]["by_rule"].values()) == len(dropped)


def as_it_came(made):
    """The canonical row of a row, unchanged."""
    said = (("user", made["prompt"]), ("assistant", made["completion"]))
    meta = {name: made[name] for name in ("label", "user", "n")}
    return {"messages": [{"role": role, "content": text} for role, text in said], "meta": meta}


def lines_of(result, name):
    text = result.artifact.path(f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
