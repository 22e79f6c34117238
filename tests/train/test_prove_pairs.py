"""The proofs on pairs of answers: green on a right model, red on faults that only a preference loss can have."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tunesmith.config import recipe_from
from tunesmith.pipeline.proofs import rooms_of
from tunesmith.store import Artifact, Run
from tunesmith.train import plan, references
from tunesmith.train.dpo import Dpo
from tunesmith.train.prove import prove

sys.path.insert(0, str(Path(__file__).parent))
from small_base import pair

pytestmark = pytest.mark.slow

SETTINGS = {
    "batch_tokens": 256,
    "micro_batch_tokens": 256,
    "precision": "fp32",
    "threads": 1,
    "sample_rows": 0,
    "method": {"kind": "lora", "rank": 4},
    "objective": {"kind": "dpo"},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Artifact:
    """Pairs of several lengths: with equal ones each micro batch would hold as many."""
    lines = []
    for n in range(16):
        row = pair(n, 3 * n)
        row["prompt"][0]["content"] += " please" * (n % 5)
        lines.append(json.dumps(row | {"meta": {}}) + "\n")
    with Run.open(tmp_path_factory.mktemp("pairs") / "data", "data", inputs={}) as at:
        for name in ("train", "validation", "test"):
            at.write_text(f"{name}.jsonl", "".join(lines))
        return at.finish({"name": "pairs", "rows": {}, "databases": []})


def proved(base: Path, pairs: Artifact, folder: Path, *only: str, **train) -> dict:
    recipe = recipe_from({"model": {"base": str(base)}, "train": {**SETTINGS, **train}})
    report = prove(recipe, pairs, folder, rooms_of(recipe), only=only, spelled="my.yaml")
    assert not list(folder.glob(".prove-*"))
    return {proof.name: proof for proof in report.proofs}


@pytest.mark.parametrize(
    "train",
    [{}, {"method": {"kind": "qlora", "rank": 4, "block_size": 32}}, {"fast": False}],
    ids=["lora", "qlora", "plain"],
)
def test_right_pairs_are_green(base, pairs, tmp_path, train):
    names = ("split", "packed", "fast", "resume", "save", "merge", "longest", "training")
    proofs = proved(base, pairs, tmp_path, *names, **train)
    red = [f"{name}: {proof.detail}" for name, proof in proofs.items() if proof.status == "red"]
    assert red == []
    assert {proofs[name].status for name in names if name != "fast"} == {"green"}
    assert proofs["mask"].detail.startswith("all 64 rows")  # two answers a pair, two splits


def test_a_mean_of_means_over_pairs_is_seen_by_the_split(monkeypatch, base, pairs, tmp_path):
    real = Dpo.__call__

    def mean_of_means(self, model, batch, normaliser):
        return real(self, model, batch, float(self.count(batch)))

    monkeypatch.setattr(Dpo, "__call__", mean_of_means)
    assert proved(base, pairs, tmp_path, "split")["split"].status == "red"


def test_references_of_other_rows_are_seen_by_packed(monkeypatch, base, pairs, tmp_path):
    """Taken in the rows' own order instead of the batch's: right for a pair that stands alone."""

    def in_another_order(batch, known):
        return replace(batch, references=known[np.sort(batch.members)])

    monkeypatch.setattr(plan, "refer", in_another_order)
    assert proved(base, pairs, tmp_path, "packed")["packed"].status == "red"


def test_a_resume_with_references_of_the_trained_model_is_seen(monkeypatch, base, pairs, tmp_path):
    """Made again after the checkpoint they would hold the model against itself."""
    real, calls = references.references_of, []

    def drifting(model, plan, folder, check):
        calls.append(1)
        found = real(model, plan, folder, check)
        gone = len(calls) / 2
        return {name: logps - gone * (np.arange(logps.size) % 2) for name, logps in found.items()}

    monkeypatch.setattr(references, "references_of", drifting)
    assert proved(base, pairs, tmp_path, "resume")["resume"].status == "red"
