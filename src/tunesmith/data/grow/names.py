"""New names for tables and columns: other words for the same thing, or another way to write the name."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from itertools import pairwise
from random import Random

__all__ = ["draw_names", "other_names"]

_ALIKE = """
address street_address location
age years age_years
amount sum_total total_amount
area surface surface_area
artist performer artist_name
author writer
begin start start_point
birthday birth_date date_of_birth
book volume
born birth_year year_of_birth
building site
category class kind_of
city town municipality
client customer buyer
cost expense price_paid
country nation
crowd attendance spectators
customer client buyer
date day calendar_date
department division unit
description details summary
doctor physician
duration length_of_time time_taken
email mail_address email_address
employee staff_member worker
end finish
fee charge
floor storey level
founded founding_year established
game match fixture
gender sex
genre category style
goals goals_scored
guests visitors
height how_tall
id identifier key_number
hall venue
item article
kind type_of category
length extent
loan lending borrowing
manager supervisor
member subscriber
minutes duration_minutes
model make_model
month month_number
name label full_name
number num
order purchase
pages page_count
patient client_patient
phone telephone phone_number
piece exhibit work_of_art
player squad_member
population inhabitants residents
position place role
price cost unit_price
product article goods
quantity amount count_of
rating score
region district
river stream waterway
room chamber
salary pay wage
sale purchase transaction_made
shelf rack
size extent
state province
station stop
status condition
stock inventory on_hand
student pupil learner
supplier vendor
teacher instructor
team side squad
title heading
total overall
tour visit_tour guided_tour
town city municipality
type kind sort_of
value worth
visit appointment consultation
weight mass
work composition
year calendar_year
"""
_SYNONYMS = {
    words[0]: tuple(words[1:]) for words in (line.split() for line in _ALIKE.split("\n")) if words
}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")
_SHARE_RENAMED = 0.75
_OF_COLUMNS = ("{}_field", "{}_col", "{}_value", "{}_info", "the_{}", "col_{}")
_OF_TABLES = ("{}_table", "{}_list", "{}_rows", "{}_info", "the_{}", "all_{}")
_N_RESPELLED = 3 + len(_OF_COLUMNS)
"""So many of a name's other names are the same words; what comes before them are synonyms."""


def other_names(name: str, *, of_table: bool = False) -> list[str]:
    """Names that say the same: synonyms first, then the same words written otherwise."""
    words = [word.casefold() for word in _WORDS.findall(name)]
    found: list[str] = []
    for place in range(len(words) - 1, -1, -1):
        for synonym in _SYNONYMS.get(words[place], ()):
            found.append("_".join([*words[:place], synonym, *words[place + 1 :]]))
    found = [other for other in found if not _stutters(other)]
    return [
        other
        for other in dict.fromkeys([*found, *_respelled(words, of_table=of_table)])
        if other != name
    ]


def _stutters(name: str) -> bool:
    """Whether a word stands twice in a row, as in `unit_unit_price`."""
    words = name.split("_")
    return any(a == b for a, b in pairwise(words))


def _respelled(words: list[str], *, of_table: bool) -> Iterator[str]:
    if not words:
        return
    snake = "_".join(words)
    camel = words[0] + "".join(word.capitalize() for word in words[1:])
    yield snake
    yield camel
    yield "".join(word.capitalize() for word in words)
    for pattern in _OF_TABLES if of_table else _OF_COLUMNS:
        yield pattern.format(snake)


def draw_names(
    tables: Iterable[str], columns: Iterable[str], taken: Collection[str], rng: Random
) -> dict[str, str]:
    """New names for about three quarters of the names of a database, at least one.

    One old name has one new name, wherever it stands: so a column that is called like the table it
    refers to stays so, and `USING` and natural joins keep their meaning.

    Args:
        tables: names of tables.
        columns: names of columns of all tables.
        taken: names that must not come up: views, indexes and the like.
        rng: decides.

    Returns:
        Old name, casefolded -> new name. No new name is an old one, whatever its case.
    """
    of_tables = {name.casefold(): name for name in tables}
    old = sorted((of_tables | {name.casefold(): name for name in columns}).items())
    used = {name.casefold() for name in taken} | {folded for folded, _ in old}
    made: dict[str, str] = {}
    chosen = [pair for pair in old if rng.random() < _SHARE_RENAMED] or old
    for folded, name in chosen:
        candidates = other_names(name, of_table=folded in of_tables)
        n_near = max(0, len(candidates) - _N_RESPELLED)
        first, rest = candidates[:n_near], candidates[n_near:]
        rng.shuffle(first)
        rng.shuffle(rest)
        for candidate in [*first, *rest]:
            if candidate.casefold() not in used and _is_plain(candidate):
                made[folded] = candidate
                used.add(candidate.casefold())
                break
    return made


def _is_plain(name: str) -> bool:
    """Whether SQLite and the parser of SQL both take it without quotes, as a table and a column."""
    import sqlglot
    from sqlglot.errors import SqlglotError

    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute(f"create table {name} ({name} text)")
            connection.execute(f"select {name}.{name} from {name} where {name} = 1 order by {name}")
            sqlglot.parse_one(f"select {name}.{name} from {name} where {name} = 1", read="sqlite")
        except (sqlite3.Error, SqlglotError):
            return False
    return True
