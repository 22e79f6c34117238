"""Rows to Label Studio and back, agreement by the books, and a review that survives a kill."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunesmith.data.annotate import (
    Review,
    ReviewPlaces,
    agreement_of,
    by_field,
    cohens_kappa,
    export,
    form_in,
    form_of,
    import_results,
    krippendorffs_alpha,
    majority,
    most_suspicious,
    read_results,
)
from tunesmith.data.annotate.agreement import interval, nominal
from tunesmith.data.annotate.label_studio import left_is_chosen, row_id
from tunesmith.data.annotate.review import edited
from tunesmith.data.grow.source import read_rows
from tunesmith.errors import ConfigError, DataError, UsedDirectoryError

# -- agreement ------------------------------------------------------------------------------------


def test_kappa_of_a_table_worked_out_by_hand():
    # 50 items: both yes 20, left yes right no 5, left no right yes 10, both no 15.
    # p_o = 35/50 = 0.7; p_e = (25 * 30 + 25 * 20) / 2500 = 0.5; kappa = 0.2 / 0.5.
    left = ["y"] * 25 + ["n"] * 25
    right = ["y"] * 20 + ["n"] * 5 + ["y"] * 10 + ["n"] * 15
    assert cohens_kappa(left, right) == pytest.approx(0.4)


def test_kappa_of_cohen_1960_table_1():
    # Proportions of agreement between two clinicians over three categories: p_o 0.70, p_e 0.41.
    cells = {(0, 0): 88, (0, 1): 14, (0, 2): 18, (1, 0): 10, (1, 1): 40, (1, 2): 10}
    cells |= {(2, 0): 2, (2, 1): 6, (2, 2): 12}
    left = [a for (a, _), n in cells.items() for _ in range(n)]
    right = [b for (_, b), n in cells.items() for _ in range(n)]
    assert cohens_kappa(left, right) == pytest.approx((0.70 - 0.41) / 0.59, abs=1e-9)


NONE = None
KRIPPENDORFF_2011 = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]


def test_alpha_of_the_example_in_krippendorff_2011():
    columns = zip(*KRIPPENDORFF_2011, strict=True)
    units = [[label for label in column if label is not None] for column in columns]
    assert krippendorffs_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorffs_alpha(units, interval) == pytest.approx(0.849, abs=5e-4)


def test_alpha_of_two_observers_without_gaps_in_krippendorff_2011():
    ben, gerry = "aabbdcccedda", "babbbccceddd"
    assert krippendorffs_alpha(list(zip(ben, gerry, strict=True))) == pytest.approx(0.692, abs=5e-4)


UNITS = st.lists(
    st.lists(st.none() | st.integers(1, 4), min_size=3, max_size=3), min_size=2, max_size=10
)


@given(UNITS, st.sampled_from(["nominal", "interval"]))
def test_alpha_is_that_of_the_package_krippendorff(units, level):
    import krippendorff

    own = krippendorffs_alpha(
        [[label for label in unit if label is not None] for unit in units],
        nominal if level == "nominal" else interval,
    )
    paired = [unit for unit in units if sum(label is not None for label in unit) > 1]
    if own is None:
        assert len({label for unit in paired for label in unit} - {None}) <= 1
        return
    table = [
        [math.nan if label is None else label for label in who] for who in zip(*units, strict=True)
    ]
    theirs = krippendorff.alpha(table, level_of_measurement=level, value_domain=[1, 2, 3, 4])
    assert own == pytest.approx(theirs, abs=1e-9)


LABELS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=20
)


@given(LABELS)
def test_kappa_and_alpha_are_symmetric_at_most_one_and_one_when_all_agree(pairs):
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    kappa, alpha = cohens_kappa(left, right), krippendorffs_alpha(pairs)
    assert kappa == cohens_kappa(right, left)
    assert (alpha is None) == (len(set(left + right)) == 1)
    for value in (kappa, alpha):
        assert value is None or value <= 1 + 1e-12
    same = [(a, a) for a in left]
    if len(set(left)) > 1:
        assert math.isclose(krippendorffs_alpha(same), 1)
        assert math.isclose(cohens_kappa(left, left), 1)


def test_agreement_has_kappa_for_two_and_says_why_figures_are_missing():
    two = agreement_of([{"ann": "x", "bob": "x"}, {"ann": "x", "bob": "y"}, {"ann": "y"}])
    assert (two.n_items, two.n_annotators, two.observed) == (2, 2, 0.5)
    assert two.kappa == two.pairs["ann and bob"]
    none = agreement_of([{"ann": "x"}])
    assert none.alpha is None
    assert "two annotators" in none.why
    assert majority({"a": "x", "b": "y"}) is None
    assert majority({"a": "x", "b": "y", "c": "x"}) == "x"


# -- Label Studio -----------------------------------------------------------------------------------


@pytest.fixture
def rows(lines):
    def read(*values):
        return read_rows([lines("rows.jsonl", list(values))])

    return read


def labelled(text, label):
    return {
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": label}],
        "label": label,
    }


def pair(question, chosen, rejected):
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def answered(task, results, number=1):
    """A task as Label Studio exports it: `results` are (annotator, result list)."""
    annotations = [
        {
            "id": 100 * number + n,
            "completed_by": who,
            "result": result,
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": f"2026-01-01T00:00:{n:02d}Z",
            "lead_time": 3.2,
        }
        for n, (who, result) in enumerate(results)
    ]
    return {"id": number, "project": 1, **task, "annotations": annotations, "predictions": []}


def choice(name, to, value):
    return {
        "id": "x1",
        "from_name": name,
        "to_name": to,
        "type": "choices",
        "value": {"choices": [value]},
    }


def imported(rows, form, tasks, tmp_path, **options):
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return import_results(rows, read_results(path, rows, form), form, **options)


@pytest.mark.parametrize("form", ["chat", "classification", "pairs"])
def test_the_interface_shows_fields_that_the_tasks_have(rows, form, tmp_path):
    value = pair("Q?", "good", "bad") if form == "pairs" else labelled("Hi <b>&", 'a & "b"')
    found = rows(value, *([labelled("Ho", "c")] if form == "classification" else []))
    made = export(found, form)
    tmp_path.joinpath("e.json").write_text(json.dumps(made.tasks))
    assert form_in(tmp_path / "e.json") == form
    tree = ET.fromstring(made.config)
    names = {node.get("name") for node in tree.iter() if node.get("name")}
    for node in tree.iter():
        if (value := node.get("value") or "").startswith("$"):
            assert all(value[1:] in task["data"] for task in made.tasks)
        if node.get("toName"):
            assert set(node.get("toName").split(",")) <= names
    if form == "classification":
        assert [node.get("value") for node in tree.iter("Choice")] == ['a & "b"', "c"]


def test_labels_of_a_majority_replace_labels_and_ties_are_dropped(rows, tmp_path):
    found = rows(
        labelled("one", "x"), labelled("two", "y"), labelled("three", "x"), labelled("4", "x")
    )
    made = export(found, form_of(found), predictions=True)
    assert made.form == "classification"
    assert made.tasks[0]["predictions"][0]["result"][0]["value"] == {"choices": ["x"]}

    def said(task, *votes):
        return answered(
            task, [(n, [choice("label", "text", vote)]) for n, vote in enumerate(votes)]
        )

    tasks = [
        said(made.tasks[0], "x", "x"),
        said(made.tasks[1], "x", "x", "y"),
        said(made.tasks[2], "x", "y"),
    ]
    result = imported(found, "classification", tasks, tmp_path)
    assert [row.answer for row in result.rows] == ["x", "x", "x"]
    assert result.rows[1].meta["label"] == "x"
    assert result.rows[1].meta["annotation"]["votes"] == {"0": "x", "1": "x", "2": "y"}
    assert "annotation" not in result.rows[2].meta
    assert len(result.dropped) == len(result.changed) == 1
    assert json.loads(result.dropped[0])["row"] == json.loads(found[2].text)
    assert [conflict["settled"] for conflict in result.conflicts] == ["majority", "tie"]
    assert len(result.rows) + len(result.dropped) == len(found)
    assert result.agreement.n_annotators == 3
    kept = imported(found, "classification", tasks, tmp_path, on_conflict="keep")
    assert [row.meta["label"] for row in kept.rows] == ["x", "y", "x", "x"]
    settled = imported(found, "classification", tasks, tmp_path, adjudicator="1")
    assert [row.meta["label"] for row in settled.rows] == ["x", "x", "y", "x"]
    with pytest.raises(DataError, match="no annotation is by 'eve'"):
        imported(found, "classification", tasks, tmp_path, adjudicator="eve")


def test_ground_truth_decides_and_cancelled_annotations_do_not_count(rows, tmp_path):
    found = rows(labelled("one", "x"), labelled("two", "y"))
    task = export(found, "classification").tasks[0]
    votes = [(n, [choice("label", "text", vote)]) for n, vote in enumerate("yxxx")]
    exported = answered(task, votes)
    exported["annotations"][0]["ground_truth"] = True
    exported["annotations"][1]["was_cancelled"] = True
    result = imported(found, "classification", [exported], tmp_path)
    assert result.rows[0].meta["annotation"]["how"] == "ground truth"
    assert result.rows[0].answer == "y"
    assert set(result.rows[0].meta["annotation"]["votes"]) == {"0", "2", "3"}


def test_predictions_are_votes_where_nobody_annotated(rows, tmp_path):
    found = rows(labelled("one", "x"), labelled("two", "y"))
    task = export(found, "classification").tasks[0]
    task["predictions"] = [
        {"model_version": name, "result": [choice("label", "text", vote)]}
        for name, vote in (("m1", "y"), ("m2", "y"))
    ]
    result = imported(found, "classification", [task], tmp_path)
    assert result.rows[0].answer == "y"
    assert "model m1" in result.rows[0].meta["annotation"]["votes"]


def test_pairs_are_turned_round_when_the_rejected_answer_is_better(rows, tmp_path):
    found = rows(*(pair(f"Q{n}?", f"good {n}", f"bad {n}") for n in range(12)))
    made = export(found, form_of(found))
    assert len({left_is_chosen(row) for row in found}) == 2
    tasks = []
    for row, task in zip(found, made.tasks, strict=True):
        assert {task["data"]["left"], task["data"]["right"]} == {
            row.answer,
            row.rejected[0]["content"],
        }
        assert "chosen" not in json.dumps(task)
        better = "left" if task["data"]["left"].startswith("bad") else "right"
        said = choice("better", "dialogue", better)
        if len(tasks) % 2:
            said |= {"type": "pairwise", "value": {"selected": better}}
        tasks.append(answered(task, [("ann", [said])]))
    equal = choice("better", "dialogue", "equal")
    tasks[-1] = answered(made.tasks[-1], [("ann", [equal])])
    result = imported(found, "pairs", tasks, tmp_path)
    assert [row.answer for row in result.rows] == [f"bad {n}" for n in range(11)]
    assert [row.rejected[0]["content"] for row in result.rows] == [f"good {n}" for n in range(11)]
    assert json.loads(result.dropped[0])["reason"] == "annotators find both answers equal"


def test_rejected_answers_are_dropped_and_better_ones_taken(rows, tmp_path):
    found = rows(*(labelled(f"q{n}", f"a{n}") | {"label": None} for n in range(3)))
    made = export(found, "chat")
    better = {
        "from_name": "better",
        "to_name": "answer",
        "type": "textarea",
        "value": {"text": ["two\nlines"]},
    }
    rating = {"from_name": "quality", "to_name": "answer", "type": "rating", "value": {"rating": 4}}
    tasks = [
        answered(made.tasks[0], [(1, [choice("verdict", "answer", "accept"), rating])]),
        answered(
            made.tasks[1], [({"id": 2, "email": "e"}, [choice("verdict", "answer", "reject")])]
        ),
        answered(made.tasks[2], [(1, [choice("verdict", "answer", "reject"), better])]),
    ]
    result = imported(found, "chat", tasks, tmp_path)
    assert [row.answer for row in result.rows] == ["a0", "two\nlines"]
    assert result.rows[0].meta["annotation"]["ratings"] == {"1": 4}
    assert json.loads(result.dropped[0])["reason"] == "annotators reject the answer"


@pytest.mark.parametrize(
    "text",
    ["{}", "[1]", "nope", "[{}]", '[{"data": {"row_id": "x"}}]', '[{"data": null}]', "[" * 100_000],
)
def test_what_is_no_export_is_refused(rows, tmp_path, text):
    found = rows(labelled("one", "x"))
    path = tmp_path / "export.json"
    path.write_text(text)
    with pytest.raises(DataError):
        read_results(path, found, "classification")


RESULTS = st.recursive(
    st.none() | st.integers() | st.sampled_from(["choices", "label", "rating", "\ud800", 1e999]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["result", "value", "type", "from_name", "choices", "completed_by", "rating"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(RESULTS)
@example([{"result": [{"type": "rating", "from_name": "quality", "value": {"rating": 1e999}}]}])
def test_odd_annotations_are_ours_to_refuse(tmp_path_factory, annotations):
    from tunesmith.data.rows import Row

    value = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "meta": {},
    }
    row = Row("a:1", "chat", json.dumps(value), value)
    path = tmp_path_factory.mktemp("odd") / "e.json"
    path.write_text(json.dumps([{"data": {"row_id": row_id(row)}, "annotations": annotations}]))
    with suppress(DataError):
        assert len(read_results(path, [row], "classification")) == 1


def test_rows_that_do_not_fit_a_form_are_all_named(rows):
    found = rows(labelled("one", "x"), labelled("two", "y"))
    with pytest.raises(DataError, match=r"(?s)jsonl:1.*jsonl:2"):
        export(found, "pairs")
    with pytest.raises(ConfigError, match="2 to 500 labels"):
        export(found, "classification", ["x"])
    with pytest.raises(DataError, match="the same row"):
        export([found[0], rows(labelled("zero", "z"), labelled("one", "x"))[1]], "chat")


# -- the review queue --------------------------------------------------------------------------------


def chat_rows(n):
    return [
        {
            "messages": [
                {"role": "user", "content": f"Question number {n} about trees and rivers?"},
                {"role": "assistant", "content": f"Answer {n} with a few plain words in it."},
            ],
            "loss": n % 3,
        }
        for n in range(n)
    ]


def test_the_most_suspicious_row_comes_first(rows):
    values = chat_rows(12)
    values[7]["messages"][1]["content"] = "I'm sorry, but I cannot help with that request."
    values[9]["messages"][1]["content"] = "word " * 900
    queue = most_suspicious(rows(*values))
    assert {suspect.index for suspect in queue[:2]} == {7, 9}
    assert any("refusal" in reason for suspect in queue[:2] for reason in suspect.reasons)
    assert sorted(suspect.index for suspect in queue) == list(range(12))


def test_a_near_duplicate_and_a_contradiction_are_suspicious(rows):
    values = chat_rows(12)
    values[4]["messages"] = [
        {"role": "user", "content": "Please, question number 2 about the trees and the rivers?"},
        values[2]["messages"][1],
    ]
    values[8]["messages"] = [values[6]["messages"][0], {"role": "assistant", "content": "No."}]
    by_index = {suspect.index: suspect for suspect in most_suspicious(rows(*values))}
    assert any("near-duplicate" in reason for reason in by_index[4].reasons)
    assert any("contradiction" in reason for reason in by_index[8].reasons)
    assert by_index[4].suspicion >= 10 <= by_index[8].suspicion
    assert by_index[0].suspicion < 10


def test_rows_can_be_ordered_by_a_field(rows):
    values = chat_rows(6)
    del values[0]["loss"]
    assert [suspect.index for suspect in by_field(rows(*values), "loss")] == [2, 5, 1, 4, 3, 0]


def test_decisions_survive_and_can_be_undone(rows, tmp_path):
    found = rows(*chat_rows(4))
    places = ReviewPlaces.beside(tmp_path / "rows.jsonl")
    queue = by_field(found, "loss")
    with Review(found, queue, places) as review:
        order = [suspect.index for suspect in review.queue]
        review.decide(order[0], "reject")
        review.decide(order[1], "accept")
        review.decide(order[2], "skip")
        assert review.undo() == order[2]
    with places.journal.open("ab") as stream:
        stream.write(b'{"row": 3, "do": "rej')
    with Review(found, queue, places) as review:
        assert review.counts == {"reject": 1, "accept": 1}
        assert review.next().index == order[2]
        new = edited(found[order[2]], json.dumps(found[order[2]].value).replace("plain", "fine"))
        review.decide(order[2], "edit", new.text)
        review.write()
    out = places.out.read_text().splitlines()
    side = [json.loads(line) for line in places.side.read_text().splitlines()]
    assert len(out) + sum(entry["reason"] == "rejected" for entry in side) == 4
    assert found[order[0]].text not in out
    assert found[order[1]].text in out
    assert new.text in out
    assert {entry["reason"] for entry in side} == {"rejected", "edited"}
    with pytest.raises(UsedDirectoryError, match="another file"):
        Review(found[:3], queue[:3], places)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"messages": []}', "messages"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "assistant"),
        ('{"text": "x", "meta": {}}', ""),
        ('{"a": 1, "a": 2}', "twice"),
    ],
)
def test_an_edit_that_breaks_the_row_is_not_taken(rows, text, problem):
    found = edited(rows(*chat_rows(1))[0], text)
    assert isinstance(found, str)
    assert problem in found


class Terminal:
    """A command in a pseudo-terminal of its own."""

    COMMAND = "from tunesmith.cli.main import main; import sys; main(sys.argv[1:])"

    def __init__(self, *args, editor="true"):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(EDITOR=editor, VISUAL="", TERM="xterm", COLUMNS="100", LINES="40")
            os.execv(sys.executable, [sys.executable, "-c", self.COMMAND, *args])
        self.seen = b""

    def until(self, text, times=1):
        deadline = time.monotonic() + 60
        while self.seen.count(text) < times:
            assert time.monotonic() < deadline, self.seen.decode(errors="replace")
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:
                    data = b""
                assert data, self.seen.decode(errors="replace")
                self.seen += data

    def press(self, key):
        os.write(self.fd, key)

    def end(self):
        while True:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


PROMPT = b"[q]uit"


@pytest.mark.slow
def test_the_keys_of_a_review_in_a_terminal(lines, tmp_path):
    values = chat_rows(5)
    values[3]["messages"][1]["content"] = "evil \x1b[2J\x1b]0;title\x07 \u202e text"
    path = lines("rows.jsonl", values)
    editor = tmp_path / "editor.py"
    editor.write_text(
        "import sys, pathlib\np = pathlib.Path(sys.argv[1])\n"
        "p.write_text(p.read_text().replace('plain', 'EDITED'))\n"
    )
    terminal = Terminal(
        "data", "review", str(path), "--by", "loss", editor=f"{sys.executable} {editor}"
    )
    for number, key in enumerate([b"r", b"u", b"a", b"x", b"e"]):
        terminal.until(PROMPT, number + 1 if key != b"e" else number)
        terminal.press(key)
    terminal.until(PROMPT, 5)
    # The journal has each decision before the next row is shown.
    done = [
        json.loads(line)["do"]
        for line in (tmp_path / "rows.review.jsonl").read_text().splitlines()[1:]
    ]
    assert done == ["reject", "undo", "accept", "edit"]
    os.kill(terminal.pid, signal.SIGKILL)
    terminal.end()
    again = Terminal("data", "review", str(path), "--by", "loss")
    again.until(PROMPT)
    again.press(b"r")
    again.until(PROMPT, 2)
    again.press(b"s")
    again.until(PROMPT, 3)
    again.press(b"q")
    assert again.end() == 0
    shown = terminal.seen + again.seen
    assert b"\\x1b[2J" in shown
    assert b"\x1b[2J" not in shown
    assert b"\x1b]0;" not in shown
    assert "\u202e".encode() not in shown
    out = [json.loads(line) for line in (tmp_path / "rows.reviewed.jsonl").read_text().splitlines()]
    side = (tmp_path / "rows.reviewed-side.jsonl").read_text().splitlines()
    assert len(out) == 4
    assert sum("EDITED" in row["messages"][1]["content"] for row in out) == 1
    assert len(side) == 2


def command(*args, stdin=""):
    code = "from tunesmith.cli.main import main; import sys; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_the_commands_from_export_to_import_and_a_review_by_a_pipe(lines, tmp_path):
    path = lines("rows.jsonl", [labelled("one", "x"), labelled("two", "y")])
    tasks, config, out = tmp_path / "t.json", tmp_path / "c.xml", tmp_path / "o.jsonl"
    done = command("data", "annotate", "export", path, "--out", tasks, "--config", config)
    assert done.returncode == 0, done.stderr
    exported = [
        answered(
            task,
            [("ann", [choice("label", "text", "y")]), ("bob", [choice("label", "text", vote)])],
        )
        for task, vote in zip(json.loads(tasks.read_text()), "yx", strict=True)
    ]
    results = tmp_path / "results.json"
    results.write_text(json.dumps(exported))
    done = command("data", "annotate", "import", path, "--results", results, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["agreement"]["observed"] == 0.5
    assert [row["where"] for row in report["conflicts"]] == [f"{path}:2"]
    done = command("data", "review", path, "--json", stdin="ra")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["reject"], report["accept"], report["left"]) == (1, 1, 0)
    assert re.search(r"reviewed\.jsonl$", report["out"])
