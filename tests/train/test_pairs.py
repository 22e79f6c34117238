"""Pairs of answers from a sealed dataset: encoded, proved, trained, resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tunesmith.config import recipe_from
from tunesmith.errors import DataError, InterruptedRun, TrainingError
from tunesmith.models.chat import ChatRenderer
from tunesmith.store import Artifact, Run
from tunesmith.telemetry import read_events
from tunesmith.train import checkpoint, references, run, session
from tunesmith.train.plan import plan_training
from tunesmith.train.rows import check_masks, encode_rows


def pair(prompt: list[str], chosen: str, rejected: str) -> dict:
    roles = ("user", "assistant")
    return {
        "prompt": [{"role": roles[i % 2], "content": text} for i, text in enumerate(prompt)],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "meta": {},
    }


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def renderer(tokenizer) -> ChatRenderer:
    return ChatRenderer(tokenizer)


def encode(path, renderer, limit=512, policy="refuse"):
    return encode_rows(path, renderer, max_row_tokens=limit, on_long_row=policy)


def learned(row) -> list[int]:
    return [token for token, on in zip(row.tokens, row.trained, strict=True) if on]


def test_a_pair_is_two_rows_whose_masks_decode_to_chosen_and_rejected(tmp_path, renderer):
    rows = [pair(["hi?"], "yes, hello", "no"), pair(["one?", "1", "two?"], "2", "three")]
    path = write(tmp_path / "train.jsonl", rows)
    found = encode(path, renderer)
    assert found.groups == ((0, 1), (2, 3))
    assert [row.line for row in found.rows] == [1, 1, 2, 2]
    texts = [renderer.decode(learned(row), special=True) for row in found.rows]
    # The assistant's turn inside of the second prompt is context, not an answer.
    expected = ["yes, hello", "no", "2", "three"]
    assert texts == [f"{text}<|im_end|>" for text in expected]
    check_masks(found.rows, path, renderer)
    assert [row.answers for row in found.leading] == [("yes, hello",), ("2",)]


def test_a_planted_fault_in_the_mask_of_a_rejected_answer_is_caught(tmp_path, renderer):
    path = write(tmp_path / "train.jsonl", [pair(["one?", "1", "two?"], "a cat", "a dog")])
    chosen, rejected = encode(path, renderer).rows
    wrong = replace(rejected, trained=(False, *rejected.trained[:-1]))
    with pytest.raises(TrainingError, match=r"train\.jsonl:1"):
        check_masks([chosen, wrong], path, renderer)


def test_a_long_pair_is_dropped_or_cut_as_one(tmp_path, renderer):
    long = " ".join(["word"] * 200)
    rows = [pair(["short?"], "a", "b"), pair([long], "a", "b c d e"), pair(["b?"], "c", long)]
    path = write(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"2 rows are longer"):
        encode(path, renderer, 100)
    dropped = encode(path, renderer, 100, "drop")
    assert dropped.dropped_lines == (2, 3)
    assert dropped.groups == ((0, 1),)
    cut = encode(write(tmp_path / "cut.jsonl", rows[:2]), renderer, 100, "cut_prompt")
    chosen, rejected = cut.rows[2:]
    assert cut.cut_lines == (2,)
    assert len(rejected.tokens) <= 100
    first = chosen.trained.index(True)
    assert chosen.tokens[:first] == rejected.tokens[:first]
    assert renderer.decode(learned(rejected)) == "b c d e"


def seal(folder: Path, train: list[dict], validation: list[dict]) -> Artifact:
    with Run.open(folder, "data", inputs={}) as at:
        for name, rows in (("train", train), ("validation", validation), ("test", validation)):
            at.write_text(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return at.finish({"name": "manners", "rows": {}, "databases": []})


@pytest.fixture(scope="module")
def preferences(tmp_path_factory) -> Artifact:
    def rows(numbers):
        return [
            pair([f"what is {a} plus {a}?"], f"the sum is {2 * a}.", f"go away, {a}!")
            for a in numbers
        ]

    folder = tmp_path_factory.mktemp("preferences") / "data"
    return seal(folder, rows(range(24)), rows(range(30, 36)))


def recipe(base: Path, **train) -> dict:
    defaults = {
        "objective": {"kind": "dpo", "beta": 0.2},
        "optimizer": {"learning_rate": 5e-3},
        "epochs": 3,
        "batch_tokens": 512,
        "micro_batch_tokens": 256,
        "precision": "fp32",
        "threads": 1,
        "sample_rows": 1,
        "checkpoint_every_steps": 2,
        "method": {"kind": "lora", "rank": 4},
    }
    return {"model": {"base": str(base)}, "train": {**defaults, **train}}


def train_here(place: Path, dataset: Artifact, values: dict):
    with Run.open(place, "train", inputs={}, parents=[dataset.as_parent()], resume=True) as at:
        return run(recipe_from(values), at, dataset)


def adapter_bytes(place: Path) -> bytes:
    return Artifact.open(place).path("adapter/adapter_model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_preference_run_learns_and_says_what_it_measured(tmp_path, tiny_base, preferences):
    result = train_here(tmp_path / "run", preferences, recipe(tiny_base))
    assert result.first_validation_loss == pytest.approx(0.6931, abs=1e-3)
    assert result.validation_loss < 0.5
    facts = result.artifact.facts
    assert facts["objective"] == "dpo"
    assert facts["objective_settings"]["beta"] == 0.2
    events = list(read_events(tmp_path / "run" / "events.jsonl"))
    steps = [event for event in events if event["event"] == "step"]
    validations = [event for event in events if event["event"] == "validation"]
    assert steps[0]["reward_margin_nats"] == pytest.approx(0, abs=1e-3)
    assert steps[-1]["reward_margin_nats"] > 0.3
    assert validations[-1]["validation_pair_accuracy_ratio"] == 1.0
    assert (
        validations[-1]["validation_chosen_logp_nats"]
        > validations[-1]["validation_rejected_logp_nats"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", [{"kind": "lora", "rank": 4}, {"kind": "full"}])
def test_a_stopped_and_resumed_run_is_bit_equal_and_keeps_its_references(
    tmp_path, tiny_base, preferences, method, monkeypatch
):
    values = recipe(tiny_base, method=method, sample_rows=0)
    if method["kind"] == "full":
        values["train"]["optimizer"] = {"learning_rate": 1e-3}
    straight = train_here(tmp_path / "straight", preferences, values)
    place = tmp_path / "stopped"
    began = session.Session.train_step

    def stops(self, *args):
        if self.step == 3:
            raise InterruptedRun("stopped", fix="go on")
        return began(self, *args)

    monkeypatch.setattr(session.Session, "train_step", stops)
    with pytest.raises(InterruptedRun):
        train_here(place, preferences, values)
    monkeypatch.undo()
    assert checkpoint.latest(place / "scratch" / "checkpoints").step == 2
    assert (place / "scratch" / references.FILE).is_file()
    computed = []
    monkeypatch.setattr(references, "_write", lambda *args: computed.append(args))
    resumed = train_here(place, preferences, values)
    assert computed == []
    weights = "model/model.safetensors" if method["kind"] == "full" else None
    if weights:
        one, two = (r.artifact.path(weights).read_bytes() for r in (straight, resumed))
        assert one == two
    else:
        assert adapter_bytes(place) == adapter_bytes(tmp_path / "straight")


def test_references_of_other_rows_or_damaged_ones_are_made_again(tmp_path, tiny_base, preferences):
    values = recipe(tiny_base)
    plan = plan_training(recipe_from(values), preferences)
    made = session.build(plan, tmp_path)
    place = tmp_path / references.FILE
    first = references.references_of(made.model, plan, tmp_path)
    assert first["train"].shape == (48,)
    assert (first["train"] < 0).all()
    content = bytearray(place.read_bytes())
    content[-3] ^= 64
    place.write_bytes(bytes(content))
    again = references.references_of(made.model, plan, tmp_path)
    assert (again["train"] == first["train"]).all()
    assert place.read_bytes() != bytes(content)
    smaller = replace(plan, rows=plan.rows.first(10))
    assert references.references_of(made.model, smaller, tmp_path)["train"].shape == (10,)


def test_an_objective_refuses_rows_of_the_other_kind(tiny_base, preferences, dataset):
    with pytest.raises(DataError, match="holds conversations") as refusal:
        plan_training(recipe_from(recipe(tiny_base)), dataset)
    assert "train.objective.kind=sft" in refusal.value.fix
    values = recipe(tiny_base, objective={"kind": "sft"})
    with pytest.raises(DataError, match="holds pairs of answers"):
        plan_training(recipe_from(values), preferences)
