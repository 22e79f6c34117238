"""How much each column of a weight matters: the mean square of what comes in there, on the user's rows.

It is llama.cpp's importance matrix (`tools/imatrix`, `tools/quantize`): a file of that format is written and read, so
`llama-quantize --imatrix` takes it as well. Quantising then makes the squared error small that is weighted by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.errors import MissingError, ModelError
from tunesmith.models.files.gguf import GgufFile, GgufTensor, refuse_damaged_gguf
from tunesmith.store import writing

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["Importance", "measure_importance", "read_importance", "write_importance"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_BATCH_TOKENS = 1_024
_STEP_TOKENS = 32
"""Rows are filled up to a multiple of this: each new shape costs a build of its product kernels."""


@dataclass(frozen=True)
class Importance:
    """An importance matrix.

    Attributes:
        values: tensor of the GGUF file -> (experts * columns,) float32, mean squares.
        file: where it was read, as the quantised file will name it.
        dataset: what it was measured on.
        chunks: rows that it was measured on.
        tokens: their tokens.
    """

    values: Mapping[str, NDArray[np.float32]]
    file: str
    dataset: str
    chunks: int
    tokens: int

    def check(self, file: GgufFile, tensors: Sequence[GgufTensor]) -> None:
        """Refuse a matrix that does not belong to a model.

        Raises:
            ModelError: it names none of its tensors, or with another width.
        """
        known = [tensor for tensor in tensors if tensor.name in self.values]
        wrong = [
            f"{tensor.name} has {wanted:,} columns, the matrix {len(self.values[tensor.name]):,}"
            for tensor in known
            if len(self.values[tensor.name]) != (wanted := _columns(tensor))
        ]
        if wrong or (tensors and not known):
            raise ModelError(
                f"the importance matrix {self.file} is that of another model than {file.path}",
                why=wrong[0] if wrong else "it names none of its tensors",
                fix="measure it with this model, or leave it out",
            )


def _columns(tensor: GgufTensor) -> int:
    return tensor.shape[0] * (tensor.shape[2] if len(tensor.shape) > 2 else 1)


def measure_importance(
    model: Any,
    names: Callable[[str], str | None],
    rows: Sequence[Sequence[int]],
    on_tokens: Callable[[int], None] = lambda _n: None,
) -> dict[str, tuple[NDArray[np.float32], int]]:
    """Sums of squares at the input of each linear layer, and over how many tokens.

    Args:
        model: in evaluation mode and float32.
        names: name of a weight -> its GGUF tensor, None for what is left out.
        rows: token ids, each row by itself.
        on_tokens: called with the tokens that are done.
    """
    import torch

    sums: dict[str, torch.Tensor] = {}
    watch = _Watch(sums)
    handles = []
    for module_name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            tensor = names(f"{module_name}.weight")
            if tensor is not None:
                handles.append(module.register_forward_pre_hook(watch.at(tensor)))
    body = model.get_decoder() if hasattr(model, "get_decoder") else model
    tokens = 0
    try:
        with torch.inference_mode():
            for batch in _batches(rows):
                width = -(-max(map(len, batch)) // _STEP_TOKENS) * _STEP_TOKENS
                ids = torch.zeros(len(batch), width, dtype=torch.long)
                watch.real = torch.zeros(len(batch), width, dtype=torch.bool)
                for index, row in enumerate(batch):
                    ids[index, : len(row)] = torch.tensor(list(row))
                    watch.real[index, : len(row)] = True
                # What is filled up lies behind the row, where no token of it looks.
                body(input_ids=ids, use_cache=False)
                done = sum(map(len, batch))
                tokens += done
                on_tokens(done)
    finally:
        for handle in handles:
            handle.remove()
    return {name: (total.float().numpy(), tokens) for name, total in sums.items()}


class _Watch:
    """Adds up squares; query, key and value have one input, which is squared once."""

    def __init__(self, sums: dict[str, torch.Tensor]) -> None:
        self.sums = sums
        self.real: Any = None
        self._seen: Any = None
        self._squares: Any = None

    def at(self, name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> None:
            total = self._sum(inputs[0])
            self.sums[name] = self.sums[name] + total if name in self.sums else total

        return hook

    def _sum(self, inputs: Any) -> Any:
        if inputs is not self._seen:
            flat = inputs[self.real] if inputs.dim() == 3 else inputs
            self._seen = inputs
            self._squares = flat.float().square().sum(0).double()
        return self._squares


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Rows of about one length together, up to a number of tokens."""
    batch: list[Sequence[int]] = []
    for row in sorted(filter(len, rows), key=len):
        width = -(-len(row) // _STEP_TOKENS) * _STEP_TOKENS
        if batch and (len(batch) + 1) * width > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def write_importance(
    path: Path,
    sums: Mapping[str, tuple[NDArray[np.float32], int]],
    dataset: str,
    chunks: int,
    chunk_tokens: int,
) -> None:
    """A file in llama.cpp's format, whole or not at all.

    Args:
        sums: of `measure_importance`; of experts, (experts, columns).
        chunk_tokens: length of the longest row.

    Raises:
        StorageError: the disk refuses.
    """
    import gguf

    with writing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, arch="")
        # The writer names an architecture, which this kind of file has none of.
        writer.kv_data[0].clear()
        writer.add_string("general.type", "imatrix")
        writer.add_array("imatrix.datasets", [dataset])
        writer.add_uint32("imatrix.chunk_count", chunks)
        writer.add_uint32("imatrix.chunk_size", chunk_tokens)
        for name, (total, count) in sorted(sums.items()):
            sums_of = total if total.ndim == 2 else total[None]
            writer.add_tensor(name + _SUMS, sums_of)
            writer.add_tensor(name + _COUNTS, np.full((len(sums_of), 1), count, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def read_importance(path: Path) -> Importance:
    """A file that was written here or by `llama-imatrix`.

    Raises:
        MissingError: there is no such file.
        ModelError: it is damaged, of another kind, or holds what is no finite number.
    """
    file = _opened(path)
    values, tokens = {}, 0
    with path.open("rb") as stream:
        for name in [n for n in file.tensors if n.endswith(_SUMS)]:
            entry = name.removesuffix(_SUMS)
            if entry + _COUNTS not in file.tensors:
                raise _unusable(path, f"{entry} has sums without counts")
            total = _floats(stream, file.tensors[name])
            counts = _floats(stream, file.tensors[entry + _COUNTS])
            if not len(counts) or len(total) % len(counts):
                raise _unusable(path, f"{entry} has {len(total)} sums and {len(counts)} counts")
            values[entry] = _means(total.reshape(len(counts), -1), counts[:, None])
            tokens = max(tokens, int(counts.max()))
            if not np.isfinite(values[entry]).all():
                raise _unusable(path, f"{entry} holds what is no finite number")
    if not values:
        raise _unusable(path, "it holds no sums")
    datasets = file.get("imatrix.datasets") or [""]
    chunks = int(file.get("imatrix.chunk_count", 0))
    return Importance(values, path.name, str(datasets[0]), chunks, tokens)


def _means(total: NDArray[np.float32], counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """As `load_imatrix` of `tools/quantize/quantize.cpp`: an expert that no token came to weighs evenly."""
    with np.errstate(divide="ignore", invalid="ignore"):
        means: NDArray[np.float32] = np.where(counts > 0, total / counts, np.float32(1)).ravel()
    return means


def _opened(path: Path) -> GgufFile:
    if not path.is_file():
        raise MissingError(
            f"there is no importance matrix at {path}",
            why="it is a folder" if path.is_dir() else "",
            fix="name a file that llama.cpp's llama-imatrix wrote, or leave --importance away",
        )
    try:
        file = refuse_damaged_gguf(path)
    except OSError as error:
        raise ModelError(f"the importance matrix {path} cannot be read", why=str(error)) from error
    if file.get("general.type") != "imatrix":
        raise _unusable(path, f"its general.type is {file.get('general.type')!r}, not 'imatrix'")
    return file


def _floats(stream: Any, tensor: GgufTensor) -> NDArray[np.float32]:
    stream.seek(tensor.offset)
    return np.frombuffer(stream.read(tensor.bytes), np.float32)


def _unusable(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} is no importance matrix that can be used",
        why=why,
        fix="measure it again, or leave it out",
    )
