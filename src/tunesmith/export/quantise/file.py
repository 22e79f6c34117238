"""One GGUF file to another whose tensors have fewer bits, a slab of rows at a time.

The result is llama.cpp's own byte for byte (`llama_model_quantize`, `src/llama-quant.cpp`): keys in the source's order,
version and file type last, tensors sorted by layer and name.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.errors import ModelError, StorageError
from tunesmith.export.quantise import kernels
from tunesmith.export.quantise.layout import Target, header_of, pad
from tunesmith.export.quantise.policy import (
    FILE_TYPES,
    Kind,
    Model,
    choose_types,
    dimensions,
)
from tunesmith.models.devices import default_threads
from tunesmith.models.files.gguf import GgufFile, refuse_damaged_gguf
from tunesmith.store import storage_errors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tunesmith.export.quantise.importance import Importance

__all__ = ["Options", "Prepared", "Quantised", "prepare", "quantise"]

_NO_MODELS = ("adapter", "imatrix")
_PLAIN = ("F32", "F16", "BF16")
_NO_WEIGHTS = ("I8", "I16", "I32", "I64", "F64")
_SLAB_BYTES = 1 << 24
"""Of a source's rows in float32; what is in memory at a time is a few times that."""


@dataclass(frozen=True)
class Options:
    """How to quantise.

    Attributes:
        importance: how much each column of the weights matters.
        force: allow a source that is quantised already.
        threads: rows computed beside each other; the physical cores when None.
        on_bytes: called with the bytes of the source that are done.
    """

    importance: Importance | None = None
    force: bool = False
    threads: int | None = None
    on_bytes: Callable[[int], None] | None = None


@dataclass(frozen=True)
class Quantised:
    """What was written.

    Attributes:
        kind: the file type.
        bytes: size of the file.
        bits_per_weight: of all tensors.
        types: format -> number of tensors.
        fallbacks: in words, where rows did not fit into the format that was wanted.
        unweighted: tensors of many dimensions that the importance matrix says nothing about.
    """

    kind: Kind
    bytes: int
    bits_per_weight: float
    types: Mapping[str, int]
    fallbacks: tuple[str, ...]
    unweighted: int = 0

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"types": dict(self.types), "fallbacks": list(self.fallbacks)}


@dataclass(frozen=True)
class Prepared:
    """A quantisation that may begin: all that can be told without the weights was checked.

    Attributes:
        header: what the new file begins with.
    """

    source: Path
    kind: Kind
    options: Options
    targets: list[Target]
    header: bytes
    alignment: int

    def check_space(self, target: Path) -> None:
        """Refuse before the first byte is written, or folder made, what will not fit.

        Raises:
            StorageError: names the bytes that are needed and free.
        """
        n_bytes = len(self.header) + sum(one.bytes + self.alignment for one in self.targets)
        with storage_errors(target):
            there = next(folder for folder in target.absolute().parents if folder.exists())
            free = shutil.disk_usage(there).free
        if free < n_bytes:
            raise StorageError(
                f"{target.name} needs {n_bytes:,} bytes in {target.parent}, {free:,} are free",
                fix="free some space, or name another place",
            )

    def write(self, target: Path) -> Quantised:
        """The new file, written as it goes: give a temporary name.

        Raises:
            ModelError: a weight is no finite number or too large for its format.
            StorageError: the disk refuses.
        """
        threads = self.options.threads or default_threads()
        with (
            storage_errors(target),
            ThreadPoolExecutor(threads) as pool,
            self.source.open("rb") as stream,
        ):
            work = _Work(stream, self.source, self.options, pool, threads)
            with target.open("wb") as out:
                out.write(self.header)
                pad(out, self.alignment)
                for one in self.targets:
                    for data in work.tensor(one):
                        out.write(data.data)
                    pad(out, self.alignment)
                size = out.tell()
        return _told(self.kind, size, self.targets, self.options)


def prepare(source: Path, kind: Kind, options: Options = Options()) -> Prepared:
    """What becomes of `source` as a file of type `kind`; nothing is written.

    Raises:
        ModelError: the source is damaged, in parts or quantised already; the importance matrix belongs to
            another model.
        EnvironmentProblem: the kernels are not installed.
    """
    kernels.library()
    file = _opened(source)
    targets = _targets(file, kind, options)
    alignment = int(file.get("general.alignment", 32))
    header = header_of(file, targets, FILE_TYPES[kind].number, options.importance, alignment)
    return Prepared(source, kind, options, targets, header, alignment)


def quantise(source: Path, target: Path, kind: Kind, options: Options = Options()) -> Quantised:
    """Write `source` as a file of type `kind`. `target` is written as it goes: give a temporary name.

    Raises:
        ModelError, EnvironmentProblem: as of `prepare`, and of `Prepared.write`.
        StorageError: too little room, or the disk refuses.
    """
    made = prepare(source, kind, options)
    made.check_space(target)
    return made.write(target)


def _opened(source: Path) -> GgufFile:
    try:
        file = refuse_damaged_gguf(source)
    except OSError as error:
        raise ModelError(
            f"{source} cannot be read", why=str(error), fix="name a GGUF file that is there"
        ) from error
    if not file.tensors or file.get("general.type") in _NO_MODELS:
        what = file.get("general.type") if file.tensors else "no weights"
        raise ModelError(
            f"{source} is no model that can be quantised",
            why=f"it holds {what}",
            fix="name the file of a whole model",
        )
    if int(file.get("split.count", 0)) > 1:
        raise ModelError(
            f"{source} is one part of a model in {file.get('split.count')} files",
            why="a whole file is read and written here",
            fix="join them with llama.cpp's `llama-gguf-split --merge`",
        )
    return file


def _targets(file: GgufFile, kind: Kind, options: Options) -> list[Target]:
    """What becomes of each tensor.

    Raises:
        ModelError: it cannot be made of this file.
    """
    importance = options.importance
    try:
        chosen = choose_types(kind, file.tensors, Model.of(file), importance=importance is not None)
    except ValueError as error:
        raise ModelError(f"{file.path} cannot be quantised", why=str(error)) from error
    targets = [Target(file.tensors[name], choice) for name, choice in chosen.items()]
    empty = next((one.tensor.name for one in targets if prod(one.tensor.shape) == 0), None)
    if empty is not None:
        raise ModelError(f"the tensor {empty} of {file.path} holds no weight")
    changed = [one for one in targets if one.choice.type != one.tensor.type.name]
    coarse = Counter(t.tensor.type.name for t in changed if t.tensor.type.name not in _PLAIN)
    if odd := [one.tensor for one in changed if one.tensor.type.name in _NO_WEIGHTS]:
        raise ModelError(
            f"the tensor {odd[0].name} of {file.path} is {odd[0].type.name}, which is not quantised"
        )
    if coarse and not options.force:
        held = ", ".join(f"{count} {name}" for name, count in coarse.items())
        raise ModelError(
            f"{file.path} is quantised already ({held}), so it is not quantised to {kind.upper()}",
            why="what the first quantisation rounded away does not come back, the second adds to it",
            fix="start from the F32, F16 or BF16 file, or give --force",
        )
    if importance is not None:
        importance.check(file, [t.tensor for t in changed if not kernels.unweighted(t.choice.type)])
    return targets


@dataclass(frozen=True)
class _Work:
    """Reads rows of the source and gives the bytes of the target."""

    stream: BufferedReader
    source: Path
    options: Options
    pool: Executor
    threads: int

    def tensor(self, one: Target) -> Iterator[NDArray[np.uint8]]:
        """The bytes of one tensor, slab by slab; experts have a part of the importance matrix each."""
        per_expert = one.tensor.shape[1] if len(one.tensor.shape) > 1 else 1
        per_slab = max(1, _SLAB_BYTES // (4 * one.row))
        weights = self._weights(one)
        for expert in range(one.rows // per_expert):
            for start in range(0, per_expert, per_slab):
                count = min(per_slab, per_expert - start)
                part = None if weights is None else weights[expert]
                yield self._slab(one, expert * per_expert + start, count, part)

    def _weights(self, one: Target) -> NDArray[np.float32] | None:
        importance = self.options.importance
        values = None if importance is None else importance.values.get(one.tensor.name)
        return None if values is None else values.reshape(-1, one.row)

    def _slab(
        self, one: Target, start: int, count: int, weights: NDArray[np.float32] | None
    ) -> NDArray[np.uint8]:
        form = one.tensor.type
        row_bytes = one.row // form.block * form.bytes
        data = self._read(one, one.tensor.offset + start * row_bytes, count * row_bytes)
        rows = data.reshape(count, row_bytes)
        if form.name in _PLAIN:
            floats = kernels.to_float(rows, form.name, one.row)
            _check_finite(one, floats, start)
        elif form.name != one.choice.type:
            floats = kernels.to_float(rows, form.name, one.row)
        if form.name == one.choice.type:
            result = rows
        else:
            result = kernels.quantised(floats, one.choice.type, weights, self.pool, self.threads)
            _check_range(one, floats, result)
        if self.options.on_bytes is not None:
            self.options.on_bytes(rows.nbytes)
        return result

    def _read(self, one: Target, offset: int, n_bytes: int) -> NDArray[np.uint8]:
        data = np.empty(n_bytes, np.uint8)
        self.stream.seek(offset)
        if self.stream.readinto(data.data) != n_bytes:
            raise ModelError(
                f"{self.source} was cut while it was read, in the tensor {one.tensor.name}",
                fix="leave the file alone meanwhile, and start again",
            )
        return data


def _check_finite(one: Target, floats: NDArray[np.float32], start: int) -> None:
    with np.errstate(all="ignore"):
        total = float(floats.sum())
    # A sum of large numbers may be infinite while each of them is none.
    if np.isfinite(total) or np.isfinite(floats).all():
        return
    bad = np.argwhere(~np.isfinite(floats))
    row, column = int(bad[0][0]) + start, int(bad[0][1])
    raise ModelError(
        f"the tensor {one.tensor.name} holds weights that are no finite numbers",
        why=f"the first is {floats[row - start, column]} in row {row}, column {column}",
        fix="train again with a lower learning rate, or take the file from its source again",
    )


def _check_range(one: Target, floats: NDArray[np.float32], result: NDArray[np.uint8]) -> None:
    if kernels.overflows(result, one.choice.type):
        raise ModelError(
            f"the tensor {one.tensor.name} does not fit into {one.choice.type}",
            why=f"its largest magnitude is {float(np.abs(floats).max()):g}, and the format holds its scales in "
            "half precision",
            fix="take gguf-bf16, which has the range of float32",
        )


def _told(kind: Kind, size: int, targets: list[Target], options: Options) -> Quantised:
    weights = sum(prod(one.tensor.shape) for one in targets)
    n_bits = 8 * sum(one.bytes for one in targets)
    types = Counter(one.choice.type for one in targets)
    importance = options.importance
    bare = 0
    if importance is not None:
        bare = sum(
            not kernels.unweighted(one.choice.type) and one.tensor.name not in importance.values
            for one in targets
        )
    return Quantised(
        kind,
        size,
        round(n_bits / weights, 4),
        dict(types.most_common()),
        _fallbacks(targets),
        bare,
    )


def _fallbacks(targets: list[Target]) -> tuple[str, ...]:
    """Sentences such as "rows of 576 weights cannot be Q4_K (blocks of 256): 180 of 211 matrices became Q5_0"."""
    matrices = sum(dimensions(one.tensor.shape) > 1 for one in targets)
    changed = Counter(
        (one.row, one.choice.wanted, one.choice.type)
        for one in targets
        if one.choice.wanted != one.choice.type
    )
    return tuple(
        f"rows of {row:,} weights cannot be {wanted} (blocks of {kernels.TYPES[wanted][1].block}): "
        f"{count:,} of {matrices:,} matrices became {became}"
        for (row, wanted, became), count in sorted(changed.items())
    )
