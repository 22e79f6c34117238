"""The proofs that need no model see each fault in rows and templates, and name a remedy."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.config import recipe_from
from tunesmith.errors import StorageError
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_tokenizer
from tunesmith.train.prove import prove
from tunesmith.train.prove.report import NEEDS, PROOFS, Finding, Ledger, with_needs

sys.path.insert(0, str(Path(__file__).parent))
from small_base import sealed_sums


def quick(base: Path, dataset, folder: Path, **train):
    recipe = recipe_from({"model": {"base": str(base)}, "train": train})
    report = prove(recipe, dataset, folder, spelled="my.yaml")
    return report, {proof.name: proof for proof in report.proofs}


def without_weights(base: Path, folder: Path, template: str) -> Path:
    """The tiny model's folder with another chat template."""
    shutil.copytree(base, folder)
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def rendered_as(monkeypatch, change) -> None:
    """Every row as `change` makes it of the right one."""
    real = ChatRenderer.render

    def render(self, messages, *, for_answer=False):
        found = real(self, messages, for_answer=for_answer)
        return found if for_answer else change(found, messages)

    monkeypatch.setattr(ChatRenderer, "render", render)


def test_right_rows_are_green_with_their_counts(tiny_base, dataset, tmp_path):
    report, proofs = quick(tiny_base, dataset, tmp_path / "runs")
    assert report.ok
    assert list(proofs) == ["mask", "stop", "whole"]
    assert all(proof.status == "green" for proof in proofs.values())
    assert proofs["mask"].detail.startswith("all 72 rows")
    assert (proofs["stop"].figure, proofs["stop"].limit) == (1.0, 0.99)
    assert not (tmp_path / "runs").exists()


def test_a_template_without_a_stop_token_is_red_with_another_model_as_the_remedy(
    tiny_base, dataset, tmp_path
):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
    base = without_weights(tiny_base, tmp_path / "base", template)
    report, proofs = quick(base, dataset, tmp_path / "runs")
    assert not report.ok
    assert proofs["stop"].status == "red"
    assert "no stop token" in proofs["stop"].detail
    assert "template closes the assistant's turn" in proofs["stop"].remedy
    assert [proofs[name].status for name in ("mask", "whole")] == ["skipped", "skipped"]


@pytest.mark.parametrize("on", [False, True])
def test_a_mask_of_zeros_or_of_ones_is_red_on_every_row(
    monkeypatch, tiny_base, dataset, tmp_path, on
):
    rendered_as(monkeypatch, lambda row, _: replace(row, trained=(on,) * len(row.trained)))
    _, proofs = quick(tiny_base, dataset, tmp_path)
    assert proofs["mask"].status == "red"
    assert proofs["mask"].figure == 72
    assert ("every token is trained" if on else "no token is trained") in proofs["mask"].detail
    assert "tunesmith data show my.yaml" in proofs["mask"].remedy


def test_a_mask_on_the_question_is_red_and_named_with_its_line(
    monkeypatch, tiny_base, dataset, tmp_path
):
    def swapped(row, messages):
        if "7 plus 7" not in messages[0]["content"]:
            return row
        return replace(row, trained=tuple(role == "user" for role in row.roles))

    rendered_as(monkeypatch, swapped)
    _, proofs = quick(tiny_base, dataset, tmp_path)
    assert proofs["mask"].figure == 1
    assert "train.jsonl:64" in proofs["mask"].detail
    assert proofs["whole"].status == "green"


def test_a_truncated_answer_is_red_as_one_that_is_cut_and_not_as_a_wrong_mask(
    monkeypatch, tiny_base, dataset, tmp_path
):
    def cut(row, messages):
        if "3 plus 4" not in messages[0]["content"]:
            return row
        end = len(row.trained) - row.trained[::-1].index(True) - 3
        return replace(
            row, token_ids=row.token_ids[:end], roles=row.roles[:end], trained=row.trained[:end]
        )

    rendered_as(monkeypatch, cut)
    _, proofs = quick(tiny_base, dataset, tmp_path)
    assert proofs["whole"].status == "red"
    assert "train.jsonl:29" in proofs["whole"].detail
    assert "max_row_tokens" in proofs["whole"].remedy
    assert proofs["mask"].status == "green"
    assert proofs["stop"].figure == pytest.approx(63 / 64)
    assert (proofs["stop"].status, proofs["stop"].detail) == (
        "red",
        "71 of 72 rows; not train.jsonl:29",
    )


@pytest.mark.parametrize(("bad", "status"), [(1, "green"), (12, "red")])
def test_the_stop_proof_claims_a_share_of_rows_and_names_the_lines_of_the_others(
    monkeypatch, tiny_base, tmp_path, bad, status
):
    def endless(row, messages):
        number = int(messages[0]["content"].split()[2])
        if number >= bad:
            return row
        end = len(row.trained) - row.trained[::-1].index(True) - 1
        return replace(row, trained=(*row.trained[:end], False, *row.trained[end + 1 :]))

    rendered_as(monkeypatch, endless)
    rows = sealed_sums(tmp_path / "data", train=120)
    _, proofs = quick(tiny_base, rows, tmp_path)
    found = proofs["stop"]
    assert found.title.startswith("rows whose answers all end")
    assert (found.status, found.figure) == (status, pytest.approx((120 - bad) / 120))
    named = ", ".join(f"train.jsonl:{line + 1}" for line in range(min(bad, 10)))
    more = f" and {bad - 10} more" if bad > 10 else ""
    assert found.detail == f"{126 - bad} of 126 rows; not {named}{more}"


def test_a_small_validation_split_without_stops_is_red_though_the_share_of_all_rows_is_high(
    monkeypatch, tiny_base, tmp_path
):
    rows = sealed_sums(tmp_path / "data", train=120)
    first = json.loads(rows.path("validation.jsonl").read_text(encoding="utf-8").split("\n")[0])

    def endless(row, messages):
        if messages != first["messages"]:
            return row
        end = len(row.trained) - row.trained[::-1].index(True) - 1
        return replace(row, trained=(*row.trained[:end], False, *row.trained[end + 1 :]))

    rendered_as(monkeypatch, endless)
    _, proofs = quick(tiny_base, rows, tmp_path)
    found = proofs["stop"]
    assert found.detail == "125 of 126 rows; not validation.jsonl:1"
    assert (found.status, found.figure) == ("red", pytest.approx(5 / 6))


def test_rows_that_the_length_limit_refuses_are_red_with_its_remedy(tiny_base, dataset, tmp_path):
    _, proofs = quick(tiny_base, dataset, tmp_path, max_row_tokens=20)
    assert proofs["whole"].status == "red"
    assert "72" in str(int(proofs["whole"].figure))
    assert "train.on_long_row" in proofs["whole"].remedy


def test_a_red_figure_stops_no_other_proof_and_an_error_stops_those_that_need_it():
    ledger = Ledger(lambda name: None)
    ledger.take("stop", Finding)
    ledger.take("mask", lambda: Finding(ok=False, remedy="mend it"))

    def full() -> Finding:
        raise StorageError("cannot write x", why="the disk is full", fix="free some space")

    assert ledger.take("whole", Finding)
    ledger.take("build", full)
    assert not ledger.take("split", Finding)
    found = {proof.name: proof for proof in ledger.in_order()}
    assert found["build"].remedy == "free some space"
    assert found["split"].status == "skipped"
    assert found["split"].detail == "needs build"
    assert list(found) == ["mask", "stop", "whole", "build", "split"]


def test_each_proof_needs_only_proofs_that_exist_and_that_are_taken_with_it():
    assert set(NEEDS) <= set(PROOFS)
    for name in PROOFS:
        closed = with_needs([name])
        assert name in closed
        assert all(set(NEEDS.get(other, ())) <= closed for other in closed)
