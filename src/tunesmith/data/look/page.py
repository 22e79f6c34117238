"""Figures about rows as one HTML page that needs nothing else and is inert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.data.look.statistics import Lengths, Stats, Values
from tunesmith.errors import EnvironmentProblem
from tunesmith.telemetry import visible

__all__ = ["page"]

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_HEIGHT = 150


@dataclass(frozen=True)
class _Bar:
    """One bar: its label, how many, and percent of the longest one and of all."""

    label: str
    n: int
    width: float
    share: float


@dataclass(frozen=True)
class _Bars:
    title: str
    note: str
    bars: tuple[_Bar, ...]


@dataclass(frozen=True)
class _Column:
    """A column of a histogram, in percent of its width and of `_HEIGHT`."""

    x: float
    width: float
    y: float
    height: float
    text: str


@dataclass(frozen=True)
class _Histogram:
    """Columns; `ticks` are (percent of the width, label); `marks` (percent, label) median and 95 of 100."""

    title: str
    note: str
    columns: tuple[_Column, ...]
    ticks: tuple[tuple[float, str], ...]
    marks: tuple[tuple[float, str], ...]


def page(found: Stats) -> str:
    """The page as text.

    Whatever stands in rows, names of fields and files is shown as text: the template escapes all of
    it, control characters are spelled out, and the page forbids itself scripts and the network.

    Raises:
        EnvironmentProblem: Jinja is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "the page needs the package 'jinja2', which is not installed",
            fix="pip install 'tunesmith[data]'",
        ) from error
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    report = found.report or {}
    environment.filters["plain"] = lambda value: visible(str(value))
    # Where files lie is not of those to whom the page is passed on.
    environment.filters["name"] = lambda path: Path(path).name
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.get_template(_TEMPLATE.name).render(
        stats=found,
        files=report.get("files", ()),
        reasons=report.get("score", {}).get("reasons", ()),
        height=_HEIGHT,
        tiles=list(_tiles(found)),
        bars=[bars for bars in _bars(found) if bars.bars],
        histograms=list(_histograms(found)),
        fields=[_of_field(values, found.n_rows) for values in found.fields],
    )


def _tiles(found: Stats) -> Iterator[tuple[str, str]]:
    """The figures at the head: label and value."""
    report = found.report or {}
    yield "rows", f"{found.n_rows:,}"
    if found.question:
        yield "median question", f"{found.question.median:,} characters"
    if found.answer:
        yield "median answer", f"{found.answer.median:,} characters"
    if found.tokens:
        yield "median row", f"{found.tokens.median:,} tokens"
    yield "repeated rows", f"{found.repeats:,}"
    yield "repeated prompts", f"{found.repeated_prompts:,}"
    if found.unreadable:
        yield "problems", f"{found.unreadable:,}"
    if report.get("near_overlaps", {}).get("checked"):
        yield "near prompts in two splits", f"{report['near_overlaps']['found']:,}"
    if "score" in report:
        yield "checks", f"{report['score']['points']} of 100, {report['score']['colour']}"


def _bars(found: Stats) -> Iterator[_Bars]:
    report = found.report or {}
    yield _of("Rows by split", found.rows)
    yield _of("Kinds of rows", found.kinds)
    yield _of("Turns of a row", {f"{n} turns": count for n, count in found.turns.items()})
    yield _of("Languages", found.languages, f"of {found.drawn}")
    sources: dict[str, int] = {}
    for file in report.get("files", ()):
        name = f"{Path(file['path']).name} ({file['split']})"
        sources[name] = sources.get(name, 0) + file["rows"]
    yield _of("Files", sources)
    yield _of("Left out, by rule", report.get("left_out", {}).get("by_rule", {}))
    yield _of("Changed, by rule", report.get("changed", {}))


def _of_field(values: Values, n_rows: int) -> _Bars:
    """The most frequent values of a field, with their share of all rows."""
    shown = len(values.top)
    note = f"the {shown} most frequent of {values.distinct} values"
    note = note if values.distinct != shown else ""
    return _of(values.name, dict(values.top), note, n_rows)


def _of(title: str, counts: Mapping[Any, int], note: str = "", total: int = 0) -> _Bars:
    longest, total = max(counts.values(), default=0), total or sum(counts.values())
    bars = tuple(
        _Bar(str(label), n, round(100 * n / longest, 3), n / total)
        for label, n in counts.items()
        if n
    )
    return _Bars(title, note, bars)


def _histograms(found: Stats) -> Iterator[_Histogram]:
    drawn = f"of {found.drawn}, {found.tokens_note}"
    for title, lengths, note in (
        ("Question, characters", found.question, "all turns before the answer"),
        ("Answer, characters", found.answer, "the last turn of the assistant, or the text"),
        ("Whole row, tokens", found.tokens, drawn),
        ("Tokens that the loss counts", found.trained, drawn),
    ):
        if lengths is not None:
            yield _histogram(title, note, lengths)


def _histogram(title: str, note: str, lengths: Lengths) -> _Histogram:
    n, top = len(lengths.bins), max(count for *_, count in lengths.bins)
    start = lengths.bins[0][0]
    width = lengths.bins[0][1] - start
    columns = tuple(
        _Column(
            100 * at / n,
            100 / n,
            _HEIGHT * (1 - count / top),
            _HEIGHT * count / top,
            f"{low:,} to {below - 1:,}: {count:,}",
        )
        for at, (low, below, count) in enumerate(lengths.bins)
    )
    every = max(1, -(-n // 6))
    ticks = [(100 * at / n, f"{lengths.bins[at][0]:,}") for at in range(0, n, every)]

    def place(length: int) -> float:
        return min(100.0, 100 * (length - start + 0.5) / (width * n))

    marks = ((place(lengths.median), "median"), (place(lengths.p95), "95 of 100"))
    said = f"{note}; median {lengths.median:,}, 95 of 100 at most {lengths.p95:,}, longest {lengths.most:,}"
    if lengths.most >= start + width * n:
        said += f"; the last column is all from {lengths.bins[-1][0]:,}"
    return _Histogram(title, said, columns, tuple(ticks), marks)
