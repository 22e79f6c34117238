"""A recipe, a dataset and a run resolved for export: all that is used, checked before any write."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import DEFAULT_FORMS, ExportConfig, Form, Recipe, refuse_unread
from tunesmith.errors import ConfigError, DataError, StorageError
from tunesmith.export.check.apart import refuse_endless_template
from tunesmith.export.convert import check_convertible
from tunesmith.export.folders.prune import check_count
from tunesmith.export.forms import KINDS, PATHS, Limits
from tunesmith.export.packages import check_packages
from tunesmith.export.reference import Given, given_rows
from tunesmith.models.adapters import check_base, has_adapter
from tunesmith.models.chat import ChatRenderer, turns_of
from tunesmith.models.files import stored_tensors
from tunesmith.models.load import BaseModel, load_tokenizer, resolve_base
from tunesmith.store import Artifact, Run, signatures

__all__ = ["ExportPlan", "check_space", "plan_export"]

_SPARE = 1.05
_TOKENIZER_BYTES = 32_000_000
_CALIBRATION_TOKENS = 512
"""Tokens of a training row that a form is calibrated with; longer rows are cut."""

_VALIDATION_ROWS = 64


@dataclass(frozen=True)
class ExportPlan:
    """Everything an export reads.

    Attributes:
        name: the recipe's name, which the files carry.
        limits: form -> how far it may be; its keys are the forms to write.
        rows: the dataset's rows that the forms are compared on.
        calibration: training rows as token ids, prompt and answer.
        split: which split they come from.
        system: the system text that every training row has, when it is one and the same.
        parameters: number of weights of the base model.
        stored_bytes: size of the base's weights as stored.
    """

    name: str
    config: ExportConfig
    limits: Mapping[Form, Limits]
    base: BaseModel
    renderer: ChatRenderer
    dataset: Artifact
    trained: Artifact
    report: Artifact | None
    rows: tuple[Sequence[Mapping[str, Any]], ...]
    split: str
    calibration: tuple[tuple[int, ...], ...]
    answer_tokens: int
    system: str | None
    parameters: int
    stored_bytes: int

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of each prompt."""
        return tuple(self.renderer.prompt_ids(messages[:-1]) for messages in self.rows)

    @property
    def given(self) -> Given:
        """Tokens of the user's answers to them."""
        return given_rows(self.renderer, self.rows, self.answer_tokens)

    @property
    def validation(self) -> Given | None:
        """Tokens of the answers of the first validation rows, for the form that says its loss there."""
        if "pruned" not in self.limits or "validation.jsonl" not in self.dataset.files:
            return None
        lines = _lines(self.dataset.path("validation.jsonl"), _VALIDATION_ROWS)
        return given_rows(self.renderer, [turns_of(row) for row in lines], _CALIBRATION_TOKENS)

    @property
    def needs_merge(self) -> bool:
        """Whether a form is made from the merged weights."""
        return any(KINDS[form].needs_merge for form in self.limits)


def plan_export(
    recipe: Recipe, dataset: Artifact, trained: Artifact, report: Artifact | None
) -> ExportPlan:
    """Resolve and check everything; nothing is written and no weights are loaded.

    Raises:
        ConfigError: a key that would have no effect, or `adapter` for a run without one.
        DataError: the dataset has no rows to compare on.
        ModelError: another base or chat renderer than was trained with, or an architecture that
            cannot be converted.
    """
    limits = _limits(recipe, with_adapter=has_adapter(trained))
    n_prompts, answer_tokens = recipe.export.parity_prompts, recipe.export.parity_tokens
    n_calibration = recipe.export.calibration_rows if _calibrated(recipe, limits) else 0
    signing_key = None if recipe.export.signing_key is None else Path(recipe.export.signing_key)
    if signing_key is not None:
        signatures.check_key(signing_key.expanduser())
    prune_layers = recipe.export.prune_layers if "pruned" in limits else None
    refuse_unread(recipe, "export")
    _check_forms(recipe, limits, trained)
    base = resolve_base(recipe.model)
    check_base(trained, base)
    if any(KINDS[form].template == "gguf" or form == "gguf-lora" for form in limits):
        check_convertible(base.dir)
    if prune_layers is not None:
        check_count(prune_layers, base.dir)
    tokenizer = load_tokenizer(base)
    refuse_endless_template(tokenizer, base.dir)
    renderer = ChatRenderer(tokenizer)
    renderer.check_same(trained)
    rows, split = _rows(dataset, n_prompts)
    tensors = stored_tensors(base.dir)
    return ExportPlan(
        name=recipe.name,
        config=recipe.export,
        limits=limits,
        base=base,
        renderer=renderer,
        dataset=dataset,
        trained=trained,
        report=report,
        rows=rows,
        split=split,
        calibration=_calibration(dataset, renderer, n_calibration),
        answer_tokens=answer_tokens,
        system=_constant_system(dataset),
        parameters=sum(tensor.numel for tensor in tensors.values()),
        stored_bytes=sum(tensor.bytes for tensor in tensors.values()),
    )


def _limits(recipe: Recipe, *, with_adapter: bool) -> dict[Form, Limits]:
    """Each form's limits; those of a form that is not written stay unread, so that setting them is
    refused."""
    config = recipe.export
    possible = [form for form in DEFAULT_FORMS if with_adapter or form != "adapter"]
    forms = dict.fromkeys(config.forms or possible)
    return {
        form: KINDS[form].limits.changed_by(
            config.limits.get(form), has_logits=bool(KINDS[form].answers)
        )
        for form in forms
    }


def _calibrated(recipe: Recipe, forms: Iterable[Form]) -> bool:
    """Whether training rows are needed; for GGUF forms they are as long as an importance matrix is wanted."""
    calibrated = [form for form in forms if KINDS[form].calibrated]
    weighed = [form for form in calibrated if KINDS[form].template == "gguf"]
    return len(calibrated) > len(weighed) or bool(weighed and recipe.export.importance)


def _check_forms(recipe: Recipe, forms: Iterable[Form], trained: Artifact) -> None:
    """Refuse forms of an adapter for a run without one, and forms whose packages are not there."""
    where = f"export.forms ({recipe.origin('export.forms')})"
    adapters = [form for form in forms if not KINDS[form].needs_merge]
    if adapters and not has_adapter(trained):
        others = [form for form in forms if form not in adapters] or ["merged"]
        raise ConfigError(
            f"{where} holds {' and '.join(f'`{form}`' for form in adapters)}, but {trained.dir} holds no adapter",
            why="it is one whole model; --method concat makes an adapter of adapters"
            if trained.kind == "merge"
            else "all weights were trained",
            fix=f"--set 'export.forms=[{', '.join(others)}]'",
        )
    check_packages(forms)
    for form in forms:
        KINDS[form].writer()


def _calibration(
    dataset: Artifact, renderer: ChatRenderer, count: int
) -> tuple[tuple[int, ...], ...]:
    """The first training rows, prompt and answer as training reads them."""
    rows = _lines(dataset.path("train.jsonl"), count)
    return tuple(renderer.render(turns_of(row)).token_ids[:_CALIBRATION_TOKENS] for row in rows)


def _rows(dataset: Artifact, limit: int) -> tuple[tuple[Sequence[Mapping[str, Any]], ...], str]:
    for split in ("test", "validation"):
        if f"{split}.jsonl" not in dataset.files:
            continue
        rows = [turns_of(row) for row in _lines(dataset.path(f"{split}.jsonl"), limit)]
        if rows:
            return tuple(rows), split
    raise DataError(
        f"{dataset.dir} has neither test nor validation rows",
        why="the exported forms are compared with the trained model on them",
        fix="set data.test_ratio or data.source.test, and build the dataset again",
    )


def _constant_system(dataset: Artifact) -> str | None:
    texts: set[str | None] = set()
    for row in _lines(dataset.path("train.jsonl")):
        first = turns_of(row)[0]
        texts.add(str(first["content"]) if first["role"] == "system" else None)
        if len(texts) > 1:
            return None
    return texts.pop() if texts else None


def _lines(path: Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The first rows of a file, one at a time."""
    with path.open(encoding="utf-8") as stream:
        yield from map(json.loads, itertools.islice(filter(str.strip, stream), limit))


def check_space(plan: ExportPlan, at: Run, vocabulary: int) -> None:
    """Refuse a disk that cannot hold what is still to be written, before anything is.

    Args:
        vocabulary: tokens in the model's vocabulary.

    Raises:
        StorageError: names the bytes that are needed and free.
    """
    missing = [form for form in plan.limits if not (at.dir / PATHS[form]).exists()]
    need = sum(_bytes_of(plan, form) for form in missing)
    in_float32 = {
        "scratch/float32": any(KINDS[form].needs_merge for form in missing),  # the merge
        # What the GGUF forms are quantised from, and what the adapter as GGUF is asked on.
        "scratch/shared/model-f32.gguf": any(KINDS[form].template == "gguf" for form in missing),
        "scratch/shared/base-f32.gguf": "gguf-lora" in plan.limits,
    }
    for name, is_wanted in in_float32.items():
        if is_wanted and not (at.dir / name).exists():
            need += 4 * plan.parameters
    if not (at.dir / "scratch/reference.npy").exists():
        need += 4 * vocabulary * plan.answer_tokens * len(plan.rows)
    need = int(need * _SPARE) + _TOKENIZER_BYTES
    free = shutil.disk_usage(at.dir).free
    if free < need:
        raise StorageError(
            f"the export needs {need:,} bytes in {at.dir}, {free:,} are free",
            why=f"{plan.parameters:,} weights as {', '.join(plan.limits)}, and the same in float32 "
            "while it works",
            fix="free some space, set another `workspace`, or ask for fewer forms: "
            "--set 'export.forms=[gguf-q8_0]'",
        )


def _bytes_of(plan: ExportPlan, form: Form) -> int:
    """At most what a form takes."""
    kind = KINDS[form]
    if not kind.needs_merge:
        return sum(e.bytes for f, e in plan.trained.files.items() if f.startswith("adapter/"))
    # Embedding and head of a folder stay in the base's number format: in a small model they are most of it.
    least = plan.stored_bytes if kind.template == "folder" else 0
    return max(int(plan.parameters * kind.bytes_per_weight), least)
