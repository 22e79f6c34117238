"""What a quantised training base was, and what its rounding costs: facts of a sealed run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.config import QloraMethod

if TYPE_CHECKING:
    from tunesmith.train.session import Session

__all__ = ["quantised_base"]


def quantised_base(session: Session) -> dict[str, Any] | None:
    """How the base was quantised, and the validation loss of the adapter on the original base.

    Evaluation and export put the adapter on the original base; the difference of the two losses is
    what it was trained to make up for and no longer needs to. The original weights are read from
    the file one by one as the validation rows pass, so no second model is held in memory. None
    stands for the loss when the model's files do not name them as the model does, or when layers
    have no adapter: their output may have been kept from the quantised base.

    Returns None for a base that was not quantised.

    Raises:
        NotFinite: the loss on the original base is not finite.
    """
    config = session.plan.method
    if not isinstance(config, QloraMethod):
        return None
    from tunesmith.models.nf4 import Nf4Linear
    from tunesmith.models.quantised import original_weights

    with original_weights(session.model) as can:
        loss = session.validation_loss() if can and config.layers is None else None
    layers = [module for module in session.model.modules() if isinstance(module, Nf4Linear)]
    return {
        "kind": "nf4",
        "block": config.block_size,
        "double_quant": config.double_quant,
        "layers": len(layers),
        "bits_per_weight": _bits_per_weight(layers),
        "validation_loss_on_original": loss,
    }


def _bits_per_weight(layers: list[Any]) -> float:
    """Bits in memory for each quantised weight, its scales included."""
    bits = weights = 0
    for layer in layers:
        held = [layer.weight, *layer.buffers()]
        bits += 8 * sum(tensor.numel() * tensor.element_size() for tensor in held)
        weights += layer.in_features * layer.out_features
    return bits / weights
