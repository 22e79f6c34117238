"""Where a loss or gradient stopped being finite: the first module, found by running a micro batch again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunesmith.errors import TrainingError

if TYPE_CHECKING:
    import torch

__all__ = ["Failure", "Finding", "NotFinite", "locate_in"]

LOSS = "loss and head"
"""Name of what comes after the last layer, when a gradient leaves it that is not finite."""

WEIGHTS_NAMED = 5


@dataclass(frozen=True)
class Failure:
    """A step, or a validation, whose loss or gradient is not finite.

    Attributes:
        split: "train" or "validation"; a validation runs forward only.
        step: optimizer steps done before it.
        batches: micro batches that were run.
        normaliser: what their losses were divided by.
        random: random state before the first of them.
    """

    split: str
    step: int
    batches: Sequence[Any] = field(repr=False)
    normaliser: float
    random: dict[str, torch.Tensor] = field(repr=False)
    loss: float
    norm: float


class NotFinite(TrainingError):
    """The loss or a gradient is not finite.

    The weights are as before the step. With an optimizer in the backward pass those nearer to the
    output than the first gradient that is not finite are updated already, and no other is: the loop
    takes that back by its last checkpoint.
    """

    def __init__(self, failure: Failure, lines: Sequence[int]) -> None:
        self.failure = failure
        self.lines = tuple(lines)
        norm = f" and the gradient norm {failure.norm}" if failure.split == "train" else ""
        where = f"at step {failure.step + 1}"
        if failure.split != "train":
            where = f"at the validation after step {failure.step}"
        super().__init__(
            f"the loss is {failure.loss}{norm} {where}",
            why=f"it held these lines of {failure.split}.jsonl: {', '.join(map(str, self.lines))}",
            fix="lower train.optimizer.learning_rate, or set train.precision to fp32",
        )


@dataclass(frozen=True)
class Finding:
    """The first thing that is not finite.

    Attributes:
        where: "output" or "gradient" (of what goes into a module), "weight gradient", "loss", or "norm"
            when every gradient is finite and only their norm is not.
        module: which module, by its name in the model; for "weight gradient" and "norm" a weight.
        nan: how many values are not a number.
        inf: how many are infinite.
        largest: largest magnitude among the finite ones.
        weights: weights that are not finite before anything was run.
        trail: largest magnitude of each layer's output up to there, in order.
    """

    where: str
    module: str
    nan: int
    inf: int
    largest: float
    weights: tuple[str, ...] = ()
    trail: tuple[tuple[str, float], ...] = ()

    def sentence(self) -> str:
        """The finding in words."""
        found = {
            "output": f"the output of {self.module}",
            "gradient": f"the gradient that leaves {self.module} in the backward pass",
            "weight gradient": f"the gradient of {self.module}",
            "loss": "the loss",
            "norm": f"the norm of all gradients (the largest is in {self.module})",
        }[self.where]
        counts = ", ".join(
            f"{count} {name}" for count, name in ((self.nan, "nan"), (self.inf, "inf")) if count
        )
        text = f"first not finite: {found} ({counts}; largest finite magnitude {self.largest:.3g})"
        if self.weights:
            text += f"; weights that are not finite: {', '.join(self.weights)}"
        return text

    def is_same(self, other: Finding) -> bool:
        """Whether both name the same place with the same counts."""
        return (self.where, self.module, self.nan, self.inf) == (
            other.where,
            other.module,
            other.nan,
            other.inf,
        )


def locate_in(
    model: Any, runs: Sequence[Callable[[], float]], *, with_norm: bool
) -> tuple[int | None, Finding | None]:
    """The first of several micro batches that is not finite, and where.

    Args:
        model: gradients that it holds are dropped.
        runs: each runs one micro batch and returns its loss.
        with_norm: the sum of all their gradients, and its norm, must be finite too.

    Returns:
        Index and finding; index None when only the sum over all of them is not finite; both None
        when all is finite this time.
    """
    for index, run in enumerate(runs):
        model.zero_grad(set_to_none=True)
        finding = locate(model, run)
        if finding is not None:
            return index, finding
    if not with_norm:
        return None, None
    model.zero_grad(set_to_none=True)
    for run in runs:
        run()
    return None, _check_norm(model)


def locate(model: Any, run: Callable[[], float]) -> Finding | None:
    """Run a micro batch with every module watched; None when everything is finite.

    Inside a fused layer only the layer itself is watched. Gradients add to those that are there.
    """
    weights = tuple(_bad_weights(model))
    with _watched(model) as probe:
        loss = run()
    found = probe.first_output or (None if math.isfinite(loss) else _of_loss(loss))
    found = found or probe.first_gradient(model)
    if found is None:
        return None
    return Finding(*found, weights=weights, trail=tuple(probe.trail))


_Found = tuple[str, str, int, int, float]
"""where, module, nan, inf, largest"""


class _Probe:
    """What the hooks saw."""

    def __init__(self, layers: list[str]) -> None:
        self.layers = layers
        self.first_output: _Found | None = None
        self.trail: list[tuple[str, float]] = []
        self.gradients: dict[str, tuple[int, int, float]] = {}

    def see_output(self, name: str, value: torch.Tensor) -> None:
        is_layer = name in self.layers
        if self.first_output is not None or (not is_layer and _is_finite(value)):
            return
        counts = _counts(value)
        if is_layer:
            self.trail.append((name, counts[2]))
        if counts[0] or counts[1]:
            self.first_output = ("output", name, *counts)

    def see_gradient(self, layer: str, value: torch.Tensor) -> None:
        """The gradient of a layer's output: what the layer above it sent down."""
        if layer not in self.gradients and not _is_finite(value):
            self.gradients[layer] = _counts(value)

    def first_gradient(self, model: Any) -> _Found | None:
        """The first in the order of the backward pass, which goes from the last layer down."""
        above = [*self.layers[1:], LOSS]
        sent = {
            up: self.gradients[low]
            for low, up in zip(self.layers, above, strict=True)
            if low in self.gradients
        }
        bad = {
            name: p.grad
            for name, p in model.named_parameters()
            if p.grad is not None and not _is_finite(p.grad)
        }
        for layer in reversed(above if self.layers else []):
            if layer in sent:
                return ("gradient", layer, *sent[layer])
            inside = [name for name in bad if name.startswith(f"{layer}.")]
            if inside:
                return ("weight gradient", inside[-1], *_counts(bad[inside[-1]]))
        rest = next(reversed(list(bad)), None)
        return None if rest is None else ("weight gradient", rest, *_counts(bad[rest]))


@contextmanager
def _watched(model: Any) -> Iterator[_Probe]:
    layers = _layers(model)
    probe = _Probe(list(layers))

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            value = _first_tensor(output)
            if value is None:
                return
            probe.see_output(name, value.detach())
            if name in layers and value.requires_grad:
                value.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: probe.see_gradient(name, gradient)
                )

        return hook

    above = {name.rpartition(".")[0] for name in layers}
    handles = [
        module.register_forward_hook(hook_of(name))
        for name, module in model.named_modules()
        if not any(place == name or place.startswith(f"{name}.") for place in above) and name
    ]
    try:
        yield probe
    finally:
        for handle in handles:
            handle.remove()


def _layers(model: Any) -> dict[str, Any]:
    """The decoder layers by name: the longest list of modules."""
    import torch

    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList)
    ]
    name, longest = max(lists, key=lambda pair: len(pair[1]), default=("", ()))
    return {f"{name}.{index}": layer for index, layer in enumerate(longest)}


def _first_tensor(output: Any) -> torch.Tensor | None:
    import torch

    values = [output] if isinstance(output, torch.Tensor) else list(_values_of(output))
    return next((v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()), None)


def _values_of(output: Any) -> Sequence[Any]:
    if isinstance(output, tuple | list):
        return output
    return list(output.values()) if isinstance(output, dict) else []


def _is_finite(value: torch.Tensor) -> bool:
    return bool(value.isfinite().all())


def _counts(value: torch.Tensor) -> tuple[int, int, float]:
    """Values that are nan, that are infinite, and the largest magnitude of the others."""
    finite = value[value.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return int(value.isnan().sum()), int(value.isinf().sum()), largest


def _bad_weights(model: Any) -> Iterator[str]:
    named = 0
    for name, parameter in model.named_parameters():
        # A weight that is kept in 16 bits is held as integers, and `narrow` is its numbers.
        place, _, leaf = name.rpartition(".")
        narrow = getattr(model.get_submodule(place), "narrow", None) if leaf == "weight" else None
        value = parameter.detach() if narrow is None else narrow
        if value.is_floating_point() and not _is_finite(value):
            yield name
            named += 1
            if named == WEIGHTS_NAMED:
                return


def _of_loss(loss: float) -> _Found:
    return ("loss", LOSS, int(math.isnan(loss)), int(math.isinf(loss)), 0.0)


def _check_norm(model: Any) -> Finding | None:
    """The gradients' sum or norm, after all micro batches, when each of those was finite."""
    import torch

    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    bad = next((name for name, grad in grads.items() if not _is_finite(grad)), None)
    if bad is not None:
        return Finding("weight gradient", bad, *_counts(grads[bad]))
    norm = float(torch.nn.utils.get_total_norm(list(grads.values())))
    if math.isfinite(norm):
        return None
    largest = max(grads, key=lambda name: float(grads[name].abs().max()))
    magnitude = float(grads[largest].abs().max())
    return Finding("norm", largest, int(math.isnan(norm)), int(math.isinf(norm)), magnitude)
