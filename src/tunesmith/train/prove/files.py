"""Proofs that go through files: checkpoint and resume, save and load, merge."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import ArtifactError
from tunesmith.models.adapters import put_adapter
from tunesmith.models.load import load_model
from tunesmith.store import storage_errors
from tunesmith.train import checkpoint, methods
from tunesmith.train.prove.gradients import limit_of
from tunesmith.train.prove.report import Finding

if TYPE_CHECKING:
    import torch

    from tunesmith.train.plan import TrainPlan
    from tunesmith.train.rows import TokenRow
    from tunesmith.train.session import Session

__all__ = ["load_saved", "merged_equals", "resumed_equals", "saved_equals"]

STEPS_BEFORE = 2
STEPS_AFTER = 1


def resumed_equals(
    straight: Session, fresh: Callable[[], Session], folder: Path, spelled: str
) -> Finding:
    """Some steps, a checkpoint, some more; then the same from the checkpoint in a fresh session.

    Equal means every tensor of `Session.state`: weights, both moments, random state.

    Raises:
        ArtifactError: the checkpoint that was just written is not whole.
        StorageError: the disk refuses.
    """
    for _ in range(STEPS_BEFORE):
        straight.train_step()
    tensors, facts = straight.state()
    checkpoint.save(folder, straight.step, tensors, facts)
    for _ in range(STEPS_AFTER):
        straight.train_step()
    resumed = fresh()
    found = checkpoint.latest(folder)
    if found is None:
        raise ArtifactError(
            f"the checkpoint in {folder} is damaged",
            why="it was written a moment ago: the disk, or another program, changed it",
            fix="check the disk, or set another `workspace`",
        )
    resumed.restore(found)
    for _ in range(STEPS_AFTER):
        resumed.train_step()
    wanted, got = straight.state()[0], resumed.state()[0]
    different = sorted(name for name in {**wanted, **got} if not _same(wanted, got, name))
    same_counts = (straight.step, straight.tokens) == (resumed.step, resumed.tokens)
    detail = (
        f"{STEPS_BEFORE} + {STEPS_AFTER} steps, {len(wanted):,} tensors (weights, moments, random "
        "state), bit by bit"
    )
    if different:
        detail += f"; first that differs: {different[0]}"
    return Finding(
        ok=not different and same_counts,
        figure=len(different),
        limit=0,
        unit="tensors that differ",
        detail=detail,
        why="a stopped run that goes on would end elsewhere than one that never stopped",
        remedy=f"train in one go: `tunesmith train {spelled}` without --resume; and report this",
    )


def _same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor], name: str) -> bool:
    import torch

    return name in one and name in two and torch.equal(one[name], two[name])


def saved_equals(session: Session, rows: Sequence[TokenRow], folder: Path) -> Finding:
    """Save the trained weights, load them on the base as it was trained on, compare logits.

    Raises:
        ModelError: what was saved cannot be loaded.
        StorageError: the disk refuses.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        methods.save_trained(
            session.model, session.plan.tokenizer, folder, base_name=session.plan.base.name
        )
    before = logits_of(session.model, rows)
    gap = _largest_gap(before, logits_of(load_saved(session.plan, folder), rows))
    positions = sum(len(block) for block in before)
    return Finding(
        ok=gap == 0,
        figure=gap,
        limit=0.0,
        unit="largest difference of a logit",
        detail=f"all logits of {positions} positions in {len(rows)} rows",
        why="the model that is saved is not the one that was trained",
        remedy="check the disk and the peft and safetensors packages (`tunesmith doctor`), then prove again",
    )


def load_saved(plan: TrainPlan, folder: Path, *, original: bool = False) -> Any:
    """What `save_trained` wrote in `folder`, put on the plan's base, in the plan's number format.

    With `original` the base has plain weights, whatever it was trained on: so it is merged.
    """
    import torch

    dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
    if not (folder / "adapter_config.json").is_file():
        return load_model(folder, dtype).to(plan.device)
    with warnings.catch_warnings():
        # PEFT only warns of tensors that a file lacks; the comparison of logits then shows it.
        warnings.simplefilter("ignore", UserWarning)
        base = (
            load_model(plan.base, dtype)
            if original
            else methods.load_base(plan.base, dtype, plan.method)
        )
        return put_adapter(base, folder).to(plan.device)


def merged_equals(model: Any, merge: Callable[[Any], Any], rows: Sequence[TokenRow]) -> Finding:
    """Logits of base + adapter in float32 before and after the adapter is merged into its base.

    The limit comes from the same model's logits of the same rows, alone and padded in one rectangle.
    """
    apart = logits_of(model, rows)
    scale = max(float(block.abs().max()) for block in apart)
    noise = _largest_gap(apart, logits_of(model, rows, together=True)) / scale
    gap = _largest_gap(apart, logits_of(merge(model), rows)) / scale
    return Finding(
        ok=gap <= limit_of(noise),
        figure=gap,
        limit=limit_of(noise),
        unit="of the largest logit",
        detail=f"all logits of {sum(map(len, apart))} positions in {len(rows)} rows, float32; "
        f"padding alone changes {noise:.1e}",
        why="the exported model would not be the one that was trained",
        remedy="export the adapter alone: --set 'export.forms=[adapter]'",
    )


def logits_of(
    model: Any, rows: Sequence[TokenRow], *, together: bool = False
) -> list[torch.Tensor]:
    """All logits of each row, (tokens, vocabulary) in float32, by the model's own forward pass.

    Args:
        together: all rows in one rectangle, padded on the right, instead of one by one.
    """
    import torch

    device = next(model.parameters()).device
    with _evaluating(model), torch.no_grad():
        if not together:
            ids = [torch.tensor([row.tokens], device=device) for row in rows]
            return [model(input_ids=one, use_cache=False).logits[0].float() for one in ids]
        longest = max(len(row.tokens) for row in rows)
        padded = [[*row.tokens, *[0] * (longest - len(row.tokens))] for row in rows]
        mask = [[place < len(row.tokens) for place in range(longest)] for row in rows]
        logits = model(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device).long(),
            use_cache=False,
        ).logits.float()
    return [block[: len(row.tokens)] for block, row in zip(logits, rows, strict=True)]


def _largest_gap(one: Sequence[torch.Tensor], two: Sequence[torch.Tensor]) -> float:
    """Largest difference of two logits; infinite when one is not a number."""
    gaps = [float((a - b).abs().max()) for a, b in zip(one, two, strict=True)]
    return max(gap if gap == gap else float("inf") for gap in gaps)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
