"""Tables of PEFT's that give layers a value by a pattern: `rank_pattern` and `alpha_pattern`.

PEFT takes the first pattern that a layer's name ends with, each a regular expression that comes with
the adapter. Python's expressions can take longer than anybody waits. So those that are read here are
few: names, and expressions whose work on these names has a bound that is known before any is run.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from math import comb
from typing import Any

from tunesmith.errors import ModelError

__all__ = ["doubtful_settings", "values_by_pattern"]

MOST_CHARACTERS = 500
"""Of a pattern."""
MOST_CHARACTERS_IN_ALL = 2_000_000
"""Of a table's patterns together."""
MOST_GROUPS = 8
"""Inside of each other."""
MOST_STEPS = 10_000_000_000
"""Of comparing a character, for all patterns and names together: seconds."""

_SETTINGS = ("target_modules", "exclude_modules", "layers_pattern")
"""Whose texts PEFT matches as regular expressions with the names of all layers."""
_LONG_NAME = 100
_MOST_CHARACTERS_OF_SETTINGS = 4_000
_MOST_STEPS_OF_SETTINGS = 10**15
"""Of one name. A bound above what is really done: tools write such with five `.*?` and long alternatives."""

_TOKEN = re.compile(
    r"(?P<open>\((?:\?[:=!])?)|(?P<close>\))|(?P<bar>\|)|(?P<anchor>[\^$]|\\b)"
    r"|(?P<repeat>[*+?]\??|\{(?:\d+(?:,\d*)?|,\d+)\}\??)"
    r"|(?P<one>\\[dwsDWS]|\\[^\w\s]|\[\^?\]?(?:\\.|[^\]\\\[])*\]|[^\\*+?{}()|\[\]^$])"
)
_FIX = (
    "write names of layers there, such as layers.0.self_attn.q_proj, or the alternatives (q|v)_proj"
)


class _Refused(Exception):
    """Why a pattern is not run."""


def values_by_pattern(table: Any, modules: Collection[str], where: str) -> dict[str, Any]:
    """Module -> value of the first pattern that its name ends with, as PEFT has it.

    Modules that no pattern fits are left out.

    Args:
        table: pattern -> value; None and an empty one give nothing.
        modules: names in the base, such as "model.layers.0.self_attn.q_proj".
        where: what errors call the table.

    Raises:
        ModelError: it is no table of patterns, or one of them is not run.
    """
    if not table:
        return {}
    longest = max(map(len, modules), default=0)
    steps = characters = 0
    known: list[tuple[re.Pattern[str], Any]] = []
    try:
        if not isinstance(table, Mapping):
            raise _Refused(f"{table!r}"[:200], "it is no table of patterns")
        for pattern, value in table.items():
            characters += len(pattern)
            steps += len(modules) * _steps(pattern, longest)
            if steps > MOST_STEPS or characters > MOST_CHARACTERS_IN_ALL:
                told = f"matching it, and those before it, with {len(modules):,} names could take hours"
                raise _Refused(f"{pattern!r}", told)
            known.append((re.compile(rf"(.*\.)?({pattern})$"), value))
    except _Refused as refused:
        shown, why = refused.args
        raise ModelError(f"{where} holds {shown[:200]}", why=why, fix=_FIX) from refused
    except (re.error, OverflowError) as error:
        raise ModelError(
            f"{where} holds {pattern!r}", why=f"it is no regular expression: {error}", fix=_FIX
        ) from error
    found = {}
    for module in modules:
        for expression, value in known:
            if expression.match(module):
                found[module] = value
                break
    return found


def doubtful_settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Key, expression, and why it can take for ever: what PEFT runs when it puts the adapter on a model."""
    for key in _SETTINGS:
        value = config.get(key)
        each = value if isinstance(value, list) and key == "layers_pattern" else [value]
        for pattern in each:
            if not isinstance(pattern, str):
                continue
            try:
                steps = _steps(pattern, _LONG_NAME, _MOST_CHARACTERS_OF_SETTINGS)
            except _Refused as refused:
                yield key, pattern, refused.args[1]
            else:
                if steps > _MOST_STEPS_OF_SETTINGS:
                    yield key, pattern, "it can share out a name in too many ways"


def _steps(pattern: str, longest: int, most_characters: int = MOST_CHARACTERS) -> int:
    """Characters that are compared at most to match a pattern with a name of a length.

    A match that fails has tried every way in which the repeats share the name's characters, and every
    alternative with each of them.
    """
    if len(pattern) > most_characters:
        told = f"it has {len(pattern):,} characters, {most_characters:,} is the most"
        raise _Refused(f"{pattern!r}", told)
    reader = _Reader(pattern)
    ways, repeats = reader.alternatives(0)
    repeats += 1  # Of the `.*` that PEFT puts before it.
    each = len(pattern) + min(longest, reader.counted) + 1
    return comb(longest + repeats, repeats) * ways * each


class _Reader:
    """Reads the expressions that are run, and counts for each part (ways, repeats): in how many ways it
    fits a text, and how many repeats without an end are in it, each of which may take any share.

    Attributes:
        counted: the sum of what repeats with an end count to.
    """

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.position = 0
        self.counted = 0

    def alternatives(self, depth: int) -> tuple[int, int]:
        """Up to the closing bracket or the end."""
        if depth > MOST_GROUPS:
            raise self._refused(f"has more than {MOST_GROUPS} groups inside of each other")
        ways, repeats = self._sequence(depth)
        while self._next() == "bar":
            self.position += 1
            more, others = self._sequence(depth)
            ways, repeats = ways + more, max(repeats, others)
        if (self._next() == "close") != (depth > 0):
            raise self._refused("has a bracket without the other one")
        self.position += depth > 0
        return ways, repeats

    def _sequence(self, depth: int) -> tuple[int, int]:
        ways, repeats = 1, 0
        while (kind := self._next()) not in ("bar", "close", ""):
            text = self._take()
            if kind == "repeat":
                raise self._refused(f"repeats nothing, or a repeat, by {text!r}")
            more, others = self.alternatives(depth + 1) if kind == "open" else (1, 0)
            if self._next() == "repeat":
                more, others = self._repeated(kind, self._take(), (more, others))
            ways, repeats = ways * more, repeats + others
        return ways, repeats

    def _repeated(self, kind: str, sign: str, part: tuple[int, int]) -> tuple[int, int]:
        sign = sign if sign == "?" else sign.removesuffix("?")
        if sign == "?":
            return part[0] + 1, part[1]
        if kind != "one":
            raise self._refused(f"repeats a group, or a place, by {sign!r}")
        if sign in "*+":
            return 1, 1
        first, comma, last = sign.strip("{}").partition(",")
        self.counted += int(last or first)
        if comma and not last:
            return 1, 1
        return max(1, int(last or first) - int(first or 0) + 1) if comma else 1, 0

    def _next(self) -> str:
        """The kind of what follows; empty at the end."""
        if self.position == len(self.pattern):
            return ""
        found = _TOKEN.match(self.pattern, self.position)
        if found is None:
            raise self._refused(f"has {self.pattern[self.position :][:3]!r}, which is not run here")
        return str(found.lastgroup)

    def _take(self) -> str:
        found = _TOKEN.match(self.pattern, self.position)
        if found is None:
            raise self._refused("ends early")
        self.position = found.end()
        return found.group()

    def _refused(self, told: str) -> _Refused:
        return _Refused(f"{self.pattern!r}", f"it {told}; such an expression can take for ever")
