"""The frozen layers' output for every row, computed once and handed to the layers above in each step.

One pass over all rows, before the first step, in an order and in micro batches that only the rows
decide: the states do not depend on how epochs are packed, so a resumed run computes (or reads) the
same bits. They are kept in memory when a share of what is free holds them, else in a file of the
run's scratch folder that is mapped into memory, else not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunesmith.errors import ConfigError, StorageError
from tunesmith.models.devices import memory_left
from tunesmith.store import reach, sha256_of_file, sha256_of_json, write_atomically, writing
from tunesmith.telemetry import console, progress
from tunesmith.train.memory import process_bytes
from tunesmith.train.packing import Ints, MicroBatch, Row, pack, shared_prefix_tokens
from tunesmith.train.stopping import Check, go_on
from tunesmith.train.trunk_places import RowPlaces, Shape, places_of, real_positions, row_places

if TYPE_CHECKING:
    import torch

    from tunesmith.train.fast.trunk import FrozenTrunk
    from tunesmith.train.session import Session

__all__ = ["CacheRequest", "TrunkCache", "prepare", "request_of", "served"]

FORMAT = 1
RAM_SHARE = {"auto": 0.5, "ram": 0.9}
"""Largest part of the memory that a step leaves free that the states may take."""
DISK_SHARE = 0.5
"""Largest part of the free disk space."""
STATES, HEADER, CHOICE = "states.raw", "states.json", "choice.json"
TOLERANCES = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest relative difference, of the last hidden states of a few rows, that rounding explains."""

Gather = Callable[[Ints], "torch.Tensor"]
"""(n,) places -> (n, hidden) states on the CPU."""
Fill = Callable[[Callable[[Ints, "torch.Tensor"], None]], None]
"""Computes all states and hands them, part by part, to the function it is given."""


@dataclass(frozen=True)
class CacheRequest:
    """What is asked for.

    Attributes:
        setting: `train.trunk_cache`: auto, ram, disk or off.
        rows: tokens of the training rows.
        validation: tokens of the validation rows.
        micro_batch_tokens: positions of one forward pass.
        repeats: rows are visited more than once.
        memory_bytes: memory that a step leaves free.
        disk_bytes: space that is free where the folder lies.
        identity: what else the states depend on, as JSON values.
    """

    setting: str
    rows: Sequence[Sequence[int]]
    validation: Sequence[Sequence[int]]
    micro_batch_tokens: int
    repeats: bool
    memory_bytes: int
    disk_bytes: int
    identity: Mapping[str, Any]


def request_of(session: Session, place: Path) -> CacheRequest:
    """The request of a run.

    Args:
        session: before its first step, rehearsed or not.
        place: a folder on the disk that the states may go to.
    """
    import torch

    plan, rehearsal = session.plan, session.rehearsal
    taken = rehearsal.needed_bytes if rehearsal else process_bytes("cpu")
    spare = plan.resources.memory_bytes - taken if plan.device == "cpu" else memory_left()
    return CacheRequest(
        setting=plan.trunk_cache,
        rows=[row.tokens for row in plan.rows.rows],
        validation=[row.tokens for row in plan.validation.rows],
        micro_batch_tokens=plan.micro_batch_tokens,
        repeats=plan.total_steps > plan.steps_by_epoch[0],
        memory_bytes=max(0, min(memory_left(), spare)),
        disk_bytes=shutil.disk_usage(place).free,
        identity={
            "base": plan.base.sha256,
            "method": plan.method.model_dump(mode="json"),
            "precision": plan.precision,
            "device": plan.device,
            "threads": plan.threads,
            "fast": plan.fast,
            "torch": torch.__version__,
        },
    )


class TrunkCache:
    """States of all rows at the end of the frozen layers.

    Attributes:
        trunk: the frozen layers.
        place: "ram" or "disk".
        rows: which state belongs to which position of which row, training rows first.
        gather: reads states by their places.
    """

    def __init__(
        self, trunk: FrozenTrunk, rows: RowPlaces, validation_from: int, gather: Gather
    ) -> None:
        self.trunk = trunk
        self.place = ""
        self.rows = rows
        self._first = {"train": 0, "validation": validation_from}
        self.gather = gather

    @contextmanager
    def serving(self, batch: MicroBatch, split: str = "train") -> Iterator[None]:
        """While the block runs, the frozen layers' output for `batch` comes from the cache.

        Any number of forward passes of the batch may run inside, packed or padded, with adapters on
        or off. `split` says whose rows `batch.row_indices` count: train or validation.
        """
        first = self._first[split]

        def supply(hidden: torch.Tensor) -> torch.Tensor:
            places = places_of(batch, tuple(hidden.shape[:-1]), self.rows, first)
            return self.gather(places).to(hidden.device).view(hidden.shape)

        with self.trunk.replaced(supply):
            yield


def served(
    cache: TrunkCache | None, batch: MicroBatch, split: str = "train"
) -> AbstractContextManager[None]:
    """`cache.serving(batch, split)`, or nothing without a cache."""
    return nullcontext() if cache is None else cache.serving(batch, split)


def prepare(
    model: Any, request: CacheRequest, folder: Path, check: Check = go_on
) -> tuple[TrunkCache | None, str]:
    """Compute, or read back, the states of all rows; also returns a line about it, or "".

    Call it after `fast.apply`. Never stops a run for want of memory or disk: it goes on without a
    cache then and says so.

    Args:
        model: as it will be trained.
        request: rows and settings.
        folder: for the file, when the states go to disk; it is the cache's alone.
        check: called before each micro batch; what it raises ends the pass, and nothing is kept.

    Raises:
        ConfigError: a cache is asked for and the lowest layer is trained.
    """
    from tunesmith.train.fast.trunk import FrozenTrunk, frozen_layers

    count = frozen_layers(model)
    if count == 0:
        if request.setting in ("ram", "disk"):
            raise ConfigError(
                f"train.trunk_cache = {request.setting} has no effect",
                why="the lowest layer, or something below it, is trained",
                fix="leave it out, or train only upper layers with train.method.layers",
            )
        return None, ""
    # A run does not change midway between cached and not: it would no longer equal the straight one.
    earlier = _earlier(folder / CHOICE)
    reason = _unwanted(request, earlier)
    if reason:
        cache, line = None, f"trunk_cache: off, {reason}; the lowest {count} layers are frozen"
    else:
        trunk = FrozenTrunk(model, count)
        cache, line = _Maker(model, trunk, request, folder, check).make(earlier)
        if cache is None:
            trunk.detach()
            if earlier in ("ram", "disk"):
                line += (
                    "; the earlier attempt had a cache: equal within rounding, not to the last bit"
                )
    write_atomically(folder / CHOICE, json.dumps({"place": cache.place if cache else "off"}))
    return cache, line


def _earlier(choice: Path) -> str | None:
    """Where an earlier attempt of this run kept the states: ram, disk or off; None without one."""
    try:
        return str(json.loads(choice.read_text(encoding="utf-8"))["place"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unwanted(request: CacheRequest, earlier: str | None) -> str:
    if request.setting == "off":
        return "as set"
    if earlier == "off":
        return "as in the earlier attempt of this run"
    if request.setting == "auto" and not request.repeats:
        return "each row is visited once"
    return ""


class _Maker:
    """One attempt at a cache."""

    def __init__(
        self, model: Any, trunk: FrozenTrunk, request: CacheRequest, folder: Path, check: Check
    ) -> None:
        self.model, self.trunk, self.request, self.folder = model, trunk, request, folder
        self.check = check
        tokens = [*request.rows, *request.validation]
        self.places = row_places(tokens)
        # One label a row, at its end: rows share all that they can.
        self.rows: list[Row] = [
            (row, [place == len(row) - 1 for place in range(len(row))]) for row in tokens
        ]

    def make(self, earlier: str | None) -> tuple[TrunkCache | None, str]:
        """A cache, or None; and the line about it."""
        found = self._record(next(self._batches()))
        obstacle = self.trunk.obstacle(found, max(len(row) for row, _ in self.rows))
        if obstacle:
            return None, f"trunk_cache: off, {obstacle}"
        shape = Shape(self.places.count, found[0].shape[-1], found[0].dtype)
        place, why = self._place(shape, earlier)
        if not place:
            return None, f"trunk_cache: off, {why}"
        try:
            gather = self._in_ram(shape) if place == "ram" else self._on_disk(shape)
        except StorageError as error:
            return None, f"trunk_cache: off, {error.what}: {error.why}; {error.fix}"
        cache = TrunkCache(self.trunk, self.places, len(self.request.rows), gather)
        gap, limit = self._gap(cache), TOLERANCES[str(shape.dtype).removeprefix("torch.")]
        if not gap <= limit:
            return None, f"trunk_cache: off, the upper layers then differ by {gap:.1e}"
        where = {"ram": "in memory", "disk": "in the run's scratch folder"}[place]
        cache.place = place
        return cache, (
            f"trunk_cache: the lowest {self.trunk.count} layers run once; "
            f"{shape.count} states ({_mb(shape.bytes)}) are kept {where}"
        )

    def _batches(self) -> Iterator[MicroBatch]:
        return pack(
            self.rows,
            self.request.micro_batch_tokens,
            order=self.places.order.tolist(),
            prefix_tokens=shared_prefix_tokens(self.rows),
        )

    def _record(self, batch: MicroBatch) -> list[Any]:
        with self.trunk.recording() as found:
            self._hidden(batch)
        return found

    def _hidden(self, batch: MicroBatch) -> torch.Tensor:
        import torch

        from tunesmith.train.fast.step import packed_hidden

        with torch.no_grad():
            return packed_hidden(self.model, batch)

    def _place(self, shape: Shape, earlier: str | None) -> tuple[str, str]:
        """Where the states go, ram or disk; or "" with the reason."""
        setting, needs = self.request.setting, shape.bytes
        free, space = self.request.memory_bytes, self.request.disk_bytes
        if setting == "auto" and earlier == "disk" and self._stored(shape):
            return "disk", ""
        if setting != "disk" and needs <= RAM_SHARE[setting] * free:
            return "ram", ""
        if setting != "ram" and (needs <= DISK_SHARE * space or self._stored(shape)):
            return "disk", ""
        why = (
            f"the states take {_mb(needs)}; {_mb(free)} of memory and {_mb(space)} of disk are free"
        )
        return "", why

    def _fill(self, write: Callable[[Ints, torch.Tensor], None]) -> None:
        """Every state once: what several micro batches hold is taken from the first."""
        seen = np.zeros(self.places.count, dtype=bool)
        with progress("frozen layers", self.places.count, unit="positions") as bar:
            for batch in self._batches():
                reach("trunk-batch")
                self.check()
                (hidden,) = self._record(batch)
                layout = tuple(hidden.shape[:-1])
                places, real = places_of(batch, layout, self.places), real_positions(batch, layout)
                at = real[~seen[places[real]]]
                new, first = np.unique(places[at], return_index=True)
                write(new, hidden.reshape(-1, hidden.shape[-1])[at[first]].cpu())
                seen[new] = True
                bar.advance(new.size)
        assert seen.all()

    def _in_ram(self, shape: Shape) -> Gather:
        import torch

        kept = torch.empty(shape.count, shape.width, dtype=shape.dtype)

        def write(places: Ints, states: torch.Tensor) -> None:
            kept[torch.from_numpy(places)] = states

        self._fill(write)
        return lambda places: kept.index_select(0, torch.from_numpy(places))

    def _key(self, shape: Shape) -> str:
        request = self.request
        return sha256_of_json(
            {
                "format": FORMAT,
                "identity": dict(request.identity),
                "layers": self.trunk.count,
                "micro_batch_tokens": request.micro_batch_tokens,
                "shape": [shape.count, shape.width, str(shape.dtype)],
                "rows": [list(request.rows), list(request.validation)],
            }
        )

    def _stored(self, shape: Shape) -> bool:
        """Whether the folder holds these states, whole; what else it holds is named."""
        header = self.folder / HEADER
        if not header.is_file():
            return False
        try:
            found = json.loads(header.read_text(encoding="utf-8"))
            other = found["key"] != self._key(shape)
            whole = other or found["sha256"] == sha256_of_file(self.folder / STATES)
        except (OSError, ValueError, KeyError, TypeError):
            other, whole = False, False
        if whole and not other:
            return True
        why = "is of other rows or settings" if other else "is damaged"
        console().print(
            f"the trunk cache in {self.folder} {why}; computing it again", soft_wrap=True
        )
        header.unlink(missing_ok=True)
        return False

    def _on_disk(self, shape: Shape) -> Gather:
        import torch

        path = self.folder / STATES
        if not self._stored(shape):
            with writing(path) as temporary:
                self._write(temporary, shape)
            seal = {"key": self._key(shape), "sha256": sha256_of_file(path)}
            with writing(self.folder / HEADER) as half:
                reach("trunk-states")
                half.write_text(json.dumps(seal), encoding="utf-8")
        row_bytes = shape.width * shape.dtype.itemsize
        mapped = np.memmap(path, dtype=np.uint8, mode="r", shape=(shape.count, row_bytes))
        return lambda places: torch.from_numpy(np.asarray(mapped[places])).view(shape.dtype)

    def _write(self, path: Path, shape: Shape) -> None:
        import torch

        row_bytes = shape.width * shape.dtype.itemsize
        with path.open("wb") as stream:

            def write(places: Ints, states: torch.Tensor) -> None:
                data = states.contiguous().view(torch.uint8).numpy()
                runs = np.flatnonzero(np.diff(places) != 1) + 1
                for at, part in zip(np.split(places, runs), np.split(data, runs), strict=True):
                    if at.size:
                        stream.seek(int(at[0]) * row_bytes)
                        stream.write(part.tobytes())

            self._fill(write)

    def _gap(self, cache: TrunkCache) -> float:
        """Relative difference of the last hidden states with and without the cache, on some rows."""
        batch = next(self._batches())
        real = np.flatnonzero(batch.segment_ids >= 0)
        plain = self._hidden(batch)[real].double()
        with cache.serving(batch):
            cached = self._hidden(batch)[real].double()
        return float((plain - cached).norm() / plain.norm())


def _mb(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
