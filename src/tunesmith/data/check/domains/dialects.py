"""SQL of any dialect by sqlglot, and rules for what it takes for SQL that is none."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tunesmith.errors import ConfigError, EnvironmentProblem, reason_of
from tunesmith.registry import nearest

__all__ = ["has_trailing_comma", "prose_in", "refuse_unknown_dialect", "why_not_sql"]

_NO_NAMES = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\[\]]*+\]|--[^\n]*|/\*(?:.*?\*/|.*)",
    re.DOTALL,
)
_WORD = re.compile(r"[\w']+")
_QUALIFIER = re.compile(r"(?<!\w)(\w++)\s*\.")
_STRONG_WORDS = (
    "the your please sorry cannot can't don't unable there's these those would could should i'm"
)
_STRONG = frozenset(_STRONG_WORDS.split())
_WEAK = frozenset(("i", "you", "we", "am", "are", "an", "my", "our", "me"))
"""Words of a sentence; the weak ones are names now and then."""
_FIRST_WORD_LIST = (
    "select with insert update delete create alter drop merge truncate values explain describe desc show grant "
    "revoke begin start commit rollback set use call exec execute replace pragma analyze vacuum copy comment "
    "declare table"
)
_FIRST_WORDS = frozenset(_FIRST_WORD_LIST.split())
_FIRST = re.compile(r"[\s(]*([A-Za-z]+)")
_KINDS = re.compile(
    r"(?:show|create|drop|alter)\s+(?:(?:or\s+replace|temp|temporary|unique|global|local|full|extended|session|"
    r"external|transient|materialized|recursive|clustered|nonclustered|fulltext|virtual)\s+)*"
    r"(?:all|catalogs?|charset|collation|columns?|create|databases?|domains?|engines?|errors|events?|extensions?|"
    r"fields|functions?|grants|groups?|index|indexes|keys|logins?|open|packages?|plugins|polic(?:y|ies)|"
    r"privileges|procedures?|processlist|publications?|roles?|rules?|schemas?|sequences?|server|stages?|status|"
    r"streams?|synonyms?|system|tables?|tablespaces?|tasks?|triggers?|types?|users?|variables|views?|warehouses?|"
    r"warnings)\b",
    re.IGNORECASE,
)
_UTILITY = re.compile(
    r"(?:grant|revoke)\b.+\b(?:on|to|from)\b|explain\s+(?:\w+\s+)?(?:select|with|insert|update|delete)\b|"
    r"call\s+[\w.]+\s*\(|exec(?:ute)?\s+[\w.\[\]]+\s*(?:\Z|[@'])|set\s+[\w.@]+\s*(?:=|to\b)|"
    r"(?:vacuum|analyze)(?:\s+(?:full|table|verbose))?(?:\s+[\w.]+)?\Z|declare\s+@|comment\s+on\b|"
    r"copy\s+\S+\s+(?:from|to)\b|replace\s+into\b|(?:begin|commit|rollback|start\s+transaction)\s*\Z",
    re.IGNORECASE | re.DOTALL,
)
"""What sqlglot takes unread for a command, or for SHOW, and is one by its form."""
_TRAILING_COMMA = re.compile(r",\s*from\b", re.IGNORECASE)
_MAX_CHARACTERS = 100_000
_LENIENT = frozenset(("bigquery", "duckdb", "snowflake"))
"""Dialects in which a comma may stand before FROM."""


def has_trailing_comma(sql: str) -> bool:
    """Whether a comma stands before FROM: right in some dialects, and far more often forgotten."""
    return _TRAILING_COMMA.search(_NO_NAMES.sub(" ", sql)) is not None


def prose_in(sql: str) -> list[str]:
    """Words of a sentence among the names of a query, when there are several."""
    bare = _NO_NAMES.sub(" ", sql)
    qualifiers = {name.lower() for name in _QUALIFIER.findall(bare)}
    words = [word for word in map(str.lower, _WORD.findall(bare)) if word not in qualifiers]
    strong = [word for word in words if word in _STRONG]
    weak = {word for word in words if word in _WEAK}
    is_prose = len(strong) > 1 or (len(strong) == 1 and weak)
    return sorted({*strong, *weak}) if is_prose else []


def _sqlglot() -> Any:
    try:
        import sqlglot
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "checking SQL of other dialects than SQLite needs the package 'sqlglot', which is not "
            "installed",
            fix="pip install 'tunesmith[data]'",
        ) from error
    return sqlglot


def refuse_unknown_dialect(name: str) -> None:
    known = sorted(d for d in _sqlglot().Dialect.classes if d)
    if name not in known:
        raise ConfigError(
            f"data.check.sql_dialect: sqlglot knows no dialect {name!r}{nearest(name, known)}",
            fix=f"use `auto` or one of: {', '.join(known)}",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """sqlglot logs a warning where it gives up parsing; the rules name that themselves."""
    log = logging.getLogger("sqlglot")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def why_not_sql(sql: str, dialect: str) -> str:
    """Why a text is no statement of a dialect; empty when it is one."""
    if len(sql) > _MAX_CHARACTERS:
        return f"longer than {_MAX_CHARACTERS:,} characters"
    sqlglot = _sqlglot()
    bare = _NO_NAMES.sub(" ", sql)
    first = _FIRST.match(bare)
    word = first[1].lower() if first else ""
    if word not in _FIRST_WORDS and (word, dialect) != ("from", "duckdb"):
        return f"{first[1] if first else sql[:20]!r} begins no statement"
    if dialect not in _LENIENT and _TRAILING_COMMA.search(bare):
        return "a comma before FROM"
    try:
        with _quiet():
            trees = [tree for tree in sqlglot.parse(sql, read=dialect) if tree is not None]
    except (sqlglot.errors.ParseError, sqlglot.errors.TokenError) as error:
        return _first_line(error)
    except RecursionError:
        return "nested too deeply"
    if len(trees) != 1:
        return f"{len(trees)} statements; it must be one"
    return _rules(trees[0], bare.strip()) or (
        f"reads like prose: {', '.join(prose)}" if (prose := prose_in(sql)) else ""
    )


def _first_line(error: Exception) -> str:
    errors = getattr(error, "errors", None)
    if errors:
        return f"{errors[0]['description']} at {errors[0]['highlight']!r}"
    return reason_of(error)[:120]


def _rules(tree: Any, sql: str) -> str:
    """What sqlglot takes for SQL and is none."""
    from sqlglot import exp

    if isinstance(tree, exp.Command | exp.Show):
        is_known = _KINDS.match(sql) or _UTILITY.match(sql)
        return "" if is_known else "no statement that can be told from prose"
    if isinstance(tree, exp.Condition | exp.Alias):
        return "an expression, not a statement"
    for select in tree.find_all(exp.Select):
        if why := _select_rules(select):
            return why
    if isinstance(tree, exp.Delete):
        known = {table.alias_or_name for table in tree.find_all(exp.Table)}
        deleted = [table.name for table in tree.args.get("tables") or ()]
        joined = [one for one in (tree.this, tree.args.get("using")) if isinstance(one, exp.Table)]
        named = {name for one in joined for name in (one.name, one.alias)}
        if unknown := [name for name in deleted if name not in named and name in known]:
            return f"deletes from {unknown[0]!r}, which is not among the tables"
    return ""


def _select_rules(select: Any) -> str:
    from sqlglot import exp

    if not select.expressions:
        return "SELECT of nothing"
    is_bare = not select.args.get("from_") and not select.args.get("from")
    if is_bare and select.parent_select is None:
        columns = [c for e in select.expressions for c in e.find_all(exp.Column)]
        if columns:
            return f"selects the column {columns[0].sql()} from no table"
    limit = select.args.get("limit")
    if limit is not None and isinstance(limit.args.get("expression"), exp.Column | exp.Alias):
        return f"LIMIT {limit.expression.sql()} is no number"
    return ""
