"""Which stages run, which are used again, which go on; and that a plan writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from tunesmith import pipeline
from tunesmith.cli.data.split import print_report
from tunesmith.config import recipe_from
from tunesmith.data.look import open_place, page, stats
from tunesmith.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    EnvironmentProblem,
    InterruptedRun,
    MissingError,
    TunesmithError,
    UsedDirectoryError,
)
from tunesmith.store import MANIFEST, Artifact, Run


def rows(n: int, start: int = 0) -> str:
    return "".join(
        json.dumps({"prompt": f"what is {k} plus {k}?", "completion": str(2 * k)}) + "\n"
        for k in range(start, start + n)
    )


def recipe_of(folder: Path, **sections):
    data = folder / "rows.jsonl"
    if not data.exists():
        data.write_text(rows(40))
    values = {
        "name": "sums",
        "workspace": str(folder / "runs"),
        "data": {"source": {"kind": "files", "train": str(data)}},
        "model": {"base": "embedded"},
    }
    for key, value in sections.items():
        values[key] = {**values[key], **value} if isinstance(values.get(key), dict) else value
    return recipe_from(values)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in sorted(folder.rglob("*"))
    }


def only(results):
    assert len(results) == 1
    return results[0]


def build(recipe, **options):
    return only(pipeline.run(recipe, until="data", **options))


def test_a_stage_is_made_once_and_then_used_again(tmp_path):
    first = build(recipe_of(tmp_path))
    second = build(recipe_of(tmp_path))
    assert not first.reused
    assert second.reused
    assert second.artifact == first.artifact
    assert second.seconds == first.seconds
    assert second.peak_rss_bytes == first.peak_rss_bytes
    name = f"data-{first.artifact.key[:12]}"
    assert first.artifact.dir == tmp_path / "runs/sums" / name


def test_a_plan_writes_nothing_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    recipe = recipe_of(tmp_path)
    before = snapshot(tmp_path)
    steps = pipeline.plan(recipe)
    assert snapshot(tmp_path) == before
    assert [step.action for step in steps] == ["run"] * 4
    assert steps[0].directory is not None
    assert [step.directory for step in steps[1:]] == [None] * 3
    assert "depends on data" in steps[1].why

    build(recipe)
    before = snapshot(tmp_path)
    steps = pipeline.plan(recipe)
    assert snapshot(tmp_path) == before
    assert [step.action for step in steps] == ["reuse", "run", "run", "run"]
    assert "base model" in steps[1].why


def test_what_changed_is_named(tmp_path):
    build(recipe_of(tmp_path))
    other = recipe_of(tmp_path, data={"test_ratio": 0.2})
    step = pipeline.plan(other, until="data")[0]
    assert step.action == "run"
    assert step.why == "data.test_ratio was 0.1, is 0.2"
    (tmp_path / "rows.jsonl").write_text(rows(41))
    assert "changed: file" in pipeline.plan(recipe_of(tmp_path), until="data")[0].why


def test_settings_of_later_stages_do_not_run_earlier_ones_again(tmp_path):
    build(recipe_of(tmp_path))
    other = recipe_of(tmp_path, evaluate={"max_rows": 3}, train={"epochs": 1})
    assert build(other).reused


def test_the_seed_runs_every_stage_again(tmp_path):
    build(recipe_of(tmp_path))
    assert not build(recipe_of(tmp_path, seed=1)).reused


def test_moved_files_make_the_same_artifact(tmp_path):
    first = build(recipe_of(tmp_path))
    shutil.move(tmp_path / "rows.jsonl", tmp_path / "moved.jsonl")
    (tmp_path / "rows.jsonl").write_text("not read")
    source = {"kind": "files", "train": str(tmp_path / "moved.jsonl")}
    second = build(recipe_of(tmp_path, data={"source": source}))
    assert second.reused
    assert second.artifact == first.artifact


def test_from_makes_a_new_attempt_beside_the_old_one_and_the_newest_counts(tmp_path):
    recipe = recipe_of(tmp_path)
    first = build(recipe)
    before = snapshot(first.artifact.dir)
    second, third = build(recipe, start="data"), build(recipe, start="data")
    assert snapshot(first.artifact.dir) == before
    assert [d.artifact.dir.name for d in (second, third)] == [
        f"{first.artifact.dir.name}-2",
        f"{first.artifact.dir.name}-3",
    ]
    newest = build(recipe)
    assert newest.reused
    assert newest.artifact.dir == third.artifact.dir


def test_attempts_count_as_numbers(tmp_path):
    recipe = recipe_of(tmp_path)
    first = build(recipe).artifact.dir
    shutil.copytree(first, first.with_name(f"{first.name}-10"))
    shutil.copytree(first, first.with_name(f"{first.name}-9"))
    (first.parent / f"{first.name}-old").mkdir()
    assert build(recipe).artifact.dir.name.endswith("-10")
    assert build(recipe, start="data").artifact.dir.name.endswith("-11")


def unfinished(recipe) -> Path:
    step = pipeline.plan(recipe, until="data")[0]
    assert step.directory is not None
    assert step.inputs is not None
    with Run.open(step.directory, "data", inputs=step.inputs, parents=step.parents) as at:
        at.write_text("scratch/half", "x")
    return step.directory


def test_run_goes_on_with_an_unfinished_stage(tmp_path):
    recipe = recipe_of(tmp_path)
    place = unfinished(recipe)
    assert pipeline.plan(recipe, until="data")[0].action == "resume"
    told = []
    done = build(recipe, tell=told.append)
    assert told[0].action == "resume"
    assert done.artifact.dir == place
    assert not done.reused


def test_a_stage_command_goes_on_only_when_asked(tmp_path):
    recipe = recipe_of(tmp_path)
    place = unfinished(recipe)
    with pytest.raises(UsedDirectoryError) as caught:
        pipeline.run_stage(recipe, "data")
    assert "--resume" in caught.value.fix
    assert place.is_dir()
    assert pipeline.run_stage(recipe, "data", resume=True).artifact.dir == place


def test_an_unfinished_run_of_a_merge_is_not_taken_for_one_of_the_recipe(tmp_path):
    recipe = recipe_of(tmp_path)
    other = tmp_path / "runs/sums/data-merge-0123456789ab"
    other.mkdir(parents=True)
    (other / "run.json").write_text(json.dumps({"inputs": {"name": "x"}, "parents": []}))
    assert pipeline.run_stage(recipe, "data", resume=True).artifact.dir.name != other.name


def test_an_interrupted_stage_counts_the_time_of_all_its_attempts(tmp_path):
    recipe = recipe_of(tmp_path)
    timing = unfinished(recipe) / pipeline.TIMING
    timing.write_text('{"seconds": 1000, "peak_rss_bytes": 1}')
    assert build(recipe).seconds > 1000
    assert build(recipe).seconds > 1000


@pytest.mark.parametrize("broken", ["", "{", "[]", "\x00"])
def test_a_damaged_timing_file_only_loses_the_time(tmp_path, broken):
    recipe = recipe_of(tmp_path)
    place = build(recipe).artifact.dir
    (place / pipeline.TIMING).write_text(broken)
    done = build(recipe)
    assert done.reused
    assert done.seconds is None


def test_a_refused_stage_leaves_no_folder_behind(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(DataError):
        build(recipe_of(tmp_path))
    assert list((tmp_path / "runs/sums").iterdir()) == []


@pytest.mark.parametrize("n_files", [0, 1])
def test_a_stage_that_ctrl_c_ends_says_how_to_go_on(tmp_path, monkeypatch, n_files):
    def stopped(_stage, _recipe, at, *_others):
        for number in range(n_files):
            at.write_text(f"part-{number}", "whole")
        raise KeyboardInterrupt

    monkeypatch.setattr("tunesmith.pipeline.stages._call", stopped)
    with pytest.raises(InterruptedRun, match="'data' was stopped") as caught:
        build(recipe_of(tmp_path))
    assert ("--resume for `tunesmith data build`" in caught.value.fix) == bool(n_files)
    assert len(list((tmp_path / "runs/sums").iterdir())) == n_files
    monkeypatch.undo()
    told = []
    if n_files:
        with pytest.raises(UsedDirectoryError, match="unfinished"):
            pipeline.run_stage(recipe_of(tmp_path), "data", tell=told.append)
    assert told == []
    assert not pipeline.run_stage(recipe_of(tmp_path), "data", resume=True).reused


def test_a_missing_raw_file_is_named_before_anything_is_written(tmp_path):
    source = {"kind": "files", "train": [str(tmp_path / "no.jsonl"), str(tmp_path / "nix.jsonl")]}
    recipe = recipe_of(tmp_path, data={"source": source})
    for act in (pipeline.plan, pipeline.run):
        with pytest.raises(MissingError, match=r"no\.jsonl") as caught:
            act(recipe)
        assert "nix.jsonl" in caught.value.what
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("stage", ["train", "evaluate", "export"])
def test_a_stage_without_its_parents_names_the_command_that_makes_them(tmp_path, stage):
    recipe = recipe_of(tmp_path)
    with pytest.raises(MissingError, match="'data' is not made") as caught:
        pipeline.run_stage(recipe, stage, spelled="my.yaml --set seed=3")
    assert "tunesmith data build my.yaml --set seed=3" in caught.value.fix
    assert "tunesmith run my.yaml --set seed=3 --until data" in caught.value.fix
    assert caught.value.fix.startswith("tunesmith run")
    assert not (tmp_path / "runs").exists()


def test_find_gives_the_artifact_of_this_recipe_and_no_other(tmp_path):
    made = build(recipe_of(tmp_path)).artifact
    assert pipeline.find(recipe_of(tmp_path), "data") == made
    with pytest.raises(MissingError) as caught:
        pipeline.find(recipe_of(tmp_path, seed=5), "data")
    assert "seed was 0, is 5" in caught.value.why
    assert caught.value.fix.startswith("give the same --set")


@pytest.mark.parametrize("size", [0, 10, 400])
def test_a_truncated_manifest_is_an_error_and_not_a_new_run(tmp_path, size):
    recipe = recipe_of(tmp_path)
    place = build(recipe).artifact.dir
    manifest = place / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:size])
    for act in (pipeline.plan, pipeline.run):
        with pytest.raises(ArtifactError, match="damaged") as caught:
            act(recipe, until="data")
        assert str(place) in caught.value.fix


def test_a_damaged_neighbour_does_not_stop_another_recipe(tmp_path):
    manifest = build(recipe_of(tmp_path)).artifact.dir / MANIFEST
    manifest.write_text("{")
    assert not build(recipe_of(tmp_path, seed=1)).reused


def test_a_folder_that_holds_another_artifact_is_refused(tmp_path):
    first = build(recipe_of(tmp_path)).artifact.dir
    second = build(recipe_of(tmp_path, seed=1)).artifact.dir
    shutil.rmtree(first)
    os.rename(second, first)
    with pytest.raises(ArtifactError, match="another key"):
        build(recipe_of(tmp_path))


def test_stages_in_the_wrong_order_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--from export comes after --until data"):
        pipeline.plan(recipe_of(tmp_path), start="export", until="data")


def test_an_adapter_of_a_full_fine_tuning_is_refused_before_anything_runs(tmp_path):
    full = {"method": {"kind": "full"}}
    recipe = recipe_of(tmp_path, train=full, export={"forms": ["adapter"]})
    with pytest.raises(ConfigError, match="trains no adapter"):
        pipeline.run(recipe)
    assert not (tmp_path / "runs").exists()


def test_a_form_without_its_package_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    recipe = recipe_of(tmp_path, export={"forms": ["merged", "torchao-int4"]})
    with pytest.raises(EnvironmentProblem, match="needs torchao") as caught:
        pipeline.run(recipe)
    assert "tunesmith[torchao]" in caught.value.fix
    assert not (tmp_path / "runs").exists()
    assert not build(recipe).reused


def test_a_missing_base_model_is_named_before_training(tmp_path):
    recipe = recipe_of(tmp_path, model={"base": str(tmp_path / "no-model")})
    with pytest.raises(MissingError, match="no-model"):
        pipeline.run(recipe)
    assert not list((tmp_path / "runs/sums").glob("train-*"))
    build(recipe)
    with pytest.raises(MissingError, match="no-model"):
        pipeline.plan(recipe)


def test_a_model_key_that_nothing_reads_is_refused(tmp_path):
    recipe = recipe_of(tmp_path, model={"base": "embedded", "revision": "main"})
    build(recipe)
    with pytest.raises(ConfigError, match=r"model\.revision"):
        pipeline.run(recipe, until="train")


def test_a_workspace_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(TunesmithError, match="cannot write") as caught:
        build(recipe_of(tmp_path))
    assert "workspace" in caught.value.fix


def test_lineage_of_a_dataset_names_the_users_file(tmp_path):
    made = build(recipe_of(tmp_path)).artifact
    assert [(p.kind, p.path) for p in Artifact.open(made.dir).parents] == [
        ("file", str(tmp_path / "rows.jsonl"))
    ]


def test_neither_a_dataset_nor_its_page_names_the_folders_of_this_machine(tmp_path, capsys):
    made = build(recipe_of(tmp_path)).artifact
    assert {"report.json", "README.md"} <= set(made.files)
    for name in (*made.files, MANIFEST, "run.json"):
        assert str(tmp_path) not in (made.dir / name).read_text(), name
    page_of = page(stats(open_place(made.dir)))
    assert "rows.jsonl" in page_of
    assert str(tmp_path) not in page_of
    print_report(made.read_json("report.json"))
    assert "rows.jsonl: 40 " in capsys.readouterr().out
