"""The frozen layers below the lowest trained one: where they end, and what stands in for them.

Their output depends on a row's tokens alone, never on what is trained, so it may be recorded once
and handed to the upper layers in every later step. A swap sets `forward` on the decoder layers
themselves: embeddings, masks and rotary tables are still the model's own, whatever its family does
to them, and outside of `recording` and `replaced` every layer runs as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunesmith.train.fast.probe import causal_model, rope_limit

__all__ = ["FrozenTrunk", "decoder_layers", "frozen_layers"]

Supply = Callable[[Tensor], Tensor]
"""(hidden states that reach the last frozen layer) -> its output, in the same layout."""


def decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The list of decoder layers of a causal model (PEFT-wrapped or not), None when there is none."""
    causal: Any = causal_model(model)
    count = causal.config.get_text_config().num_hidden_layers
    for module in causal.base_model.children():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return None


def frozen_layers(model: nn.Module) -> int:
    """How many decoder layers, from the lowest, come before every trained weight.

    0 when something that is neither in a decoder layer nor in an untied head is trained: it may act
    on what enters the first layer.
    """
    layers = decoder_layers(model)
    if layers is None:
        return 0
    causal: Any = causal_model(model)
    head, embedding = causal.get_output_embeddings(), causal.get_input_embeddings()
    above = {id(p) for module in (*layers, head) if module is not None for p in module.parameters()}
    above -= {id(p) for p in embedding.parameters()}
    if any(p.requires_grad and id(p) not in above for p in model.parameters()):
        return 0
    trained = (any(p.requires_grad for p in layer.parameters()) for layer in layers)
    return next((index for index, found in enumerate(trained) if found), len(layers))


class FrozenTrunk:
    """The lowest `count` decoder layers of a model, which can be recorded and replaced.

    Make it after `fast.apply`, and `detach` it before `fast.remove`.

    Raises:
        ValueError: the model has no list of decoder layers, or `count` is not within it.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        layers = decoder_layers(model)
        if layers is None or not 0 < count <= len(layers):
            raise ValueError(f"count={count} of {0 if layers is None else len(layers)} layers")
        self.count = count
        self.base: Any = causal_model(model).base_model
        self.layers = list(layers)
        self._supply: Supply | None = None
        self._found: list[Tensor] | None = None
        self._before = [layer.__dict__.get("forward") for layer in self.layers]
        for index, layer in enumerate(self.layers):
            swap = self._lower(layer, index) if index < count else self._upper(layer)
            layer.forward = swap

    def detach(self) -> None:
        """Give every layer the forward pass that it had."""
        for layer, before in zip(self.layers, self._before, strict=True):
            if before is None:
                del layer.forward
            else:
                layer.forward = before

    @contextmanager
    def recording(self) -> Iterator[list[Tensor]]:
        """While the block runs, collect the frozen layers' output; the upper layers do nothing.

        What a family's layer gives beside a tensor of hidden states is collected as it is.
        """
        self._found = []
        try:
            yield self._found
        finally:
            self._found = None

    @contextmanager
    def replaced(self, supply: Supply) -> Iterator[None]:
        """While the block runs, the frozen layers do nothing and `supply` gives their output."""
        self._supply = supply
        try:
            yield
        finally:
            self._supply = None

    def _lower(self, layer: Any, index: int) -> Callable[..., Any]:
        original, last = layer.forward, index == self.count - 1

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._supply is not None:
                return self._supply(hidden_states) if last else hidden_states
            out = original(hidden_states, *args, **kwargs)
            if last and self._found is not None:
                self._found.append(out)
            return out

        return forward

    def _upper(self, layer: Any) -> Callable[..., Any]:
        original = layer.forward

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._found is not None:
                return hidden_states
            return original(hidden_states, *args, **kwargs)

        return forward

    def obstacle(self, found: Any, longest: int) -> str | None:
        """Why the frozen layers' output cannot be kept, None when it can.

        `found` is what `recording` collected in one pass, `longest` the positions of the longest row.
        """
        if len(found) != 1 or not isinstance(found[0], torch.Tensor):
            return "its decoder layers hand on more than one tensor of hidden states"
        limit = rope_limit(self.base.config.get_text_config())
        if limit is not None and longest > limit:
            return f"a row of {longest} tokens changes the rotary embedding of the rows beside it"
        above = {id(m) for layer in self.layers[self.count :] for m in layer.modules()}
        for name, module in self.base.named_modules():
            if id(module) in above:
                continue
            if isinstance(module, nn.Dropout) and module.p > 0.0:
                return f"dropout in or below a frozen layer ({name})"
            if float(getattr(module, "attention_dropout", 0.0) or 0.0) > 0.0:
                return f"attention dropout in a frozen layer ({name})"
        return None
