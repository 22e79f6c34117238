"""Our quantised GGUF files against llama.cpp's own, byte by byte.

    pip install llama-cpp-python==0.3.36        # compiles llama.cpp at commit 0c1e57098; takes minutes

    python benchmarks/export/quantise_equal.py MODEL-F32.gguf [...] --importance importance.gguf --write equal.md
    python benchmarks/export/quantise_equal.py --record tests/export/quantised_by_llama_cpp.json

The first compares files of yours; the second records what llama.cpp makes of the tests' samples.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from quantise_reference import keys_of, library
from quantise_reference import quantise as reference

from tunesmith.export.quantise.file import Options, quantise
from tunesmith.export.quantise.importance import read_importance, write_importance
from tunesmith.models.files.gguf import look_at_gguf

KINDS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
TESTS = Path(__file__).parents[2] / "tests" / "export"


def compare(ours: Path, theirs: Path) -> str:
    """ "equal", or what differs."""
    if ours.read_bytes() == theirs.read_bytes():
        return "every byte"
    one, other = look_at_gguf(ours), look_at_gguf(theirs)
    if list(one.tensors) != list(other.tensors):
        return "other tensors"
    types = [n for n, t in one.tensors.items() if t.type != other.tensors[n].type]
    if types:
        return f"{len(types)} tensors of another type, such as {types[0]}"
    same = total = 0
    for name, tensor in one.tensors.items():
        mine = np.fromfile(ours, np.uint8, tensor.bytes, offset=tensor.offset)
        yours = np.fromfile(theirs, np.uint8, tensor.bytes, offset=other.tensors[name].offset)
        same, total = same + int((mine == yours).sum()), total + tensor.bytes
    return f"{same / total:.6%} of the weights' bytes" + (
        "" if one.keys == other.keys else ", other keys"
    )


def held_against(llama: Any, source: Path, matrix: Path | None, place: Path) -> list[str]:
    """Rows of a table: each file type without and with an importance matrix."""
    lines = []
    for importance in (None, read_importance(matrix)) if matrix else (None,):
        for kind in KINDS:
            began = time.process_time()
            made = quantise(source, place / "ours.gguf", kind, Options(importance, threads=1))
            between = time.process_time()
            values = importance and importance.values
            keys = importance and keys_of(importance)
            reference(llama, source, place / "theirs.gguf", kind, values, keys)
            ended = time.process_time()
            sizes = [(place / f"{who}.gguf").stat().st_size for who in ("ours", "theirs")]
            types = ", ".join(f"{count} {name}" for name, count in made.types.items())
            lines.append(
                f"| {source.stem} | {kind} | {'yes' if importance else 'no'} | {sizes[0]:,} | {sizes[1]:,} | "
                f"{compare(place / 'ours.gguf', place / 'theirs.gguf')} | {made.bits_per_weight:.2f} | {types} | "
                f"{between - began:.1f} | {ended - between:.1f} |"
            )
            print(lines[-1], flush=True)
    return lines


def record(llama: Any, place: Path) -> dict[str, Any]:
    """Hashes of what llama.cpp makes of the tests' samples."""
    sys.path.insert(0, str(TESTS))
    import sample_gguf

    found: dict[str, Any] = {}
    for sample in sample_gguf.SAMPLES:
        source = sample_gguf.write_sample(place / f"{sample}.gguf", sample)
        sums = sample_gguf.importance(sample)
        write_importance(place / "importance.gguf", sums, "rows", 4, 16)
        matrix = read_importance(place / "importance.gguf")
        for kind in KINDS:
            for importance in (None, matrix):
                values, keys = (matrix.values, keys_of(matrix)) if importance else (None, None)
                reference(
                    *(llama, source, place / "out.gguf", kind, values, keys),
                    requantise=sample == "forced",
                )
                name = f"{sample} {kind}{' weighted' if importance else ''}"
                found[name] = hashlib.sha256((place / "out.gguf").read_bytes()).hexdigest()
    return found


def main() -> None:
    """Compare or record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", type=Path, nargs="*")
    parser.add_argument("--importance", type=Path)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--library", type=Path)
    args = parser.parse_args()
    llama = library(args.library)
    head = (
        "Made by `python benchmarks/export/quantise_equal.py MODEL-F32.gguf --importance importance.gguf`.\n\n"
        "| source | type | importance | our bytes | llama.cpp's | equal | bits/weight | tensors | our CPU s | llama.cpp's |\n"
        "|---|---|---|---|---|---|---|---|---|---|\n"
    )
    with tempfile.TemporaryDirectory() as name:
        if args.record:
            made_by = "python benchmarks/export/quantise_equal.py --record tests/export/quantised_by_llama_cpp.json"
            values = {"made_by": made_by, "llama_cpp": "0c1e57098"}
            values["sha256"] = record(llama, Path(name))
            args.record.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        lines = [
            line
            for source in args.sources
            for line in held_against(llama, source, args.importance, Path(name))
        ]
    if args.write:
        args.write.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
