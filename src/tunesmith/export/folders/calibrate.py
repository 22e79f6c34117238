"""The user's rows through a model's layers, one layer at a time, as GPTQ, AWQ and pruning need it.

A row is never padded or joined with another: what a layer sees is what it saw in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import DataError, ModelError
from tunesmith.export.folders.parts import decoder_layers, hushed
from tunesmith.models.load import load_model

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Layers", "Shared", "open_layers", "shared_inputs"]

MOST_TOKENS_A_ROW = 512
"""A longer row is cut: statistics of weights need no more context, and memory is bounded."""
LEAST_ROW = 2


@dataclass
class Shared:
    """Linear layers of one block that read the same tensor.

    Attributes:
        names: their names within the block.
        gram: (inputs, inputs) float32, the sum of x x^T over all tokens seen.
        tokens: how many those were.
        magnitude: (inputs,) mean of |x|.
        norm: name of the module whose output they read, when it is one with a weight a channel.
    """

    names: tuple[str, ...]
    gram: Tensor
    tokens: int
    magnitude: Tensor
    norm: str | None = None


class Layers:
    """A model's decoder layers, and the hidden states of every row before the current one.

    Attributes:
        model: in float32 and evaluation mode.
        blocks: its decoder layers.
        states: one (1, tokens, hidden) tensor a row: what the next layer reads.
    """

    def __init__(self, model: Any, rows: Sequence[Sequence[int]]) -> None:
        import torch

        self.model = model
        self.blocks = decoder_layers(model)
        if len(self.blocks) == 0:
            raise ModelError("the model has no list of layers", fix="leave this form out")
        used = [row[:MOST_TOKENS_A_ROW] for row in rows if len(row) >= LEAST_ROW]
        if not used:
            raise DataError(
                "there are no calibration rows of two tokens or more",
                why="this form is made with training rows",
                fix="raise export.calibration_rows, or leave the form out",
            )
        self.rows = len(used)
        self._given: list[list[dict[str, Any]]] = []
        self.states: list[Tensor] = []
        with torch.inference_mode(), hushed():
            for row in used:
                self._record(row)

    def _record(self, row: Sequence[int]) -> None:
        """What each layer is given besides its hidden states, and the first one's hidden states."""
        import torch

        given: list[dict[str, Any]] = []

        def keep(_module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            states = named.pop("hidden_states") if "hidden_states" in named else args[0]
            if not given:
                self.states.append(states.clone())
            given.append(named)

        hooks = [b.register_forward_pre_hook(keep, with_kwargs=True) for b in self.blocks]
        try:
            self.model(input_ids=torch.tensor([list(row)]), use_cache=False, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        if len(given) != len(self.blocks):
            raise ModelError(
                f"the model runs {len(given)} of its {len(self.blocks)} layers for a row",
                fix="leave this form out of export.forms",
            )
        self._given.append(given)

    def outputs(self, index: int) -> Iterator[Tensor]:
        """What layer `index` makes of each row's current states."""
        for row in range(len(self.states)):
            yield self.output(index, row)

    def output(self, index: int, row: int) -> Tensor:
        """The same for one row."""
        import torch

        with torch.inference_mode():
            found = self.blocks[index](self.states[row], **self._given[row][index])
        result: Tensor = found[0] if isinstance(found, tuple) else found
        return result

    def advance(self, index: int) -> None:
        """Go on with what layer `index` makes as it is now."""
        self.states = list(self.outputs(index))


def open_layers(folder: Path, rows: Sequence[Sequence[int]]) -> Layers:
    """The model of a folder in float32, with the rows read in.

    Raises:
        ModelError: it has no layers that can be run one by one.
        DataError: no row is long enough.
    """
    import torch

    return Layers(load_model(folder, torch.float32), rows)


def shared_inputs(layers: Layers, index: int) -> tuple[list[Shared], list[Tensor]]:
    """Statistics of every linear layer's input in block `index` over all rows, and what it makes of them."""
    import torch

    block = layers.blocks[index]
    linear = {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
    found = _who_reads_what(layers, index, linear)

    def add(shared: Shared) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            shared.gram.addmm_(x.t(), x)
            shared.magnitude.add_(x.abs().sum(dim=0))
            shared.tokens += len(x)

        return hook

    with _hooked((linear[shared.names[0]], add(shared)) for shared in found):
        made = list(layers.outputs(index))
    for shared in found:
        shared.magnitude /= max(shared.tokens, 1)
    return found, made


def _who_reads_what(layers: Layers, index: int, linear: dict[str, torch.nn.Linear]) -> list[Shared]:
    """Linear layers grouped by the very tensor that they read, from one row."""
    import torch

    read: dict[int, list[str]] = {}
    made: dict[int, str] = {}
    alive: list[Any] = []  # An id is a tensor's own only while the tensor lives.

    def reads(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Tensor, ...]) -> None:
            alive.append(args[0])
            read.setdefault(id(args[0]), []).append(name)

        return hook

    def makes(name: str) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor):
                alive.append(out)
                made[id(out)] = name

        return hook

    block = layers.blocks[index]
    after = [
        module.register_forward_hook(makes(name))
        for name, module in block.named_modules()
        if name and name not in linear and getattr(module, "weight", None) is not None
    ]
    try:
        with _hooked((module, reads(name)) for name, module in linear.items()):
            layers.output(index, 0)
    finally:
        for hook in after:
            hook.remove()
    return [
        Shared(
            tuple(names),
            torch.zeros(linear[names[0]].in_features, linear[names[0]].in_features),
            0,
            torch.zeros(linear[names[0]].in_features),
            made.get(key),
        )
        for key, names in read.items()
    ]


@contextmanager
def _hooked(pairs: Any) -> Iterator[None]:
    hooks = [module.register_forward_pre_hook(hook) for module, hook in pairs]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
