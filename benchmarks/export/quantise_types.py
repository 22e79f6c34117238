"""Record which format llama.cpp gives each tensor of well-known models: what `tests/export` holds our rules against.

    pip install llama-cpp-python==0.3.36        # compiles llama.cpp at commit 0c1e57098; takes minutes
    python benchmarks/export/quantise_types.py --write tests/export/types_of_llama_cpp.json

No weights are needed: `src/llama-ext.h` asks llama.cpp's rules about names and shapes alone.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from quantise_reference import FILE_TYPES, library

MADE_BY = "python benchmarks/export/quantise_types.py --write tests/export/types_of_llama_cpp.json"
KINDS = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")


@dataclass(frozen=True)
class Shape:
    """A model's numbers, from its config.json."""

    architecture: str
    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    experts: int = 0
    fused: bool = False


MODELS = {
    "SmolLM2-135M": Shape("llama", 30, 576, 1536, 9, 3, 64, 49152, True),
    "SmolLM2-1.7B": Shape("llama", 24, 2048, 8192, 32, 32, 64, 49152, True),
    "Llama-3.2-1B": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, True),
    "Llama-3.1-8B": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, False),
    "Llama-3.1-70B": Shape("llama", 80, 8192, 28672, 64, 8, 128, 128256, False),
    "Llama-65B": Shape("llama", 80, 8192, 22016, 64, 64, 128, 32000, False),
    "Mistral-7B": Shape("llama", 32, 4096, 14336, 32, 8, 128, 32768, False),
    "Mixtral-8x7B": Shape("llama", 32, 4096, 14336, 32, 8, 128, 32000, False, 8),
    "Qwen2.5-0.5B": Shape("qwen2", 24, 896, 4864, 14, 2, 64, 151936, True),
    "Qwen2.5-7B": Shape("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, False),
    "Qwen3-0.6B": Shape("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, True),
    "Qwen3-30B-A3B": Shape("qwen3moe", 48, 2048, 768, 32, 4, 128, 151936, False, 128),
    "Gemma-2-2B": Shape("gemma2", 26, 2304, 9216, 8, 4, 256, 256000, True),
    "Gemma-3-270M": Shape("gemma3", 18, 640, 2048, 4, 1, 256, 262144, True),
    "Phi-3-mini": Shape("phi3", 32, 3072, 8192, 32, 32, 96, 32064, False, 0, True),
    "Phi-4": Shape("phi3", 40, 5120, 17920, 40, 10, 128, 100352, False, 0, True),
    "Falcon-7B": Shape("falcon", 32, 4544, 18176, 71, 1, 64, 65024, False, 0, True),
    "odd-rows": Shape("llama", 9, 80, 300, 4, 2, 20, 512, False),
}


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name -> shape as GGUF has it, the row's length first."""
    width, inner = shape.width, shape.inner
    queries, keys = shape.heads * shape.head_width, shape.key_heads * shape.head_width
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (width, shape.vocabulary),
        "output_norm.weight": (width,),
    }
    if not shape.tied:
        found["output.weight"] = (width, shape.vocabulary)
    layer: dict[str, tuple[int, ...]] = {"attn_norm.weight": (width,), "ffn_norm.weight": (width,)}
    layer["attn_output.weight"] = (queries, width)
    if shape.fused:
        layer["attn_qkv.weight"] = (width, queries + 2 * keys)
        layer["ffn_up.weight"] = (width, inner if shape.architecture == "falcon" else 2 * inner)
        layer["ffn_down.weight"] = (inner, width)
    else:
        layer["attn_q.weight"] = (width, queries)
        layer["attn_q.bias"] = (queries,)
        layer["attn_k.weight"] = (width, keys)
        layer["attn_v.weight"] = (width, keys)
    if shape.experts:
        layer["ffn_gate_inp.weight"] = (width, shape.experts)
        layer["ffn_gate_exps.weight"] = (width, inner, shape.experts)
        layer["ffn_up_exps.weight"] = (width, inner, shape.experts)
        layer["ffn_down_exps.weight"] = (inner, width, shape.experts)
    elif not shape.fused:
        layer["ffn_gate.weight"] = (width, inner)
        layer["ffn_up.weight"] = (width, inner)
        layer["ffn_down.weight"] = (inner, width)
    for number in range(shape.layers):
        found |= {f"blk.{number}.{name}": size for name, size in layer.items()}
    return found


class _Description(ctypes.Structure):
    """`llama_quant_model_desc` of `src/llama-ext.h`."""

    _fields_ = [("architecture", ctypes.c_char_p)] + [
        (name, ctypes.c_uint32)
        for name in ("embd", "ff", "layer", "head", "head_kv", "expert", "head_k", "head_v")
    ]


class _Pool(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


def types(llama: ctypes.CDLL, shape: Shape, kind: str) -> dict[str, str]:
    """What llama.cpp chooses, tensor by tensor; without an importance matrix."""
    model_of = llama._Z31llama_quant_model_from_metadataPK22llama_quant_model_desc
    init = llama._Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params
    allows = llama._Z38llama_quant_tensor_allows_quantizationPK19quantize_state_implPK11ggml_tensor
    compute = llama._Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem
    for function in (model_of, init, llama.ggml_init, llama.ggml_new_tensor):
        function.restype = ctypes.c_void_p
    llama.ggml_type_name.restype, allows.restype = ctypes.c_char_p, ctypes.c_bool
    width = shape.head_width
    description = _Description(
        shape.architecture.encode(),
        *(shape.width, shape.inner, shape.layers, shape.heads, shape.key_heads, shape.experts),
        *(width, width),
    )
    model = ctypes.c_void_p(model_of(ctypes.byref(description)))
    params = llama.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    state = ctypes.c_void_p(init(model, ctypes.byref(params)))
    pool = ctypes.c_void_p(llama.ggml_init(_Pool(1 << 24, None, True)))
    result, asked, handles = {}, [], []
    for name, size in sorted(tensors(shape).items(), key=lambda item: _order(item[0])):
        sizes = (ctypes.c_int64 * 4)(*size, *[1] * (4 - len(size)))
        tensor = ctypes.c_void_p(llama.ggml_new_tensor(pool, 0, len(size), sizes))
        llama.ggml_set_name(tensor, name.encode())
        result[name] = "F32"
        if allows(state, tensor):
            asked.append(name)
            handles.append(tensor)
    pointers = (ctypes.c_void_p * len(handles))(*[handle.value for handle in handles])
    found = (ctypes.c_int * len(handles))()
    compute(state, params.ftype, pointers, found, ctypes.c_size_t(len(handles)))
    for name, number in zip(asked, found, strict=True):
        result[name] = llama.ggml_type_name(number).decode().upper()
    llama.ggml_free(pool)
    return result


def _order(name: str) -> tuple[int, str]:
    """`weight_name_comparer` of `src/llama-model-loader.h`."""
    return (int(name.split(".")[1]) if name.startswith("blk.") else -1, name)


def short(types_of: dict[str, str]) -> dict[str, str]:
    """Name with `*` for the layer -> formats, run by run: "6xQ6_K 20xQ4_K"."""
    runs: dict[str, list[list[object]]] = {}
    for name, kind in types_of.items():
        parts = name.split(".")
        key = ".".join(["blk.*", *parts[2:]]) if parts[0] == "blk" else name
        listed = runs.setdefault(key, [])
        if listed and listed[-1][1] == kind:
            listed[-1][0] += 1
        else:
            listed.append([1, kind])
    return {key: " ".join(f"{n}x{kind}" for n, kind in listed) for key, listed in runs.items()}


def main() -> None:
    """Ask about every model and file type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, required=True)
    parser.add_argument("--library", type=Path)
    args = parser.parse_args()
    llama = library(args.library)
    rows = [
        json.dumps(name)
        + ": "
        + json.dumps(
            asdict(shape)
            | {
                "shapes": {k: v for k, v in tensors(shape).items() if not k.startswith("blk.")}
                | {"blk.*" + k[5:]: v for k, v in tensors(shape).items() if k.startswith("blk.0.")},
                "types": {kind: short(types(llama, shape, kind)) for kind in KINDS},
            }
        )
        for name, shape in MODELS.items()
    ]
    head = json.dumps({"made_by": MADE_BY, "llama_cpp": "0c1e57098"})[1:-1]
    args.write.write_text("{" + head + ',\n"models": {\n' + ",\n".join(rows) + "\n}}\n")


if __name__ == "__main__":
    main()
