"""What reading and converting refuse, as findings of the same look as all others."""

from __future__ import annotations

import re

from tunesmith.data.check.finding import Finding, finding
from tunesmith.data.problems import Problems

__all__ = ["Noted", "as_finding"]

_PATH = re.compile(r"([A-Za-z_][\w-]*(?:\[\d+\])?(?:\.[A-Za-z_]\w*|\[\d+\])*): (.+)", re.DOTALL)
_MISSING = re.compile(r"the field '([^']+)' is missing")
_HEAD_CHARACTERS = 1_000
_VALUE = re.compile(r"(?:'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")")

_FIXES: tuple[tuple[str, str], ...] = (
    ("empty file", "name a file that has rows"),
    ("no rows", "name a file that has rows"),
    ("UTF-16", "save the file as UTF-8"),
    ("not UTF-8", "save the file as UTF-8: `iconv -f latin1 -t utf-8 FILE`, if it is Latin-1"),
    ("NUL", "remove the NUL: the file was cut by a crash, or is no text"),
    ("cut off", "write or download the file again"),
    ("stands twice", "keep one of the two values"),
    ("NaN", "write null, or leave the field out"),
    ("Infinity", "write null, or leave the field out"),
    ("too deeply", "flatten the value"),
    ("is_list", "name the file .json"),
    ("JSON object", "write each row as one JSON object on a line"),
    ("not valid JSON", "correct the JSON of this line"),
    ("mixed schemas", "give all rows of the file one schema, or a field `task`"),
    ("is missing", "add the field, or name it under data.fields"),
)
_KINDS: tuple[tuple[str, str], ...] = (
    (r"chosen and rejected are the same", "equal-answers"),
    (r"tool_call", "tool-calls"),
    (r"\.(?:role|from)\b|the last turn is|no assistant turn|as the first turn", "roles"),
    (r"(?:^|: )empty$", "empty"),
)


class Noted(Problems):
    """Problems that come as findings, each of them kept until `taken`.

    Args:
        check: of those that are about bytes and JSON, `unreadable`; about fields, `schema`.
    """

    def __init__(self, check: str) -> None:
        super().__init__()
        self._check = check
        self._found: list[Finding] = []

    def add(self, where: str, what: str) -> None:
        """Note a problem."""
        self.n_problems += 1
        self._found.append(as_finding(self._check, where, what))

    def taken(self) -> list[Finding]:
        """Those that came since it was asked last."""
        found, self._found = self._found, []
        return found


def as_finding(check: str, where: str, what: str) -> Finding:
    """A problem of reading (`unreadable`) or converting (`schema`) as a finding."""
    field, said, value = "", what, ""
    if check == "schema":
        if path := _PATH.fullmatch(what):
            field, said = path[1], path[2]
            value = found[0] if (found := _VALUE.search(said[:_HEAD_CHARACTERS])) else ""
        elif missing := _MISSING.search(what):
            field = missing[1]
        check = next((name for form, name in _KINDS if re.search(form, what)), check)
    if value:
        # The value is shown beside what is said of it.
        said = said.removesuffix(f" {value}")
    fix = next((fix for part, fix in _FIXES if part in what), "")
    return finding(where, check, said, field=field, value=value, fix=fix)
