"""An evaluation in the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tunesmith.evaluate.comparison import Score
from tunesmith.evaluate.result import EvaluateResult
from tunesmith.evaluate.wording import evidence, explanation, headline, interval_text, percent

__all__ = ["render_summary"]

_STYLES = {"better": "bold green", "worse": "bold red", "cannot tell": "bold yellow"}


def render_summary(result: EvaluateResult) -> RenderableType:
    """Verdict, accuracies with intervals, and where the report lies, for a rich console."""
    comparison = result.comparison
    parts: list[RenderableType] = [
        Text.assemble(
            (headline(comparison), _STYLES[comparison.verdict]), "  ", evidence(comparison)
        ),
        _scores(result),
        Text(explanation(comparison)),
    ]
    parts += [Text(f"note: {warning}", style="yellow") for warning in result.warnings]
    parts.append(Text(f"report: {result.report_path}"))
    return Group(*parts)


def _scores(result: EvaluateResult) -> Table:
    comparison, valid = result.comparison, result.report["valid"]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    level = f"{100 * comparison.gain.confidence:g} % interval"
    for title in ("", "right", "of", "accuracy", level):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    if valid:
        table.add_column("queries that run", justify="right", no_wrap=True)
    for name, score in (("base", comparison.base), ("tuned", comparison.tuned)):
        table.add_row(*_cells(name, score, valid))
    return table


def _cells(name: str, score: Score, valid: dict[str, int] | None) -> list[str]:
    cells = [
        name,
        str(score.correct),
        str(score.n),
        percent(score.accuracy),
        interval_text(score.interval),
    ]
    return [*cells, percent(valid[name] / score.n)] if valid else cells
