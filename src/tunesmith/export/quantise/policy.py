"""Which number format each tensor of a GGUF file takes: llama.cpp's rules, for the file types that are made here.

Source: `src/llama-quant.cpp` of llama.cpp at commit 0c1e57098 (August 2026): `tensor_allows_quantization`,
`llama_tensor_get_type_impl`, `tensor_type_fallback`. Rules of file types that are not made here (IQ, TQ, Q2, Q3) are
left out. `tests/export/types_of_llama_cpp.json` holds what llama.cpp itself chose, and the command that recorded it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Literal, get_args

from tunesmith.models.files.ggml import GGML_TYPES
from tunesmith.models.files.gguf import GgufFile, GgufTensor

__all__ = [
    "FILE_TYPES",
    "LLAMA_CPP",
    "Choice",
    "FileType",
    "Kind",
    "Model",
    "choose_types",
    "dimensions",
    "in_order",
    "row_of",
]

LLAMA_CPP = "0c1e57098"
"""The commit of llama.cpp whose rules these are."""

Kind = Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"]


@dataclass(frozen=True)
class FileType:
    """What a whole file is called.

    Attributes:
        number: `general.file_type` (enum llama_ftype).
        type: the format of most tensors.
        weighs: whether an importance matrix changes the result.
    """

    number: int
    type: str
    weighs: bool = False


FILE_TYPES: Mapping[Kind, FileType] = {
    "f32": FileType(0, "F32"),
    "f16": FileType(1, "F16"),
    "bf16": FileType(32, "BF16"),
    "q8_0": FileType(7, "Q8_0"),
    "q6_k": FileType(18, "Q6_K", weighs=True),
    "q5_k_m": FileType(17, "Q5_K", weighs=True),
    "q4_k_m": FileType(15, "Q4_K", weighs=True),
    "q4_0": FileType(2, "Q4_0", weighs=True),
}
assert set(FILE_TYPES) == set(get_args(Kind))

_BLOCKS = {form.name: form.block for form in GGML_TYPES.values()}
_PLAIN = ("F32", "F16", "BF16")
_FALLBACKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""Rows that are no multiple of 256 take these, of blocks of 32."""
_SEVENTY_B = ("llama", "llama-embed", "qwen2", "deci", "olmo")
"""Architectures whose models of 80 layers llama.cpp takes for 70B ones."""

_NEVER = (
    # norms, expert gates and tables
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight"),
    # small or delicate matrices of Gemma 3n, Mamba, LFM2, MiniMax, T5
    *("altup", "laurel", "per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight"),
    *("indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight"),
    # RWKV
    *("time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight"),
    *("time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight"),
    *("time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight"),
    *("time_mix_g1.weight", "time_mix_g2.weight"),
    *("time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight"),
    # vision and audio parts
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd"),
    *(".patch_merger", "a.rvq.codebook", "mm.a.code_embd"),
)
_NEVER_WHOLE = ("position_embd.weight", "token_types.weight")


class _Role(Enum):
    TOKEN_EMBEDDING = auto()
    OUTPUT = auto()
    ATTENTION_V = auto()
    ATTENTION_QKV = auto()
    ATTENTION_K = auto()
    ATTENTION_OUTPUT = auto()
    FFN_DOWN = auto()
    OTHER = auto()


_PARTS = (
    ("attn_qkv.weight", _Role.ATTENTION_QKV),
    ("attn_kv_b.weight", _Role.ATTENTION_V),
    ("attn_v.weight", _Role.ATTENTION_V),
    ("attn_k.weight", _Role.ATTENTION_K),
    ("attn_q.weight", _Role.OTHER),
    ("attn_output.weight", _Role.ATTENTION_OUTPUT),
    ("ffn_up", _Role.OTHER),
    ("ffn_gate", _Role.OTHER),
    ("ffn_down", _Role.FFN_DOWN),
)
"""Part of a name -> role; the first that is found counts."""


@dataclass(frozen=True)
class Model:
    """What the rules ask of a model.

    Attributes:
        is_seventy_b: 80 layers and fewer key heads than query heads.
    """

    architecture: str
    layers: int
    experts: int
    is_seventy_b: bool

    @classmethod
    def of(cls, file: GgufFile) -> Model:
        """As a file's metadata says."""
        architecture = str(file.get("general.architecture", ""))

        def number(key: str, default: int = 0) -> int:
            return _first(file.get(f"{architecture}.{key}"), default)

        layers, heads = number("block_count"), number("attention.head_count")
        grouped = architecture not in ("llama", "llama-embed") or heads != number(
            "attention.head_count_kv", heads
        )
        return cls(
            architecture,
            layers,
            number("expert_count"),
            architecture in _SEVENTY_B and layers == 80 and grouped,
        )


@dataclass(frozen=True)
class Choice:
    """A tensor's format.

    Attributes:
        type: the format it takes.
        wanted: the one that the rules ask for; another one when its rows do not fit into that.
    """

    type: str
    wanted: str


@dataclass
class _Counters:
    """Layers come by order of their names, not by their numbers, unless the model has experts."""

    values: int
    value: int = 0
    down: int = 0


def dimensions(shape: Sequence[int]) -> int:
    """Dimensions as ggml counts them: trailing ones are none."""
    return max((i + 1 for i, size in enumerate(shape) if size > 1), default=1)


def row_of(tensor: GgufTensor) -> int:
    """Weights in a row; a single number has one."""
    return tensor.shape[0] if tensor.shape else 1


def in_order(names: Iterable[str]) -> list[str]:
    """Tensors as llama.cpp visits and writes them: what is in no layer, then layer by layer, by name."""
    return sorted(names, key=lambda name: (_layer(name), name.encode()))


def choose_types(
    kind: Kind, tensors: Mapping[str, GgufTensor], model: Model, *, importance: bool
) -> dict[str, Choice]:
    """The format of each tensor, in the order in which llama.cpp writes them.

    Args:
        importance: whether there is an importance matrix.

    Raises:
        ValueError: the model has experts, and a tensor of theirs names no layer.
    """
    roles = {name: _role(name) for name in in_order(tensors)}
    tied = _Role.OUTPUT not in roles.values()
    values = sum(role in (_Role.ATTENTION_V, _Role.ATTENTION_QKV) for role in roles.values())
    counters, default = _Counters(values), FILE_TYPES[kind].type
    chosen = {}
    for name, role in roles.items():
        tensor = tensors[name]
        if not _is_quantised(name, tensor.shape):
            wanted = tensor.type.name
        elif default in _PLAIN:
            wanted = default
        elif role is _Role.OUTPUT or (tied and role is _Role.TOKEN_EMBEDDING):
            wanted = _head(default, model, row_of(tensor))
        else:
            wanted = _inner(kind, role, name, model, counters, importance)
        chosen[name] = Choice(_fitting(wanted, row_of(tensor)), wanted)
    return chosen


def _is_quantised(name: str, shape: Sequence[int]) -> bool:
    if dimensions(shape) < 2 or not name.endswith("weight") or name in _NEVER_WHOLE:
        return False
    return not any(part in name for part in _NEVER)


def _role(name: str) -> _Role:
    if name == "output.weight":
        return _Role.OUTPUT
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return _Role.TOKEN_EMBEDDING
    return next((role for part, role in _PARTS if part in name), _Role.OTHER)


def _head(default: str, model: Model, row: int) -> str:
    """The output matrix, or the embedding that serves as one."""
    if model.architecture == "falcon" or row % _BLOCKS[default] != 0:
        return "Q8_0"
    return default if default == "Q8_0" else "Q6_K"


def _inner(
    kind: Kind, role: _Role, name: str, model: Model, counters: _Counters, importance: bool
) -> str:
    default = FILE_TYPES[kind].type
    if role in (_Role.ATTENTION_V, _Role.ATTENTION_QKV):
        # llama.cpp has a rule for fused q, k, v of its own, which this one comes before.
        more = kind in ("q4_k_m", "q5_k_m") and _more_bits(counters.value, counters.values)
        counters.value += 1
        if model.experts == 8:
            return "Q8_0"
        wanted = "Q6_K" if more else default
        return "Q5_K" if model.is_seventy_b and wanted == "Q4_K" else wanted
    if role is _Role.ATTENTION_K and model.experts == 8:
        return "Q8_0"
    if role is _Role.ATTENTION_OUTPUT and model.experts == 8 and kind == "q4_k_m":
        return default if model.architecture == "falcon" else "Q5_K"
    if role is _Role.FFN_DOWN:
        layer = _layer(name) if model.experts > 1 else counters.down
        if model.experts > 1 and not 0 <= layer < model.layers:
            raise ValueError(f"the tensor {name} is in none of the model's {model.layers} layers")
        counters.down += 1
        return _down(kind, model, layer, importance)
    return default


def _down(kind: Kind, model: Model, layer: int, importance: bool) -> str:
    more = _more_bits(layer, model.layers)
    if kind == "q4_k_m" and model.architecture == "falcon":
        if layer < model.layers // 16:
            return "Q6_K"
        return "Q5_K" if more else "Q4_K"
    if kind in ("q4_k_m", "q5_k_m") and more:
        return "Q6_K"
    if kind == "q4_0" and importance and layer < model.layers // 8:
        return "Q4_1"
    return FILE_TYPES[kind].type


def _more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and each third one between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _fitting(wanted: str, row: int) -> str:
    if row % _BLOCKS[wanted] == 0:
        return wanted
    other = _FALLBACKS.get(wanted, wanted)
    return other if row % _BLOCKS[other] == 0 else "F16"


def _layer(name: str) -> int:
    """The layer that a tensor is in; -1 for none."""
    found = re.match(r"blk\.([0-9]+)", name)
    return int(found[1]) if found else -1


def _first(value: Any, default: int) -> int:
    """Some models name a number for each layer; llama.cpp asks the first one."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, int) else default
