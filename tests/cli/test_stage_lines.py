"""What `export` says beside its table: whether it signed, and how far answers were compared."""

from __future__ import annotations

import pytest

from tunesmith.cli.stages import as_dict, print_done
from tunesmith.pipeline import Done
from tunesmith.store import Artifact, Run, signatures

FIGURES = {"greedy_agreement": 1.0, "prompts": 24, "stops_checked": 0, "engine": "llama.cpp (x)"}


def bundle(folder, ended, **facts) -> Artifact:
    with Run.open(folder, "export", inputs={}) as at:
        at.write_text("model-f16.gguf", "g")
        return at.finish({"parity": {"gguf-f16": FIGURES | ended}, **facts})


def said(capsys, artifact):
    print_done([Done("export", artifact, False, 1.0, 1)])
    return " ".join(capsys.readouterr().err.split())


def test_export_says_that_the_bundle_is_signed_and_how_to_see_by_whom(tmp_path, capsys):
    pytest.importorskip("model_signing")
    made = bundle(tmp_path / "export-1", {})
    assert said(capsys, made) == ""
    assert not as_dict(Done("export", made, False, 1.0, 1))["signed"]
    signatures.new_key(tmp_path / "key.pem")
    signatures.sign(made.dir, tmp_path / "key.pem")
    assert f"signed (model.sig); by whom: tunesmith check {made.dir} --public-key" in said(
        capsys, made
    )
    assert as_dict(Done("export", made, False, 1.0, 1))["signed"]


def test_export_says_when_no_answer_ended_within_what_was_compared(tmp_path, capsys):
    made = bundle(tmp_path / "export-1", {"ended": 0}, answer_tokens=32)
    text = said(capsys, made)
    assert "the first 32 tokens were compared; none ended within them" in text
    assert "its settings alone" in text
