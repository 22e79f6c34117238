"""The proofs that need no model: masks, stop tokens, whole answers. All rows, in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tunesmith.config import Recipe
from tunesmith.errors import DataError, listed
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_tokenizer, resolve_base
from tunesmith.store import Artifact
from tunesmith.train import masks, rows
from tunesmith.train.masks import MIN_STOPPED_SHARE, Verdict
from tunesmith.train.prove.report import Finding, Ledger
from tunesmith.train.rows import TokenRow

__all__ = ["Judged", "take_row_proofs"]

SPLITS = ("train", "validation")
SHOWN_ROWS = 5
SHOWN_LINES = 10


@dataclass(frozen=True)
class Judged:
    """The rows of one split with a verdict each.

    Attributes:
        refused: what the length limit refuses, with its remedy; None when it refuses nothing.
        dropped, cut_prompts: rows that `train.on_long_row` lets go or shortens in their prompt.
    """

    path: Path
    rows: tuple[TokenRow, ...]
    verdicts: tuple[Verdict, ...]
    refused: DataError | None
    dropped: int
    cut_prompts: int

    @property
    def good_lines(self) -> dict[int, int]:
        """Line -> tokens of its longest row, for lines of which every row can be trained on."""
        sizes: dict[int, int] = {}
        bad: set[int] = set()
        for row, verdict in zip(self.rows, self.verdicts, strict=True):
            sizes[row.line] = max(sizes.get(row.line, 0), len(row.tokens))
            if not verdict.right or not any(row.trained[1:]):
                bad.add(row.line)
        return {line: size for line, size in sizes.items() if line not in bad}

    @property
    def stopped_share(self) -> float:
        """Share of rows whose answers all end with a trained stop token; 1 without rows."""
        if not self.verdicts:
            return 1.0
        return sum(verdict.stopped for verdict in self.verdicts) / len(self.verdicts)


def judge_dataset(recipe: Recipe, dataset: Artifact, renderer: ChatRenderer) -> dict[str, Judged]:
    """Encode the rows as training does, and judge each.

    Raises:
        ModelError: the chat template refuses a row, or changes its answer.
    """
    return {split: _judge(recipe, dataset.path(f"{split}.jsonl"), renderer) for split in SPLITS}


def _judge(recipe: Recipe, path: Path, renderer: ChatRenderer) -> Judged:
    limit, policy = recipe.train.max_row_tokens, recipe.train.on_long_row
    refused = None
    try:
        encoded = rows.encode_rows(path, renderer, max_row_tokens=limit, on_long_row=policy)
    except DataError as error:
        refused = error
        encoded = rows.encode_rows(path, renderer, max_row_tokens=limit, on_long_row="drop")
    verdicts = tuple(masks.judge(row, row.answers, renderer) for row in encoded.rows)
    dropped, cut = len(encoded.dropped_lines), len(encoded.cut_lines)
    return Judged(path, encoded.rows, verdicts, refused, dropped, cut)


def take_row_proofs(
    ledger: Ledger, recipe: Recipe, dataset: Artifact, spelled: str
) -> dict[str, Judged]:
    """Take the proofs `stop`, `mask` and `whole`; returns the judged rows, empty when there are none."""
    made: dict[str, ChatRenderer] = {}
    found: dict[str, Judged] = {}

    def stop_is_known() -> Finding:
        made["renderer"] = ChatRenderer(load_tokenizer(resolve_base(recipe.model)))
        return Finding()

    def masks_are_right() -> Finding:
        found.update(judge_dataset(recipe, dataset, made["renderer"]))
        return _mask_finding(found, spelled)

    hint = "use another base model: --set model.base=FOLDER"
    ledger.take("stop", stop_is_known, hint)
    ledger.take("mask", masks_are_right, hint)
    if found:
        ledger.take("stop", lambda: _stop_finding(found))
    ledger.take("whole", lambda: _whole_finding(found))
    return found


def _mask_finding(found: Mapping[str, Judged], spelled: str) -> Finding:
    problems = [
        f"{judged.path.name}:{row.line}: {verdict.wrong}"
        for judged in found.values()
        for row, verdict in zip(judged.rows, judged.verdicts, strict=True)
        if verdict.wrong
    ]
    empty = [judged.path.name for judged in found.values() if not judged.rows]
    count = sum(len(judged.rows) for judged in found.values())
    learned = sum(sum(row.trained) for judged in found.values() for row in judged.rows)
    detail = f"all {count:,} rows, {learned:,} trained tokens"
    if problems:
        detail = f"{len(problems)} of {count:,} rows:\n{listed(problems, limit=SHOWN_ROWS)}"
    elif empty:
        detail = f"no rows are left in {', '.join(empty)}"
    return Finding(
        ok=not problems and not empty,
        figure=len(problems),
        limit=0,
        unit="rows",
        detail=detail,
        why="the model would learn something else than the answers",
        remedy=f"look at such a row with `tunesmith data show {spelled} --row N`; reword or remove it in your file "
        f"and run `tunesmith data build {spelled}`",
    )


def _stop_finding(found: Mapping[str, Judged]) -> Finding:
    # Of the worse split: training looks at each by itself.
    share = min((judged.stopped_share for judged in found.values()), default=1.0)
    count = sum(len(judged.rows) for judged in found.values())
    endless = [
        f"{judged.path.name}:{row.line}"
        for judged in found.values()
        for row, verdict in zip(judged.rows, judged.verdicts, strict=True)
        if not verdict.stopped
    ]
    detail = f"{count - len(endless):,} of {count:,} rows"
    if endless:
        more = f" and {len(endless) - SHOWN_LINES} more" if len(endless) > SHOWN_LINES else ""
        detail += f"; not {', '.join(endless[:SHOWN_LINES])}{more}"
    return Finding(
        ok=share >= MIN_STOPPED_SHARE,
        figure=share,
        limit=MIN_STOPPED_SHARE,
        unit="of each split's rows, at least",
        detail=detail,
        why="the model would not learn to end its answers",
        remedy="use a model whose chat template closes the assistant's turn: --set model.base=FOLDER",
    )


def _whole_finding(found: Mapping[str, Judged]) -> Finding:
    problems = [
        f"{judged.path.name}:{row.line}: {verdict.cut}"
        for judged in found.values()
        for row, verdict in zip(judged.rows, judged.verdicts, strict=True)
        if verdict.cut
    ]
    refused = [judged.refused for judged in found.values() if judged.refused is not None]
    count = sum(len(judged.rows) for judged in found.values())
    dropped = sum(judged.dropped for judged in found.values() if judged.refused is None)
    shortened = sum(judged.cut_prompts for judged in found.values())
    detail = f"all {count:,} rows; {dropped} too long and dropped, {shortened} with a cut prompt"
    if problems:
        detail = f"{len(problems)} of {count:,} rows:\n{listed(problems, limit=SHOWN_ROWS)}"
    if refused:
        detail = "\n".join([*([detail] if problems else []), *(error.what for error in refused)])
    return Finding(
        ok=not problems and not refused,
        figure=len(problems) + sum(j.dropped for j in found.values() if j.refused is not None),
        limit=0,
        unit="rows",
        detail=detail,
        why=refused[0].why if refused else "the model would learn to stop in the middle",
        remedy=refused[0].fix if refused else "raise train.max_row_tokens, or shorten these rows",
    )
