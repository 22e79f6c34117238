"""Personal data and secrets of whole rows: every string of a row's JSON is searched, all else kept.

Only the string literals that hold something are written anew; every other character of the row
stays as it was. A string that holds JSON itself (the arguments of a tool call) is searched value by
value, so that it is JSON afterwards too; a number there becomes a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tunesmith.config import PiiConfig, SecretsConfig
from tunesmith.data.clean.private import SECRET, Finder, Span, StandIns, mask
from tunesmith.data.clean.spans import resolve
from tunesmith.data.rows import Row

__all__ = ["Masked", "Privacy"]

_LITERAL = re.compile(
    r'(?P<string>"(?:[^"\\]++|\\.)*+")(?P<colon>\s*:)?|(?P<number>-?\d[\d.eE+-]*+)', re.DOTALL
)
_PLAIN_KEYS = frozenset(
    {"content", "text", "value", "role", "messages", "arguments", "completion", "prompt", "raw"}
)
"""Keys that say nothing about their value."""
_CONSTANTS = frozenset({"assistant", "content", "function", "messages", "system", "arguments"})
"""Words of the rows' own form."""
_SHORTEST = 5
_SHORTEST_DIGITS = 7
"""What is shorter holds nothing, but for a name, a PIN or a password in a field of that meaning."""
_TELLS = re.compile(r"name|pass|pwd|(?<![a-z])pin(?![a-z])", re.IGNORECASE)
_SPACE = " \t\r\n"
_NO_FRACTION = re.compile(r"\.0+\Z")
_DEPTH = 4
"""How deep JSON in strings in JSON is followed."""


@dataclass(frozen=True, slots=True)
class Masked:
    """What was found in a row.

    Attributes:
        row: the row with stand-ins, the row itself when nothing was found. A row that must go has
            stand-ins too, so that what is written about it does not keep what it goes for.
        spans: the findings, in the order of the row; places are those in the string that holds each.
        drop: the row must go: something was found that is to be dropped, or
        is_equal: the answers of a pair are the same without it.
    """

    row: Row
    spans: tuple[Span, ...] = ()
    drop: bool = False
    is_equal: bool = False

    @property
    def reason(self) -> str:
        """What was found, by kind and number, without the values: "email 2, secret (jwt) 1"."""
        counts: dict[str, int] = {}
        for span in self.spans:
            name = f"{span.kind} ({span.detail})" if span.detail else span.kind
            counts[name] = counts.get(name, 0) + 1
        found = ", ".join(f"{name} {n}" for name, n in counts.items())
        return f"{found}; without it both answers are the same" if self.is_equal else found


class Privacy:
    """What `data.clean.pii` and `data.clean.secrets` ask for.

    Args:
        pii: for personal data.
        secrets: for secrets.
    """

    def __init__(self, pii: PiiConfig, secrets: SecretsConfig) -> None:
        found = [made for made in (_personal(pii), _secret(secrets)) if made]
        self._actions = {kind: action for action, finder in found for kind in finder.kinds}
        finders = [finder for _, finder in found]
        if len(finders) == 2 and finders[0].allow == finders[1].allow:
            finders = [Finder(tuple(self._actions), finders[0].regions, finders[0].allow)]
        self._finders = tuple(finders)

    @property
    def is_on(self) -> bool:
        """Whether anything is looked for."""
        return bool(self._finders)

    def row(self, row: Row) -> Masked:
        """Search one row, and mask what is to be masked."""
        search = _Search(self._finders, StandIns(row.text))
        text = search.json(row.text, _DEPTH)
        if not search.spans:
            return Masked(row)
        drop = any(self._actions[span.kind] == "drop" for span in search.spans)
        masked = replace(row, text=text, value=json.loads(text))
        # A pair whose answers differ in nothing but what is masked has nothing to prefer any more.
        is_equal = row.kind == "pair" and masked.value["chosen"] == masked.value["rejected"]
        return Masked(masked, tuple(search.spans), drop or is_equal, is_equal)

    def text(self, text: str) -> str:
        """JSON text that is no canonical row, with stand-ins for all that is looked for."""
        return _Search(self._finders, StandIns(text)).json(text, _DEPTH)

    def find(self, row: Row) -> tuple[Span, ...]:
        """What stands in one row."""
        return self.row(row).spans


def _personal(config: PiiConfig) -> tuple[str, Finder] | None:
    """What is done with personal data, and what finds it; None when nothing is to be done."""
    if config.action == "keep":
        return None
    if "phone" in config.kinds:
        return config.action, Finder(config.kinds, config.regions, config.allow)
    return config.action, Finder(config.kinds, allow=config.allow)


def _secret(config: SecretsConfig) -> tuple[str, Finder] | None:
    if config.action == "keep":
        return None
    return config.action, Finder((SECRET,), allow=config.allow)


class _Search:
    """One pass over one row."""

    def __init__(self, finders: tuple[Finder, ...], stand_ins: StandIns) -> None:
        self._finders = finders
        self._stand_ins = stand_ins
        self.spans: list[Span] = []

    def json(self, text: str, depth: int) -> str:
        """JSON text with its strings and long numbers masked; it stays JSON."""
        parts: list[str] = []
        done, key = 0, ""
        for match in _LITERAL.finditer(text):
            literal = match[0] if match["string"] is None else match["string"]
            if match["colon"] is not None:
                key = _decoded(literal)
                new = self._string(literal, "", 0)
            elif match["number"] is not None:
                new = self._number(literal, key)
            else:
                new = self._string(literal, key, depth)
            if new != literal:
                parts += (text[done : match.start()], new)
                done = match.start() + len(literal)
        return "".join((*parts, text[done:])) if parts else text

    def _string(self, literal: str, key: str, depth: int) -> str:
        value = _decoded(literal)
        new = self._value(value, key, depth)
        return literal if new == value else json.dumps(new, ensure_ascii="\\u" in literal)

    def _value(self, value: str, key: str, depth: int) -> str:
        if value in _CONSTANTS or (len(value) < _SHORTEST and not _TELLS.search(key)):
            return value
        if depth and value.lstrip(_SPACE)[:1] in ("{", "[") and _is_json(value):
            return self.json(value, depth - 1)
        return self._masked(value, list(self._found(value, key)))

    def _number(self, literal: str, key: str) -> str:
        """A number that is, say, a phone number becomes its stand-in, as a string."""
        # A column with gaps comes out of some tables as 4155552671.0.
        digits = _NO_FRACTION.sub("", literal)
        is_short = len(digits) < _SHORTEST_DIGITS and not _TELLS.search(key)
        if is_short or not digits.isdigit():
            return literal
        spans = list(self._found(digits, key))
        return json.dumps(self._masked(digits, spans)) if spans else literal

    def _found(self, value: str, key: str) -> Iterator[Span]:
        """Findings in a value; its key stands before it like a word in a text, since it may say what it is."""
        lead = "" if key in _PLAIN_KEYS or not key else f"{key.replace('_', ' ')}: "
        # A key in one piece says it too (`api_key`), and it is what the forms of assignments expect.
        for finder in self._finders:
            prefix = f"{key}: " if lead and SECRET in finder.kinds else lead
            for span in finder.find(prefix + value):
                if span.start >= len(prefix):
                    yield replace(span, start=span.start - len(prefix), end=span.end - len(prefix))

    def _masked(self, value: str, spans: list[Span]) -> str:
        spans = resolve(spans) if len(spans) > 1 else spans
        self.spans += spans
        return mask(value, spans, self._stand_ins)


def _decoded(literal: str) -> str:
    if "\\" not in literal:
        return literal[1:-1]
    found: str = json.loads(literal)
    return found


def _is_json(value: str) -> bool:
    try:
        json.loads(value)
    except (ValueError, RecursionError):
        return False
    return True
