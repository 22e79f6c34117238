"""Texts with labels to rows that ask for the label, with the list of labels in the prompt."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.data.make.records import fields_or_refuse, records
from tunesmith.data.make.rows import Made, Order, chat, existing, read_text
from tunesmith.errors import ConfigError, DataError, counted

__all__ = ["ClassifyOptions", "make_classify"]

FEWEST_A_CLASS = 100
"""Examples of a class below which a small model seldom learns it."""


@dataclass(frozen=True)
class ClassifyOptions:
    """How the rows are asked.

    Attributes:
        text: field of the text; the first of the usual names otherwise.
        label: field of the label; the first of the usual names otherwise.
        show: where the labels stand: in a list, as lettered choices (the answer is then the letter), or nowhere.
        instruction: first line of the prompt.
        max_a_class: most rows of a class, drawn by the seed; all when None.
        shuffled: give each row its lettered choices in another order.
    """

    text: str | None = None
    label: str | None = None
    show: Literal["list", "letters", "nothing"] = "list"
    instruction: str = "Which label fits the text? Answer with the label alone."
    max_a_class: int | None = None
    shuffled: bool = False
    seed: int = 0


_TEXTS = (
    "text",
    "sentence",
    "question",
    "content",
    "input",
    "utterance",
    "review",
    "message",
    "title",
)
_LABELS = ("label", "category", "class", "intent", "sentiment", "target", "output", "tag")


def make_classify(path: Path, options: ClassifyOptions | None = None) -> Made:
    """Rows from a table or JSON lines with text and label, or from a folder with a folder a class.

    Raises:
        MissingError: nothing is there.
        ConfigError: letters for more than 52 labels.
        DataError: rows cannot be read, a field is missing, or there are fewer than two labels.
    """
    options = options or ClassifyOptions()
    made = Made("classify")
    found = (
        _from_folders(existing(path), made) if path.is_dir() else _from_records(path, options, made)
    )
    kept = _without_contradictions(found, made)
    labels = sorted({label for _, _, label in kept})
    if len(labels) < 2:
        raise DataError(
            f"{path}: {len(labels)} different labels",
            fix="classification needs at least two; is it the right field?",
        )
    if options.show == "letters" and len(labels) > len(string.ascii_letters):
        raise ConfigError(f"{len(labels)} labels cannot have a letter each", fix="use --show list")
    order = Order(options.seed)
    kept = _limited(kept, options, order, made)
    made.rows = [_row(path, example, labels, options, order) for example in kept]
    _say_balance(made, Counter(label for _, _, label in kept))
    return made


def _from_folders(root: Path, made: Made) -> list[tuple[str, str, str]]:
    """A folder a class; each file in it is one text."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(
            f"{root}: no folders in it",
            fix="make a folder for each class, with a text file for each example",
        )
    found: list[tuple[str, str, str]] = []
    for folder in folders:
        for file in sorted(
            p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")
        ):
            where = str(file.relative_to(root))
            try:
                text = read_text(file).strip()
            except DataError as error:
                made.drop(where, file.name, error.what.partition(": ")[2])
                continue
            if text:
                found.append((where, text, folder.name))
            else:
                made.drop(where, file.name, "empty")
    return found


def _from_records(path: Path, options: ClassifyOptions, made: Made) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    names: tuple[str, str] | None = None
    for where, record in records(path):
        if names is None:
            names = (
                options.text or _usual(_TEXTS, record, "text"),
                options.label or _usual(_LABELS, record, "label"),
            )
            fields_or_refuse(path, {"--text": names[0], "--label": names[1]}, record)
        text, label = (record.get(name) for name in names)
        if not isinstance(text, str) or not text.strip():
            made.drop(where, str(text)[:80], "no text")
        elif isinstance(label, dict | list) or label is None or not str(label).strip():
            made.drop(where, text[:80], "no label")
        else:
            found.append((where, text, str(label).strip()))
    return found


def _usual(names: tuple[str, ...], record: Mapping[str, Any], what: str) -> str:
    lowered = {name.lower(): name for name in record}
    return next((lowered[name] for name in names if name in lowered), what)


def _without_contradictions(
    found: list[tuple[str, str, str]], made: Made
) -> list[tuple[str, str, str]]:
    """Each text once; a text with several labels not at all, since no answer to it is right."""
    labels: dict[str, set[str]] = {}
    for _, text, label in found:
        labels.setdefault(_plain(text), set()).add(label)
    seen: dict[str, str] = {}
    kept = []
    for where, text, label in found:
        key = _plain(text)
        if len(labels[key]) > 1:
            made.drop(
                where,
                text[:80],
                f"one text with {len(labels[key])} labels: {', '.join(sorted(labels[key]))}",
            )
        elif key in seen:
            made.drop(where, text[:80], f"a duplicate: {seen[key]}")
        else:
            seen[key] = where
            kept.append((where, text, label))
    return kept


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _limited(
    kept: list[tuple[str, str, str]], options: ClassifyOptions, order: Order, made: Made
) -> list[tuple[str, str, str]]:
    if options.max_a_class is None:
        return kept
    counts: Counter[str] = Counter()
    chosen: set[str] = set()
    for where, text, label in order.shuffled(kept, "limit"):
        counts[label] += 1
        if counts[label] <= options.max_a_class:
            chosen.add(where)
        else:
            made.drop(where, text[:80], f"more than {options.max_a_class} of its class")
    return [one for one in kept if one[0] in chosen]


def _row(
    path: Path,
    example: tuple[str, str, str],
    labels: list[str],
    options: ClassifyOptions,
    order: Order,
) -> dict[str, Any]:
    where, text, label = example
    answer = label
    if options.show == "letters":
        choice = order.shuffled(labels, where) if options.shuffled else labels
        letters = dict(zip(choice, string.ascii_uppercase + string.ascii_lowercase, strict=False))
        choices = "\n".join(f"{letters[name]}. {name}" for name in choice)
        answer = letters[label]
        head = f"{options.instruction.replace('label alone', 'letter alone')}\n{choices}"
    elif options.show == "list":
        is_plain = not any("," in name for name in labels)
        shown = ", ".join(labels) if is_plain else "\n" + "\n".join(labels)
        head = f"{options.instruction}\nLabels:{' ' if is_plain else ''}{shown}"
    else:
        head = options.instruction
    meta = {"source": path.name, "where": where, "label": label, "task": "classify"}
    return chat(f"{head}\n\n{text}" if head else text, answer, meta)


def _say_balance(made: Made, counts: Counter[str]) -> None:
    most, fewest = (
        counts.most_common(1)[0],
        min(counts.items(), key=lambda item: (item[1], item[0])),
    )
    made.facts = {"labels": len(counts), "most": list(most), "fewest": list(fewest)}
    made.notes.append(
        f"{counted(len(counts), 'label')}; most rows: {most[0]} ({most[1]}), fewest: {fewest[0]} ({fewest[1]})"
    )
    if most[1] > 5 * fewest[1]:
        made.notes.append(
            f"unbalanced: {most[1] / fewest[1]:.0f} times as many of {most[0]} as of {fewest[0]}; "
            "--max-a-class evens it out"
        )
    short = sum(n < FEWEST_A_CLASS for n in counts.values())
    if short:
        made.notes.append(f"{short} of {len(counts)} labels have fewer than {FEWEST_A_CLASS} rows")
