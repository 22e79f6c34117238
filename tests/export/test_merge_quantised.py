"""An adapter that was trained on a quantised base: what the original base changes is measured and said."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from tunesmith.export.merge import Asked, quantised_base_effect, run
from tunesmith.export.merge.quantised import asked_rows
from tunesmith.export.reference import answer_logits
from tunesmith.models.adapters import put_adapter
from tunesmith.models.load import load_model
from tunesmith.models.quantised import Nf4Format, load_nf4
from tunesmith.store import Parent, Run

NF4 = {"kind": "nf4", "block": 64, "double_quant": True, "layers": 14}


@pytest.fixture(scope="module")
def trained_on_nf4(merging, tmp_path_factory):
    """The first adapter, sealed as a QLoRA run seals it."""
    place = tmp_path_factory.mktemp("qlora") / "run"
    with Run.open(place, "train", inputs={}, parents=[merging.dataset.as_parent()]) as at:
        shutil.copytree(merging.dir / "peft-a", at.path("adapter/x").parent, dirs_exist_ok=True)
        return at.finish({**merging.adapters[0].facts, "quantised_base": NF4})


@pytest.mark.slow
def test_the_effect_is_that_of_asking_both_bases(merging):
    rows, starts, of = asked_rows([merging.dataset.as_parent()], merging.renderer)
    assert of == "test.jsonl"
    adapter = merging.dir / "peft-a"
    effect = quantised_base_effect(merging.base, adapter, NF4, rows, starts, of)
    plain = put_adapter(load_model(merging.base, torch.float32), adapter)
    rough = put_adapter(load_nf4(merging.base, torch.float32, Nf4Format(64, True)), adapter)
    pairs = [
        (np.concatenate(list(answer_logits(model, rows, starts))).astype(np.float64))
        for model in (plain, rough)
    ]
    original, quantised = (torch.tensor(pair) for pair in pairs)
    kl = torch.nn.functional.kl_div(
        original.log_softmax(1), quantised.log_softmax(1), reduction="batchmean", log_target=True
    )
    assert effect.positions == len(original) == sum(map(len, rows)) - sum(starts)
    assert effect.mean_kl_nats == pytest.approx(float(kl), rel=1e-6)
    assert effect.mean_kl_nats > 1e-4
    assert effect.max_abs_dlogit == pytest.approx(float((original - quantised).abs().max()))
    same = (original.argmax(1) == quantised.argmax(1)).double().mean()
    assert effect.greedy_agreement == pytest.approx(float(same))
    answers = torch.tensor(
        [token for row, s in zip(rows, starts, strict=True) for token in row[s:]]
    )
    loss = torch.nn.functional.cross_entropy(original, answers)
    assert effect.nats_on_original == pytest.approx(float(loss), rel=1e-6)
    assert effect.nats_on_quantised != effect.nats_on_original
    json.dumps(effect.as_dict())


@pytest.mark.slow
def test_a_merge_says_and_seals_it(merging, trained_on_nf4, tmp_path):
    given = (str(trained_on_nf4.dir), str(merging.adapters[1].dir))
    result = run(Asked(models=given, out=tmp_path / "out", base=str(merging.base.dir)))
    assert result.effects.keys() == {given[0]}
    assert "trained on a base in nf4" in result.effects[given[0]].told
    facts = result.artifact.facts
    assert facts["quantised_bases"][given[0]]["mean_kl_nats"] > 0
    assert [parent["quantised_base"] for parent in facts["parents"]] == ["nf4", None]


def test_questions_of_our_own_are_asked_when_the_rows_are_gone(merging):
    gone = Parent("data", str(merging.dir / "gone"), "0" * 64)
    changed = Parent("data", str(merging.dataset.dir), "0" * 64)
    for parents in ([], [gone], [changed]):
        rows, starts, of = asked_rows(parents, merging.renderer)
        assert of == "questions"
        assert all(0 < start < len(row) for row, start in zip(rows, starts, strict=True))


def test_an_unknown_way_of_quantising_is_a_bug_of_the_caller(merging):
    with pytest.raises(ValueError, match="int3"):
        quantised_base_effect(
            merging.base, merging.dir / "peft-a", {**NF4, "kind": "int3"}, [(1, 2)], [1]
        )


@pytest.mark.slow
def test_a_bundle_still_tells_what_its_adapter_was_trained_on(
    merging, bench, trained_on_nf4, tmp_path
):
    from tunesmith import export

    recipe = bench.recipe(forms=["adapter", "merged"], parity_prompts=2, parity_tokens=4)
    recipe = recipe.model_copy(
        update={"model": recipe.model.model_copy(update={"base": str(merging.base.dir)})}
    )
    with Run.open(tmp_path / "bundle", "export", inputs={}) as at:
        bundle = export.run(recipe, at, merging.dataset, trained_on_nf4).artifact
    out = run(Asked((str(bundle.dir),), tmp_path / "out", base=str(merging.base.dir)))
    assert out.artifact.facts["parents"][0]["quantised_base"] == "nf4"
    assert out.effects.keys() == {str(bundle.dir)}
    # The merged form alone is whole: there is no adapter to be asked on a quantised base.
    whole = run(Asked((str(bundle.dir / "merged"),), tmp_path / "whole"))
    assert whole.effects == {}
