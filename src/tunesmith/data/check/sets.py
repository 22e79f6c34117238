"""Findings that only a whole dataset shows, from what was remembered of each row."""

from __future__ import annotations

import difflib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

from tunesmith.data.check import language
from tunesmith.data.check.columns import ASKED_FOR_JSON, FORMATS, SPACE, Columns, hash_of_answer
from tunesmith.data.check.finding import Finding, finding, shortened
from tunesmith.data.check.options import RED_ROWS, CheckOptions
from tunesmith.errors import counted

__all__ = ["over_all"]

_MIN_ROWS_FOR_SHARES = 20
_MAIN_SHARE = 0.8
_ODD_SHARE = 0.05
_MAIN_KEYS_SHARE = 0.9
_IMBALANCE = 10
_ROWS_PER_CLASS = 4
_LABEL_KINDS = ("classification", "classify", "intent", "sentiment", "category")
_SHOWN_CLASSES = 8
_MIN_ROWS_FOR_LENGTHS = 50
_FENCES = 3.0
"""Interquartile ranges of log length beyond which a row is an outlier (Tukey's far out)."""


def over_all(columns: Columns, options: CheckOptions) -> Iterator[Finding]:
    """All findings over the rows, in the order of the checks and then of the rows."""
    classes = dict(_classes(columns))
    yield from _too_few(columns, options, bool(classes))
    for task, counts in classes.items():
        yield from _class_findings(columns, options, task, counts)
    yield from _duplicates(columns)
    yield from _contradictions(columns)
    yield from _languages(columns, options)
    yield from _formats(columns, options)
    yield from _keys(columns)
    yield from _white_space(columns, options)
    yield from _lengths(columns)


def _classes(columns: Columns) -> Iterator[tuple[str, Counter[str]]]:
    """Tasks whose answers are labels, with how often each occurs."""
    labels = columns.labels
    for task, counts in sorted(labels.counts.items()):
        n_rows, n_short = labels.n_rows[task], counts.total()
        named = any(word in task.lower() for word in _LABEL_KINDS)
        few = n_rows >= _MIN_ROWS_FOR_SHARES and n_rows >= _ROWS_PER_CLASS * len(counts)
        if len(counts) > 1 and (named or few) and n_short >= 0.95 * n_rows:
            yield task, counts


def _too_few(columns: Columns, options: CheckOptions, has_classes: bool) -> Iterator[Finding]:
    n_rows = len(columns)
    if n_rows == 0:
        return  # Why there are none was said of the file.
    if n_rows < RED_ROWS:
        what = f"{counted(n_rows, 'row')}; with fewer than {RED_ROWS} a model learns a form at best"
        yield replace(finding(options.name, "too-few-rows", what), severity="error")
    elif n_rows < options.min_rows and not has_classes:
        what = f"{n_rows:,} rows; a task of generation wants {options.min_rows:,}"
        yield finding(options.name, "too-few-rows", what)


def _class_findings(
    columns: Columns, options: CheckOptions, task: str, counts: Counter[str]
) -> Iterator[Finding]:
    of_task = f" of task {task!r}" if task else ""
    variants = _variants(counts)
    rare = _rare(counts, set(variants))
    odd = {**variants, **rare}
    real = {label: count for label, count in counts.items() if label not in odd}
    ordered = sorted(real.items(), key=lambda item: (item[1], item[0]))
    small = [(label, count) for label, count in ordered if count < options.min_class_rows]
    if small:
        shown = ", ".join(f"{label} {count}" for label, count in small[:_SHOWN_CLASSES])
        more = f" and {len(small) - _SHOWN_CLASSES} more" if len(small) > _SHOWN_CLASSES else ""
        what = (
            f"{len(small)} of {counted(len(real), 'class', 'classes')}{of_task} with fewer than "
            f"{options.min_class_rows} rows: {shown}{more}"
        )
        yield finding(options.name, "too-few-of-a-class", what)
    if len(ordered) > 1 and ordered[-1][1] > _IMBALANCE * ordered[0][1]:
        (least, n_least), (most, n_most) = ordered[0], ordered[-1]
        what = f"{most!r} has {counted(n_most, 'row')}{of_task}, {least!r} {n_least:,}"
        yield finding(options.name, "class-balance", what)
    if odd:
        yield from _odd_labels(columns, odd, variants)


def _odd_labels(
    columns: Columns, odd: dict[str, str], variants: dict[str, str]
) -> Iterator[Finding]:
    by_hash = {hash_of_answer(label): label for label in odd}
    names = list(columns.files)
    for index, key in enumerate(columns.answers):
        label = by_hash.get(key)
        if label is None:
            continue
        check = "label-spelling" if label in variants else "rare-label"
        what = f"most rows spell it {odd[label]!r}" if label in variants else "a label of few rows"
        hint = "" if label in variants else f"; {odd[label]!r} has many"
        yield finding(
            columns.where(index, names),
            check,
            what + hint,
            field="answer",
            value=shortened(label),
        )


def _variants(counts: Counter[str]) -> dict[str, str]:
    """Labels that differ from a more frequent one by case, spaces or punctuation only."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        plain = "".join(c for c in label.casefold() if c.isalnum())
        if plain:
            groups[plain].append(label)
    found: dict[str, str] = {}
    for group in groups.values():
        main = max(group, key=lambda label: (counts[label], label))
        found.update({label: main for label in group if label != main})
    return found


def _rare(counts: Counter[str], known: set[str]) -> dict[str, str]:
    """Labels of one or two rows that are spelled nearly as one of at least ten."""
    many = [label for label, count in counts.items() if count >= 10]
    found: dict[str, str] = {}
    for label, count in counts.items():
        if count > 2 or label in known or len(label) < 4:
            continue
        near = difflib.get_close_matches(label, many, n=1, cutoff=0.8)
        if near and not any(c.isdigit() for c in label):
            found[label] = near[0]
    return found


def _duplicates(columns: Columns) -> Iterator[Finding]:
    first: dict[int, int] = {}
    names = list(columns.files)
    for index, key in enumerate(columns.rows):
        other = first.setdefault(key, index)
        if other != index:
            what = f"the same row as {columns.where(other, names)}"
            yield finding(columns.where(index, names), "duplicate", what)


def _contradictions(columns: Columns) -> Iterator[Finding]:
    first: dict[int, int] = {}
    names = list(columns.files)
    for index, key in enumerate(columns.questions):
        if key == 0 or columns.answers[index] == 0:
            continue
        other = first.setdefault(key, index)
        if columns.answers[other] == columns.answers[index]:
            continue
        if columns.rejected[index]:
            # Several pairs of one prompt are usual; only a turned-round preference contradicts.
            if columns.rejected[other] != columns.answers[index]:
                continue
            what = f"prefers the answer that {columns.where(other, names)} rejects"
        else:
            what = f"the same prompt as {columns.where(other, names)}, another answer"
        yield finding(columns.where(index, names), "contradiction", what, field="answer")


def _languages(columns: Columns, options: CheckOptions) -> Iterator[Finding]:
    codes = language.CODES
    counts = Counter({codes[number]: n for number, n in Counter(columns.languages).items()})
    n_told = counts.total() - counts[""]
    if n_told == 0:
        return
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shares = ", ".join(
        f"{language.NAMES[code]} {n / counts.total():.1%}" for code, n in ordered[:6] if n
    )
    how = "" if language.has_model() else " (only a few are told without the extra `data`)"
    yield finding(options.name, "languages", f"{shares}{how}")
    main, n_main = next((code, n) for code, n in ordered if code)
    wanted = set(options.languages)
    if not wanted:
        if n_told < _MIN_ROWS_FOR_SHARES or n_main < _MAIN_SHARE * n_told:
            return
        wanted = {main}
    numbers = {codes.index(code) for code in wanted}
    expected = " or ".join(language.NAMES[code] for code in sorted(wanted))
    names = list(columns.files)
    for index, number in enumerate(columns.languages):
        if number and number not in numbers:
            what = f"{language.NAMES[codes[number]]}, where rows are {expected}"
            yield finding(columns.where(index, names), "language", what)


def _formats(columns: Columns, options: CheckOptions) -> Iterator[Finding]:
    counts = Counter(columns.formats)
    n_rows = len(columns)
    if n_rows < _MIN_ROWS_FOR_SHARES or len(counts) < 2:
        return
    main, n_main = max(counts.items(), key=lambda item: (item[1], -item[0]))
    if n_main < _MAIN_SHARE * n_rows:
        parts = ", ".join(f"{FORMATS[code]} {n / n_rows:.0%}" for code, n in sorted(counts.items()))
        yield finding(options.name, "mixed-formats", f"answers of several formats: {parts}")
        return
    names = list(columns.files)
    for index, code in enumerate(columns.formats):
        asked = columns.flags[index] & ASKED_FOR_JSON
        # Among plain texts only what is rare and was not asked for stands out.
        if code == main or (main == 0 and (asked or counts[code] > _ODD_SHARE * n_rows)):
            continue
        what = f"a {FORMATS[code]} answer, where {n_main / n_rows:.0%} are {FORMATS[main]}"
        yield finding(columns.where(index, names), "mixed-formats", what, field="answer")


def _keys(columns: Columns) -> Iterator[Finding]:
    """JSON objects whose keys are not those of nine in ten."""
    counts = Counter(key for key in columns.keys if key)
    if counts.total() < _MIN_ROWS_FOR_SHARES:
        return
    main, n_main = max(counts.items(), key=lambda item: (item[1], item[0]))
    if n_main < _MAIN_KEYS_SHARE * counts.total():
        return
    usual = set(columns.key_names.get(main, ()))
    names = list(columns.files)
    for index, key in enumerate(columns.keys):
        if key in (0, main) or key not in columns.key_names:
            continue
        own = set(columns.key_names[key])
        parts = [
            f"{verb} {', '.join(sorted(some))}"
            for verb, some in (("lacks", usual - own), ("also has", own - usual))
            if some
        ]
        what = f"{' and '.join(parts)}, unlike {n_main / counts.total():.1%} of the answers"
        yield finding(columns.where(index, names), "json-keys", what, field="answer")


def _white_space(columns: Columns, options: CheckOptions) -> Iterator[Finding]:
    spaced = sum(flags & SPACE for flags in columns.flags)
    if spaced == 0:
        return
    n_rows = len(columns)
    if spaced > n_rows / 2:
        what = f"{spaced:,} of {n_rows:,} answers have white space around them"
        one = finding(options.name, "white-space", what)
        yield one if spaced < n_rows else replace(one, severity="note")
        return
    names = list(columns.files)
    for index, flags in enumerate(columns.flags):
        if flags & SPACE:
            what = f"white space around the answer; {1 - spaced / n_rows:.1%} of rows have none"
            yield finding(columns.where(index, names), "white-space", what, field="answer")


def _lengths(columns: Columns) -> Iterator[Finding]:
    measured = sorted(n for n in columns.tokens if n)
    if len(measured) < _MIN_ROWS_FOR_LENGTHS:
        return
    low, median, high = (math.log(measured[int(len(measured) * q)]) for q in (0.25, 0.5, 0.75))
    spread = _FENCES * max(high - low, 0.1)
    longest = max(math.exp(high + spread), 2 * math.exp(median))
    shortest = min(math.exp(low - spread), math.exp(median) / 2)
    names = list(columns.files)
    for index, n_tokens in enumerate(columns.tokens):
        if n_tokens and (n_tokens > longest or n_tokens < shortest):
            what = f"{counted(n_tokens, 'token')}; half of the rows have at most {math.exp(median):,.0f}"
            yield finding(columns.where(index, names), "length", what)
