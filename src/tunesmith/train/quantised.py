"""What a quantised training base was, and what its rounding costs: facts of a sealed run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.config import QloraMethod
from tunesmith.train.nonfinite import NotFinite
from tunesmith.train.stopping import Check, go_on

if TYPE_CHECKING:
    from tunesmith.train.session import Session

__all__ = ["quantised_base"]


def quantised_base(session: Session, check: Check = go_on) -> dict[str, Any] | None:
    """How the base was quantised, and the validation loss of the adapter on the original base.

    Evaluation and export put the adapter on the original base; the difference of the two losses is
    what it was trained to make up for and no longer needs to. The original weights are read from
    the file one by one as the validation rows pass, so no second model is held in memory. None
    stands for the loss when the model's files do not name them as the model does, when layers
    have no adapter (their output may have been kept from the quantised base), or when it is not
    finite: `why_no_loss` says which. A trained adapter is sealed all the same.

    Returns None for a base that was not quantised.

    Args:
        session: with the weights that are sealed.
        check: called before each micro batch and each layer; what it raises ends the validation.
    """
    config = session.plan.method
    if not isinstance(config, QloraMethod):
        return None
    from tunesmith.models.nf4 import Nf4Linear
    from tunesmith.models.quantised import original_weights

    with original_weights(session.model) as can:
        loss, why = _loss(session, can, check)
    layers = [module for module in session.model.modules() if isinstance(module, Nf4Linear)]
    return {
        "kind": "nf4",
        "block": config.block_size,
        "double_quant": config.double_quant,
        "layers": len(layers),
        "bits_per_weight": _bits_per_weight(layers),
        "validation_loss_on_original": loss,
        "why_no_loss": why,
    }


def _loss(session: Session, can: bool, check: Check) -> tuple[float | None, str]:
    """The validation loss on the original base, when it can be read; or None, and why."""
    if not can:
        return None, "the model's files name its weights otherwise"
    if session.plan.method.layers is not None:
        return None, "layers without an adapter may be kept as the quantised base gave them"
    try:
        return session.validation_loss(check), ""
    except NotFinite as found:
        return None, found.what


def _bits_per_weight(layers: list[Any]) -> float:
    """Bits in memory for each quantised weight, its scales included."""
    bits = weights = 0
    for layer in layers:
        held = [layer.weight, *layer.buffers()]
        bits += 8 * sum(tensor.numel() * tensor.element_size() for tensor in held)
        weights += layer.in_features * layer.out_features
    return bits / weights
