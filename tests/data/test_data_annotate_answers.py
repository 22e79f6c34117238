"""Whatever annotators answer: no row is lost or invented, and agreement is what the books say of their votes."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.annotate import export, import_results, read_results
from tunesmith.data.annotate.label_studio import row_id
from tunesmith.data.grow.pieces import as_json
from tunesmith.data.rows import Row
from tunesmith.data.schemas import parse_sealed
from tunesmith.errors import DataError

FORMS = ("chat", "classification", "pairs")
CONTROLS = {
    "chat": ("verdict", ("accept", "reject")),
    "classification": ("label", ("x", "y", '"z"')),
    "pairs": ("better", ("left", "right", "equal")),
}
TEXTS = st.sampled_from(
    ["a", " b ", 'c "d"', "e\nf\u2028", "\ud800 half", "<b>&", "x", "\x00", "ж😀"]
)


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def row_of(n, kind, value):
    whole = {**value, "meta": {"n": n, **value.get("meta", {})}}
    # Half of a surrogate pair can stand in a file as its escape only.
    text = as_json(whole) if n % 2 else json.dumps(whole)
    return Row(f"rows.jsonl:{n}", kind, text, json.loads(text))


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@st.composite
def sets_of_rows(draw, form):
    kinds = {"pairs": ["pair"], "chat": ["chat", "feedback"]}
    kind = draw(st.sampled_from(kinds.get(form, ["chat", "text", "problem", "feedback"])))
    found = []
    for n in range(1, draw(st.integers(1, 5)) + 1):
        asked, said = [turn("user", f"{n} {draw(TEXTS)}")], [turn("assistant", draw(TEXTS))]
        if draw(st.booleans()) and kind == "chat" and form == "chat":
            said = [{"role": "assistant", "tool_calls": [CALL]}]
        meta = {"label": draw(TEXTS)} if draw(st.booleans()) else {}
        meta |= {"annotation": "older"} if draw(st.booleans()) else {}
        value = {
            "chat": {"messages": asked + said},
            "feedback": {"prompt": asked, "completion": said, "label": draw(st.booleans())},
            "pair": {"prompt": asked, "chosen": said, "rejected": [turn("assistant", "no")]},
            "problem": {"prompt": asked, "answer": draw(st.sampled_from(["x", 7, 1.5, True]))},
            "text": {"text": f"{n} {draw(TEXTS)}"},
        }[kind]
        found.append(row_of(n, kind, {**value, "meta": meta}))
    return found


WHO = st.sampled_from([1, 2, "ann", {"id": 3, "email": "e"}, None])


@st.composite
def annotations(draw, form, when):
    name, choices = CONTROLS[form]
    place = {"to_name": "answer", "id": "r"}
    results = []
    if draw(st.booleans()):
        chosen = {"choices": [draw(st.sampled_from(choices))]}
        results.append({**place, "from_name": name, "type": "choices", "value": chosen})
    if draw(st.booleans()):
        said = {"text": draw(st.lists(TEXTS, min_size=1, max_size=2))}
        results.append({**place, "from_name": "better", "type": "textarea", "value": said})
    if draw(st.booleans()):
        results.append({"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"})
    return {
        "completed_by": draw(WHO),
        "was_cancelled": draw(st.sampled_from([False, False, True])),
        "ground_truth": draw(st.sampled_from([False, False, True])),
        "created_at": f"2026-01-01T00:00:{when:02d}Z",
        "result": results,
    }


@st.composite
def answers(draw):
    """Rows, and an export with zero to two tasks of each."""
    form = draw(st.sampled_from(FORMS))
    rows = draw(sets_of_rows(form))
    tasks, when = [], 0
    for row in rows:
        for _ in range(draw(st.integers(0, 2))):
            made = []
            for _ in range(draw(st.integers(0, 3))):
                when += 1
                made.append(draw(annotations(form, when)))
            # An export has predictions' numbers, or the predictions.
            guess = {"model_version": draw(st.sampled_from(["the file", "m"])), "result": []}
            predictions = draw(st.sampled_from([[], [7], [guess]]))
            data = {"row_id": row_id(row)}
            tasks.append({"data": data, "annotations": made, "predictions": predictions})
    return form, rows, tasks


def imported(rows, form, tasks, folder, **options):
    path = folder / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return import_results(rows, read_results(path, rows, form), form, **options)


def votes_in(form, tasks):
    """Row's id -> who -> the choice of his last annotation that counts; kept apart from the code."""
    name = CONTROLS[form][0]
    last = {}
    for task in tasks:
        mine = last.setdefault(task["data"]["row_id"], {})
        for made in task["annotations"]:
            if not made["was_cancelled"]:
                who = made["completed_by"]
                who = who["email"] if isinstance(who, dict) else who
                who = object() if who is None else str(who)
                said = [r for r in made["result"] if r.get("from_name") == name]
                said = [r["value"]["choices"][0] for r in said if r["type"] == "choices"]
                mine[who] = said[0] if said else None
    return {
        key: {who: vote for who, vote in mine.items() if vote is not None}
        for key, mine in last.items()
    }


@given(answers(), st.sampled_from(["majority", "drop", "keep"]))
def test_rows_in_are_rows_out_and_rows_dropped(tmp_path_factory, given_, on_conflict):
    form, rows, tasks = given_
    folder = tmp_path_factory.mktemp("answers")
    made = imported(rows, form, tasks, folder, on_conflict=on_conflict)
    by_place = {row.where: row for row in rows}
    dropped = {line["where"]: line for line in map(json.loads, made.dropped)}
    changed = {line["where"]: line for line in map(json.loads, made.changed)}
    kept = {row.where: row for row in made.rows}
    assert len(kept) == len(made.rows)
    assert len(dropped) == len(made.dropped)
    assert sorted([*kept, *dropped]) == sorted(by_place)
    assert list(kept) == [where for where in by_place if where in kept]
    votes = votes_in(form, tasks)
    for where, row in by_place.items():
        if where in dropped:
            assert dropped[where]["row"] == row.value
            continue
        assert parse_sealed(where, kept[where].text).value == kept[where].value
        assert kept[where].kind == row.kind
        after = dict(kept[where].value)
        if kept[where].text == row.text:
            assert not votes.get(row_id(row))
        elif where in changed:
            assert changed[where]["row"] == row.value
            assert changed[where]["to"] == after
        else:
            after["meta"] = {k: v for k, v in after["meta"].items() if k != "annotation"}
            assert after == row.value
    side = "".join(f"{line}\n" for line in (*made.dropped, *made.changed))
    assert len(side.encode().split(b"\n")) == len(made.dropped) + len(made.changed) + 1


VOTES = st.none() | st.sampled_from([0, 0, 1, 2])


@given(
    st.sampled_from(FORMS),
    st.lists(st.lists(VOTES, min_size=3, max_size=3), min_size=2, max_size=6),
)
def test_agreement_is_that_of_the_votes_counted_apart(tmp_path_factory, form, table):
    import krippendorff

    choices = CONTROLS[form][1]
    if form == "chat":  # it has two
        table = [[vote and 1 for vote in votes] for votes in table]
    kind = "pair" if form == "pairs" else "chat"
    rows = [row_of(n, kind, _parts(n, kind)) for n in range(len(table))]
    tasks = export(rows, form, ["x", "y", '"z"']).tasks
    for task, votes in zip(tasks, table, strict=True):
        made = ((who, vote) for who, vote in enumerate(votes, 1) if vote is not None)
        if form == "pairs" and task["data"]["left"] == "worse":  # 0 is for the chosen answer
            made = ((who, {0: 1, 1: 0, 2: 2}[vote]) for who, vote in made)
        task["annotations"] = [said(who, voted(form, choices[vote])) for who, vote in made]
    made = imported(rows, form, tasks, tmp_path_factory.mktemp("answers")).agreement
    paired = [votes for votes in table if sum(vote is not None for vote in votes) > 1]
    assert made.n_items == len(paired)
    assert made.n_annotators == sum(any(v[who] is not None for v in paired) for who in range(3))
    if paired:
        same = sum(len(set(votes) - {None}) == 1 for votes in paired)
        assert made.observed == pytest.approx(same / len(paired))
    for (left, right), kappa in [(name.split(" and "), k) for name, k in made.pairs.items()]:
        both = [(votes[int(left) - 1], votes[int(right) - 1]) for votes in paired]
        expected = kappa_by_hand([pair for pair in both if None not in pair])
        assert kappa == (None if expected is None else pytest.approx(expected, abs=1e-9))
    if len({vote for votes in paired for vote in votes} - {None}) < 2:
        assert made.alpha is None
        return
    columns = zip(*table, strict=True)
    data = [[math.nan if vote is None else vote for vote in column] for column in columns]
    theirs = krippendorff.alpha(data, level_of_measurement="nominal", value_domain=[0, 1, 2])
    assert made.alpha == pytest.approx(theirs, abs=1e-9)


def _parts(n, kind):
    asked, said = [turn("user", f"q{n}")], [turn("assistant", "better")]
    if kind == "pair":
        return {"prompt": asked, "chosen": said, "rejected": [turn("assistant", "worse")]}
    return {"messages": asked + said}


def kappa_by_hand(pairs):
    """Cohen 1960 from the shares of each label; None without pairs, or where chance always agrees."""
    n, labels = len(pairs), {label for pair in pairs for label in pair}
    if len(labels) < 2:
        return None
    same = sum(a == b for a, b in pairs) / n
    chance = sum(
        (sum(a == label for a, _ in pairs) / n) * (sum(b == label for _, b in pairs) / n)
        for label in labels
    )
    return (same - chance) / (1 - chance)


# -- single answers ---------------------------------------------------------------------------------


def said(who, *results, **more):
    return {"completed_by": who, "result": list(results), "created_at": f"0{who}", **more}


def voted(form, choice):
    value = {"choices": [choice]}
    return {"from_name": CONTROLS[form][0], "type": "choices", "value": value}


def wrote(text):
    return {"from_name": "better", "type": "textarea", "value": {"text": [text]}}


def task(row, *annotations, predictions=(), **data):
    data["row_id"] = row_id(row)
    return {"data": data, "annotations": list(annotations), "predictions": list(predictions)}


def answered(answer, n=1, **meta):
    value = {"messages": [turn("user", f"q{n}"), turn("assistant", answer)], "meta": meta}
    return row_of(n, "chat", value)


def test_a_row_that_was_imported_twice_has_the_annotations_of_both_tasks(tmp_path):
    row = answered("a")
    tasks = [
        task(row, said(1, voted("chat", "reject"))),
        task(row, said(2, voted("chat", "accept"))),
    ]
    made = imported([row], "chat", tasks, tmp_path)
    assert made.conflicts[0]["votes"] == {"1": "reject", "2": "accept"}


def test_the_last_annotation_of_one_annotator_counts_as_a_whole(tmp_path):
    row = answered("a")
    first = said(1, voted("chat", "reject"), wrote("withdrawn"), created_at="1", ground_truth=True)
    second = said(1, voted("chat", "accept"), created_at="2")
    made = imported([row], "chat", [task(row, second, first)], tmp_path)
    assert [row.answer for row in made.rows] == ["a"]
    assert made.rows[0].meta["annotation"]["how"] == "one vote"


def test_better_answers_of_the_overruled_do_not_count_and_the_adjudicators_does(tmp_path):
    row = answered("a")
    better = said(3, voted("chat", "reject"), wrote("three"))
    tasks = [task(row, said(1, voted("chat", "accept")), said(2, voted("chat", "accept")), better)]
    assert imported([row], "chat", tasks, tmp_path).rows[0].answer == "a"
    assert imported([row], "chat", tasks, tmp_path, adjudicator="3").rows[0].answer == "three"
    other = [task(row, said(1, voted("chat", "reject"), wrote("one")), better)]
    assert "different better answers" in imported([row], "chat", other, tmp_path).dropped[0]
    assert imported([row], "chat", other, tmp_path, adjudicator="1").rows[0].answer == "one"


def test_a_text_in_a_classification_is_no_vote(tmp_path):
    row = answered("x", label="x")
    made = imported([row], "classification", [task(row, said(1, wrote("hm")))], tmp_path)
    assert [row.text for row in made.rows] == [row.text]
    assert made.n_annotated == 0


def test_a_choice_that_the_interface_does_not_have_is_refused(tmp_path):
    row = answered("a")
    with pytest.raises(DataError, match="'maybe' is none of accept, reject"):
        imported([row], "chat", [task(row, said(1, voted("chat", "maybe")))], tmp_path)


def test_a_better_answer_of_feedback_is_a_good_one(tmp_path):
    value = {"prompt": [turn("user", "q")], "completion": [turn("assistant", "a")], "label": False}
    row = row_of(1, "feedback", value)
    made = imported([row], "chat", [task(row, said(1, wrote("b")))], tmp_path)
    assert (made.rows[0].answer, made.rows[0].value["label"]) == ("b", True)
    assert json.loads(made.changed[0])["reason"] == "annotated: a better answer, no vote"


def test_a_text_does_not_replace_an_answer_that_calls_tools(tmp_path):
    turns = [turn("user", "q"), {"role": "assistant", "tool_calls": [CALL]}]
    row = row_of(1, "chat", {"messages": turns})
    made = imported([row], "chat", [task(row, said(1, wrote("say so")))], tmp_path)
    assert "say so" in json.loads(made.dropped[0])["reason"]


def test_the_rows_own_labels_are_nobodys_vote(tmp_path):
    rows = [answered("x", label="x"), answered("y", 2, label="y")]
    made = export(rows, "classification", predictions=True).tasks
    assert made[0]["predictions"]
    result = imported(
        rows, "classification", [{**one, "annotations": []} for one in made], tmp_path
    )
    assert result.n_annotated == 0
    assert [row.text for row in result.rows] == [row.text for row in rows]


def test_answers_that_are_no_labels_are_kept_and_get_a_field(tmp_path):
    rows = [answered("Dear customer", 1), answered("Thank you for your mail", 2)]
    tasks = export(rows, "classification", ["x", "y"], predictions=True).tasks
    assert not any(one.get("predictions") for one in tasks)
    tasks = [{**one, "annotations": [said(1, voted("classification", "y"))]} for one in tasks]
    made = imported(rows, "classification", tasks, tmp_path)
    assert [row.answer for row in made.rows] == [row.answer for row in rows]
    assert [row.meta["label"] for row in made.rows] == ["y", "y"]


def test_a_misspelled_label_in_the_answer_is_replaced_where_most_answers_are_labels(tmp_path):
    rows = [answered("x", 1), answered("yy", 2)]
    tasks = export(rows, "classification", ["x", "y"]).tasks
    tasks = [{**one, "annotations": [said(1, voted("classification", "y"))]} for one in tasks[1:]]
    assert [r.answer for r in imported(rows, "classification", tasks, tmp_path).rows] == ["x", "y"]


@pytest.mark.parametrize(
    ("before", "vote", "after"), [(7, "8", 8), (True, "False", False), ("7", "8", "8")]
)
def test_a_problems_answer_stays_what_it_was(tmp_path, before, vote, after):
    row = row_of(1, "problem", {"prompt": [turn("user", "q")], "answer": before})
    tasks = [task(row, said(1, voted("classification", vote)))]
    found = imported([row], "classification", tasks, tmp_path).rows[0].value["answer"]
    assert (found, type(found)) == (after, type(after))


def test_older_votes_in_the_meta_are_in_the_side_file(tmp_path):
    row = answered("a", annotation={"vote": "accept", "by": "an older round"})
    made = imported([row], "chat", [task(row, said(1, voted("chat", "accept")))], tmp_path)
    assert json.loads(made.changed[0])["row"]["meta"]["annotation"]["by"] == "an older round"
