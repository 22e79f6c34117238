"""A build's report: every row accounted for, and where it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunesmith.data.appraisal import Appraisal
from tunesmith.data.gather import FileFound, Gathered
from tunesmith.data.plan import DataPlan
from tunesmith.data.power import what_the_test_can_tell
from tunesmith.data.settle import Settled
from tunesmith.data.split import SPLITS
from tunesmith.data.spool import Spool, numpy
from tunesmith.errors import counted

__all__ = ["report_of"]


def report_of(
    plan: DataPlan, taken: Gathered, settled: Settled, spool: Spool, appraisal: Appraisal
) -> dict[str, Any]:
    """What `report.json` says: counts, and where each row came from."""
    np = numpy()
    keys = spool.facts["prompt"][:, :8].copy().view("<u8")[:, 0]
    repeated = {}
    for number, split in enumerate(SPLITS):
        prompts = keys[settled.splits == number]
        repeated[split] = len(prompts) - len(np.unique(prompts))
    rules = Counter(rule for rule, _ in settled.dropped.values())
    rules.update({rule: n for rule, n in taken.counts.items() if _is_rule(rule)})
    rows = settled.n_rows
    kinds = {kind for file in taken.files for kind in file.kinds}
    return {
        "source": plan.source,
        "card": {**plan.card, "title": plan.card["title"] or _title(taken.files)},
        "kind": next(iter(kinds), "chat"),
        "seed": plan.seed,
        "rows": rows,
        "repeated_prompts": repeated,
        "held_out_by_ratio": dict(plan.held_out.ratios),
        "held_out": _held_out(plan, settled),
        "limits": {split: limit for split, limit in plan.limits.items() if limit is not None},
        "left_out": {
            "by_require": taken.counts["require"],
            "by_overlap": dict(settled.overlaps),
            "by_near_overlap": dict(settled.near_dropped),
            "by_rule": dict(sorted(rules.items())),
        },
        "changed": _changed(settled, spool),
        "score": _score(appraisal),
        "tokens": appraisal.tokens,
        "rows_read": taken.counts["read"],
        "near_overlaps": {
            "checked": plan.on_near_overlap is not None,
            "passages_of_words": plan.overlap_words,
            "found": len(settled.near),
            "first": [leak.described(spool) for leak in settled.near[:10]],
        },
        "mix": {name: share.as_dict() for name, share in settled.shares.items()},
        "test_can_tell": what_the_test_can_tell(rows["test"]),
        "meta_fields": sorted(taken.meta_fields),
        "databases": sorted([*plan.databases, *plan.scripts]),
        "files": [_file_facts(file) for file in taken.files],
    }


def _title(files: Sequence[FileFound]) -> str:
    """The name of the first file, without its endings, and how many more there are."""
    first = Path(files[0].path).name if files else "dataset"
    more = f" and {counted(len(files) - 1, 'more file')}" if len(files) > 1 else ""
    return f"{first.split('.')[0] or first}{more}"


def _score(appraisal: Appraisal) -> dict[str, Any]:
    """The dataset's score, as JSON has it."""
    found = appraisal.score.as_dict()
    return {**found, "reasons": list(found["reasons"])}


def _is_rule(name: str) -> bool:
    """Whether a count is of rows that a rule dropped while they were read."""
    return name not in ("read", "rows")


def _changed(settled: Settled, spool: Spool) -> dict[str, int]:
    """Rule -> rows that it changed and that were not dropped later: those of `changed.jsonl`."""
    found: Counter[str] = Counter()
    for index, _, done in spool.changes():
        if index not in settled.dropped:
            found.update(done["rule"].split(", "))
    return dict(sorted(found.items()))


def _held_out(plan: DataPlan, settled: Settled) -> dict[str, Any]:
    """How rows were held out, when they were."""
    held_out = plan.held_out
    if not held_out.splits:
        return {}
    return {
        "splits": list(held_out.splits),
        "rows_asked": dict(held_out.n_rows),
        "stratified_by": held_out.stratify,
        "by_time": held_out.time,
        "kept_together": settled.held_out_by,
        "strata_without_rows": settled.strata_without,
    }


def _file_facts(file: FileFound) -> dict[str, Any]:
    return {
        "split": file.split,
        **({"part": file.part} if file.part else {}),
        "path": str(file.path),
        "bytes": file.n_bytes,
        "sha256": file.sha256,
        "form": file.form,
        "schema": file.told.schema,
        "mapping": dict(file.told.mapping),
        "why": file.told.why,
        "rows": file.n_rows,
        "unreadable": file.unread.n_rows,
    }
