"""Records what bitsandbytes makes of a few weights: `python tests/models/record_nf4.py`.

Needs bitsandbytes, which the tests that read the record do not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

RECORD = Path(__file__).with_name("nf4_of_bitsandbytes.json")
SHAPES = ((1536, 576), (192, 576), (64, 64), (128, 192))
KINDS = ("float32", "float16", "bfloat16")


def weight(shape: list[int], kind: str, seed: int) -> torch.Tensor:
    """A weight like a model's: mostly small, some outliers, the first row zero."""
    random = np.random.default_rng(seed)
    values = (random.standard_normal(shape) * 0.05).astype(np.float32)
    values.reshape(-1)[random.integers(0, values.size, 20)] *= 15
    values[0] = 0
    return torch.from_numpy(values).to(getattr(torch, kind))


def digest(tensor: torch.Tensor) -> str:
    """Hash of a tensor's bytes."""
    flat = tensor.detach().contiguous().view(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def of_bitsandbytes(found: torch.Tensor, block_size: int, double_quant: bool) -> dict:
    """Codes, scales and dense weights as bitsandbytes has them, as tensors by name."""
    import bitsandbytes.functional as bnb

    codes, state = bnb.quantize_4bit(
        found, blocksize=block_size, compress_statistics=double_quant, quant_type="nf4"
    )
    made = {"codes": codes, "absmax": state.absmax}
    if double_quant:
        made |= {"scales": state.state2.absmax, "mean": state.offset.view(1)}
    for kind in ("float32", "bfloat16"):
        state.dtype = getattr(torch, kind)
        made[f"dense_{kind}"] = bnb.dequantize_4bit(codes, state)
    return made


def main() -> None:
    """Write the record."""
    import bitsandbytes

    cases = []
    for seed, shape in enumerate(SHAPES):
        for kind in KINDS:
            for block_size in (32, 64):
                for double_quant in (False, True):
                    case = {"shape": list(shape), "kind": kind, "seed": seed}
                    made = of_bitsandbytes(weight(**case), block_size, double_quant)
                    case |= {"block_size": block_size, "double_quant": double_quant}
                    cases.append(case | {name: digest(tensor) for name, tensor in made.items()})
    record = {
        "command": "python tests/models/record_nf4.py",
        "bitsandbytes": bitsandbytes.__version__,
        "torch": torch.__version__,
        "cases": cases,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
