"""Gradients of the same rows by several ways of computing them, and how far they lie apart.

The limit is not a guess: it is a multiple of what the plain Hugging Face path differs from itself
when only its order of summation, its attention kernel or (bf16) its number format changes, on these
very rows and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.train.filling import capacity_for
from tunesmith.train.packing import IGNORED, Groups, MicroBatch, Row, Step, pack, plan_epoch

if TYPE_CHECKING:
    import torch

    from tunesmith.train.session import Session

__all__ = [
    "FLOOR",
    "Gradients",
    "Noise",
    "PlainGradients",
    "distance",
    "limit_of",
    "measure_plain",
    "one_by_one",
    "plans",
    "take",
    "wake",
]

NOISE_MULTIPLE = 8.0
"""How many times the plain path's own noise two ways of computing may differ.

Another algorithm sums in yet another order at every layer, so it differs by a few times what one
change of order shows; a wrong one differs by thousands of times it."""

FLOOR = 2.0**-16
"""Least limit, 128 units of fp32 rounding: the noise is measured once and may be small by chance."""

CEILING = {"fp32": 2.0**-7, "bf16": 2.0**-2}
"""Greatest limit by precision. A plain path that is further from itself has a fault of its own, and
must not hide one of another."""

SMALL_TENSOR = 1e-3
"""A tensor's difference is taken relative to its own norm, or to this share of the largest norm: the
gradient of a tensor that hardly has any is all rounding."""

LEAST_TOKENS = 16
"""Size of the smallest micro batch; the others are twice, four times, ... that."""

AWAKE_STD = 0.01
"""Standard deviation that a zero tensor gets, about what training gives it."""


@dataclass(frozen=True)
class Gradients:
    """Loss in nats and the gradient of every trained tensor, in float32 on the CPU."""

    loss: float
    tensors: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Noise:
    """How far the plain path is from itself, relative, and by what change."""

    size: float
    source: str
    precision: str = "fp32"

    @property
    def limit(self) -> float:
        """What two ways of computing may differ."""
        return limit_of(self.size, self.precision)


@dataclass(frozen=True)
class PlainGradients:
    """The plain path on a model of its own.

    Attributes:
        whole: gradients of all rows in one padded rectangle.
        order: its noise when rows are computed one by one instead, for ways that share its kernels.
        path: its noise when attention is computed by transformers' other kernel too, for ways that
            have kernels of their own.
    """

    whole: Gradients
    order: Noise
    path: Noise


def measure_plain(
    fresh: Callable[..., Session], rows: Sequence[Row], seed: int, groups: Groups | None = None
) -> PlainGradients:
    """Gradients of the plain path and its noise.

    Args:
        fresh: builds a session; takes changes of its plan.
        rows: what to compute.
        seed: of the order of rows.
        groups: rows that stay together, such as pairs.
    """
    alone = one_by_one(rows, groups)
    step, _ = plans(rows, seed, groups)
    session = fresh(fast=False)
    reference, whole = take(session, alone), take(session, step.micro_batches)
    if session.plan.precision == "bf16":
        del session
        exact = take(fresh(fast=False, precision="fp32"), alone)
        found = Noise(
            distance(reference, exact)[0], "the plain path in bf16 against float32", "bf16"
        )
        return PlainGradients(whole, found, found)
    # The planner of training has no part in this one: a fault of its own would pass for noise.
    other = whole if groups else in_a_rectangle(session, rows)
    order = Noise(distance(other, reference)[0], "the plain path in another order of summation")
    if not _by_other_attention(session.model):
        return PlainGradients(whole, order, order)
    size = max(order.size, distance(take(session, alone), reference)[0])
    source = "the plain path in another order and by transformers' other attention kernel"
    return PlainGradients(whole, order, Noise(size, source))


def in_a_rectangle(session: Session, rows: Sequence[Row]) -> Gradients:
    """Mean loss and gradients by transformers alone: rows padded on the right, all logits."""
    import torch

    device = next(session.model.parameters()).device
    longest = max(len(tokens) for tokens, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for place, (tokens, trained) in enumerate(rows):
        ids[place, : len(tokens)] = torch.tensor(tokens)
        mask[place, : len(tokens)] = 1
        wanted = [token if on else IGNORED for token, on in zip(tokens, trained, strict=True)]
        labels[place, : len(tokens)] = torch.tensor(wanted)
    ids, mask, labels = ids.to(device), mask.to(device), labels.to(device)
    logits = session.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    )
    loss.backward()  # type: ignore[no-untyped-call]
    return Gradients(float(loss.detach()), _taken(session))


def _by_other_attention(model: Any) -> bool:
    """Compute attention step by step from now on; False when the model cannot, or does already."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if causal.config._attn_implementation == "eager":
        return False
    try:
        causal.set_attn_implementation("eager")
    except ValueError:
        return False
    return True


def wake(session: Session, seed: int) -> None:
    """Give trained tensors that are zero small random values, the same in every session.

    A fresh adapter's B is zero; then A has no gradient, and merging adds nothing: faults would hide.
    """
    import torch

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in session.parameters.values():
            if not bool(parameter.any()):
                values = torch.randn(parameter.shape, generator=draw) * AWAKE_STD
                parameter.copy_(values.to(parameter))


def take(session: Session, batches: Sequence[MicroBatch]) -> Gradients:
    """Loss and gradients of one step that is made of `batches`; leaves no gradient behind."""
    session.model.train()
    normaliser = sum(session.objective.count(batch) for batch in batches)
    for parameter in session.parameters.values():
        parameter.grad = None
    given = [session.plan.referring(batch) for batch in batches]
    loss = sum(session.objective(session.model, batch, normaliser)[0] for batch in given)
    return Gradients(loss / normaliser, _taken(session))


def _taken(session: Session) -> dict[str, torch.Tensor]:
    """Every gradient in float32 on the CPU; none is left in the model."""
    tensors = {}
    for name, parameter in session.parameters.items():
        if parameter.grad is not None:
            tensors[name] = parameter.grad.detach().float().cpu()
        parameter.grad = None
    return tensors


def distance(one: Gradients, reference: Gradients) -> tuple[float, str]:
    """Largest relative difference of the loss and of every tensor, and the name of where it is.

    Infinite where a tensor is missing or a number is not finite.
    """
    import math

    norms = {name: float(tensor.norm()) for name, tensor in reference.tensors.items()}
    least = SMALL_TENSOR * max(norms.values(), default=0.0)
    worst, where = abs(one.loss - reference.loss) / max(abs(reference.loss), 1e-6), "loss"
    for name in {**reference.tensors, **one.tensors}:
        if name not in one.tensors or name not in norms:
            return math.inf, name
        gap = float((one.tensors[name] - reference.tensors[name]).norm())
        if not math.isfinite(gap):
            return math.inf, name
        gap /= max(norms[name], least, 1e-30)
        if gap > worst:
            worst, where = gap, name
    return (worst if math.isfinite(worst) else math.inf), where


def limit_of(noise: float, precision: str = "fp32") -> float:
    """The limit that a measured noise gives."""
    return min(CEILING[precision], max(FLOOR, NOISE_MULTIPLE * noise))


def one_by_one(rows: Sequence[Row], groups: Groups | None = None) -> list[MicroBatch]:
    """Each row (or group) in a micro batch of its own, with nothing shared."""
    together = [(index,) for index in range(len(rows))] if groups is None else groups
    sizes = [_capacity(sum(len(rows[index][0]) for index in group)) for group in together]
    return [
        batch
        for place, size in enumerate(sizes)
        for batch in pack(rows, size, order=[place], groups=together, least_shared_tokens=0)
    ]


def plans(
    rows: Sequence[Row], seed: int, groups: Groups | None = None
) -> tuple[Step, list[tuple[str, Step]]]:
    """All rows as one packed micro batch, and the same rows split in several ways, each one step.

    The planner of training makes them all. Returns the whole and the splits with their names.
    """
    positions = sum(len(tokens) for tokens, _ in rows)
    together = [(index,) for index in range(len(rows))] if groups is None else groups
    longest = max(sum(len(rows[index][0]) for index in group) for group in together)
    whole = _one_step(rows, groups, _capacity(positions), (seed, 0))
    taken = max(int((batch.segment_ids >= 0).sum()) for batch in whole.micro_batches)
    sizes = {_capacity(longest), max(longest, -(-taken // 2))}
    splits = []
    for number, size in enumerate(sorted(sizes), 1):
        step = _one_step(rows, groups, size, (seed, number))
        splits.append((f"{len(step.micro_batches)} of at most {size}", step))
    return whole, splits


def _one_step(rows: Sequence[Row], groups: Groups | None, size: int, draw: tuple[int, int]) -> Step:
    batch_tokens = 4 * max(size, sum(len(tokens) for tokens, _ in rows)) * (len(rows) + 1)
    steps: list[Any] = plan_epoch(
        rows,
        batch_tokens=batch_tokens,
        micro_batch_tokens=size,
        seed=draw[0],
        epoch=draw[1],
        groups=groups,
    )
    assert len(steps) == 1
    step: Step = steps[0]
    return step


def _capacity(tokens: int) -> int:
    return capacity_for(LEAST_TOKENS, tokens)
