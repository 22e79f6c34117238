"""What the checks say of the rows that are sealed: not of those that were dropped on the way."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

from tunesmith.data.check import Checker, Finding, Score, Tally, offline_meter
from tunesmith.data.intake import finding_line
from tunesmith.data.plan import DataPlan
from tunesmith.data.settle import Leak, Settled, shown_prompt
from tunesmith.data.split import LEFT_OUT
from tunesmith.data.spool import Spool
from tunesmith.errors import counted

__all__ = ["Appraisal", "appraise"]

_LINES = 1_000
"""Findings that are written at a time."""


@dataclass
class Appraisal:
    """What all findings came to.

    Attributes:
        n_rows: rows that are sealed; one that a mix repeats counts once.
        tokens: the model whose tokens were counted, of how many conversations, and why not where none were.
    """

    n_rows: int
    tally: Tally = field(default_factory=Tally)
    tokens: dict[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> Score:
        """The score of the sealed rows."""
        return self.tally.score(self.n_rows)


def appraise(plan: DataPlan, checker: Checker, settled: Settled, spool: Spool) -> Appraisal:
    """Findings about the sealed rows and about all of them together, into the spool's side file.

    Args:
        checker: has seen every row of the spool, in order.
    """
    kept: list[bool] = (settled.splits != LEFT_OUT).tolist()
    sealed = checker.only(kept, spool.row)
    found = Appraisal(sealed.n_rows)
    lines: list[bytes] = []
    with closing(_findings(plan, sealed, kept, found, spool)) as findings:
        for one in findings:
            found.tally.add(one)
            lines.append(finding_line(one))
            if len(lines) >= _LINES:
                spool.add_side("findings", b"".join(lines))
                lines.clear()
    for leak in settled.near:
        one = _of_leak(leak, spool)
        found.tally.add(one)
        lines.append(finding_line(one))
    spool.add_side("findings", b"".join(lines))
    return found


def _findings(
    plan: DataPlan, sealed: Checker, kept: list[bool], appraisal: Appraisal, spool: Spool
) -> Generator[Finding, None, None]:
    """About each sealed row as it was read, then in tokens, then about all."""
    yield from (one for index, one in spool.findings() if kept[index])
    yield from _in_tokens(plan, sealed, kept, appraisal, spool)
    yield from sealed.closing()


def _in_tokens(
    plan: DataPlan, sealed: Checker, kept: list[bool], appraisal: Appraisal, spool: Spool
) -> Generator[Finding, None, None]:
    """Of the rows as the recipe's model will read them, when it names one that is at hand."""
    model = plan.model
    # A dataset is passed on: a model's folder on this machine is told by its name.
    name = (
        ""
        if model is None
        else Path(model.base).name
        if Path(model.base).is_absolute()
        else model.base
    )
    appraisal.tokens = {"model": name, "measured": 0, "why_not": ""}
    if model is None:
        sealed.left_out_since("the recipe names no model.base")
        return
    meter = offline_meter(model)
    if isinstance(meter, str):
        why_not = meter.replace(model.base, name)
        appraisal.tokens["why_not"] = why_not
        sealed.left_out_since(why_not)
        return
    yield from sealed.weigh(compress(spool.lines(), kept), meter)
    appraisal.tokens["measured"] = sealed.n_measured


def _of_leak(leak: Leak, spool: Spool) -> Finding:
    """A row of one split that stands, nearly or in part, in another, as the checks' findings are."""
    mine, other = leak.splits
    how = (
        f"it has in {mine} {counted(leak.n_words, 'word')} in a row as in"
        if leak.n_words
        else f"its prompt in {mine} is nearly that of"
    )
    return Finding(
        where=spool.where(leak.row),
        check="near-overlap",
        severity="warning",
        field="",
        value=shown_prompt(spool, leak.row),
        what=f"{how} {spool.where(leak.held_out)} in {other}: "
        + shown_prompt(spool, leak.held_out),
        fix="leave it out with data.on_near_overlap=drop_from_train, or remove it",
    )
