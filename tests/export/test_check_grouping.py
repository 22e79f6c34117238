"""`tunesmith check` in the terminal: what is alike is told once."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from tunesmith.cli import main as door
from tunesmith.cli.check import _told
from tunesmith.models.files import Findings
from tunesmith.store import Run


@pytest.fixture
def check(capsys):
    """Text and findings of the command on a place."""

    def run(place):
        texts = []
        for more in ([], ["--json"]):
            with pytest.raises(SystemExit):
                door.main(["check", str(place), *more])
            texts.append(capsys.readouterr().out)
        return texts[0], json.loads(texts[1])["findings"]

    return run


def broken(place, count):
    """A file with so many tensors of which each holds what is no number."""
    bad = np.full((2, 2), np.nan, np.float32)
    save_file({f"layer.{number:02}.weight": bad for number in range(count)}, place)
    return place


def test_tensors_with_the_same_fault_are_told_together_and_json_has_each(check, tmp_path):
    text, found = check(broken(tmp_path / "model.safetensors", 12))
    faults = [one for one in found if one["check"] == "values-finite"]
    assert len(faults) == 12
    assert text.count(faults[0]["fix"][:30]) == 1
    for name in ("layer.00.weight", "layer.01.weight", "layer.02.weight", "and 9 more"):
        assert text.count(name) == 1
    assert "layer.03.weight" not in text
    assert "12 errors" in text


def test_a_few_tensors_with_the_same_fault_are_told_one_by_one(check, tmp_path):
    text, found = check(broken(tmp_path / "model.safetensors", 5))
    assert text.count(found[0]["fix"][:30]) == 5
    assert all(f"layer.0{number}.weight" in text for number in range(5))


def test_json_has_every_tensor_of_a_large_adapter_that_is_wrong(check, tmp_path):
    text, found = check(broken(tmp_path / "model.safetensors", 420))
    assert len({one["where"] for one in found if one["check"] == "values-finite"}) == 420
    assert "and 417 more" in text
    assert "420 errors" in text


def test_where_findings_are_left_out_the_rest_is_not_counted_as_one(check, tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.export.check.report._MOST_OF_A_KIND", 20)
    text, found = check(broken(tmp_path / "model.safetensors", 40))
    assert "the rest is left out" in found[-1]["what"]
    assert "and 17 or more more" not in text
    assert "and 17 or more" in text


def test_files_with_the_same_fault_are_told_together_each_with_its_own_fact(check, tmp_path):
    with Run.open(tmp_path / "bundle", "export", inputs={}) as at:
        for number in range(9):
            at.write_text(f"file-{number}.txt", "text")
        at.finish({"forms": {}})
    for number in range(9):
        (tmp_path / f"bundle/file-{number}.txt").write_text("longer" + number * "x")
    text, found = check(tmp_path / "bundle")
    assert len([one for one in found if one["check"] == "seal-file"]) == 9
    assert "9 files" in text
    assert "file-0.txt: it has 6 bytes, 4 were sealed" in text
    assert "file-2.txt: it has 8 bytes, 4 were sealed" in text
    assert "and 6 more" in text
    assert "file-3.txt" not in text


def test_any_findings_that_are_alike_can_be_told():
    found = Findings("model.gguf", "again")
    for number in range(30):
        found.error("one", "", f"fact {number}")
    wholes = _told(found.found)
    assert wholes == ("model.gguf", "fact 0\nfact 1\nfact 2\nand 17 or more")
    place, what = _told([replace(found.found[-1], file=f"{number}.gguf") for number in range(7)])
    assert place == "0.gguf\n1.gguf\n2.gguf\nand 4 more"
    assert "20 findings of this kind or more" in what
