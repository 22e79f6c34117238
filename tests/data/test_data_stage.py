"""Raw files to a sealed dataset."""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys

import pytest

from tunesmith import data
from tunesmith.config import recipe_from
from tunesmith.data import databases
from tunesmith.errors import (
    ConfigError,
    DataError,
    EnvironmentProblem,
    InterruptedRun,
    MissingError,
    StorageError,
)
from tunesmith.store import MANIFEST, Artifact, Run
from tunesmith.store.failpoints import arm


def pairs(first, last):
    return [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(first, last)]


def files(**named):
    return {"source": {"kind": "files", **{k: str(v) for k, v in named.items()}}}


def make_database(path):
    connection = sqlite3.connect(path)
    connection.execute("create table city (name text)")
    connection.execute("insert into city values ('Oslo')")
    connection.commit()
    connection.close()
    return path


@pytest.mark.slow
def test_the_sample_is_sealed_with_rows_databases_report_and_card(seal, rows_of):
    result = seal({})
    assert result.rows == {"train": 1400, "validation": 120, "test": 300}
    assert result.artifact.kind == "data"
    result.artifact.verify()
    assert result.artifact.facts["databases"] == list(result.databases)
    assert len(result.databases) == 8
    row = rows_of(result, "test")[0]
    place = result.artifact.path(f"databases/{row['meta']['database']}.sqlite")
    connection = sqlite3.connect(place)
    assert connection.execute(row["messages"][-1]["content"]).fetchall()
    connection.close()
    card = result.artifact.path("README.md").read_text(encoding="utf-8")
    assert "| train | 1400 | 0 |" in card
    assert result.artifact.read_json("report.json") == result.report


def test_equal_input_gives_equal_files(seal, lines):
    section = files(train=lines("all.jsonl", pairs(0, 100)))
    one, two = seal(section, name="one"), seal(section, name="two")
    assert one.artifact.files == two.artifact.files


@pytest.mark.slow
def test_equal_samples_give_equal_files_and_databases(seal):
    one, two = seal({}, name="one"), seal({}, name="two")
    assert one.artifact.files == two.artifact.files


@pytest.mark.slow
def test_the_sample_can_be_made_smaller(seal, rows_of):
    result = seal({"max_train_rows": 50, "max_test_rows": 20})
    assert result.rows == {"train": 50, "validation": 120, "test": 20}
    assert len({row["meta"]["database"] for row in rows_of(result, "train")}) == 8


def test_a_key_that_the_sample_does_not_read_is_refused(seal, tmp_path):
    with pytest.raises(ConfigError) as caught:
        seal({"system": "be brief", "validation_ratio": 0.2})
    assert "data.system" in caught.value.what
    assert "data.validation_ratio" in caught.value.what
    assert not (tmp_path / "sealed").exists()


def test_a_ratio_that_a_given_file_makes_meaningless_is_refused(seal, lines):
    train, test = lines("train.jsonl", pairs(0, 9)), lines("test.jsonl", pairs(20, 29))
    with pytest.raises(ConfigError, match=r"data\.test_ratio"):
        seal({**files(train=train, test=test), "test_ratio": 0.2})


def test_one_file_is_split_by_ratio(seal, lines, rows_of):
    path = lines("all.jsonl", pairs(0, 100))
    result = seal({**files(train=path), "validation_ratio": 0.2, "test_ratio": 0.3})
    assert result.rows == {"train": 50, "validation": 20, "test": 30}
    prompts = [r["messages"][0]["content"] for s in result.rows for r in rows_of(result, s)]
    assert sorted(prompts) == sorted(row["prompt"] for row in pairs(0, 100))


def test_another_seed_gives_another_split(seal, lines):
    path = lines("all.jsonl", pairs(0, 50))
    one = seal(files(train=path), seed=1, name="one").artifact
    two = seal(files(train=path), seed=2, name="two").artifact
    assert one.files["test.jsonl"] != two.files["test.jsonl"]


def test_a_prompt_in_train_and_test_is_refused_with_both_lines(seal, lines, tmp_path):
    train = lines("train.jsonl", pairs(0, 10))
    test = lines("test.jsonl", [*pairs(20, 25), {"prompt": "QUESTION 3?", "completion": "x"}])
    with pytest.raises(DataError) as caught:
        seal({**files(train=train, validation=lines("v.jsonl", pairs(30, 33)), test=test)})
    assert f"{train}:4 (train) = {test}:6 (test)" in caught.value.what
    assert not (tmp_path / "sealed" / MANIFEST).exists()


def test_overlapping_rows_can_be_left_out_of_training(seal, lines, rows_of):
    train = lines("train.jsonl", pairs(0, 10))
    test = lines("test.jsonl", [*pairs(20, 25), *pairs(3, 5)])
    section = files(train=train, validation=lines("v.jsonl", pairs(30, 33)), test=test)
    result = seal({**section, "on_overlap": "drop_from_train"})
    assert result.rows == {"train": 8, "validation": 3, "test": 7}
    assert result.report["left_out"]["by_overlap"] == {"train": 2}
    assert "question 3" not in [r["messages"][0]["content"] for r in rows_of(result, "train")]
    assert (
        "Left out of train for repeating held-out prompts: 2 rows."
        in result.artifact.path("README.md").read_text()
    )


def test_rows_without_the_required_value_are_left_out_and_counted(seal, lines):
    rows = [{**row, "ok": n % 2 == 0} for n, row in enumerate(pairs(0, 40))]
    rows.append({"prompt": "odd", "completion": "one", "ok": 1})
    result = seal({**files(train=lines("a.jsonl", rows)), "require": {"ok": True}})
    assert sum(result.rows.values()) == 20
    assert result.report["left_out"]["by_require"] == 21


def test_a_requirement_that_no_row_meets_is_refused(seal, lines):
    with pytest.raises(DataError, match="no rows are left for train") as caught:
        seal({**files(train=lines("a.jsonl", pairs(0, 9))), "require": {"ok": True}})
    assert "ok = True" in caught.value.why


def test_training_rows_that_all_repeat_the_test_are_refused(seal, lines):
    section = files(
        train=lines("a.jsonl", pairs(0, 3)),
        validation=lines("v.jsonl", pairs(10, 12)),
        test=lines("t.jsonl", pairs(0, 3)),
    )
    with pytest.raises(DataError, match="no rows are left for train"):
        seal({**section, "on_overlap": "drop_from_train"})


def test_problems_of_all_files_come_in_one_error(seal, lines, tmp_path):
    train = lines("train.jsonl", [*pairs(0, 3), {"prompt": "q", "completion": ""}])
    test = lines("test.jsonl", [*pairs(5, 8), "{broken"])
    with pytest.raises(DataError) as caught:
        seal({**files(train=train, test=test), "databases": {"x": str(lines("x.sqlite", ["no"]))}})
    assert "3 problems" in caught.value.what
    assert f"{train}:4: completion: empty" in caught.value.what
    assert f"{test}:4: not valid JSON" in caught.value.what
    assert "data.databases.x" in caught.value.what
    assert not (tmp_path / "sealed" / "train.jsonl").exists()


def test_all_missing_files_are_named(lines):
    recipe = recipe_from({"data": files(train="gone.jsonl", test="also/gone.jsonl")})
    with pytest.raises(MissingError) as caught:
        data.sources(recipe)
    assert "gone.jsonl: no such file" in caught.value.what
    assert "also/gone.jsonl: no such file" in caught.value.what


def test_a_folder_without_files_is_named(tmp_path):
    recipe = recipe_from({"data": files(train=tmp_path)})
    with pytest.raises(MissingError, match=str(tmp_path)):
        data.sources(recipe)


def test_a_file_that_changed_since_the_run_began_is_refused(lines, tmp_path):
    path = lines("a.jsonl", pairs(0, 20))
    recipe = recipe_from({"data": files(train=path)})
    with Run.open(tmp_path / "x", "data", inputs={}, parents=data.sources(recipe)) as at:
        lines("a.jsonl", pairs(0, 21))
        with pytest.raises(DataError, match=r"a\.jsonl changed while it was read"):
            data.run(recipe, at)
    assert not (tmp_path / "x" / MANIFEST).exists()


def test_a_database_that_changes_while_it_is_copied_is_refused(lines, tmp_path):
    base = make_database(tmp_path / "b.sqlite")
    with (
        Run.open(tmp_path / "x", "data", inputs={}) as at,
        pytest.raises(DataError, match="changed"),
    ):
        databases.copy_databases({"b": base}, {base: "0" * 64}, at)
    assert not (tmp_path / "x" / "databases" / "b.sqlite").exists()


def test_databases_are_copied_byte_for_byte(seal, lines, tmp_path):
    base = make_database(tmp_path / "b.sqlite")
    section = {**files(train=lines("a.jsonl", pairs(0, 20))), "databases": {"geo": str(base)}}
    result = seal(section)
    assert result.artifact.path("databases/geo.sqlite").read_bytes() == base.read_bytes()
    assert [parent.path for parent in result.artifact.parents] == [
        str(tmp_path / "a.jsonl"),
        str(base),
    ]


def test_a_row_that_names_no_known_database_is_refused(seal, lines, tmp_path):
    one, two = make_database(tmp_path / "1.sqlite"), make_database(tmp_path / "2.sqlite")
    rows = [{**row, "database": "one"} for row in pairs(0, 20)]
    rows[2]["database"] = "three"
    del rows[4]["database"]
    path = lines("a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        seal({**files(train=path), "databases": {"one": str(one), "two": str(two)}})
    assert f"{path}:3: database: 'three' is not one of one, two" in caught.value.what
    assert f"{path}:5: the field 'database' is missing" in caught.value.what


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("db", b"not a database", "no SQLite database"),
        ("db", b"SQLite format 3\0" + b"\0" * 100, "damaged"),
        ("../up", None, "a name has letters"),
    ],
)
def test_a_bad_database_is_refused(seal, lines, tmp_path, name, content, expected):
    place = tmp_path / "b.sqlite"
    if content is None:
        make_database(place)
    else:
        place.write_bytes(content)
    with pytest.raises(DataError, match=expected):
        seal({**files(train=lines("a.jsonl", pairs(0, 20))), "databases": {name: str(place)}})


def test_a_database_without_tables_or_with_waiting_rows_is_refused(seal, lines, tmp_path):
    empty, busy = tmp_path / "empty.sqlite", make_database(tmp_path / "busy.sqlite")
    connection = sqlite3.connect(empty)
    connection.execute("pragma user_version = 1")
    connection.close()
    (tmp_path / "busy.sqlite-wal").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        seal(
            {
                **files(train=lines("a.jsonl", [{**p, "database": "e"} for p in pairs(0, 20)])),
                "databases": {"e": str(empty), "b": str(busy)},
            }
        )
    assert "it has no tables" in caught.value.what
    assert "rows wait in busy.sqlite-wal" in caught.value.what


def test_several_files_of_several_schemas_make_one_dataset(seal, lines):
    one = lines("one.jsonl", pairs(0, 10))
    two = lines("two.jsonl", [{"instruction": f"do {n}", "output": "done"} for n in range(10)])
    result = seal({"source": {"kind": "files", "train": [str(one), str(two)]}})
    assert sum(result.rows.values()) == 20
    schemas = [file["schema"] for file in result.report["files"]]
    assert schemas == ["prompt-completion", "instruction"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_disk_that_takes_no_more_seals_nothing_and_the_run_can_be_resumed(tmp_path):
    import resource

    recipe = recipe_from({})
    parents = data.sources(recipe)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with (
            pytest.raises(StorageError, match="cannot write"),
            Run.open(tmp_path / "x", "data", inputs={}, parents=parents) as at,
        ):
            data.run(recipe, at)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "x" / MANIFEST).exists()
    assert list((tmp_path / "x").rglob("*.part")) == []
    with Run.open(tmp_path / "x", "data", inputs={}, parents=parents, resume=True) as at:
        data.run(recipe, at)
    Artifact.open(tmp_path / "x", "data").verify()


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_disk_that_refuses_the_copy_is_a_storage_error(lines, tmp_path, monkeypatch):
    base = make_database(tmp_path / "b.sqlite")
    copy = shutil.copyfile
    monkeypatch.setattr(
        databases.shutil, "copyfile", lambda source, _target: copy(source, "/dev/full")
    )
    with (
        Run.open(tmp_path / "x", "data", inputs={}) as at,
        pytest.raises(StorageError, match="full"),
    ):
        databases.copy_databases({"b": base}, {base: ""}, at)
    assert list((tmp_path / "x").rglob("*.part")) == []


def test_an_interrupt_while_rows_are_written_seals_nothing(lines, tmp_path):
    recipe = recipe_from({"data": files(train=lines("a.jsonl", pairs(0, 20)))})
    arm("data-write=term")
    try:
        with (
            Run.open(tmp_path / "x", "data", inputs={}, parents=data.sources(recipe)) as at,
            pytest.raises(InterruptedRun),
        ):
            data.run(recipe, at)
    finally:
        arm("")
    assert not (tmp_path / "x" / MANIFEST).exists()
    assert not list((tmp_path / "x").rglob("*.part"))


@pytest.mark.parametrize("heavy", ["torch", "transformers", "numpy", "pyarrow"])
def test_the_stage_is_imported_without_heavy_packages(heavy):
    import subprocess

    code = f"import sys, tunesmith.data; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_sealed_row_is_what_was_read(seal, lines, rows_of):
    rows = [{"question": "q\u2028ü", "sql": "s", "id": n} for n in range(12)]
    for n, row in enumerate(rows):
        row["question"] += str(n)
    path = lines("a.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows])
    result = seal({**files(train=path), "fields": {"prompt": "question", "completion": "sql"}})
    found = {r["meta"]["id"]: r for split in result.rows for r in rows_of(result, split)}
    assert {n: r["messages"][0]["content"] for n, r in found.items()} == {
        row["id"]: row["question"] for row in rows
    }


def test_pairs_and_single_answers_in_one_dataset_are_refused_with_their_files(seal, tmp_path):
    turn = [{"role": "user", "content": "q"}]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": turn, **answers}) + "\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "q", "completion": "a"}) + "\n")
    named = {"train": tmp_path / "pairs.jsonl", "validation": tmp_path / "rows.jsonl"}
    with pytest.raises(DataError, match="beside files of another kind") as refusal:
        seal(files(**named))
    assert "rows.jsonl: chat rows (prompt-completion) beside" in str(refusal.value)


def test_every_changed_and_dropped_row_is_in_a_side_file_as_it_came(seal, lines, rows_of):
    rows = pairs(0, 40)
    rows[3]["completion"] = "answer 3   \r\nand more"
    rows[5]["completion"] = "answer 5\u200b"
    rows.append({"prompt": rows[5]["prompt"], "completion": "answer 5\u200b"})
    rows.append({"prompt": "question 41", "completion": "a" * 90})
    path = lines("a.jsonl", rows)
    clean = {"normalize": True, "exact": "drop", "max_answer_characters": 50}
    result = seal({**files(train=path), "clean": clean})
    dropped, changed = rows_of(result, "dropped"), rows_of(result, "changed")
    assert [(one["where"], one["rule"]) for one in dropped] == [
        (f"{path}:42", "length"),
        (f"{path}:41", "exact"),
    ]
    assert dropped[1]["row"]["messages"][1]["content"] == "answer 5\u200b"
    assert dropped[1]["reason"] == f"the same as {path}:6"
    assert [(one["where"], one["rule"]) for one in changed] == [
        (f"{path}:4", "normalize"),
        (f"{path}:6", "normalize"),
    ]
    assert changed[1]["row"]["messages"][1]["content"] == "answer 5\u200b"
    assert changed[1]["to"]["messages"][1]["content"] == "answer 5"
    assert sum(result.rows.values()) + len(dropped) == 42
    assert result.report["changed"] == {"normalize": 2}


def test_rows_in_any_script_are_found_again_when_they_are_dropped(seal, lines, rows_of):
    words = ["naïve", "日本", "Ελλάδα", "plain", "😀"]
    rows = [{"prompt": f"{words[n % 5]} {n}", "completion": "a", "n": n} for n in range(60)]
    path = lines("a.jsonl", [json.dumps(row, ensure_ascii=False) for row in rows])
    result = seal({**files(train=path), "max_train_rows": 10, "split": {"near_duplicates": False}})
    dropped = rows_of(result, "dropped")
    assert len(dropped) == 38
    for one in dropped:
        number = one["row"]["meta"]["n"]
        assert one["where"] == f"{path}:{number + 1}"
        assert one["row"]["messages"][0]["content"] == rows[number]["prompt"]


def test_of_two_equal_rows_the_one_in_training_goes(seal, lines):
    train, test = lines("a.jsonl", pairs(0, 20)), lines("t.jsonl", pairs(18, 25))
    section = files(train=train, validation=lines("v.jsonl", pairs(30, 33)), test=test)
    result = seal({**section, "clean": {"exact": "drop"}})
    assert result.rows == {"train": 18, "validation": 3, "test": 7}


def test_a_file_that_fits_no_schema_is_one_problem(seal, lines):
    path = lines("a.jsonl", [{"frage": n, "antwort": n} for n in range(30)])
    with pytest.raises(DataError, match="1 problem in the data") as caught:
        seal(files(train=path))
    assert "its fields are frage, antwort" in caught.value.what


def test_findings_of_the_checks_are_sealed_with_their_lines(seal, lines, rows_of):
    rows = pairs(0, 120)
    rows[7]["completion"] = "I'm sorry, but I cannot help with that."
    path = lines("a.jsonl", rows)
    result = seal(files(train=path))
    found = [one for one in rows_of(result, "findings") if one["where"] == f"{path}:8"]
    assert "refusal" in [one["check"] for one in found]
    assert result.report["score"]["n_rows"] == 120


def test_rows_that_repeat_a_benchmark_are_dropped_and_the_benchmark_is_a_parent(
    seal, lines, rows_of, tmp_path
):
    (tmp_path / "bench").mkdir()
    rows = [*pairs(0, 20), {"prompt": "Who built the old lighthouse of Genoa?", "completion": "x"}]
    path = lines("a.jsonl", rows)
    bench = lines(
        "bench/b.jsonl", [{**rows[-1], "prompt": "who built the old lighthouse of Genoa"}]
    )
    result = seal({**files(train=path), "clean": {"against": str(tmp_path / "bench")}})
    dropped = rows_of(result, "dropped")
    assert [(one["where"], one["rule"]) for one in dropped] == [(f"{path}:21", "contamination")]
    assert str(bench) in [parent.path for parent in result.artifact.parents]


def test_without_numpy_the_error_names_the_extra(seal, lines, monkeypatch):
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(EnvironmentProblem, match="numpy") as caught:
        seal(files(train=lines("a.jsonl", pairs(0, 20))))
    assert "tunesmith[data]" in caught.value.fix


def test_rows_with_half_of_a_surrogate_pair_beside_the_text_are_sealed_as_they_came(seal, lines):
    half = {"note": "\ud800", "\udfff name": 1}
    rows = [{"prompt": f"what is {n}?", "completion": f"{n} \u200b", **half} for n in range(60)]
    path = lines("a.jsonl", rows)
    source = {"kind": "files", "train": str(path)}
    found = seal({"source": source, "require": {"note": "\ud800"}, "clean": {"normalize": True}})
    for name in found.artifact.files:
        found.artifact.path(name).read_text(encoding="utf-8")
    assert "\udfff name" in found.artifact.read_json("report.json")["meta_fields"]
    sealed = found.artifact.path("train.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert all(json.loads(line)["meta"] == half for line in sealed)


def test_what_is_said_of_changed_rows_is_what_their_side_file_holds(seal, lines):
    rows = [{"prompt": f"what is {n // 2}?", "completion": f"{n // 2} \u200b"} for n in range(120)]
    source = {"kind": "files", "train": str(lines("a.jsonl", rows))}
    found = seal({"source": source, "clean": {"normalize": True, "exact": "drop"}})
    n_changed = len(found.artifact.path("changed.jsonl").read_text().split("\n")) - 1
    assert found.report["changed"] == {"normalize": n_changed} == {"normalize": 60}


def test_a_file_that_stands_twice_in_a_split_is_refused(seal, lines, tmp_path):
    path = lines("a.jsonl", [{"prompt": f"q {n}", "completion": "a"} for n in range(60)])
    (tmp_path / "link.jsonl").symlink_to(path)
    for second in (path, path.parent / "a*.jsonl", tmp_path / "link.jsonl"):
        source = {"kind": "files", "train": [str(path), str(second)]}
        with pytest.raises(
            ConfigError, match=r"data\.source\.train means a file twice: .*a\.jsonl"
        ):
            seal({"source": source})


def test_every_faulty_row_of_a_list_on_one_line_counts(seal, tmp_path):
    rows = [{"prompt": f"q {n}", "completion": "I'm sorry, but I cannot help."} for n in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = seal(files(train=tmp_path / "a.json"))
    (refusals,) = [r for r in found.report["score"]["reasons"] if r["check"] == "refusal"]
    assert (refusals["rows"], refusals["share"]) == (60, 1.0)


def test_a_file_that_came_into_a_folder_after_the_run_began_is_refused(lines, tmp_path):
    (tmp_path / "rows").mkdir()
    lines("rows/a.jsonl", pairs(0, 60))
    recipe = recipe_from({"data": files(train=tmp_path / "rows")})
    with Run.open(tmp_path / "x", "data", inputs={}, parents=data.sources(recipe)) as at:
        lines("rows/b.jsonl", pairs(60, 70))
        with pytest.raises(DataError, match=r"b\.jsonl was not among"):
            data.run(recipe, at)


def test_a_folder_that_was_there_stays_when_the_build_is_refused(lines, tmp_path):
    path, place = lines("a.jsonl", [{"prompt": "q", "completion": ""}]), tmp_path / "mine"
    place.mkdir()
    before = place.stat().st_ino
    with pytest.raises(DataError):
        data.build(recipe_from({"data": files(train=path)}), place)
    assert (place.stat().st_ino, list(place.iterdir())) == (before, [])


def test_a_benchmark_that_changed_since_the_run_began_is_refused(lines, tmp_path):
    held = lines("held.jsonl", pairs(100, 110))
    section = {**files(train=lines("a.jsonl", pairs(0, 60))), "clean": {"against": str(held)}}
    recipe = recipe_from({"data": section})
    with Run.open(tmp_path / "x", "data", inputs={}, parents=data.sources(recipe)) as at:
        lines("held.jsonl", pairs(100, 111))
        with pytest.raises(DataError, match=r"held\.jsonl changed while it was read"):
            data.run(recipe, at)
