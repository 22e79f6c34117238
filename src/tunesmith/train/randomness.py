"""The random state of a process as tensors: Python's, NumPy's, torch's on the CPU and on devices."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["capture", "restore"]

PREFIX = "random."


def capture() -> dict[str, torch.Tensor]:
    """All random state that a step could draw from, by name; `restore` puts it back.

    Devices other than the CPU are captured when they are there; that path was never run.
    """
    import numpy as np
    import torch

    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    tensors = {
        "python": torch.tensor([version, *words], dtype=torch.int64),
        # Two numbers each: whether a second normal draw is waiting, and which.
        "python_gauss": _waiting(gauss is not None, gauss or 0.0),
        "numpy": torch.tensor([*legacy[1].tolist(), legacy[2]], dtype=torch.int64),
        "numpy_gauss": _waiting(bool(legacy[3]), float(legacy[4])),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"cuda.{index}"] = state
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def restore(tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `capture` gave; other tensors in the mapping are not looked at.

    A device's state is put back where that device is there.

    Raises:
        KeyError: a state of the CPU is missing.
        ValueError: a state is damaged.
    """
    import numpy as np
    import torch

    version, *words = tensors[f"{PREFIX}python"].tolist()
    is_waiting, gauss = tensors[f"{PREFIX}python_gauss"].tolist()
    random.setstate((version, tuple(words), gauss if is_waiting else None))
    *keys, place = tensors[f"{PREFIX}numpy"].tolist()
    is_waiting, gauss = tensors[f"{PREFIX}numpy_gauss"].tolist()
    numbers = np.asarray(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", numbers, place, int(is_waiting), gauss))
    torch.set_rng_state(tensors[f"{PREFIX}torch"])
    for name, state in tensors.items():
        kind, _, index = name.removeprefix(PREFIX).partition(".")
        if kind == "cuda" and name.startswith(PREFIX) and int(index) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(index))
    if torch.backends.mps.is_available() and f"{PREFIX}mps" in tensors:
        torch.mps.set_rng_state(tensors[f"{PREFIX}mps"])


def _waiting(is_waiting: bool, value: float) -> torch.Tensor:
    import torch

    return torch.tensor([float(is_waiting), value], dtype=torch.float64)
