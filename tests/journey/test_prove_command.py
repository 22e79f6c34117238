"""`tunesmith prove` as a user starts it: the page, the JSON, the exit codes, and nothing left behind."""

from __future__ import annotations

import json
import shutil

import pytest

from tunesmith.train.prove import PROOFS

pytestmark = pytest.mark.slow

KEYS = {
    "name",
    "title",
    "status",
    "figure",
    "limit",
    "unit",
    "detail",
    "why",
    "remedy",
    "seconds",
}


def test_a_right_recipe_is_green_in_json_and_leaves_only_the_dataset_and_the_report(
    tunesmith, small_sets, tmp_path, write_examples
):
    write_examples(tmp_path / "examples.jsonl", "chat")
    tunesmith("init")
    forms = ["--set", "export.forms=[adapter, merged]"]
    # No GGUF file is written, so that limits of one would have no effect.
    sets = small_sets[: next(i for i, word in enumerate(small_sets) if "gguf-f16" in word) - 1]
    found = tunesmith("prove", "recipe.yaml", *sets, *forms, "--json")
    report = json.loads(found.stdout)
    assert report["format"] == 1
    assert report["ok"] is True
    assert [proof["name"] for proof in report["proofs"]] == list(PROOFS)
    assert {proof["status"] for proof in report["proofs"]} == {"green"}
    assert all(set(proof) == KEYS for proof in report["proofs"])
    assert report["sample"]["rows"] == len(report["sample"]["lines"])
    places = sorted(place.name.split("-")[0] for place in (tmp_path / "runs/my-model").iterdir())
    assert places == ["data", "prove"]
    sealed = json.loads(tunesmith("show", report["directory"], "--json").stdout)
    assert sealed["facts"]["ok"] is True


def test_a_red_proof_is_shown_with_its_remedy_and_the_exit_code_says_so(
    tunesmith, small_sets, tiny_base, tmp_path, write_examples
):
    from tunesmith.models.load import load_tokenizer

    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    tokenizer = load_tokenizer(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(base)
    write_examples(tmp_path / "examples.jsonl", "chat")
    tunesmith("init")
    sets = [*small_sets, "--set", f"model.base={base}"]
    found = tunesmith("prove", "recipe.yaml", "--quick", *sets, code=10)
    assert "RED  stop" in found.stdout
    assert "fix: " in found.stdout
    assert "Traceback" not in found.stderr
    report = json.loads(tunesmith("prove", "recipe.yaml", "--json", *sets, code=10).stdout)
    assert report["ok"] is False
    assert {proof["status"] for proof in report["proofs"]} == {"red", "skipped"}


def test_a_proof_that_does_not_exist_is_a_usage_error_with_the_near_one(tunesmith, tmp_path):
    found = tunesmith("prove", "recipe.yaml", "--only", "fst", code=2)
    assert "did you mean 'fast'" in found.stderr
