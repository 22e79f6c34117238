"""Small GGUF files whose weights follow from whole numbers alone: the same bytes everywhere.

`benchmarks/export/quantise_equal.py` gives them to llama.cpp and records the hashes of what it makes of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYERS = {"tied": 8, "untied": 5, "experts": 4, "bf16": 3, "forced": 3}
SAMPLES = tuple(LAYERS)


def noise(seed: int, *shape: int) -> NDArray[np.float32]:
    """Numbers that look normal, of about the spread of weights."""
    index = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed * 1_000_003)
    total = np.zeros(len(index))
    for step in (11, 23, 37):
        mixed = index * np.uint64(0x9E3779B97F4A7C15) + np.uint64(step)
        mixed = (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
        total += (mixed >> np.uint64(40)).astype(np.float64) / (1 << 24) - 0.5
    return (total * 0.06).astype(np.float32).reshape(shape)


def matrices(sample: str) -> dict[str, NDArray[np.float32]]:
    """Name -> (rows, columns), or (experts, rows, columns)."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (40, 256),
        "output_norm.weight": (256,),
    }
    if sample in ("untied", "experts"):
        shapes["output.weight"] = (40, 256)
    for layer in range(LAYERS[sample]):
        own: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (256,),
            "attn_q.weight": (12, 256),
            "attn_q.bias": (12,),
            "attn_k.weight": (6, 256),
            "attn_v.weight": (6, 256),
            "attn_output.weight": (8, 96),
            "ffn_norm.weight": (256,),
        }
        if sample == "experts":
            own |= {"ffn_gate_inp.weight": (4, 256), "ffn_gate_exps.weight": (4, 8, 256)}
            own |= {"ffn_up_exps.weight": (4, 8, 256), "ffn_down_exps.weight": (4, 8, 512)}
        else:
            own |= {"ffn_gate.weight": (8, 256), "ffn_up.weight": (8, 256)}
            own |= {"ffn_down.weight": (8, 512 if sample == "untied" else 288)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in own.items()}
    return {name: noise(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}


def importance(sample: str) -> dict[str, tuple[NDArray[np.float32], int]]:
    """Sums of squares for each matrix of a layer, over 64 tokens."""
    found = {}
    for seed, (name, weight) in enumerate(matrices(sample).items()):
        if name.startswith("blk.") and weight.ndim > 1:
            experts = weight.shape[0] if weight.ndim == 3 else 1
            squares = np.square(noise(1_000 + seed, experts, weight.shape[-1])) * np.float32(1e4)
            found[name] = (squares.astype(np.float32), 64)
    return found


def write_sample(path: Path, sample: str = "tied") -> Path:
    """A file with the metadata that llama.cpp asks for before it quantises."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("sample")
    writer.add_file_type(0)
    writer.add_context_length(64)
    writer.add_block_count(LAYERS[sample])
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(288)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(40)
    if sample == "experts":
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)
    writer.add_quantization_version(2)
    writer.add_tokenizer_model("none")
    writer.add_array("sample.words", ["one", "", "thrée"])
    for name, weight in reversed(matrices(sample).items()):
        _add(writer, name, weight, sample)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, name: str, weight: NDArray[np.float32], sample: str) -> None:
    from gguf import GGMLQuantizationType as Type
    from gguf import quants

    wanted = {"bf16": Type.BF16, "forced": Type.Q8_0}.get(sample, Type.F32)
    if weight.ndim < 2 or name.endswith("_norm.weight") or wanted == Type.F32:
        writer.add_tensor(name, weight)
    else:
        writer.add_tensor(name, quants.quantize(weight, wanted), raw_dtype=wanted)
