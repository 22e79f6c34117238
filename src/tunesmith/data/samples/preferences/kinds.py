"""The kinds of pair: a prompt, a good answer, and an answer with one stated flaw."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith.data.samples.draws import Draws, words_in

__all__ = ["KINDS", "Pair", "Words", "sql_pair"]


@dataclass(frozen=True)
class Pair:
    """One pair; `check` is what `flaws.fails` runs."""

    flaw: str
    prompt: str
    chosen: str
    rejected: str
    check: Mapping[str, Any]
    system: str = ""


@dataclass(frozen=True)
class Words:
    """What a split's prompts are made of; no split shares a name with another."""

    names: Sequence[str]
    places: Sequence[str]


_ANIMALS = words_in(
    "otter lynx heron badger falcon beaver ferret marmot weasel raven stork toad newt hare vole crane"
)
_FOODS = words_in(
    "bread butter cheese honey lentils mustard noodles oats olives onions peppers rice spinach yoghurt"
)
_TOOLS = words_in(
    "hammer wrench chisel saw pliers file drill clamp spanner mallet ruler level plane rasp"
)
_JOBS = words_in(
    "baker carpenter dentist gardener librarian mechanic nurse pilot plumber tailor teacher welder"
)
_LISTS = {"animals": _ANIMALS, "foods": _FOODS, "tools": _TOOLS, "jobs": _JOBS}


def _sum(d: Draws, _: Words) -> Pair:
    a, b, c = d.number(12, 98), d.number(12, 98), d.number(3, 9)
    shown, right = d.pick((
        (f"{a} + {b}", a + b), (f"{a} * {c}", a * c), (f"{a + b} - {b}", a),
        (f"{a} + {b} * {c}", a + b * c)))  # fmt: skip
    wrong = right + d.pick((-10, -2, -1, 1, 2, 10))
    ask = d.pick((f"What is {shown}?", f"Work out {shown}.", f"Please calculate {shown}."))
    return Pair(
        "wrong-number",
        ask,
        f"{shown} = {right}",
        f"{shown} = {wrong}",
        {"kind": "number", "is": str(right)},
    )


def _convert(d: Draws, _: Words) -> Pair:
    big, small, factor = d.pick((
        ("kilometres", "metres", 1000), ("hours", "minutes", 60), ("kilograms", "grams", 1000), ("days", "hours", 24),
        ("metres", "centimetres", 100), ("weeks", "days", 7), ("minutes", "seconds", 60)))  # fmt: skip
    n = d.number(2, 48)
    right, wrong = (
        n * factor,
        n * (factor * 10 if d.number(0, 1) else factor + d.pick((1, 2, 5, 10))),
    )
    ask = d.pick((f"How many {small} are {n} {big}?", f"Convert {n} {big} to {small}."))
    say = "{} {} are {} {}."
    return Pair(
        "wrong-number", ask, say.format(n, big, right, small), say.format(n, big, wrong, small),
        {"kind": "number", "is": str(right)},
    )  # fmt: skip


def _letters(d: Draws, _: Words) -> Pair:
    word = d.pick([*_ANIMALS, *_FOODS, *_TOOLS, *_JOBS])
    right, wrong = len(word), len(word) + d.pick((-1, 1, 2))
    ask = d.pick(
        (f'How many letters does the word "{word}" have?', f'Count the letters in "{word}".')
    )
    say = 'The number of letters in "{}" is {}.'
    return Pair(
        "wrong-number",
        ask,
        say.format(word, right),
        say.format(word, wrong),
        {"kind": "number", "is": str(right)},
    )


def _days(d: Draws, _: Words) -> Pair:
    start, n = datetime.date(2024, 1, 1) + datetime.timedelta(d.number(0, 1_200)), d.number(3, 60)
    right = (start + datetime.timedelta(n)).isoformat()
    wrong = (start + datetime.timedelta(n + d.pick((-2, -1, 1, 2, 30)))).isoformat()
    ask = d.pick(
        (f"Which date is {n} days after {start}?", f"What is the date {n} days later than {start}?")
    )
    say = f"{n} days after {start} is "
    return Pair(
        "wrong-date", ask, f"{say}{right}.", f"{say}{wrong}.", {"kind": "says", "is": f"is {right}"}
    )


def _sort(d: Draws, _: Words) -> Pair:
    words = d.several(d.pick(list(_LISTS.values())), d.number(4, 6))
    right = sorted(words)
    at = d.number(0, len(words) - 2)
    wrong = [*right[:at], right[at + 1], right[at], *right[at + 2 :]]
    shown = ", ".join(words if words != right else words[::-1])
    ask = d.pick(
        (
            f"Sort these words from A to Z, one a line: {shown}",
            f"Put in alphabetical order, one word a line: {shown}",
        )
    )
    return Pair(
        "not-sorted", ask, "\n".join(right), "\n".join(wrong), {"kind": "sorted", "is": right}
    )


def _count(d: Draws, words: Words) -> Pair:
    kind = d.pick(list(_LISTS))
    n = d.number(3, 6)
    items = d.several(_LISTS[kind], n + 1)
    right = items[:n]
    wrong = d.pick((items[: n - 1], items, [*items[: n - 1], items[0]]))
    name = d.pick(words.names)
    say = {3: "three", 4: "four", 5: "five", 6: "six"}[n]
    ask = d.pick((
        f"Name {say} different {kind}, one a line, and nothing else.",
        f"{name} needs a list of exactly {say} different {kind}. One a line, no other text.",
        f"List {say} {kind} for {name}, each once, one a line."))  # fmt: skip
    return Pair("wrong-count", ask, "\n".join(right), "\n".join(wrong), {"kind": "lines", "is": n})


def _record(d: Draws, words: Words) -> tuple[dict[str, Any], str]:
    value = {"name": d.pick(words.names), "age": d.number(19, 77), "city": d.pick(words.places)}
    said = d.pick((
        "{name} is {age} years old and lives in {city}.", "{name}, {age}, comes from {city}.",
        "In {city} lives {name}, who is {age}."))  # fmt: skip
    return value, said.format(**value)


def _broken(d: Draws, words: Words) -> Pair:
    value, text = _record(d, words)
    right = json.dumps(value)
    wrong = d.pick(
        (
            right[:-1],
            right.replace('"', "'"),
            right[:-1] + ",}",
            right.replace('"age":', '"age"'),
            f"Here it is: {right}",
        )
    )
    ask = f"Give the name, age and city as a JSON object, and nothing else.\n\n{text}"
    return Pair("not-json", ask, right, wrong, {"kind": "json", "is": value})


def _incomplete(d: Draws, words: Words) -> Pair:
    value, text = _record(d, words)
    gone = d.pick(list(value))
    wrong = {name: item for name, item in value.items() if name != gone}
    ask = f"Extract name, age and city as JSON.\n\n{text}"
    return Pair(
        "missing-field", ask, json.dumps(value), json.dumps(wrong), {"kind": "json", "is": value}
    )


def _short(d: Draws, words: Words) -> Pair:
    value, text = _record(d, words)
    name, age, city = value.values()
    asked, right = d.pick((
        (f"Where does {name} live or come from?", city), (f"How old is {name}?", str(age)),
        (f"Who is {age} years old?", name)))  # fmt: skip
    wrong = d.pick((
        f"The answer to your question is {right}.", f"Sure! It is {right}. Can I help with anything else?",
        f"According to the text that you gave me, it is {right}."))  # fmt: skip
    ask = d.pick(("Answer in one word.", "Answer with one word only."))
    return Pair("too-long", f"{ask} {asked}\n\n{text}", right, wrong, {"kind": "words", "most": 1})


def _capitals(d: Draws, words: Words) -> Pair:
    does = d.pick(("meets", "calls", "thanks", "visits"))
    line = f"{d.pick(words.names)} {does} the {d.pick(_JOBS)} in {d.pick(words.places)}"
    right = line.upper()
    wrong = d.pick((line, line.title(), right[:1] + line[1:].lower(), line.lower()))
    ask = d.pick(
        ("Write this in capital letters:", "Turn this into capitals, without other changes:")
    )
    return Pair("wrong-case", f"{ask} {line}", right, wrong, {"kind": "capitals", "is": right})


def _from_text(d: Draws, words: Words) -> Pair:
    name, place, job = d.pick(words.names), d.pick(words.places), d.pick(_JOBS)
    year, n = d.number(1975, 2021), d.number(4, 60)
    text = f"{name} is a {job} in {place}. The business opened in {year} and has {n} employees."
    other = d.pick([town for town in words.places if town != place])
    asked, say, right, wrong = d.pick((
        ("In which year did the business open?", "It opened in {}.", year, year + d.pick((-3, -1, 1, 2, 10))),
        ("How many employees are there?", "There are {} employees.", n, n + d.pick((-2, 1, 3, 10))),
        (f"Where does {name} work?", f"{name} works in {{}}.", place, other),
    ))  # fmt: skip
    good, bad = say.format(right), say.format(wrong)
    kind = "says" if right == place else "number"
    check = {"kind": kind, "is": str(right)}
    return Pair("not-in-text", f"{text}\n\n{asked}", good, bad, check)


def _unsaid(d: Draws, words: Words) -> Pair:
    name, place, job = d.pick(words.names), d.pick(words.places), d.pick(_JOBS)
    text = f"{name} has worked as a {job} in {place} for {d.number(2, 30)} years."
    other = d.pick([one for one in words.names if one != name])
    asked, wrong = d.pick((
        (f"How old is {name}?", f"{name} is {d.number(25, 70)} years old."),
        (f"What does {name} earn in a month?", f"{name} earns {d.number(18, 60)}00 euros a month."),
        (f"Who is {name} married to?", f"{name} is married to {other}.")))  # fmt: skip
    ask = f"Answer from the text alone; if it does not say, say so.\n\n{text}\n\n{asked}"
    return Pair(
        "not-in-text", ask, "The text does not say.", wrong, {"kind": "says", "is": "does not say"}
    )


_TASKS: tuple[tuple[str, str, str, str, Callable[[int], object]], ...] = (
    ("returns the {n}-fold of a number", "x", "x * {n}", "x + {n}", lambda n: lambda x: x * n),
    ("adds {n} to a number", "x", "x + {n}", "x - {n}", lambda n: lambda x: x + n),
    ("says whether a number is larger than {n}", "x", "x > {n}", "x >= {n}", lambda n: lambda x: x > n),
    ("says whether a number is at least {n}", "x", "x >= {n}", "x > {n}", lambda n: lambda x: x >= n),
    ("returns the remainder of a number divided by {n}", "x", "x % {n}", "x // {n}", lambda n: lambda x: x % n),
    ("says whether a number is divisible by {n}", "x", "x % {n} == 0", "x / {n} == 0", lambda n: lambda x: x % n == 0),
    ("returns the larger of a number and {n}", "x", "max(x, {n})", "min(x, {n})", lambda n: lambda x: max(x, n)),
    ("limits a number to at most {n}", "x", "min(x, {n})", "max(x, {n})", lambda n: lambda x: min(x, n)),
    ("returns the distance between a number and {n}", "x", "abs(x - {n})", "x - {n}", lambda n: lambda x: abs(x - n)),
    ("returns the sum of the whole numbers from 1 to x plus {n}", "x", "sum(range(1, x + 1)) + {n}",
     "sum(range(1, x)) + {n}", lambda n: lambda x: sum(range(1, x + 1)) + n),
)  # fmt: skip
_NAMES = ("compute", "apply", "answer", "solve", "work_out", "f", "g", "run", "evaluate", "result")


def _python(d: Draws, _: Words, flaw: str) -> Pair:
    said, argument, right, wrong, truth = d.pick(_TASKS)
    n, name = d.number(2, 19), d.pick(_NAMES)
    code = f"def {name}({argument}):\n    return {right.format(n=n)}"
    bad = f"def {name}({argument}):\n    return {wrong.format(n=n)}"
    if flaw == "no-python":
        bad = d.pick(
            (
                code.replace(":\n", "\n"),
                code.replace("    return", "return"),
                code.replace("return", "return return"),
                code.replace("):", ":"),
            )
        )
    function: Any = truth(n)
    cases = [[[x], repr(function(x))] for x in (0, n, n + 1)]
    ask = f"Write a Python function `{name}({argument})` that {said.format(n=n)}. Code only."
    return Pair(flaw, ask, code, bad, {"kind": "python", "name": name, "cases": cases})


def _no_python(d: Draws, words: Words) -> Pair:
    return _python(d, words, "no-python")


def _wrong_code(d: Draws, words: Words) -> Pair:
    return _python(d, words, "wrong-code")


_SLIPS = (
    (r"\bselect\b", "selec"), (r"\bfrom\b", "form"), (r"\bwhere\b", "were"), (r"\bcount\(\*\)", "count(*"),
    (r"\bselect (\w+) from\b", r"select \1_value from"), (r"\bgroup by\b", "group"),
    (r"\bfrom (\w+)\b", r"from \1_table"),
)  # fmt: skip
_SWAPS = (
    (r" > ", " < "), (r" < ", " > "), (r"\bmax\(", "min("), (r"\bmin\(", "max("), (r"\bavg\(", "sum("),
    (r"\bsum\(", "max("), (r"count\(\*\)", "count(*) + 1"), (r" = '", " <> '"), (r" desc\b", " asc"),
    (r"\bnot in\b", "in"), (r"\blimit (\d)", r"limit 1\1"),
)  # fmt: skip


def sql_pair(d: Draws, row: Mapping[str, Any], flaw: str) -> Pair | None:
    """A pair from a row of the text-to-SQL set, with one change to its query; None where no change fits."""
    system, asked, answered = (turn["content"] for turn in row["messages"])
    changes = [
        c for c in (_SLIPS if flaw == "query-fails" else _SWAPS) if re.search(c[0], answered)
    ]
    if not changes:
        return None
    pattern, by = d.pick(changes)
    wrong = re.sub(pattern, by, answered, count=1)
    check = {"kind": "sql", "database": row["meta"]["database"], "is": answered}
    return Pair(flaw, asked, answered, wrong, check, system)


KINDS: tuple[Callable[[Draws, Words], Pair], ...] = (
    _sum, _convert, _letters, _days, _sort, _count, _broken, _incomplete, _short, _capitals, _from_text, _unsaid,
    _no_python, _wrong_code,
)  # fmt: skip
