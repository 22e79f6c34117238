"""Which rows the certificate is about, and when figures of an interrupted export still hold."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest

from tunesmith.errors import ParityError
from tunesmith.export.reference import given_rows, record_reference
from tunesmith.models.chat import ChatRenderer
from tunesmith.store import MANIFEST, Run

ASKED = {"role": "user", "content": "How many states?"}
SAID = {"role": "assistant", "content": "select count(*) from state"}


@pytest.fixture(scope="module")
def renderer(short_tokenizer):
    return ChatRenderer(short_tokenizer)


# -- the user's answers ----------------------------------------------------------------------------


def test_an_answer_goes_up_to_its_stop_token_and_starts_after_the_prompt(renderer):
    given = given_rows(renderer, [[ASKED, SAID]], 99)
    (row,), (start,) = given.rows, given.starts
    assert row[:start] == renderer.prompt_ids([ASKED])
    assert renderer.decode(row[start:], special=True) == "select count(*) from state<|im_end|>"
    assert row[-1] in renderer.stop_ids
    assert given.n_tokens == len(row) - start


@pytest.mark.parametrize("longest", [1, 3])
def test_a_long_answer_is_cut_after_so_many_tokens(renderer, longest):
    whole = given_rows(renderer, [[ASKED, SAID]], 99)
    cut = given_rows(renderer, [[ASKED, SAID]], longest)
    assert cut.rows[0] == whole.rows[0][: whole.starts[0] + longest]
    assert (cut.starts, cut.n_tokens) == (whole.starts, longest)


def test_only_the_last_answer_counts(renderer):
    given = given_rows(renderer, [[ASKED, SAID, ASKED, SAID]], 99)
    assert given.starts == (len(renderer.prompt_ids([ASKED, SAID, ASKED])),)
    assert given.n_tokens == given_rows(renderer, [[ASKED, SAID]], 99).n_tokens


def test_an_empty_answer_is_its_stop_token(renderer):
    given = given_rows(renderer, [[ASKED, {"role": "assistant", "content": ""}]], 99)
    assert given.n_tokens == 1
    assert given.rows[0][-1] in renderer.stop_ids


def test_a_row_without_an_answer_at_its_end_is_left_out(renderer):
    """Its prompt opens an answer where the row goes on with a question."""
    given = given_rows(renderer, [[ASKED, SAID, ASKED], [ASKED, SAID]], 99)
    assert given == given_rows(renderer, [[ASKED, SAID]], 99)
    assert given_rows(renderer, [[ASKED, SAID, ASKED]], 99).n_tokens == 0


class Closed(ChatRenderer):
    """A renderer that would train nothing after the prompt."""

    def render(self, messages, *, for_answer=False):
        found = super().render(messages, for_answer=for_answer)
        return dataclasses.replace(found, trained=(False,) * len(found.trained))


def test_a_row_in_which_nothing_is_trained_is_left_out(short_tokenizer):
    assert given_rows(Closed(short_tokenizer), [[ASKED, SAID]], 99).rows == ()


def test_the_reference_perplexity_is_transformers_own_loss(make, renderer, tmp_path):
    import torch

    from tunesmith.models.load import load_model

    model = load_model(make.short(tmp_path / "base", spread=0.1), torch.float32)
    given = given_rows(renderer, [[ASKED, SAID], [SAID | {"role": "user"}, SAID]], 5)
    with Run.open(tmp_path / "run", "export", inputs={}) as at:
        prompts = [renderer.prompt_ids([ASKED])]
        found = record_reference(model, renderer, prompts, given, 4, at, lambda: None)
    total = 0.0
    for row, start in zip(given.rows, given.starts, strict=True):
        labels = [-100] * start + list(row[start:])
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([row]), labels=torch.tensor([labels]))
        total += float(out.loss) * (len(row) - start)
    assert given.n_tokens == 10
    assert -found.given_logprob == pytest.approx(total / 10, rel=1e-5)


# -- going on --------------------------------------------------------------------------------------

HARD = {"merged": {"greedy_agreement": 1.0, "mean_kl": 0.0}}
"""No rounded form has no divergence at all."""


@pytest.fixture
def refused(bench, tmp_path):
    """An export whose merged form is beyond a limit: the adapter is measured, nothing is sealed."""
    place = tmp_path / "out"
    with pytest.raises(ParityError, match="merged: mean KL"):
        bench.export(place, forms=["adapter", "merged"], limits=HARD)
    assert not (place / MANIFEST).exists()
    return place


def measured(place, form):
    return place / f"scratch/parity/{form}.json"


@pytest.mark.slow
def test_a_resume_with_other_limits_judges_again_and_measures_nothing_again(bench, refused):
    kept = json.loads(measured(refused, "adapter").read_text())
    # Figures that no measurement gives show whether there was one.
    measured(refused, "adapter").write_text(json.dumps(kept | {"seconds": 1234.5}))
    limits = {"adapter": {"greedy_agreement": 0.5, "mean_kl": 0.25}, "merged": {"mean_kl": 1.0}}
    done = bench.export(refused, resume=True, forms=["adapter", "merged"], limits=limits)
    assert done.parity["adapter"].seconds == 1234.5
    assert done.parity["adapter"].limits["mean_kl"] == 0.25
    assert done.parity["merged"].limits["mean_kl"] == 1.0
    sealed = done.artifact.read_json("parity.json")["forms"]
    assert sealed["adapter"]["limits"]["greedy_agreement"] == 0.5
    assert sealed["merged"]["weights"].endswith("are the merged model's, rounded once")


@pytest.mark.slow
def test_a_resume_judges_kept_figures_by_the_limits_of_now(bench, refused):
    kept = json.loads(measured(refused, "adapter").read_text())
    measured(refused, "adapter").write_text(json.dumps(kept | {"mean_kl": 0.125}))
    with pytest.raises(ParityError, match="adapter: mean KL"):
        bench.export(refused, resume=True, forms=["adapter"])
    assert not (refused / MANIFEST).exists()


@pytest.mark.slow
@pytest.mark.parametrize("change", ["rows", "tokens", "files"])
def test_a_resume_after_a_change_measures_anew(bench, refused, change):
    kept = json.loads(measured(refused, "adapter").read_text())
    measured(refused, "adapter").write_text(json.dumps(kept | {"seconds": 1234.5}))
    settings = {"rows": {"parity_prompts": 3}, "tokens": {"parity_tokens": 5}, "files": {}}[change]
    if change == "files":
        config = refused / "adapter/adapter_config.json"
        config.write_text(config.read_text() + "\n")
    done = bench.export(refused, resume=True, forms=["adapter"], **settings)
    found = done.parity["adapter"]
    assert found.seconds < 1000
    assert found.prompts == settings.get("parity_prompts", 4)
    assert found.asked == kept["asked"] if change == "files" else found.asked != kept["asked"]
    assert math.isfinite(found.perplexity)


@pytest.mark.slow
def test_a_form_that_cannot_be_loaded_is_named_and_made_again_on_resume(bench, refused):
    forms = {"forms": ["adapter", "merged"]}
    place = refused / "merged"
    assert not place.exists()  # It was beyond its limit.
    # Whole by its facts, as a kill before the proof leaves it; then the disk lost its end.
    shutil.copytree(bench.base.dir, place)
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (refused / "scratch/facts/merged.json").write_text("{}")
    with pytest.raises(ParityError, match="merged: it cannot be loaded"):
        bench.export(refused, resume=True, **forms)
    assert not place.exists()
    done = bench.export(refused, resume=True, **forms)
    assert done.parity["merged"].greedy_agreement == 1.0


@pytest.mark.slow
def test_a_form_that_its_engine_refuses_is_named_with_the_others_and_made_again_on_resume(
    bench, refused
):
    pytest.importorskip("onnxruntime_genai")
    place = refused / "onnx"
    shutil.copytree(bench.base.dir, place)
    (place / "model.safetensors").unlink()
    (place / "onnx").mkdir()
    (place / "onnx/model.onnx").write_bytes(b"\x08\x0a cut off")
    decoder = {"num_key_value_heads": 2, "num_attention_heads": 4, "num_hidden_layers": 2}
    decoder |= {"head_size": 16, "hidden_size": 64}
    genai = {"model": {"decoder": decoder, "context_length": 512, "eos_token_id": [2]}}
    (place / "genai_config.json").write_text(json.dumps(genai))
    (refused / "scratch/facts/onnx.json").write_text("{}")
    with pytest.raises(ParityError, match="2 of 2 exported forms") as caught:
        bench.export(refused, resume=True, forms=["onnx", "merged"], limits=HARD)
    assert "onnx: it cannot be loaded: onnxruntime cannot run" in caught.value.what
    assert "merged: mean KL" in caught.value.what
    assert not place.exists()
    assert bench.export(refused, resume=True, forms=["onnx"]).parity["onnx"].mean_kl < 1e-5


def test_an_engine_that_leaves_rows_out_gets_no_certificate():
    from types import SimpleNamespace

    import numpy as np

    from tunesmith.export.certify import Expected, _ask_logits
    from tunesmith.export.reference import Reference

    logits = np.eye(2, 5, dtype=np.float32)
    reference = Reference(((1, 2), (3, 4)), (1, 1), logits)

    def ask(said):
        kind = SimpleNamespace(asker=lambda: lambda *_asked: iter(said), engine=lambda: "own")
        return _ask_logits(kind, None, Expected(None, reference))

    assert ask([logits[:1], logits[1:]]).tally.agrees == [True, True]
    with pytest.raises(ValueError, match="shorter"):
        ask([logits[:1]])
