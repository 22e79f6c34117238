"""Shapes filled from a database: questions about the user's own tables, columns, keys and values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tunesmith.data.make.database import name_in_sql, value_in_sql
from tunesmith.data.make.english import article, plural, spoken
from tunesmith.data.make.rows import Order
from tunesmith.data.make.shapes import SHAPES, Shape
from tunesmith.data.make.tables import Column, Link, Table, Value

__all__ = ["Question", "questions_of"]

Fill = dict[str, str]
MAX_FILLS = 24
"""Fillings of one shape for one table."""
MAX_CHOICES = 6
"""Columns or values that one slot is given."""
_OF_PARTS = {
    "max_value",
    "at_most_value",
    "labels_of_category",
    "labels_above",
    "count_distinct",
    "list_distinct",
}
"""Shapes whose answer stays right when a thing has several rows, with `distinct`."""
_NOT_SUMMED = re.compile(
    r"age|rate|ratio|percent|percentage|share|average|mean|temperature|weight|height|latitude|longitude|elevation|"
    r"altitude|density|rating|score|rank|ranking|level|grade|position|size|length|width|depth|speed|floor|index|year|"
    r"version|priority|number|price per .*|degree|discount|margin|salinity|ph|bpm|grade"
)
_NOT_AVERAGED = re.compile(
    r"rank|ranking|position|version|index|latitude|longitude|number|room|floor|round"
)

_SUPERLATIVE = re.compile(
    r"(?:highest|lowest|average|mean|most|fewest|latest|earliest|maximum|minimum)\b"
)
"""What is a superlative already cannot have another."""


@dataclass(frozen=True)
class Question:
    """A question with its query, not yet run.

    Attributes:
        template: shape and wording: "count_all.2".
        tables: those that the query reads.
        ranks: a query of what decides the order, and how many of its rows are taken; else None.
        is_single: the question asks about one thing, so that the result must be one row.
    """

    text: str
    sql: str
    shape: str
    template: str
    tables: tuple[str, ...]
    ranks: tuple[str, int] | None = None
    is_single: bool = False


class _Filler:
    """Fills the slots of shapes for one table."""

    def __init__(self, table: Table, by_name: Mapping[str, Table], order: Order) -> None:
        self.table = table
        self.by_name = by_name
        self.order = order
        self.is_joined = False

    def some(self, items: Sequence[Value], *key: object) -> list[Value]:
        return self.order.shuffled(items, self.table.name, *key)[:MAX_CHOICES]

    def sql(self, column: Column | str, table: Table | None = None) -> str:
        """A column, with its table where several are joined."""
        name = column.sql if isinstance(column, Column) else name_in_sql(column)
        return f"{(table or self.table).sql}.{name}" if self.is_joined else name

    def base(self) -> Fill:
        return {"t": self.table.sql, "one": self.table.one, "many": self.table.many}

    def fills(self, shape: Shape) -> Iterator[Fill]:
        """Every way to fill a shape, in a random order; at most `MAX_FILLS`."""
        needs = shape.needs.split("+")
        self.is_joined = needs[0] in ("link", "chain")
        lists: list[list[Fill]] = []
        for need in needs:
            if need == "category" and self.is_joined:
                continue  # the parent's, filled with the link
            lists.append(list(self._filled(need, needs, shape)))
        made = itertools.islice(itertools.product(*lists), 2_000)
        for parts in self.order.shuffled(made, shape.name, self.table.name)[:MAX_FILLS]:
            fill = self.base()
            for part in parts:
                fill |= part
            yield fill

    def _filled(self, need: str, needs: Sequence[str], shape: Shape) -> Iterator[Fill]:
        match need:
            case "table":
                yield {}
            case "number" | "level" | "level-sum" | "sum":
                yield from self._numbers(need, shape)
            case "category":
                yield from self._categories(shape)
            case "label" | "lookup":
                yield from self._labels(need)
            case "date" | "flag" | "missing":
                yield from self._others(need)
            case "link":
                for link in self._links():
                    yield from self._linked(link, needs)
            case "chain":
                yield from self._chains()
            case _:
                yield {}  # `parent` and `plain` are filled with the link

    def _numbers(self, need: str, shape: Shape) -> Iterator[Fill]:
        for column in self.table.of("number", "year"):
            if shape.needs_no_gap and column.has_nulls:
                continue
            if _SUPERLATIVE.match(column.one) or (need != "number" and not _may_be(need, column)):
                continue
            is_year = column.role == "year"
            words = (("latest", "earliest"), ("after", "before")) if is_year else (
                ("highest", "lowest"), ("over", "under"))  # fmt: skip
            values = sorted(
                v for v in self.some(column.values, column.name) if not isinstance(v, str)
            )
            base = {"n": self.sql(column), "n_one": column.one, "n_a": article(column.one)}
            for index, value in enumerate(values[:-1]):
                is_top = index % 2 == 0
                yield base | {
                    "top": "max" if is_top else "min",
                    "way": "desc" if is_top else "asc",
                    "most": words[0][0 if is_top else 1],
                    "sign": ">" if is_top else "<",
                    "side": words[1][0 if is_top else 1],
                    "x": value_in_sql(value),
                    "x_said": spoken(value),
                    "y": value_in_sql(values[index + 1]),
                    "y_said": spoken(values[index + 1]),
                    "k": str((3, 5, 2, 4)[index % 4]),
                }

    def _categories(self, shape: Shape) -> Iterator[Fill]:
        for column in self.table.of("category"):
            if shape.needs_no_gap and column.has_nulls:
                continue
            if column.has_blanks and (shape.needs_no_gap or "distinct" in shape.sql):
                continue
            base = {"c": self.sql(column), "c_one": column.one, "c_many": plural(column.one)}
            yield from (base | two for two in self._values(column))

    def _values(self, column: Column) -> Iterator[Fill]:
        values = self.some(column.values, column.name)
        for index, value in enumerate(values):
            other = values[(index + 1) % len(values)]
            two = {"w": value_in_sql(other), "w_said": spoken(other)} if other != value else {}
            yield {
                "v": value_in_sql(value),
                "v_said": spoken(value),
                **two,
                "k": str((2, 3, 4, 5, 10, 20)[index]),
            }

    def _labels(self, need: str) -> Iterator[Fill]:
        label = self.table.label
        if label is None or label.has_nulls:
            return
        base = {
            "l": self.sql(label),
            "l_one": label.one,
            "l_many": plural(label.one),
            "called": _called(label),
        }
        if need == "label" and not self.is_joined:
            firsts = dict.fromkeys(str(v)[0].upper() for v in self.some(label.values, "first"))
            yield from (
                base | {"letter": letter}
                for letter in firsts
                if letter.isascii() and letter.isalpha()
            )
            return
        values = self.some(label.values, "called")
        said = [{"v": value_in_sql(value), "v_said": spoken(value)} for value in values]
        if need == "label":
            # A joined shape that asks for labels has its value from the link, unless it asks for one row.
            yield from (
                {**base, **{f"l{key}": text for key, text in one.items()}} for one in said[:2]
            )
            return
        for column in self.table.of("number", "year", "date", "category", "text"):
            a = {"a": self.sql(column), "a_one": column.one}
            yield from (base | a | one for one in said)

    def _others(self, need: str) -> Iterator[Fill]:
        if need == "flag":
            yield from ({"f": self.sql(c), "f_one": c.one} for c in self.table.of("flag"))
        elif need == "missing":
            for column in self.table.of("number", "category", "date", "text", "year"):
                if column.has_nulls and not column.has_blanks:
                    yield {"m": self.sql(column), "m_one": column.one, "m_a": article(column.one)}
        for column in self.table.of("date") if need == "date" else ():
            days = [str(value) for value in self.some(column.values, column.name)]
            for day in days:
                base = {
                    "d": self.sql(column),
                    "d_one": column.one,
                    "d_a": article(column.one),
                    "year": day[:4],
                }
                yield base | ({"day": day} if len(day) == 10 else {})

    def _links(self) -> Iterator[Link]:
        seen: set[str] = set()
        for link in self.table.links:
            parent = self.by_name[link.target.lower()]
            if parent.rows_are_things and link.role not in seen:
                seen.add(link.role)
                yield link

    def _joined(self, link: Link) -> Fill:
        parent = self.by_name[link.target.lower()]
        fk, pk = self.sql(link.column), self.sql(link.target_column, parent)
        return {
            "p": parent.sql, "p_one": parent.one, "p_many": parent.many,
            "role": link.role, "role_a": article(link.role), "fk": fk, "pk": pk,
            "join": f"{self.table.sql} join {parent.sql} on {fk} = {pk}",
        }  # fmt: skip

    def _linked(self, link: Link, needs: Sequence[str]) -> Iterator[Fill]:
        parent = self.by_name[link.target.lower()]
        base, label = self._joined(link), parent.label
        if label is not None:
            base |= {
                "pl": self.sql(label, parent),
                "pl_one": label.one,
                "pl_many": plural(label.one),
            }
        if "category" in needs:
            for column in parent.of("category", "year"):
                named = {"pc": self.sql(column, parent), "pc_one": column.one}
                yield from (base | named | two for two in self._values(column))
        elif label is None or not label.is_unique:
            return
        elif label.name == link.target_column and "plain" not in needs:
            return  # the column itself holds the label: asked without a join
        elif "plain" in needs:
            if link.role == parent.one:
                yield from (base | {"k": str(k)} for k in (2, 3, 4, 5, 10))
        elif "parent" in needs:
            yield from (base | two for two in self._values(label))
        else:
            yield base

    def _chains(self) -> Iterator[Fill]:
        for link in self._links():
            parent = self.by_name[link.target.lower()]
            for further in parent.links:
                grand = self.by_name[further.target.lower()]
                label = grand.label
                if grand is self.table or grand is parent or label is None or not label.is_unique:
                    continue
                base = self._joined(link) | {
                    "g": grand.sql,
                    "g_role": further.role,
                    "gfk": self.sql(further.column, parent),
                    "gpk": self.sql(further.target_column, grand),
                    "gl": self.sql(label, grand),
                }
                yield from (base | two for two in self._values(label))


def questions_of(
    table: Table, by_name: Mapping[str, Table], order: Order
) -> Iterator[list[Question]]:
    """For each shape that fits the table: its questions, in the order in which they should be used."""
    filler = _Filler(table, by_name, order)
    for shape in SHAPES:
        if not table.rows_are_things and shape.name not in _OF_PARTS:
            continue
        found = [q for fill in filler.fills(shape) for q in _worded(shape, fill, table)]
        if found:
            yield order.shuffled(found, "used", shape.name, table.name)


def _worded(shape: Shape, fill: Fill, table: Table) -> Iterator[Question]:
    is_single = shape.name in ("lookup", "parent_of")
    if shape.name == "parent_of":
        fill = fill | {"v": fill["lv"], "v_said": fill["lv_said"]}
    try:
        sql = shape.sql.format_map(fill)
    except KeyError:
        return  # a slot that this table has nothing for, such as a day in a column of times
    if not table.rows_are_things:
        sql = re.sub(r"^select (?!distinct |(?:count|max|min)\()", "select distinct ", sql)
    ranks = (shape.ranks.format_map(fill), int(fill.get("k", "1")) if "{k}" in shape.sql else 1)
    tables = tuple(
        dict.fromkeys(
            [
                table.name,
                *(
                    _bare(fill[slot])
                    for slot in ("p", "g")
                    if f"{{{slot}}}" in shape.sql + "{p}" and slot in fill
                ),
            ]
        )
    )
    for index, phrasing in enumerate(shape.phrasings):
        if "which" in phrasing.lower() and "{l}" in shape.sql and not _names_things(table):
            continue  # its rows go by something that is no name: that must be asked for by its word
        try:
            text = _smoothed(phrasing.format_map(fill))
        except KeyError:
            continue
        yield Question(
            text[0].upper() + text[1:] if text.endswith(("?", ".")) else text,
            sql,
            shape.name,
            f"{shape.name}.{index}",
            tables,
            ranks if shape.ranks else None,
            is_single,
        )


def _names_things(table: Table) -> bool:
    label = table.label
    return label is not None and label.one in ("name", "title", "label", "full name", table.one)


def _bare(sql: str) -> str:
    return sql[1:-1].replace('""', '"') if sql.startswith('"') else sql


def _called(label: Column) -> str:
    return {"name": "named", "title": "titled", "label": "labelled"}.get(
        label.one, f"with the {label.one}"
    )


def _may_be(need: str, column: Column) -> bool:
    """Whether an average, or a sum, of a column says something."""
    last = column.one.rpartition(" ")[2]
    if column.role == "year" or _NOT_AVERAGED.fullmatch(last):
        return False
    return need == "level" or column.one.startswith("number of ") or not _NOT_SUMMED.fullmatch(last)


_COUNTED = re.compile(
    r"\ba number of (?P<what>[\w ]+?) (?P<side>over|under) (?P<x>\S+?)(?=[?.]|\s|$)"
)
_SPAN = re.compile(
    r"\ba number of (?P<what>[\w ]+?) (?:from|between) (?P<x>\S+) (?:to|and) (?P<y>\S+?)(?=[?.]|\s|$)"
)


def _smoothed(text: str) -> str:
    """ "a number of docks over 20" -> "more than 20 docks"."""
    text = re.sub(r"\btotal total\b", "overall total", text)
    more = {"over": "more than", "under": "fewer than"}
    text = _COUNTED.sub(lambda m: f"{more[m['side']]} {m['x']} {m['what']}", text)
    text = _SPAN.sub(lambda m: f"from {m['x']} to {m['y']} {m['what']}", text)
    return (
        text.replace("highest number of", "most").replace("lowest number of", "fewest")
        if re.search(r"(?:has|have|with) the (?:highest|lowest) number of", text)
        else text
    )
