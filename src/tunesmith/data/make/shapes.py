"""The kinds of question that can be asked of any table: a query, and wordings that mean exactly it.

Slots in braces are filled from the user's own database. What a shape needs is said by the names of its
slots; `questions.py` fills them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["SHAPES", "Shape"]


@dataclass(frozen=True)
class Shape:
    """One kind of question.

    Attributes:
        needs: the slots that must be filled, by the name of a filler.
        sql: the query.
        phrasings: wordings of the question; each means what the query gives.
        ranks: a query of what the result is ordered by, without its limit: where the last value that
            is taken equals the next one, the question has no single answer.
        needs_no_gap: no value may be missing, since NULL would be counted or sorted wrongly.
    """

    name: str
    needs: str
    sql: str
    phrasings: tuple[str, ...]
    ranks: str = ""
    needs_no_gap: bool = False


def _read(text: str) -> Iterator[Shape]:
    """Shapes from lines: "name: needs [no-gap]", "= query", "~ ranks", "- wording"."""
    for block in text.strip().split("\n\n"):
        head, *lines = block.split("\n")
        name, _, needs = head.partition(": ")
        marks = {mark: [line[2:] for line in lines if line[0] == mark] for mark in "=~-"}
        yield Shape(
            name,
            needs.removesuffix(" no-gap"),
            marks["="][0],
            tuple(marks["-"]),
            "".join(marks["~"]),
            needs.endswith(" no-gap"),
        )


_OF_ONE_TABLE = """
count_all: table
= select count(*) from {t}
- How many {many} are there?
- What is the total number of {many}?
- Count all {many}.
- number of {many}

count_category: category
= select count(*) from {t} where {c} = {v}
- How many {many} have the {c_one} {v_said}?
- What is the number of {many} whose {c_one} is {v_said}?
- Count the {many} with the {c_one} {v_said}.
- How many {many} are there with {v_said} as their {c_one}?

count_other: category no-gap
= select count(*) from {t} where {c} <> {v}
- How many {many} have another {c_one} than {v_said}?
- Count the {many} whose {c_one} is not {v_said}.
- What is the number of {many} whose {c_one} is anything but {v_said}?

count_either: category
= select count(*) from {t} where {c} in ({v}, {w})
- How many {many} have the {c_one} {v_said} or {w_said}?
- Count the {many} whose {c_one} is {v_said} or {w_said}.
- What is the number of {many} with either {v_said} or {w_said} as their {c_one}?

labels_of_category: category+label
= select {l} from {t} where {c} = {v}
- List the {l_many} of the {many} with the {c_one} {v_said}.
- What are the {l_many} of the {many} whose {c_one} is {v_said}?
- Which {many} have the {c_one} {v_said}?
- {many} with the {c_one} {v_said}

labels_of_other: category+label no-gap
= select {l} from {t} where {c} <> {v}
- Which {many} have another {c_one} than {v_said}?
- List the {l_many} of all {many} whose {c_one} is not {v_said}.

count_distinct: category
= select count(distinct {c}) from {t}
- How many different {c_many} are there among the {many}?
- Count the distinct {c_many} of the {many}.
- What is the number of different {c_many} that the {many} have?

list_distinct: category no-gap
= select distinct {c} from {t}
- What are the different {c_many} of the {many}?
- List each {c_one} that occurs among the {many}, once.
- Show all distinct {c_many} of the {many}.

count_by_category: category no-gap
= select {c}, count(*) from {t} group by {c}
- How many {many} are there for each {c_one}?
- For each {c_one}, count the {many}.
- Show every {c_one} with its number of {many}.
- number of {many} per {c_one}

common_category: category no-gap
= select {c} from {t} group by {c} order by count(*) desc limit 1
~ select count(*) from {t} group by {c} order by count(*) desc
- Which {c_one} is the most common among the {many}?
- What is the most frequent {c_one} of the {many}?
- Which {c_one} occurs most often among the {many}?

frequent_categories: category no-gap
= select {c} from {t} group by {c} having count(*) > {k}
- Which {c_many} do more than {k} {many} have?
- List the {c_many} that more than {k} {many} have.
- What {c_many} are shared by over {k} {many}?

max_value: number
= select {top}({n}) from {t}
- What is the {most} {n_one} of all {many}?
- Find the {most} {n_one} among the {many}.
- {most} {n_one} of any {one}

at_most_value: number+label
= select {l} from {t} where {n} = (select {top}({n}) from {t})
- Which {one} has the {most} {n_one}?
- What is the {l_one} of the {one} with the {most} {n_one}?
- Name the {one} that has the {most} {n_one}.

average: level
= select avg({n}) from {t}
- What is the average {n_one} of the {many}?
- Find the mean {n_one} over all {many}.
- average {n_one} of all {many}

total: level-sum
= select sum({n}) from {t}
- What is the total {n_one} of all {many}?
- Add up the {n_one} of every {one}.

count_above: number
= select count(*) from {t} where {n} {sign} {x}
- How many {many} have {n_a} {side} {x_said}?
- Count the {many} whose {n_one} is {side} {x_said}.
- What is the number of {many} with {n_a} {side} {x_said}?

labels_above: number+label
= select {l} from {t} where {n} {sign} {x}
- Which {many} have {n_a} {side} {x_said}?
- List the {l_many} of the {many} whose {n_one} is {side} {x_said}.
- {many} with {n_a} {side} {x_said}

labels_between: number+label
= select {l} from {t} where {n} between {x} and {y}
- Which {many} have {n_a} from {x_said} to {y_said}?
- List the {l_many} of the {many} whose {n_one} lies between {x_said} and {y_said}, both included.
- What are the {l_many} of {many} with {n_a} between {x_said} and {y_said} inclusive?

top_labels: number+label no-gap
= select {l} from {t} order by {n} {way} limit {k}
~ select {n} from {t} order by {n} {way}
- What are the {l_many} of the {k} {many} with the {most} {n_one}?
- List the {k} {many} with the {most} {n_one}, {most} first.
- Which {k} {many} have the {most} {n_one}?

above_average: level+label
= select {l} from {t} where {n} > (select avg({n}) from {t})
- Which {many} have {n_a} above the average?
- List the {l_many} of the {many} whose {n_one} is higher than average.
- What {many} have a higher {n_one} than the average {one}?

extreme_in_category: category+number
= select {top}({n}) from {t} where {c} = {v}
- What is the {most} {n_one} among the {many} with the {c_one} {v_said}?
- Find the {most} {n_one} of the {many} whose {c_one} is {v_said}.
- For the {c_one} {v_said}, what is the {most} {n_one} of the {many}?

holder_in_category: category+number+label
= select {l} from {t} where {c} = {v} and {n} = (select {top}({n}) from {t} where {c} = {v})
- Which of the {many} with the {c_one} {v_said} has the {most} {n_one}?
- Of the {many} whose {c_one} is {v_said}, which one has the {most} {n_one}?

average_in_category: category+level
= select avg({n}) from {t} where {c} = {v}
- What is the average {n_one} of the {many} with the {c_one} {v_said}?
- Find the mean {n_one} of the {many} whose {c_one} is {v_said}.
- average {n_one} of {many} with the {c_one} {v_said}

count_both: category+number
= select count(*) from {t} where {c} = {v} and {n} {sign} {x}
- How many {many} with the {c_one} {v_said} have {n_a} {side} {x_said}?
- Count the {many} whose {c_one} is {v_said} and whose {n_one} is {side} {x_said}.
- Of the {many} with the {c_one} {v_said}, how many have {n_a} {side} {x_said}?

labels_of_both: category+number+label
= select {l} from {t} where {c} = {v} and {n} {sign} {x}
- Which {many} with the {c_one} {v_said} have {n_a} {side} {x_said}?
- List the {l_many} of the {many} whose {c_one} is {v_said} and whose {n_one} is {side} {x_said}.

average_by_category: category+level no-gap
= select {c}, avg({n}) from {t} group by {c}
- What is the average {n_one} of the {many} for each {c_one}?
- For each {c_one}, give the mean {n_one} of the {many}.
- average {n_one} of the {many} per {c_one}

extreme_by_category: category+number no-gap
= select {c}, {top}({n}) from {t} group by {c}
- What is the {most} {n_one} of the {many} for each {c_one}?
- For each {c_one}, give the {most} {n_one} of any {one}.

lookup: lookup
= select {a} from {t} where {l} = {v}
- What is the {a_one} of the {one} {called} {v_said}?
- Give the {a_one} of the {one} {called} {v_said}.
- For the {one} {called} {v_said}, what is the {a_one}?
- {a_one} of the {one} {called} {v_said}

starts_with: label
= select {l} from {t} where {l} like '{letter}%'
- Which {many} have a {l_one} that starts with {letter}?
- List the {l_many} of {many} that begin with the letter {letter}.

in_year: date
= select count(*) from {t} where {d} like '{year}-%'
- How many {many} have {d_a} in {year}?
- Count the {many} whose {d_one} falls in {year}.

after_day: date
= select count(*) from {t} where {d} > '{day}'
- How many {many} have {d_a} later than {day}?
- Count the {many} whose {d_one} is after {day}.

latest: date
= select max({d}) from {t}
- What is the latest {d_one} of all {many}?
- Find the most recent {d_one} among the {many}.

are: flag
= select count(*) from {t} where {f} = 1
- How many {many} are {f_one}?
- Count the {f_one} {many}.

are_not: flag
= select count(*) from {t} where {f} = 0
- How many {many} are not {f_one}?
- Count the {many} that are not {f_one}.

without: missing
= select count(*) from {t} where {m} is null
- How many {many} have no {m_one}?
- Count the {many} without {m_a}.
"""

_OF_SEVERAL_TABLES = """
count_of_parent: link+parent
= select count(*) from {join} where {pl} = {v}
- How many {many} have the {role} {v_said}?
- Count the {many} whose {role} is {v_said}.
- What is the number of {many} with {v_said} as their {role}?

labels_of_parent: link+parent+label
= select {l} from {join} where {pl} = {v}
- List the {l_many} of the {many} whose {role} is {v_said}.
- Which {many} have the {role} {v_said}?
- What are the {l_many} of the {many} with the {role} {v_said}?

parent_of: link+label
= select {pl} from {join} where {l} = {v}
- What is the {pl_one} of the {role} of the {one} {called} {v_said}?
- Give the {pl_one} of the {role} that belongs to the {one} {called} {v_said}.

count_of_parent_category: link+category
= select count(*) from {join} where {pc} = {v}
- How many {many} have {role_a} whose {pc_one} is {v_said}?
- Count the {many} whose {role} has the {pc_one} {v_said}.
- What is the number of {many} where the {role} has the {pc_one} {v_said}?

labels_of_parent_category: link+category+label
= select {l} from {join} where {pc} = {v}
- List the {l_many} of the {many} whose {role} has the {pc_one} {v_said}.
- Which {many} have {role_a} with the {pc_one} {v_said}?

average_of_parent: link+parent+level
= select avg({n}) from {join} where {pl} = {v}
- What is the average {n_one} of the {many} whose {role} is {v_said}?
- Find the mean {n_one} of the {many} with the {role} {v_said}.

average_of_parent_category: link+category+level
= select avg({n}) from {join} where {pc} = {v}
- What is the average {n_one} of the {many} whose {role} has the {pc_one} {v_said}?
- For {many} with {role_a} whose {pc_one} is {v_said}, find the mean {n_one}.

extreme_of_parent: link+parent+number
= select {top}({n}) from {join} where {pl} = {v}
- What is the {most} {n_one} among the {many} whose {role} is {v_said}?
- Find the {most} {n_one} of the {many} with the {role} {v_said}.

total_of_parent: link+parent+sum
= select sum({n}) from {join} where {pl} = {v}
- What is the total {n_one} of the {many} whose {role} is {v_said}?
- Add up the {n_one} of all {many} with the {role} {v_said}.

count_by_parent: link+plain
= select {pl}, count({fk}) from {p} left join {t} on {fk} = {pk} group by {pk}
- How many {many} does each {p_one} have? Count those with none as 0.
- For each {p_one}, give the {pl_one} and the number of {many}, 0 included.

most_of_parent: link+plain
= select {pl} from {join} group by {pk} order by count(*) desc limit 1
~ select count(*) from {join} group by {pk} order by count(*) desc
- Which {p_one} has the most {many}?
- What is the {pl_one} of the {p_one} with the largest number of {many}?

many_of_parent: link+plain
= select {pl} from {join} group by {pk} having count(*) > {k}
- Which {p_many} have more than {k} {many}?
- List the {pl_many} of the {p_many} that have over {k} {many}.

none_of_parent: link+plain
= select {pl} from {p} where {pk} not in (select {fk} from {t} where {fk} is not null)
- Which {p_many} have no {many}?
- List the {pl_many} of the {p_many} without any {many}.

count_above_of_category: link+category+number
= select count(*) from {join} where {pc} = {v} and {n} {sign} {x}
- How many {many} with {n_a} {side} {x_said} have {role_a} whose {pc_one} is {v_said}?
- Count the {many} whose {n_one} is {side} {x_said} and whose {role} has the {pc_one} {v_said}.

count_of_chain: chain
= select count(*) from {join} join {g} on {gfk} = {gpk} where {gl} = {v}
- How many {many} have {role_a} whose {g_role} is {v_said}?
- Count the {many} whose {role} has the {g_role} {v_said}.
"""

SHAPES = tuple(_read(_OF_ONE_TABLE)) + tuple(_read(_OF_SEVERAL_TABLES))
