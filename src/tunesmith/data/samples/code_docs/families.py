"""Small functions made from parts: what is taken, what is done with it, and what comes of it.

Each part carries its English and its Python, so that the docstring says what the code does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.data.samples.draws import Draws

__all__ = ["Part", "functions"]


@dataclass(frozen=True)
class Part:
    """A function without its example.

    Attributes:
        body: the lines below the docstring, indented by one level.
        inputs: arguments for the example, as Python.
    """

    name: str
    signature: str
    summary: str
    body: str
    inputs: tuple[str, ...]


_NUMBERS = (
    ("even", "even numbers", "n % 2 == 0"),
    ("odd", "odd numbers", "n % 2 == 1"),
    ("positive", "positive numbers", "n > 0"),
    ("negative", "negative numbers", "n < 0"),
    ("above_{k}", "numbers above {k}", "n > {k}"),
    ("below_{k}", "numbers below {k}", "n < {k}"),
    ("multiple_of_{k}", "multiples of {k}", "n % {k} == 0"),
    ("not_multiple_of_{k}", "numbers that {k} does not divide", "n % {k} != 0"),
    ("from_{k}_to_{m}", "numbers from {k} to {m}", "{k} <= n <= {m}"),
    ("two_digit", "numbers with two digits", "10 <= abs(n) <= 99"),
)
"""Which numbers: part of the name, English, condition."""
_CHANGES = (
    ("", "{}", "n"),
    ("squared_", "squares of the {}", "n * n"),
    ("doubled_", "doubles of the {}", "2 * n"),
    ("cubed_", "cubes of the {}", "n**3"),
    ("absolute_", "absolute values of the {}", "abs(n)"),
    ("negated_", "negatives of the {}", "-n"),
    ("last_digit_", "last digits of the {}", "abs(n) % 10"),
    ("increased_", "successors of the {}", "n + 1"),
)
"""What is done with each: part of the name, English, expression."""
_RESULTS = (
    ("sum", "int", "Return the sum of the {} in `numbers`.", "sum({})", ("total = 0", "total += {}", "total")),
    ("list", "list[int]", "Return the {} in `numbers`, in their order.", "[{}]",
     ("found = []", "found.append({})", "found")),
    ("largest", "int | None", "Return the largest of the {} in `numbers`, or None if there is none.",
     "max(({}), default=None)", ("best = None", "best = {0} if best is None else max(best, {0})", "best")),
    ("smallest", "int | None", "Return the smallest of the {} in `numbers`, or None if there is none.",
     "min(({}), default=None)", ("best = None", "best = {0} if best is None else min(best, {0})", "best")),
    ("distinct", "list[int]", "Return the {} in `numbers` in ascending order, each once.",
     "sorted({{{}}})", ("found = set()", "found.add({})", "sorted(found)")),
    ("product", "int", "Return the product of the {} in `numbers`; 1 if there is none.",
     "", ("product = 1", "product *= {}", "product")),
)  # fmt: skip
"""What comes of them: part of the name, type, summary, one expression (if any), or the lines of a loop."""


def _of_numbers(d: Draws) -> Part:
    which, noun, condition = d.pick(_NUMBERS)
    change, changed, expression = d.pick(_CHANGES)
    result, kind, summary, short, loop = d.pick(_RESULTS)
    k = d.number(3, 9)
    fill = {"k": k, "m": k + d.number(5, 30)}
    noun, condition, which = (text.format(**fill) for text in (noun, condition, which))
    shown = ", ".join(str(d.number(-30, 60)) for _ in range(7))
    if d.number(0, 1) or not short:
        first, step, last = loop
        body = (
            f"    {first}\n    for n in numbers:\n        if {condition}:\n            {step.format(expression)}\n"
            f"    return {last}"
        )
    else:
        taken = f"{expression} for n in numbers if {condition}"
        of_chosen = short.format(f"{expression} for n in chosen")
        kept = f"    chosen = [n for n in numbers if {condition}]\n    return {of_chosen}"
        body = d.pick((f"    found = {short.format(taken)}\n    return found", kept))
    said = summary.format(changed.format(noun))
    return Part(
        f"{result}_{change}{which}", f"numbers: list[int]) -> {kind}", said, body, (f"[{shown}]",)
    )


_WORDS = (
    ("long", "words with more than {k} letters", "len(word) > {k}"),
    ("short", "words with fewer than {k} letters", "len(word) < {k}"),
    ("starting_with_{c}", 'words that start with "{c}"', 'word.startswith("{c}")'),
    ("ending_with_{e}", 'words that end with "{e}"', 'word.endswith("{e}")'),
    ("containing_{c}", 'words that contain "{c}"', '"{c}" in word'),
    ("without_{c}", 'words without the letter "{c}"', '"{c}" not in word'),
    ("palindromic", "words that read the same backwards", "word == word[::-1]"),
    ("with_{k}_letters", "words with exactly {k} letters", "len(word) == {k}"),
    ("repeating", "words in which a letter occurs twice", "len(set(word)) < len(word)"),
    ("vowel_first", "words that start with a vowel", 'word[0] in "aeiou"'),
)
_WORD_RESULTS = (
    ("count", "int", "Count the {} in a text of lower case words.", "len([{}])", "word"),
    ("upper", "list[str]", "Return the {} in a text, in capitals.", "[{}]", "word.upper()"),
    ("join", "str", "Return the {} in a text, joined by hyphens.", '"-".join({})', "word"),
    ("lengths", "list[int]", "Return the lengths of the {} in a text.", "[{}]", "len(word)"),
    ("sorted", "list[str]", "Return the {} in a text in alphabetical order.", "sorted({})", "word"),
    ("reversed", "list[str]", "Return the {} in a text, each written backwards.", "[{}]", "word[::-1]"),
    ("initials", "str", "Return the first letters of the {} in a text as one string.", '"".join({})', "word[0]"),
    ("longest", "str", "Return the longest of the {} in a text, the first of several; empty if there is none.",
     'max(({}), key=len, default="")', "word"),
)  # fmt: skip
_SAMPLE_WORDS = (
    "level", "orange", "kayak", "tree", "stone", "apple", "noon", "window", "river", "sun", "eagle", "bottle",
    "letter", "ink", "radar", "garden", "oat", "pepper", "cloud", "eve",
)  # fmt: skip


def _of_words(d: Draws) -> Part:
    which, noun, condition = d.pick(_WORDS)
    result, kind, summary, short, expression = d.pick(_WORD_RESULTS)
    fill = {"k": d.number(4, 6), "c": d.pick("aeorstl"), "e": d.pick(("e", "n", "r", "t"))}
    noun, condition, which = (text.format(**fill) for text in (noun, condition, which))
    text = " ".join(d.several(_SAMPLE_WORDS, 7))
    taken = f"{expression} for word in text.split() if {condition}"
    kept = f"{expression} for word in words if {condition}"
    body = d.pick(
        (
            f"    found = {short.format(taken)}\n    return found",
            f"    words = text.split()\n    return {short.format(kept)}",
        )
    )
    return Part(
        f"{result}_words_{which}",
        f"text: str) -> {kind}",
        summary.format(noun),
        body,
        (f'"{text}"',),
    )


_FIELDS = (
    ("price", "products", "product", "shelf"),
    ("age", "people", "person", "town"),
    ("points", "players", "player", "team"),
    ("pages", "books", "book", "genre"),
    ("weight", "parcels", "parcel", "country"),
    ("minutes", "films", "film", "language"),
    ("salary", "employees", "employee", "office"),
    ("distance", "trips", "trip", "driver"),
)
"""Number, things, thing, and what they are grouped by."""
_RECORDS = """
# names_with_<f>_above -> list[str]: Return the names of the <many> whose <said> is above `limit`.
found = []
for <one> in <many>:
    if <one>['<f>'] > limit:
        found.append(<one>['name'])
return found
# <many>_by_<f> -> list[dict]: Return the <many> in ascending order of their <said>.
ordered = sorted(<many>, key=lambda <one>: <one>['<f>'])
return ordered
# highest_<f>_name -> str: Return the name of the <one> with the highest <said>.
best = max(<many>, key=lambda <one>: <one>['<f>'])
return best['name']
# lowest_<f>_name -> str: Return the name of the <one> with the lowest <said>.
best = <many>[0]
for <one> in <many>[1:]:
    if <one>['<f>'] < best['<f>']:
        best = <one>
return best['name']
# total_<f>_by_<g> -> dict[str, int]: Add up the <said> of the <many> for each <g>.
totals: dict[str, int] = {}
for <one> in <many>:
    totals[<one>['<g>']] = totals.get(<one>['<g>'], 0) + <one>['<f>']
return totals
# count_<many>_by_<g> -> dict[str, int]: Count the <many> of each <g>.
counts: dict[str, int] = {}
for <one> in <many>:
    counts[<one>['<g>']] = counts.get(<one>['<g>'], 0) + 1
return counts
# average_<f> -> float: Return the average <said> of the <many>, or 0.0 if there are none.
if not <many>:
    return 0.0
return sum(<one>['<f>'] for <one> in <many>) / len(<many>)
# names_by_<g> -> dict[str, list[str]]: Return the names of the <many> of each <g>, in their order.
groups: dict[str, list[str]] = {}
for <one> in <many>:
    groups.setdefault(<one>['<g>'], []).append(<one>['name'])
return groups
# <f>_by_name -> dict[str, int]: Return the <said> of each of the <many> by its name.
by_name = {<one>['name']: <one>['<f>'] for <one> in <many>}
return by_name
# all_<f>_above -> bool: Tell whether the <said> of every one of the <many> is above `limit`.
values = [<one>['<f>'] for <one> in <many>]
return all(value > limit for value in values)
# any_<f>_above -> bool: Tell whether the <said> of at least one of the <many> is above `limit`.
for <one> in <many>:
    if <one>['<f>'] > limit:
        return True
return False
# <f>_spread -> int: Return the difference between the highest and the lowest <said> of the <many>.
values = [<one>['<f>'] for <one> in <many>]
return max(values) - min(values)
"""
"""A head with name, type and summary, then the code; what stands in <> is filled in."""


def _of_records(d: Draws) -> Part:
    f, many, one, g = d.pick(_FIELDS)
    said = f"number of {f}" if f.endswith("s") else f
    filled = d.pick(_RECORDS.strip("\n# ").split("\n# "))
    for slot, word in (("f", f), ("said", said), ("many", many), ("one", one), ("g", g)):
        filled = filled.replace(f"<{slot}>", word)
    head, _, code = filled.partition("\n")
    name, kind, summary = re.split(" -> |: ", head, maxsplit=2)
    body = "\n".join(f"    {line}" for line in code.replace("'", '"').split("\n"))
    limit, has_limit = d.number(20, 50), "limit" in code
    groups = d.several(("north", "south", "red", "blue"), 2)
    shown = ", ".join(
        f"{{'name': '{label}', '{f}': {d.number(10, 80)}, '{g}': '{d.pick(groups)}'}}"
        for label in "AB"
    )
    signature = f"{many}: list[dict]{', limit: int' if has_limit else ''}) -> {kind}"
    inputs = (f"[{shown}]", *([str(limit)] if has_limit else []))
    return Part(name, signature, summary, body, inputs)


def functions(seed: int, counts: tuple[int, int, int]) -> Iterator[Part]:
    """Different functions: so many about numbers, words and records; none has the summary of another."""
    seen: set[str] = set()
    for make, n_wanted in zip((_of_numbers, _of_words, _of_records), counts, strict=True):
        n_made = 0
        for turn in range(100 * n_wanted):
            part = make(Draws(seed, make.__name__, turn))
            if n_made == n_wanted:
                break
            if part.summary not in seen:
                seen.add(part.summary)
                n_made += 1
                yield part
