"""Figures, the page, what two datasets differ in, and rows of every kind as a model reads them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.look import diff, open_place, page, stats
from tunesmith.data.look.difference import words
from tunesmith.data.look.statistics import Lengths
from tunesmith.errors import ArtifactError, DataError, MissingError

EVIL = "<script>alert(1)</script> \x1b[31m \u202e <img src=x onerror=alert(2)> {{ 7*7 }} &lt;"


def pairs(first, last, **more):
    return [
        {"prompt": f"question {n}", "completion": f"answer {n}", **more} for n in range(first, last)
    ]


class Tags(HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def test_figures_of_a_file_count_what_stands_in_it(lines):
    rows = [
        *pairs(0, 8, label="a"),
        *pairs(0, 2, label="b"),
        {"prompt": "Question  0", "completion": "x", "label": "b"},
    ]
    found = stats(open_place(lines("a.jsonl", rows)))
    assert found.rows == {"rows": 11}
    assert found.kinds == {"chat": 11}
    assert found.turns == {2: 11}
    assert (found.repeats, found.repeated_prompts) == (2, 3)
    assert found.question.median == len("question 0")
    assert {v.name: dict(v.top) for v in found.fields}["label"] == {"a": 8, "b": 3}
    assert found.unreadable == 0


def test_figures_of_a_sealed_dataset_are_by_split_and_have_its_report(seal, lines):
    path = lines("a.jsonl", pairs(0, 40))
    result = seal({"source": {"kind": "files", "train": str(path)}})
    found = stats(open_place(result.artifact.dir))
    assert found.rows == dict(result.rows)
    assert found.report == result.report


def test_rows_that_cannot_be_read_are_counted_and_the_others_shown(lines):
    found = stats(
        open_place(lines("a.jsonl", [*pairs(0, 3), "{", '{"prompt": "", "completion": "x"}']))
    )
    assert found.n_rows == 3
    assert found.unreadable == 2


def test_tokens_are_counted_where_the_template_takes_the_row(lines):
    place = open_place(lines("a.jsonl", pairs(0, 5)))
    found = stats(place, lambda row: None if row.question.endswith("3") else (10, 4), "as x reads")
    assert (found.tokens.n, found.tokens.median, found.trained.most) == (4, 10, 4)


@given(st.dictionaries(st.integers(0, 100_000), st.integers(1, 50), min_size=1, max_size=40))
def test_a_histogram_holds_every_length_once(counts):
    found = Lengths.of(counts)
    assert sum(n for *_, n in found.bins) == found.n == sum(counts.values())
    assert len(found.bins) <= 24
    assert found.bins[0][0] <= found.least
    assert all(a[1] == b[0] for a, b in zip(found.bins, found.bins[1:], strict=False))
    flat = sorted(length for length, n in counts.items() for _ in range(n))
    assert found.median == flat[(len(flat) + 1) // 2 - 1]
    assert found.least <= found.median <= found.p95 <= found.most


@pytest.mark.parametrize(("lengths", "start"), [(range(170, 190), 170), (range(5, 190), 0)])
def test_a_histogram_begins_where_its_lengths_do_when_they_are_far_from_zero(lengths, start):
    found = Lengths.of(dict.fromkeys(lengths, 2))
    assert found.bins[0][0] == start
    assert found.bins[-1][2] > 0


def test_what_marks_say_is_above_the_columns_and_not_over_each_other(lines):
    rows = [{"prompt": "a" * (180 + n % 9), "completion": "b"} for n in range(40)]
    html = page(stats(open_place(lines("a.jsonl", rows))))
    heights = re.findall(r'<text class="mark" x="[\d.]+%" y="(-?\d+)"', html)
    assert len(heights) >= 4
    assert all(int(high) < 0 for high in heights)
    assert all(abs(int(a) - int(b)) >= 12 for a, b in zip(heights[::2], heights[1::2], strict=True))


def test_the_page_is_inert_and_shows_hostile_text_as_text(lines, tmp_path):
    rows = [{"prompt": f"{EVIL} {n}", "completion": EVIL, EVIL: EVIL[:70]} for n in range(6)]
    html = page(stats(open_place(lines("<b>.jsonl", rows))))
    read = Tags()
    read.feed(html)
    assert not read.tags & {"script", "img", "link", "iframe", "object", "form", "base", "a"}
    assert not [
        name for name in read.attributes if name.startswith("on") or name in ("src", "href")
    ]
    assert "default-src 'none'" in html
    assert "http" not in re.sub(r'http-equiv="[^"]+"', "", html)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    assert "&lt;script&gt;" in html
    assert "{{ 7*7 }}" in html


def test_the_page_of_a_sealed_dataset_names_files_and_findings(seal, lines):
    path = lines("a.jsonl", pairs(0, 40, task="t"))
    result = seal({"source": {"kind": "files", "train": str(path)}})
    html = page(stats(open_place(result.artifact.dir)))
    for text in (
        "Rows by split",
        "Answer, characters",
        "a.jsonl",
        result.report["files"][0]["sha256"][:16],
        "What the checks found",
        "too-few-rows",
    ):
        assert text in html


def test_equal_rows_in_another_order_are_no_difference(lines):
    rows = pairs(0, 9)
    found = diff(open_place(lines("a.jsonl", rows)), open_place(lines("b.jsonl", rows[::-1])))
    assert found.is_empty
    assert found.equal == 9


def test_each_sort_of_difference_is_told_apart(lines):
    old = pairs(0, 6)
    new = [dict(row) for row in old]
    new[0]["completion"] = "another answer"
    new[1]["prompt"] = "which rivers run through texas"
    old[1]["prompt"] = "what rivers run through texas"
    del new[2]
    new.append({"prompt": "something else entirely", "completion": "yes"})
    new.append(dict(old[5]))
    found = diff(open_place(lines("a.jsonl", old)), open_place(lines("b.jsonl", new)))
    assert [(c.by, c.old.question, c.new.answer) for c in found.changed] == [
        ("prompt", "question 0", "another answer"),
        ("likeness", "what rivers run through texas", "answer 1"),
    ]
    assert [row.question for row in found.removed] == ["question 2"]
    assert sorted(row.question for row in found.added) == ["question 5", "something else entirely"]
    assert found.equal == 3
    assert found.rows == {"rows": (6, 7)}
    assert json.loads(json.dumps(found.as_dict()))["is_empty"] is False


def test_a_row_that_moved_to_another_split_is_a_difference(seal, lines):
    rows = pairs(0, 40)
    section = {"source": {"kind": "files", "train": str(lines("a.jsonl", rows))}}
    one, two = seal(section, seed=0, name="one"), seal(section, seed=1, name="two")
    found = diff(open_place(one.artifact.dir), open_place(two.artifact.dir))
    assert not found.is_empty
    assert (found.added, found.removed, found.changed) == ((), (), ())
    assert found.equal == 40
    assert sum(found.moved.values()) > 0


ROWS = st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("xyz")), max_size=8)


@given(ROWS, ROWS)
def test_a_difference_accounts_for_every_row(tmp_path_factory, old, new):
    folder = tmp_path_factory.mktemp("diff")
    places = []
    for name, rows in (("a", old), ("b", new)):
        path = folder / f"{name}.jsonl"
        rows = [("start", "s"), *rows]
        path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
        places.append(open_place(path))
    found = diff(*places)
    assert found.equal + len(found.changed) + len(found.removed) == len(old) + 1
    assert found.equal + len(found.changed) + len(found.added) == len(new) + 1
    assert found.is_empty == (sorted(old) == sorted(new))


@given(st.text("ab c.\n", max_size=30), st.text("ab c.\n", max_size=30))
def test_a_word_difference_gives_back_both_texts(old, new):
    made = words(old, new)
    assert "".join(text for sign, text in made if sign != "+") == old
    assert "".join(text for sign, text in made if sign != "-") == new


def test_what_cannot_be_compared_is_a_clear_error(lines, seal, tmp_path):
    good = open_place(lines("a.jsonl", pairs(0, 2)))
    with pytest.raises(DataError, match=r"b\.jsonl:1"):
        diff(good, open_place(lines("b.jsonl", ["{"])))
    with pytest.raises(MissingError, match="no dataset at"):
        open_place(tmp_path / "gone")
    source = {"kind": "files", "train": str(lines("c.jsonl", pairs(0, 40)))}
    sealed = seal({"source": source}).artifact
    (sealed.dir / "train.jsonl").write_text("x" * sealed.files["train.jsonl"].bytes)
    with pytest.raises(ArtifactError):
        stats(open_place(sealed.dir))
