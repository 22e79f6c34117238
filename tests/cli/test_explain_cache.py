"""`data explain-cache`: whether training finds its tokens, and if not, in what the nearest entry differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tunesmith import pipeline
from tunesmith.cli.data.explain_cache import explain_cache
from tunesmith.config import load_recipe
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_tokenizer
from tunesmith.models.token_cache import TokenCache
from tunesmith.train.rows import encode_rows


@pytest.fixture
def recipe(tmp_path, short_tokenizer, monkeypatch):
    """A recipe whose dataset is built, on a base of which only the tokenizer is needed."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base"
    short_tokenizer.save_pretrained(base)
    (base / "config.json").write_text('{"model_type": "llama", "vocab_size": 2048}')
    (base / "model.safetensors").write_bytes(b"")
    rows = [{"prompt": f"what is {n} plus {n}?", "completion": str(2 * n)} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: sums\nworkspace: {tmp_path / 'runs'}\nmodel: {{base: {base}}}\n"
        "data: {source: {kind: files, train: rows.jsonl}}\n"
    )
    return path


def explained(*args):
    found = CliRunner().invoke(explain_cache, [*map(str, args), "--json"], catch_exceptions=False)
    return json.loads(found.stdout)


@pytest.mark.slow
def test_each_part_of_the_key_is_shown_and_what_differs_is_named(recipe):
    loaded = load_recipe([recipe])
    folder = pipeline.run_stage(loaded, "data").artifact.dir
    before = explained(recipe)
    assert [split["cached"] for split in before["splits"]] == [False, False]
    assert before["splits"][0]["nearest"] is None
    renderer = ChatRenderer(load_tokenizer(Path(loaded.model.base)))
    limits = {"max_row_tokens": 2_048, "on_long_row": "refuse"}
    encode_rows(folder / "train.jsonl", renderer, **limits, cache=TokenCache.of(1))
    train, validation = explained(recipe)["splits"]
    assert (train["cached"], validation["cached"]) == (True, False)
    assert list(validation["nearest"]) == ["rows"]
    assert train["parts"]["max_row_tokens"] == 2_048
    # Rows are measured against the limit when they are sealed: another limit is another dataset.
    changed = "train.max_row_tokens=4096"
    pipeline.run_stage(load_recipe([recipe], [changed]), "data")
    longer = explained(recipe, "--set", changed)["splits"][0]
    assert longer["nearest"] == {"max_row_tokens": 2_048}
    assert explained(recipe, "--set", "train.token_cache_gib=0")["cache"] is None
    shown = CliRunner().invoke(explain_cache, [str(recipe)], catch_exceptions=False).stdout
    assert "train: in the cache" in shown
    assert "validation: not in the cache; differs in rows" in shown
    assert "1 entries" in shown
