"""`tunesmith quantise`: one file in, one file out, or one error and no file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))
from sample_gguf import importance, write_sample

from tunesmith.cli.quantise import quantise
from tunesmith.errors import ConfigError, MissingError, ModelError
from tunesmith.export.quantise.importance import write_importance
from tunesmith.models.files.gguf import look_at_gguf


@pytest.fixture
def model(tmp_path):
    return write_sample(tmp_path / "model.gguf", "untied")


def run(*words):
    return CliRunner().invoke(quantise, list(map(str, words)), standalone_mode=False)


def test_the_new_file_lies_beside_the_model_and_is_told_as_json(model, tmp_path):
    found = run(model, "--to", "q4_k_m", "--json")
    made = tmp_path / "model-q4_k_m.gguf"
    told = json.loads(found.stdout)
    header = look_at_gguf(made)
    assert told["file"] == str(made)
    assert told["bytes"] == made.stat().st_size
    assert told["types"] == {"Q4_K": 27, "F32": 16, "Q6_K": 5, "Q5_0": 5}
    assert sum(told["types"].values()) == len(header.tensors)
    assert header.findings == []
    assert header.get("general.file_type") == 15


def test_people_read_size_bits_and_fallbacks(model):
    found = run(model, "--to", "q4_k_m")
    assert "bits per weight" in found.stdout
    assert "rows of 96 weights cannot be Q4_K (blocks of 256): 5 of 37" in found.stderr


def test_an_importance_matrix_changes_the_weights_and_is_named(model, tmp_path):
    matrix = tmp_path / "importance.gguf"
    write_importance(matrix, importance("untied"), "mine", 4, 16)
    run(model, "--to", "q4_0", "--out", tmp_path / "plain.gguf")
    run(model, "--to", "q4_0", "--out", tmp_path / "weighed.gguf", "--importance", matrix)
    plain, weighed = (look_at_gguf(tmp_path / f"{name}.gguf") for name in ("plain", "weighed"))
    assert weighed.get("quantize.imatrix.dataset") == "mine"
    assert plain.get("quantize.imatrix.dataset") is None
    one, other = plain.tensors["blk.1.attn_q.weight"], weighed.tensors["blk.1.attn_q.weight"]
    data = [
        file.path.read_bytes()[t.offset : t.offset + t.bytes]
        for file, t in ((plain, one), (weighed, other))
    ]
    assert data[0] != data[1]


def test_a_file_that_is_there_is_not_overwritten(model):
    found = run(model, "--to", "q8_0", "--out", model)
    assert isinstance(found.exception, ConfigError)
    assert look_at_gguf(model).get("general.file_type") == 0


def test_what_is_quantised_already_needs_force(model, tmp_path):
    run(model, "--to", "q8_0", "--out", tmp_path / "q8.gguf")
    found = run(tmp_path / "q8.gguf", "--to", "q4_0")
    assert isinstance(found.exception, ModelError)
    assert not (tmp_path / "q8-q4_0.gguf").exists()
    run(tmp_path / "q8.gguf", "--to", "q4_0", "--force")
    assert look_at_gguf(tmp_path / "q8-q4_0.gguf").findings == []


@pytest.mark.parametrize("name", ["absent.gguf", "", "."])
def test_no_model_is_one_error(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for asked in (tmp_path / name, name or "."):
        found = run(asked, "--to", "q8_0")
        assert isinstance(found.exception, MissingError)
        assert "there is no file" in found.exception.what
    assert list(tmp_path.iterdir()) == []


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def not_finite(path):
    """A weight that only shows when it is read: after all checks of the header."""
    tensor = look_at_gguf(path).tensors["blk.1.attn_q.weight"]
    with path.open("r+b") as stream:
        stream.seek(tensor.offset)
        stream.write(b"\xff" * tensor.bytes)


@pytest.mark.parametrize("damage", [cut, not_finite])
def test_a_refusal_makes_no_folder(model, tmp_path, damage):
    damage(model)
    found = run(model, "--to", "q8_0", "--out", tmp_path / "a/b/small.gguf")
    assert isinstance(found.exception, ModelError)
    assert not (tmp_path / "a").exists()


def test_what_is_refused_before_it_begins_shows_no_progress(model, tmp_path):
    cut(model)
    assert run(model, "--to", "q8_0", "--out", tmp_path / "small.gguf").stderr == ""
    good = write_sample(tmp_path / "good.gguf", "untied")
    assert run(good, "--to", "q8_0", "--out", good).stderr == ""
    assert "Quantise" in run(good, "--to", "q8_0").stderr


def test_a_new_folder_is_made_for_the_file_and_others_stay(model, tmp_path):
    run(model, "--to", "q8_0", "--out", tmp_path / "a/b/small.gguf")
    assert look_at_gguf(tmp_path / "a/b/small.gguf").findings == []
    not_finite(model)
    run(model, "--to", "q8_0", "--out", tmp_path / "a/c/small.gguf")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_an_importance_matrix_that_is_not_there_is_one_error(model, tmp_path):
    for place in (tmp_path / "nowhere.gguf", tmp_path):
        found = run(model, "--to", "q4_0", "--out", tmp_path / "a/b.gguf", "--importance", place)
        assert isinstance(found.exception, MissingError)
        assert "there is no importance matrix at" in found.exception.what
        assert found.exception.fix
    assert not (tmp_path / "a").exists()


def test_a_link_that_leads_nowhere_is_called_one(tmp_path):
    (tmp_path / "loop.gguf").symlink_to("nowhere.gguf")
    found = run(tmp_path / "loop.gguf", "--to", "q8_0")
    assert isinstance(found.exception, MissingError)
    assert "a link that leads nowhere" in found.exception.why
