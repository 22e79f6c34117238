"""New rows out of old ones, with the same answer: rules, held-out rows, provenance, what was left out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tunesmith.data.grow.noise import Noise, vocabulary
from tunesmith.data.grow.paraphrase import Paraphrase, core
from tunesmith.data.grow.pieces import as_json
from tunesmith.data.grow.rename import Rename
from tunesmith.data.grow.rule import Draw, Made, Rule, Unfit
from tunesmith.data.grow.shuffle import Shuffle
from tunesmith.data.grow.turns import answers_raw, question_path, question_span, with_origin
from tunesmith.data.rows import Row
from tunesmith.data.split import prompt_key
from tunesmith.errors import ConfigError
from tunesmith.registry import nearest

__all__ = ["RULES", "AugmentOptions", "Augmented", "LeftOut", "augment", "reasons"]


@dataclass(frozen=True)
class AugmentOptions:
    """What to make.

    Attributes:
        rules: names of `RULES`, each used on each row.
        times: new rows a row and rule.
        seed: equal seeds give equal rows, whatever the order of the rows.
        held_out: rows of validation and test: nothing is made that asks the same.
        databases: name -> SQLite file or SQL script; for `rename`.
        databases_folder: where `rename` writes its copies.
    """

    rules: tuple[str, ...]
    times: int = 1
    seed: int = 0
    held_out: Sequence[Row] = ()
    databases: Mapping[str, Path] = field(default_factory=dict)
    databases_folder: Path | None = None


@dataclass(frozen=True)
class LeftOut:
    """A row that was not made, and why."""

    where: str
    rule: str
    reason: str
    row: Row

    def as_line(self) -> str:
        """As the side file has it: one line of JSON."""
        said = {"where": self.where, "rule": self.rule, "reason": self.reason}
        return f'{as_json(said)[:-1]}, "row": {self.row.text}}}'


@dataclass(frozen=True)
class Augmented:
    """A row as it was, the rows made of it, and what was not made."""

    row: Row
    made: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]


def _rename(options: AugmentOptions, rows: Sequence[Row]) -> Rule:
    if not options.databases or options.databases_folder is None:
        raise ConfigError(
            "the rule rename has no database",
            why="a renamed query is proved by running it on a renamed copy of its database",
            fix="name each one: --database NAME=FILE (SQLite, or a script that ends in .sql)",
        )
    return Rename(options.databases, options.databases_folder, options.seed)


RULES: Mapping[str, Callable[[AugmentOptions, Sequence[Row]], Rule]] = {
    "rename": _rename,
    "paraphrase": lambda options, rows: Paraphrase(),
    "noise": lambda options, rows: Noise(vocabulary([*rows, *options.held_out])),
    "shuffle": lambda options, rows: Shuffle(),
}
"""Name -> the rule, ready for the rows of a call."""


def augment(rows: Sequence[Row], options: AugmentOptions) -> Iterator[Augmented]:
    """Every row with the rows made of it, in order.

    A new row keeps the characters of its answer (the rule `rename` changes the answer, and proves it
    by execution), has `meta.origin` with the place, rule and seed it comes from, and repeats no
    prompt of the rows, of the new rows, or of the held-out ones.

    Args:
        rows: the rows to learn from; never those of a test.
        options: what to make.

    Raises:
        ConfigError: no such rule, or a rule lacks what it needs.
        DataError: a database cannot be read.
        StorageError: a copy of a database cannot be written.
    """
    _check(options)
    with ExitStack() as stack:
        rules = [stack.enter_context(closing(RULES[name](options, rows))) for name in options.rules]
        seen = _Seen(rows)
        held = {key for row in options.held_out for key in _keys(row)}
        near = _near(rows, options.held_out)
        for index, row in enumerate(rows):
            made: list[Row] = []
            left_out: list[LeftOut] = []
            if index in near:
                reason = f"a held-out row asks nearly the same: {near[index]}"
                names = [rule.name for rule in rules for _ in range(options.times)]
                left_out = [LeftOut(row.where, name, reason, row) for name in names]
            for rule in () if index in near else rules:
                for number in range(1, options.times + 1):
                    found = _one(row, rule, number, options.seed)
                    reason = _refused(found, row, rule, seen, held)
                    if isinstance(found, Made) and not reason:
                        seen.add(found.row, row.where)
                        made.append(found.row)
                    else:
                        left_out.append(LeftOut(row.where, rule.name, reason, row))
            yield Augmented(row, tuple(made), tuple(left_out))


def _near(rows: Sequence[Row], held_out: Sequence[Row]) -> dict[int, str]:
    """Index of each row that is nearly a held-out one -> where that stands.

    No rule makes a row that asks anything else than the row it is made of.
    """
    if not held_out:
        return {}
    from tunesmith.data.similar import matches, said, sketch

    own, others = [said(row) for row in rows], [said(row) for row in held_out]
    found = matches(sketch(own), sketch(others), own.__getitem__, others.__getitem__)
    return {query: held_out[target].where for query, target in found}


def _check(options: AugmentOptions) -> None:
    for name in options.rules:
        if name not in RULES:
            raise ConfigError(
                f"no rule is called {name!r}{nearest(name, RULES)}",
                fix=f"use one of: {', '.join(RULES)}",
            )
    if not options.rules:
        raise ConfigError("no rule is named", fix=f"use one of: {', '.join(RULES)}")
    if options.times < 1:
        raise ConfigError(f"times is {options.times}; it must be at least 1")


def _one(row: Row, rule: Rule, number: int, seed: int) -> Made | Unfit:
    # Equal for equal rows: neither their order nor the company they come in decides. A number's own
    # chance is used up only where the rule says so; `paraphrase` deals its templates by number.
    shared = rule.name == "paraphrase"
    key = f"{seed}/{rule.name}/{0 if shared else number}/{row.text}"
    rng = Random(hashlib.sha256(key.encode()).digest())
    found = rule.make(row, Draw(number, rng))
    if isinstance(found, Unfit):
        return found
    origin = {"where": row.where, "rule": rule.name, "seed": seed, "number": number, **found.origin}
    return Made(with_origin(found.row, origin), origin)


def _refused(found: Made | Unfit, row: Row, rule: Rule, seen: _Seen, held: set[str]) -> str:
    """Why a new row must not be kept; empty when it may."""
    if isinstance(found, Unfit):
        return found.reason
    if rule.name != Rename.name and answers_raw(found.row) != answers_raw(row):
        raise AssertionError(f"{rule.name} changed the answer of {row.where}")
    if any(key in held for key in _keys(found.row)):
        return "a held-out row asks the same"
    return seen.repeats(found.row, row.where)


class _Seen:
    """Prompts that are there already, letter by letter and by `prompt_key`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._texts: set[bytes] = set()
        self._owners: dict[str, str] = {}
        for row in rows:
            self.add(row, row.where)

    def add(self, row: Row, owner: str) -> None:
        """Note a row's prompt; `owner` is the place of the row that it was made of."""
        self._texts.add(_exactly(row))
        self._owners.setdefault(prompt_key(row), owner)

    def repeats(self, row: Row, owner: str) -> str:
        """Why a new row is one too many; empty when it is not.

        A row may ask what its own origin asks in another case: that is what `noise` is for.
        """
        if _exactly(row) in self._texts:
            return "the same prompt is there already"
        if self._owners.get(prompt_key(row), owner) != owner:
            return "another row asks the same"
        return ""


def _exactly(row: Row) -> bytes:
    turns = row.value.get("prompt") if row.kind != "chat" else row.value["messages"][:-1]
    said = as_json([row.meta.get("database"), turns])
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()


def _keys(row: Row) -> tuple[str, str]:
    """Two hashes of what is asked: of the whole prompt, and of the question's core alone."""
    path = question_path(row)
    text = str(row.value[path[0]][path[1]]["content"]) if path else row.question
    span = question_span(text)
    question = text[slice(*span)] if span else text
    origin: Any = row.meta.get("origin")
    database = row.meta.get("database", "")
    if isinstance(origin, Mapping) and origin.get("rule") == Rename.name:
        database = str(database).rsplit("-", 1)[0]
    asked = hashlib.sha256(f"{database}\0{core(question)}".encode()).hexdigest()
    return prompt_key(row), asked


def reasons(grown: Sequence[LeftOut]) -> Counter[tuple[str, str]]:
    """How often each rule left something out for each reason."""
    return Counter((left.rule, left.reason) for left in grown)
