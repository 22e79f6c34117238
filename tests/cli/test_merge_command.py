"""`tunesmith merge`: from the command line to a sealed folder, and to a comparison with its parents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tunesmith.cli.main import main
from tunesmith.config import ModelConfig
from tunesmith.models.load import load_model, resolve_base, save_model
from tunesmith.store import Artifact, lineage
from tunesmith.store.signatures import is_signed_by


@pytest.fixture(scope="module")
def models(tmp_path_factory, short_tokenizer):
    """Two tiny Llamas of one base."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(short_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=short_tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    save_model(model, short_tokenizer, folder / "base")
    for name in "ab":
        for weight in model.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
        save_model(model, short_tokenizer, folder / name)
    return folder


def call(capsys, *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(words)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_two_folders_become_a_sealed_one_that_other_stages_read(models, tmp_path, capsys):
    out = tmp_path / "out"
    given = f"{models / 'a'},{models / 'b'}"
    code, text, _ = call(capsys, "merge", "--models", given, "--weights", "3,1", "--out", str(out))
    assert code == 0
    assert "linear: " in text
    assert f"model: {out / 'model'}" in text
    sealed = Artifact.open(out, "merge")
    sealed.verify()
    assert sealed.facts["method"] == {"kind": "linear", "weights": [3.0, 1.0], "normalise": True}
    assert [(a.parent.kind, a.state) for a in lineage(sealed).ancestors] == 2 * [
        ("model", "present")
    ]
    found = load_model(resolve_base(ModelConfig(base=str(out / "model"))), torch.float32)
    a, b = (load_model(models / name, torch.float32) for name in "ab")
    for name, weight in found.named_parameters():
        wanted = (3 * a.get_parameter(name) + b.get_parameter(name)) / 4
        assert torch.allclose(weight, wanted, atol=1e-6)
    code, text, _ = call(capsys, "show", str(out))
    assert code == 0
    assert "linear" in text


def test_json_names_the_result_and_its_facts(models, tmp_path, capsys):
    words = ["--models", f"{models / 'a'},{models / 'b'}", "--base", str(models / "base")]
    words += ["--method", "ties", "--density", "0.5", "--out", str(tmp_path / "out"), "--json"]
    code, text, _ = call(capsys, "merge", *words)
    found = json.loads(text)
    assert code == 0
    assert found["directory"] == str(tmp_path / "out")
    assert found["facts"]["method"]["density"] == [0.5, 0.5]
    assert [parent["kind"] for parent in found["facts"]["parents"]] == ["model", "model"]


def test_wrong_lists_are_usage_errors(models, tmp_path, capsys):
    code, _, err = call(
        capsys, "merge", "--models", "a,b", "--weights", "half,1", "--out", str(tmp_path / "x")
    )
    assert code == 2
    assert "is no list of numbers" in err
    code, _, err = call(capsys, "merge", "--models", "a,,b", "--out", str(tmp_path / "x"))
    assert code == 2
    assert "holds an empty value" in err


def test_settings_without_a_recipe_are_refused(models, tmp_path, capsys):
    words = ["--models", f"{models / 'a'},{models / 'b'}", "--set", "export.forms=[merged]"]
    code, _, err = call(capsys, "merge", *words, "--out", str(tmp_path / "x"))
    assert code == 2
    assert "--evaluate or --export" in err
    assert not (tmp_path / "x").exists()


def test_an_error_as_json_has_what_why_and_fix(models, tmp_path, capsys):
    words = ["--models", f"{models / 'a'},{models / 'b'}", "--method", "slurp", "--json"]
    code, text, _ = call(capsys, "merge", *words, "--out", str(tmp_path / "x"))
    assert code == 2
    assert "'slerp'" in json.loads(text)["what"]


def recipe_of(folder: Path, models: Path) -> Path:
    """A recipe whose test rows are few."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "ok"}]}
        for n in range(24)
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""
name: tiny
workspace: {folder / "runs"}
model: {{base: {models / "base"}}}
data:
  source: {{kind: files, train: {data}}}
  test_ratio: 0.4
evaluate: {{max_answer_tokens: 4, resamples: 100}}
""",
        encoding="utf-8",
    )
    return recipe


@pytest.mark.slow
def test_one_flag_compares_the_result_with_its_parents(models, tmp_path, capsys):
    recipe = recipe_of(tmp_path, models)
    words = ["merge", "--models", f"{models / 'a'},{models / 'b'}", "--evaluate", str(recipe)]
    code, text, err = call(capsys, *words, "--out", str(tmp_path / "out"))
    assert code == 0, err
    assert "points against" in text
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len(notes) == len(set(notes)) > 0
    code, text, _ = call(capsys, *words, "--out", str(tmp_path / "out"), "--json")
    assert json.loads(text)["reused"] is True
    found = json.loads(text)["evaluation"]
    assert code == 0
    assert found["n"] > 5
    assert [model["is_parent"] for model in found["models"]] == [False, True, True]
    best = next(m for m in found["models"] if m["name"] == found["best_parent"])
    assert best["against_best"] is None
    assert {"points", "interval_points", "p_value", "verdict"} <= found["models"][0][
        "against_best"
    ].keys()
    sealed = Artifact.open(found["directory"], "rank")
    assert len(sealed.path("rows.jsonl").read_text().splitlines()) == found["n"]


@pytest.mark.slow
def test_a_merge_is_exported_as_a_bundle_that_is_proved_to_be_it(models, tmp_path, capsys):
    recipe = recipe_of(tmp_path, models)
    with recipe.open("a", encoding="utf-8") as stream:
        stream.write("export: {forms: [merged, gguf-f16], parity_prompts: 2, parity_tokens: 4}\n")
    words = ["merge", "--models", f"{models / 'a'},{models / 'b'}", "--export", str(recipe)]
    words += ["--evaluate", str(recipe)]
    words += ["--set", "export.forms=[merged]"]
    code, text, err = call(
        capsys, *words, "--base", str(models / "base"), "--out", str(tmp_path / "out"), "--json"
    )
    assert code == 0, err
    bundle = Artifact.open(json.loads(text)["export"]["directory"], "export")
    assert list(bundle.facts["forms"]) == ["merged"]
    merged, exported = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "out/model", bundle.dir / "merged")
    )
    assert all(torch.equal(merged[name], exported[name]) for name in merged)
    readme = bundle.path("README.md").read_text(encoding="utf-8")
    assert "2 models of base, merged with" in readme
    assert "fine-tuned" not in readme
    ranking = json.loads(text)["evaluation"]
    for model, name in zip(ranking["models"], ("this model", "a", "b"), strict=True):
        low, high = (100 * end for end in model["interval"])
        assert f"| {name} | {model['correct']} of {ranking['n']} |" in readme
        assert f"| {low:.1f} to {high:.1f} % |" in readme
    assert str(models) not in readme
    for file in bundle.dir.rglob("*.*"):
        if file.suffix in (".json", ".md", ".txt", ".jinja"):
            assert str(models) not in file.read_text(encoding="utf-8"), file.name
            assert str(tmp_path) not in file.read_text(encoding="utf-8"), file.name
    assert bundle.read_json("parity.json")["reference"].startswith("merged weights")
    assert Artifact.open(tmp_path / "out").sha256 in {parent.sha256 for parent in bundle.parents}
    # The key is no part of the bundle: the one that is there is signed, and its place is told nowhere.
    key = tmp_path / "keys" / "mine.pem"
    assert call(capsys, "sign", "--new-key", str(key))[0] == 0
    words += ["--set", f"export.signing_key={key}", "--base", str(models / "base")]
    code, text, err = call(capsys, *words, "--out", str(tmp_path / "out"), "--json")
    assert code == 0, err
    assert Path(json.loads(text)["export"]["directory"]) == bundle.dir
    assert is_signed_by(bundle.dir, key)
    assert str(key.parent) not in (bundle.dir / "manifest.json").read_text(encoding="utf-8")


def ending(place: Path, text: str) -> Path:
    """A recipe with more at its end."""
    place.write_text(place.read_text(encoding="utf-8") + text, encoding="utf-8")
    return place


@pytest.mark.parametrize(
    ("export", "words", "said"),
    [
        ("{forms: [merged]}", [], "add --base MODEL"),
        ("{forms: [adapter]}", ["--base"], "--method concat makes an adapter"),
        ("{forms: [merged], prune_layers: 1}", ["--base"], "export.prune_layers"),
    ],
)
def test_what_the_export_would_refuse_is_refused_before_the_merge(
    models, tmp_path, capsys, export, words, said
):
    recipe = ending(recipe_of(tmp_path, models), f"export: {export}\n")
    given = ["merge", "--models", f"{models / 'a'},{models / 'b'}", "--export", str(recipe)]
    based = [*words, str(models / "base")] if words else []
    code, _, err = call(capsys, *given, *based, "--out", str(tmp_path / "out"))
    assert code != 0
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_another_base_stops_before_the_merge(models, tmp_path, capsys):
    recipe = ending(recipe_of(tmp_path, models), "export: {forms: [merged]}\n")
    given = ["merge", "--models", f"{models / 'a'},{models / 'b'}", "--export", str(recipe)]
    given += ["--base", str(models / "base"), "--set", f"model.base={models / 'a'}"]
    code, _, err = call(capsys, *given, "--out", str(tmp_path / "out"))
    assert code == 4
    assert "another base model than a" in err
    assert not (tmp_path / "out").exists()


def test_models_without_a_chat_template_are_refused_before_the_merge(models, tmp_path, capsys):
    places = []
    for name in ("base", "a", "b"):
        places.append(Path(shutil.copytree(models / name, tmp_path / name)))
        (places[-1] / "chat_template.jinja").unlink()
    recipe = recipe_of(tmp_path, models)
    for flag in ("--evaluate", "--export"):
        given = ["merge", "--models", f"{places[1]},{places[2]}", "--base", str(places[0])]
        code, _, err = call(capsys, *given, flag, str(recipe), "--out", str(tmp_path / "out"))
        assert code == 4
        assert "have a chat template" in err
        assert not (tmp_path / "out").exists()


def test_test_rows_that_cannot_be_judged_stop_before_the_merge(models, tmp_path, capsys):
    recipe = recipe_of(tmp_path, models)
    words = ["merge", "--models", f"{models / 'a'},{models / 'b'}", "--evaluate", str(recipe)]
    words += ["--set", "evaluate.task={kind: sql_execution}"]
    code, _, err = call(capsys, *words, "--out", str(tmp_path / "out"))
    assert code != 0
    assert "no database to execute queries on" in err
    assert not (tmp_path / "out").exists()


def test_a_recipe_without_its_data_stops_before_the_merge(models, tmp_path, capsys):
    recipe = recipe_of(tmp_path, models)
    (tmp_path / "rows.jsonl").unlink()
    words = ["merge", "--models", f"{models / 'a'},{models / 'b'}", "--evaluate", str(recipe)]
    code, _, err = call(capsys, *words, "--out", str(tmp_path / "out"))
    assert code != 0
    assert "rows.jsonl" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flag", "setting"),
    [
        ("--export", "evaluate.max_rows=2"),
        ("--evaluate", "export.forms=[merged]"),
        ("--evaluate", "serve.port=9"),
    ],
)
def test_a_setting_that_nothing_here_reads_is_refused(models, tmp_path, capsys, flag, setting):
    recipe = recipe_of(tmp_path, models)
    words = ["merge", "--models", f"{models / 'a'},{models / 'b'}", flag, str(recipe)]
    code, _, err = call(capsys, *words, "--set", setting, "--out", str(tmp_path / "out"))
    assert code == 2
    assert f"--set {setting} would change nothing" in err
    assert "why: " in err
    assert "fix: " in err or "leave this --set away" in err
    assert not (tmp_path / "out").exists()
