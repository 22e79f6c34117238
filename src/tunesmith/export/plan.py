"""A recipe, a dataset and a run resolved for export: all that is used, checked before any write."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.config import FORMS, Form, Recipe, refuse_unread
from tunesmith.errors import ConfigError, DataError, StorageError
from tunesmith.export.convert import check_convertible
from tunesmith.export.weights import stored_tensors
from tunesmith.models.adapters import check_base, has_adapter
from tunesmith.models.chat import ChatRenderer, turns_of
from tunesmith.models.load import BaseModel, load_tokenizer, resolve_base
from tunesmith.store import Artifact, Run

__all__ = ["PATHS", "SERVED", "ExportPlan", "check_space", "plan_export"]

PATHS: Mapping[Form, str] = {
    "adapter": "adapter",
    "merged": "merged",
    "gguf-f16": "model-f16.gguf",
    "gguf-q8_0": "model-q8_0.gguf",
}
"""Form -> file or folder in the bundle."""
QUANTISED: frozenset[Form] = frozenset({"gguf-q8_0"})
SERVED: tuple[Form, ...] = ("gguf-q8_0", "gguf-f16")
"""Forms that llama.cpp and Ollama run, the one to prefer first."""

_WEIGHT_BYTES: Mapping[Form, float] = {"gguf-f16": 2.0, "gguf-q8_0": 34 / 32}
"""Bytes a weight; Q8_0 keeps 32 weights in 32 bytes and a two-byte scale."""
_SPARE = 1.05
_TOKENIZER_BYTES = 32_000_000


@dataclass(frozen=True)
class ExportPlan:
    """Everything an export reads.

    Attributes:
        name: the recipe's name, which the files carry.
        limits: form -> least greedy agreement; its keys are the forms to write.
        rows: the dataset's rows that the forms are compared on, without their answers' use.
        split: which split they come from.
        system: the system text that every training row has, when it is one and the same.
        parameters: number of weights of the base model.
        stored_bytes: size of the base's weights as stored.
    """

    name: str
    limits: Mapping[Form, float]
    base: BaseModel
    renderer: ChatRenderer
    dataset: Artifact
    trained: Artifact
    report: Artifact | None
    rows: tuple[Sequence[Mapping[str, Any]], ...]
    split: str
    answer_tokens: int
    system: str | None
    parameters: int
    stored_bytes: int

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """Tokens of each prompt."""
        return tuple(self.renderer.prompt_ids(messages) for messages in self.rows)


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
    refuse_unread(recipe, "export")
    if "adapter" in limits and not has_adapter(trained):
        raise ConfigError(
            f"export.forms ({recipe.origin('export.forms')}) holds `adapter`, but "
            f"{trained.dir} holds no adapter",
            why="all weights were trained",
            fix="--set 'export.forms=[merged, gguf-f16, gguf-q8_0]'",
        )
    base = resolve_base(recipe.model)
    check_base(trained, base)
    if any(form.startswith("gguf") for form in limits):
        check_convertible(base.dir)
    renderer = ChatRenderer(load_tokenizer(base))
    renderer.check_same(trained)
    rows, split = _rows(dataset, n_prompts)
    tensors = stored_tensors(base.dir)
    return ExportPlan(
        name=recipe.name,
        limits=limits,
        base=base,
        renderer=renderer,
        dataset=dataset,
        trained=trained,
        report=report,
        rows=rows,
        split=split,
        answer_tokens=answer_tokens,
        system=_constant_system(dataset),
        parameters=sum(tensor.numel for tensor in tensors.values()),
        stored_bytes=sum(tensor.bytes for tensor in tensors.values()),
    )


def _limits(recipe: Recipe, *, with_adapter: bool) -> dict[Form, float]:
    """Each form's limit; a limit that no form uses is not read, so that setting it is refused."""
    config = recipe.export
    possible = [form for form in FORMS if with_adapter or form != "adapter"]
    forms = config.forms or possible
    return {
        form: config.min_greedy_agreement_quantised
        if form in QUANTISED
        else config.min_greedy_agreement
        for form in dict.fromkeys(forms)
    }


def _rows(dataset: Artifact, limit: int) -> tuple[tuple[Sequence[Mapping[str, Any]], ...], str]:
    for split in ("test", "validation"):
        if f"{split}.jsonl" not in dataset.files:
            continue
        rows = [turns_of(row) for row in _lines(dataset.path(f"{split}.jsonl"))][:limit]
        if rows:
            return tuple(messages[:-1] for messages in rows), split
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


def _lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def check_space(plan: ExportPlan, at: Run, vocabulary: int) -> None:
    """Refuse a disk that cannot hold what is still to be written, before anything is.

    Args:
        vocabulary: tokens in the model's vocabulary.

    Raises:
        StorageError: names the bytes that are needed and free.
    """
    sizes = {
        "adapter": sum(e.bytes for f, e in plan.trained.files.items() if f.startswith("adapter/")),
        "merged": plan.stored_bytes,
        **{form: int(plan.parameters * each) for form, each in _WEIGHT_BYTES.items()},
    }
    need = sum(sizes[form] for form in plan.limits if not (at.dir / PATHS[form]).exists())
    if any(not (at.dir / PATHS[form]).exists() for form in plan.limits if form != "adapter"):
        need += 4 * plan.parameters  # the merge in float32, below scratch/
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
