"""What is remembered of every row for checks over the whole dataset: some 50 bytes, no texts."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import compress
from typing import Any, Final
from unicodedata import normalize

from tunesmith.data.check import language
from tunesmith.data.check.turns import named_turns, said
from tunesmith.data.near import LABELS
from tunesmith.data.rows import Row

__all__ = ["FORMATS", "SPACE", "Columns", "Labels"]

FORMATS: Final = ("plain", "JSON", "fenced", "markup")
SPACE, ASKED_FOR_JSON = 1, 2
"""Bits of `Columns.flags`: white space around the answer; the prompt speaks of JSON."""

MAX_LABELS = 5_000
MAX_LABEL_CHARACTERS = 80
MAX_LABEL_WORDS = 8
MAX_KEY_SETS = 1_000
_MIN_SPACES = 3
_COLUMNS: Final = (
    "places",
    "rows",
    "questions",
    "answers",
    "rejected",
    "languages",
    "formats",
    "flags",
    "keys",
    "tokens",
)
"""Names of what `Columns` has of every row."""
_NUMBERS = {code: number for number, code in enumerate(language.CODES)}
_LABEL_FIELDS = (*LABELS, "label_text")
_LINE_BITS = 40


class Labels:
    """How often each short answer occurs, by task; given up beyond 5,000 different ones."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.n_rows: Counter[str] = Counter()
        self.has_too_many: set[str] = set()

    def add(self, task: str, answer: str) -> None:
        """Count a row's answer."""
        self.n_rows[task] += 1
        if task in self.has_too_many or not _is_short(answer):
            return
        counts = self.counts.setdefault(task, Counter())
        counts[answer] += 1
        if len(counts) > MAX_LABELS:
            self._give_up(task)

    def without(self, rows: Iterable[Row]) -> Labels:
        """The counts without those of some rows that were counted."""
        made = Labels()
        made.merge(self)
        for row in rows:
            if label := label_of(row):
                task = task_of(row)
                made.n_rows[task] -= 1
                if _is_short(label) and task in made.counts:
                    made.counts[task][label] -= 1
        # Counters without zeros: a class that is gone is no class.
        made.n_rows = +made.n_rows
        made.counts = {task: left for task, found in made.counts.items() if (left := +found)}
        return made

    def _give_up(self, task: str) -> None:
        self.has_too_many.add(task)
        self.counts.pop(task, None)

    def merge(self, other: Labels) -> None:
        """Add another part's counts."""
        self.n_rows.update(other.n_rows)
        for task in other.has_too_many:
            self._give_up(task)
        for task, counts in other.counts.items():
            if task not in self.has_too_many:
                own = self.counts.setdefault(task, Counter())
                own.update(counts)
                if len(own) > MAX_LABELS:
                    self._give_up(task)


def _is_short(answer: str) -> bool:
    return (
        0 < len(answer) <= MAX_LABEL_CHARACTERS
        and "\n" not in answer
        and answer.count(" ") < MAX_LABEL_WORDS
    )


class Columns:
    """One entry a row in each column, in the order in which rows were seen.

    Attributes:
        rows, questions, answers, rejected: hashes of 8 bytes; 0 where there is nothing.
        languages: index into `language.CODES`.
        formats: index into `FORMATS`, of the answer.
        keys: hash of the keys of a JSON answer that is an object; `key_names` has some of them.
        flags: `SPACE`, `ASKED_FOR_JSON`.
        tokens: length with the chosen model; 0 when it was not measured.
    """

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.places = array("Q")
        self.rows = array("Q")
        self.questions = array("Q")
        self.answers = array("Q")
        self.rejected = array("Q")
        self.languages = array("B")
        self.formats = array("B")
        self.flags = array("B")
        self.tokens = array("I")
        self.keys = array("Q")
        self.key_names: dict[int, tuple[str, ...]] = {}
        self.labels = Labels()

    def __len__(self) -> int:
        return len(self.places)

    def add(self, row: Row, *, domain: str, n_tokens: int) -> None:
        """Remember a row."""
        self.places.append(self._place(row.where))
        answer, question = answer_of(row), row.question
        bare = answer.strip()
        self._add_hashes(row, question, bare)
        # Code and labels say little of a language: the prompt does then.
        is_prose = domain == "none" and bare.count(" ") >= _MIN_SPACES
        code = (language.told(bare) if is_prose else "") or language.told(question)
        self.languages.append(_NUMBERS[code])
        shape, value = _format(bare)
        self.formats.append(shape)
        self._add_keys(value if domain == "json" else None)
        spaced = SPACE if bare != answer and bare else 0
        asked = ASKED_FOR_JSON if shape == 1 and "json" in question.lower() else 0
        self.flags.append(spaced | asked)
        self.tokens.append(0)
        self.measured(-1, n_tokens)
        label = label_of(row)
        if label:
            self.labels.add(task_of(row), label)

    def measured(self, index: int, n_tokens: int) -> None:
        """Remember the length of a row."""
        self.tokens[index] = min(n_tokens, 2**32 - 1)

    def only(self, kept: Sequence[bool], row_of: Callable[[int], Row]) -> Columns:
        """The rows that are kept, in their order; see `Checker.only`."""
        n_kept = sum(kept)
        if n_kept == len(self):
            return self
        made = Columns()
        made.files, made.key_names = self.files, self.key_names
        for name in _COLUMNS:
            column = getattr(self, name)
            setattr(made, name, array(column.typecode, compress(column, kept)))
        if not self.labels.n_rows:
            return made
        if n_kept > len(self) - n_kept:
            gone = (row_of(index) for index, stays in enumerate(kept) if not stays)
            made.labels = self.labels.without(gone)
        else:
            for index in compress(range(len(kept)), kept):
                row = row_of(index)
                if label := label_of(row):
                    made.labels.add(task_of(row), label)
        return made

    def _add_keys(self, value: object) -> None:
        names = tuple(sorted(value)) if isinstance(value, dict) else ()
        key = _hash("\0".join(names)) if names else 0
        self.keys.append(key)
        if key and len(self.key_names) < MAX_KEY_SETS:
            self.key_names.setdefault(key, names)

    def _add_hashes(self, row: Row, question: str, answer: str) -> None:
        texts = [f"{turn.get('role')}\0{said(turn)}" for _, turn in named_turns(row)]
        extra = _extra(row)
        label = label_of(row)
        if row.kind == "text":
            texts, question, answer = [answer_of(row), label], answer if label else "", label
        self.rows.append(_hash("\0\0".join([*texts, extra])))
        database = str(row.meta.get("database", ""))
        asked = _plain(question)
        if row.kind == "feedback":
            asked, answer = f"{asked}\0\0{answer}", extra
        self.questions.append(_hash(f"{database}\0{asked}") if asked else 0)
        self.answers.append(_hash(answer) if answer else 0)
        rejected = said(row.rejected[-1]).strip() if row.rejected else ""
        self.rejected.append(_hash(rejected) if rejected else 0)

    def _place(self, where: str) -> int:
        file, _, line = where.rpartition(":")
        if not line.isdecimal():
            file, line = where, "0"
        number = self.files.setdefault(file, len(self.files))
        return (number << _LINE_BITS) | int(min(int(line), 2**_LINE_BITS - 1))

    def where(self, index: int, names: list[str] | None = None) -> str:
        """ "file:line" of a row."""
        place = int(self.places[index])
        file = (names or list(self.files))[place >> _LINE_BITS]
        line = place & (2**_LINE_BITS - 1)
        return f"{file}:{line}" if line else file

    def merge(self, other: Columns) -> None:
        """Append another part's rows."""
        numbers = [self.files.setdefault(name, len(self.files)) for name in other.files]
        mask = 2**_LINE_BITS - 1
        if numbers == list(range(len(numbers))):
            self.places.extend(other.places)
        else:
            self.places.extend(
                (numbers[place >> _LINE_BITS] << _LINE_BITS) | (place & mask)
                for place in other.places
            )
        for name in _COLUMNS[1:]:
            getattr(self, name).extend(getattr(other, name))
        for key, names_of_key in other.key_names.items():
            if len(self.key_names) < MAX_KEY_SETS:
                self.key_names.setdefault(key, names_of_key)
        self.labels.merge(other.labels)


def answer_of(row: Row) -> str:
    """What is learned of a row, as text; of a problem its answer, as JSON unless it is a text."""
    if row.kind == "problem":
        answer = row.value["answer"]
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    if row.kind == "text":
        return str(row.value["text"])
    return said(row.messages[-1]) if row.messages else ""


def task_of(row: Row) -> str:
    """The row's task, "" when it names none."""
    task = row.meta.get("task")
    return task if isinstance(task, str) else ""


def label_of(row: Row) -> str:
    """What a row is classified as, if it is: the answer, or a text's field `label` or alike."""
    if row.kind in ("chat", "problem"):
        return answer_of(row).strip()
    if row.kind == "text":
        for name in _LABEL_FIELDS:
            value = row.meta.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value).strip()
    return ""


def _extra(row: Row) -> str:
    """What tells two conversations with equal texts apart: calls of tools, labels, answers."""
    parts: list[Any] = [row.value.get("label"), row.value.get("tools"), row.value.get("answer")]
    parts += [turn["tool_calls"] for _, turn in named_turns(row) if "tool_calls" in turn]
    parts.append(row.meta.get("database"))
    return "" if not any(part is not None for part in parts) else repr(parts)


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big") or 1


def hash_of_answer(answer: str) -> int:
    """What `Columns.answers` holds for an answer."""
    return _hash(answer)


def _plain(text: str) -> str:
    """Equal for prompts that differ in case, white space and closing punctuation only."""
    if not text.isascii():
        text = normalize("NFKC", text)
    return " ".join(text.casefold().split()).rstrip(" ?!.。？！")


def _format(bare: str) -> tuple[int, object]:
    """Index into `FORMATS`, and the value where it is JSON."""
    first = bare[:1]
    if first in ("{", "[") and bare[-1] in "}]":
        try:
            return 1, json.loads(bare)
        except (ValueError, RecursionError):
            return 0, None
    if first == "`" and bare.startswith("```") and bare.endswith("```"):
        return 2, None
    return (3 if first == "<" and bare.endswith(">") else 0), None
