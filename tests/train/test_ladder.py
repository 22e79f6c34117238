"""`--fit`: the field's ladder, rung by rung."""

from __future__ import annotations

import pytest

from tunesmith.config import recipe_from
from tunesmith.errors import CapacityError
from tunesmith.models.memory import GIB, SHAPES, Recompute
from tunesmith.train.ladder import (
    Situation,
    climb,
    is_in_backward,
    need_of,
    needs_of,
    next_rung,
)


def situation(**train) -> Situation:
    values = {
        "on_long_row": "cut_prompt",
        "batch_tokens": 512,
        "method": {"kind": "lora", "rank": 8},
    }
    return Situation(
        config=recipe_from({"train": values | train}).train,
        micro_batch_tokens=256,
        longest_row=257,
        precision="fp32",
        shape=SHAPES["SmolLM2-135M"],
        offers=frozenset({"qlora", "adamw_8bit"}),
    )


def rungs_of(start: Situation) -> list[str]:
    with pytest.raises(CapacityError) as found:
        climb(start, 0)
    lines = found.value.what.splitlines()[1:]
    return [line.strip().rpartition(":")[0] for line in lines]


def test_the_rungs_come_in_the_fields_order():
    nothing, mlp, whole = Recompute(), Recompute(30), Recompute(30, 30)
    assert rungs_of(situation()) == [
        "as asked",
        f"activation_checkpointing auto ({nothing}) -> activation_checkpointing auto ({mlp})",
        f"activation_checkpointing auto ({mlp}) -> activation_checkpointing auto ({whole})",
        "method lora -> method qlora",
        "longest row 257 (cut_prompt) -> longest row 128 (cut_prompt)",
        "micro_batch_tokens 256 -> micro_batch_tokens 128",
        "rank 8 (alpha 32) -> rank 4 (alpha 16)",
        "optimizer adamw -> optimizer adamw_8bit",
    ]


def test_short_rows_let_the_micro_batch_shrink_first():
    at = Situation(**(vars(situation()) | {"longest_row": 60}))
    assert rungs_of(at)[1:3] == [
        "micro_batch_tokens 256 -> micro_batch_tokens 128",
        "micro_batch_tokens 128 -> micro_batch_tokens 64",
    ]


def test_rows_are_never_shortened_when_long_rows_are_refused():
    assert not any("longest row" in rung for rung in rungs_of(situation(on_long_row="refuse")))


def test_a_full_training_is_never_turned_into_adapters():
    rungs = rungs_of(situation(method={"kind": "full"}))
    assert not any("qlora" in rung or "rank" in rung for rung in rungs)


def test_what_this_machine_does_not_offer_is_not_on_the_ladder():
    at = situation()
    rungs = rungs_of(Situation(**(vars(at) | {"offers": frozenset()})))
    assert not any("8bit" in rung or "qlora" in rung for rung in rungs)


def test_it_stops_at_the_first_rung_that_fits_and_says_before_and_after():
    start = Situation(**(vars(situation()) | {"longest_row": 60}))
    budget = need_of(start) - 1
    at, lines = climb(start, budget)
    assert at.config.micro_batch_tokens == at.micro_batch_tokens == 128
    assert at.config.method == start.config.method
    assert len(lines) == 2
    before, after = need_of(start) / GIB, need_of(at) / GIB
    assert lines[1] == (
        f"micro_batch_tokens 256 -> micro_batch_tokens 128: {before:.2f} -> {after:.2f} GiB"
    )


def test_nothing_is_changed_when_it_fits_as_asked():
    start = situation()
    at, lines = climb(start, need_of(start))
    assert at is start
    assert len(lines) == 1


def test_every_rung_that_is_taken_needs_less_than_the_one_before():
    with pytest.raises(CapacityError) as found:
        climb(situation(), 0)
    gains = [line.rpartition(": ")[2].split() for line in found.value.what.splitlines()[2:]]
    pairs = [(float(before), float(after)) for before, _, after, _ in gains]
    assert all(before >= after for before, after in pairs)
    assert [before for before, _ in pairs[1:]] == [after for _, after in pairs[:-1]]


def test_whole_layers_computed_again_are_not_asked_for_twice():
    at = situation(activation_checkpointing=30)
    start = Situation(**(vars(at) | {"recompute": Recompute(30, 30)}))
    assert not any("checkpointing" in rung for rung in rungs_of(start))


FULL = {"method": {"kind": "full"}, "batch_tokens": 256}


def test_an_optimizer_in_the_backward_pass_keeps_one_micro_batch_a_step():
    optimizer = {"in_backward": "on", "max_grad_norm": None}
    at = situation(**FULL, optimizer=optimizer)
    start = Situation(**(vars(at) | {"longest_row": 60}))
    rungs = rungs_of(start)
    assert any("adamw_8bit" in rung for rung in rungs)
    assert not any("micro_batch_tokens" in rung for rung in rungs)


def test_a_smaller_micro_batch_takes_the_optimizer_out_of_the_backward_pass_when_that_was_auto():
    at = situation(**FULL, optimizer={"max_grad_norm": None})
    whole = Situation(**(vars(at) | {"longest_row": 60}))
    part = Situation(**(vars(whole) | {"micro_batch_tokens": 128}))
    assert is_in_backward(whole.config, 256)
    assert not is_in_backward(part.config, 128)
    assert needs_of(part).gradients == 4 * whole.shape.parameters > needs_of(whole).gradients
    # All gradients take more than a micro batch of half the size saves: no rung gains anything.
    assert not any("micro_batch_tokens" in rung for rung in rungs_of(whole))


def test_the_next_rung_is_the_first_that_gains_something_and_is_not_there_already():
    asked = situation(micro_batch_tokens=256)
    # Whole layers are computed again already: what the rehearsal found is not asked for once more.
    deepest = {"recompute": Recompute(30, 30), "longest_row": 60}
    at = Situation(**(vars(asked) | deepest))
    said = []
    while (rung := next_rung(at)) is not None:
        change, at = rung
        said.append(change)
        at = Situation(**(vars(at) | {"recompute": Recompute(30, 30)}))
    assert said == [
        "micro_batch_tokens 256 -> micro_batch_tokens 128",
        "micro_batch_tokens 128 -> micro_batch_tokens 64",
        "method lora -> method qlora",
        "rank 8 (alpha 32) -> rank 4 (alpha 16)",
        "optimizer adamw -> optimizer adamw_8bit",
    ]


@pytest.mark.parametrize(
    ("train", "less"),
    [
        ({**FULL, "optimizer": {"kind": "adamw_8bit"}}, "optimizer"),
        ({"method": {"kind": "lora", "rank": 8, "layers": 3}}, "trainable"),
        ({"method": {"kind": "lora", "rank": 8, "targets": ["q_proj"]}}, "trainable"),
        ({"method": {"kind": "qlora", "rank": 8, "block_size": 256}}, "weights"),
    ],
    ids=str,
)
def test_the_formula_reads_the_settings_that_take_less(train, less):
    kind = train.get("method", {}).get("kind", "lora")
    usual = situation(**(train | {"method": {"kind": kind} | _rank(kind), "optimizer": {}}))
    assert getattr(needs_of(situation(**train)), less) < getattr(needs_of(usual), less)


def _rank(kind: str) -> dict:
    return {} if kind == "full" else {"rank": 8}
