"""llama.cpp's own quantiser through its C interface: the reference that ours is held against.

Only for benchmarks and for recording the tests' expected values. It needs the library, built from source:

    pip install llama-cpp-python==0.3.36        # compiles llama.cpp at commit 0c1e57098; takes minutes

    python benchmarks/export/quantise_reference.py IN.gguf OUT.gguf q4_k_m [--importance importance.gguf]
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
from collections.abc import Mapping
from pathlib import Path

FILE_TYPES = {
    **{"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18},
    "bf16": 32,
}


class _Imatrix(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


class _Value(ctypes.Union):
    _fields_ = [
        ("i64", ctypes.c_int64),
        ("f64", ctypes.c_double),
        ("b", ctypes.c_bool),
        ("text", ctypes.c_char * 128),
    ]


class _Override(ctypes.Structure):
    _fields_ = [("tag", ctypes.c_int), ("key", ctypes.c_char * 128), ("value", _Value)]


class _Params(ctypes.Structure):
    """`llama_model_quantize_params` of `include/llama.h` at commit 0c1e57098."""

    _fields_ = [
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int),
        ("output_tensor_type", ctypes.c_int),
        ("token_embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.POINTER(_Imatrix)),
        ("kv_overrides", ctypes.POINTER(_Override)),
        ("tt_overrides", ctypes.c_void_p),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
    ]


def library(path: Path | None = None) -> ctypes.CDLL:
    """llama.cpp; that of the package `llama_cpp` when no file is named."""
    if path is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise SystemExit("llama-cpp-python is not installed; name a file by --library")
        path = next((Path(spec.origin).parent / "lib").glob("libllama.*"))
    found = ctypes.CDLL(str(path))
    found.llama_model_quantize_default_params.restype = _Params
    found.llama_model_quantize.restype = ctypes.c_uint32
    found.llama_model_quantize.argtypes = [
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.POINTER(_Params),
    ]
    _quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    found._quiet = _quiet(lambda _level, _text, _data: None)
    found.llama_log_set(found._quiet, None)
    found.llama_backend_init()
    return found


def quantise(
    llama: ctypes.CDLL,
    source: Path,
    target: Path,
    kind: str,
    importance: Mapping[str, object] | None = None,
    keys: Mapping[str, int | str] | None = None,
    requantise: bool = False,
) -> None:
    """Let llama.cpp write `target`.

    Args:
        importance: tensor -> float32 array.
        keys: metadata that its command line tool adds.
        requantise: take a source that is quantised already.
    """
    params = llama.llama_model_quantize_default_params()
    params.nthread, params.ftype = 1, FILE_TYPES[kind]
    params.allow_requantize = requantise
    if importance is not None:
        entries = (_Imatrix * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = entries
    if keys:
        overrides = (_Override * (len(keys) + 1))()
        for override, (key, value) in zip(overrides, keys.items(), strict=False):
            override.key = key.encode()
            # LLAMA_KV_OVERRIDE_TYPE_INT and _STR
            override.tag = 0 if isinstance(value, int) else 3
            if isinstance(value, int):
                override.value.i64 = value
            else:
                override.value.text = value.encode()
        params.kv_overrides = overrides
    code = llama.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    if code:
        raise SystemExit(f"llama.cpp refused {source} -> {kind}")


def main() -> None:
    """One file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("kind", choices=FILE_TYPES)
    parser.add_argument("--importance", type=Path)
    parser.add_argument("--library", type=Path)
    args = parser.parse_args()
    values = keys = None
    if args.importance:
        from tunesmith.export.quantise.importance import read_importance

        found = read_importance(args.importance)
        values, keys = found.values, keys_of(found)
    quantise(library(args.library), args.source, args.target, args.kind, values, keys)


def keys_of(importance: object) -> dict[str, int | str]:
    """The keys that `llama-quantize` writes for an importance matrix."""
    return {
        "quantize.imatrix.file": importance.file,
        "quantize.imatrix.dataset": importance.dataset,
        "quantize.imatrix.entries_count": len(importance.values),
        "quantize.imatrix.chunks_count": importance.chunks,
    }


if __name__ == "__main__":
    main()
