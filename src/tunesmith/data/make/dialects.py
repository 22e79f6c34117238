"""CREATE TABLE statements of PostgreSQL and MySQL as SQLite takes them.

Only what SQLite does not know is changed, and only in statements that it refused: what tables hold and refer to stays.
"""

from __future__ import annotations

import re

__all__ = ["as_sqlite", "is_left_out"]

_LEFT_OUT = re.compile(
    r"(?:begin|start|commit|pragma|set|use|lock|unlock|analyze|grant|revoke|comment|copy|select|delimiter|"
    r"create\s+(?:or\s+replace\s+)?(?:temp\w*\s+)?(?:database|schema|view|trigger|type|sequence|extension|function|domain|"
    r"materialized|role|user)|drop|alter\s+(?:sequence|type|function|schema|role)|"
    r"alter\s+table\s+.*\s(?:owner\s+to|enable|disable|set)\s)\b",
    re.I | re.S,
)
_CHANGES = (
    (r"\bgenerated\s+(?:always|by\s+default)\s+as\s+identity(?:\s*\([^)]*\))?", ""),
    (r"\b(?:auto_increment)\b(?:\s*=\s*\d+)?", ""),
    (r"\b(timestamp|time)\s*(?:\(\d+\))?\s+with(?:out)?\s+time\s+zone", r"\1"),
    (r"\bdefault\s+(?:now|current_timestamp|uuid_generate_v4|gen_random_uuid|nextval)\s*\([^)]*\)", ""),
    (r"\bon\s+update\s+current_timestamp(?:\(\))?", ""),
    (r"::\s*[\w. ]+?(?=[,)\s])", ""),
    (r"\b(\w+)\s*\[\]", r"\1"),
    (r"\b(?:character\s+set|charset|collate)\s+[\w\"]+", ""),
    (r"\bcomment\s*=?\s*'(?:[^']|'')*'", ""),
    (r"[\"`]?\b(\w+)[\"`]?\s+enum\s*(\((?:\s*'(?:[^']|'')*'\s*(?:,|(?=\))))+\))", r'"\1" text check ("\1" in \2)'),
    (r",\s*(?:unique\s+)?(?:fulltext\s+|spatial\s+)?(?:key|index)\s+[`\"]?\w+[`\"]?\s*\([^)]*\)", ""),
)  # fmt: skip
_SCHEMA = re.compile(
    r"\b((?:references|exists|table|only|into|on)\s+)[\"`]?\w+[\"`]?\.(?=[\"`\w])", re.I
)
_OPTIONS = re.compile(
    r"\)\s*(?:engine|default|charset|collate|comment|row_format|tablespace|with|inherits)\b[^)]*$",
    re.I,
)


def is_left_out(statement: str) -> bool:
    """Whether a dump's statement makes no table and no rows, so that it can be passed over."""
    return bool(_LEFT_OUT.match(statement))


def as_sqlite(statement: str) -> str:
    """The statement without what other databases add to types, keys and tables."""
    text = _SCHEMA.sub(r"\1", statement)
    for pattern, by in _CHANGES:
        text = re.sub(pattern, by, text, flags=re.I)
    return _OPTIONS.sub(")", text)
