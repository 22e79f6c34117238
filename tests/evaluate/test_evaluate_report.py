"""The report: inert, self-contained, and true to its numbers."""

import re
from html.parser import HTMLParser
from io import StringIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tunesmith.evaluate import render_summary
from tunesmith.evaluate.comparison import Pairs, compare
from tunesmith.evaluate.plot import accuracy_axis, gain_axis
from tunesmith.evaluate.report import render_html
from tunesmith.evaluate.result import EvaluateResult
from tunesmith.evaluate.wording import explanation, headline, p_text

HOSTILE = (
    "</pre></body><script>alert('owned')</script><img src=x onerror=alert(1)>{{ 7*7 }}{% if %}"
)
OUTCOMES = {(False, True): "won", (True, False): "lost", (True, True): "both right"}


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def comparison_of(won, lost, right, wrong):
    base = [False] * won + [True] * lost + [True] * right + [False] * wrong
    tuned = [True] * won + [False] * lost + [True] * right + [False] * wrong
    return compare(base, tuned, confidence=0.95, resamples=500, seed=0)


def side(correct, answer):
    return {
        "answer": answer,
        "tokens": 3,
        "cut": False,
        "correct": correct,
        "valid": True,
        "note": "" if correct else HOSTILE,
        "result": HOSTILE,
    }


def row(line, base, tuned, text="SELECT 1"):
    return {
        "line": line,
        "outcome": OUTCOMES.get((base, tuned), "still wrong"),
        "prompt": [
            {"role": "system", "content": text},
            {"role": "user", "content": f"{text} q{line}."},
        ],
        "reference": text,
        "reference_result": text,
        "base": side(base, text),
        "tuned": side(tuned, text),
        "meta": {},
    }


def report_of(comparison, **changes):
    return {
        "created": "2026-01-02T03:04:05+00:00",
        "task": {"kind": "sql_execution", "how": "By execution."},
        "comparison": comparison.as_dict(),
        "valid": {"base": 1, "tuned": 2},
        "warnings": [],
        "test_rows": comparison.pairs.n,
        "left_out": [],
        "max_answer_tokens": 128,
        "seed": 0,
        "seconds": {"base": 1.0, "tuned": 2.0},
        "dataset": {"name": "shop", "sha256": "a" * 64},
        "base_model": {"name": "tiny", "sha256": "b" * 64},
        "trained": {"method": "lora, rank 4", "sha256": "c" * 64},
        "precision": "fp32",
        "renderer_fingerprint": "d" * 64,
        "hardware": {"device": "cpu", "memory_gib": 8.0},
        "versions": {"python": "3.11"},
        "command": "tunesmith evaluate shop.yaml",
        **changes,
    }


def test_hostile_text_is_shown_and_never_run():
    found = report_of(comparison_of(1, 1, 0, 1), warnings=[HOSTILE], command=HOSTILE)
    found["dataset"]["name"] = found["base_model"]["name"] = HOSTILE
    rows = [
        row(1, False, True, HOSTILE),
        row(2, True, False, HOSTILE),
        row(3, False, False, HOSTILE),
    ]
    page = Page(render_html(found, rows, 5))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert('owned')</script>" in page.text
    assert "{{ 7*7 }}" in page.text


@given(st.text(min_size=1, max_size=60))
def test_no_text_of_an_answer_makes_a_tag(text):
    plain = render_html(report_of(comparison_of(1, 0, 0, 0)), [row(1, False, True, "x")], 1)
    other = render_html(report_of(comparison_of(1, 0, 0, 0)), [row(1, False, True, text)], 1)
    assert Page(other).tags == Page(plain).tags


def test_characters_that_hide_or_reorder_text_are_spelled_out():
    page = render_html(
        report_of(comparison_of(1, 0, 0, 0)), [row(1, False, True, "a\x00b\x1b[31m\u202ec")], 1
    )
    assert "a\\x00b\\x1b[31m\\u202ec" in page
    assert "\x1b" not in page
    for hidden in "\u200b\u200e\u200f\u061c\ufeff\u2028":
        page = render_html(
            report_of(comparison_of(1, 0, 0, 0)), [row(1, False, True, f"a{hidden}b")], 1
        )
        assert hidden not in page
        assert f"a\\u{ord(hidden):04x}b" in page


def test_the_page_needs_no_network_and_forbids_itself_one():
    text = render_html(report_of(comparison_of(3, 1, 2, 4)), [row(1, False, True)], 5)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name in ("src", "href", "action")]
    assert "url(" not in text
    assert "@import" not in text
    policy = next(v for tag, name, v in page.attributes if tag == "meta" and name == "content")
    assert policy.startswith("default-src 'none'")


def test_so_many_rows_of_each_outcome_are_shown():
    rows = [row(line, False, True) for line in range(1, 9)]
    rows += [row(line, True, False) for line in range(9, 12)] + [row(12, True, True)]
    found = report_of(comparison_of(8, 3, 1, 0))
    page = Page(render_html(found, rows, 5))
    assert page.tags.count("article") == 5 + 3
    assert "Won: 8 (5 shown)" in page.text
    assert "Lost: 3" in page.text
    assert "Still wrong: 0" in page.text
    assert "q12." not in page.text
    assert render_html(found, rows, 5) == render_html(found, rows, 5)
    assert Page(render_html(found, rows, 0)).tags.count("article") == 0


def test_the_page_says_the_figures():
    found = comparison_of(60, 12, 100, 128)
    page = Page(render_html(report_of(found), [], 5))
    for words in ("Better by 16.0 points", "60 won", "12 lost", "53.3 %", "37.3 %", "n = 300"):
        assert words in page.text, words
    assert "tunesmith evaluate shop.yaml" in page.text


def test_exact_match_reports_need_no_validity():
    page = Page(render_html(report_of(comparison_of(1, 0, 0, 0), valid=None), [], 5))
    assert "queries which run" not in page.text


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_all_marks_lie_inside_their_plot(won, lost, right, wrong):
    if not won + lost + right + wrong:
        return
    found = comparison_of(won, lost, right, wrong)
    for axis in (accuracy_axis(found), gain_axis(found)):
        for mark in axis.marks:
            assert -1e-6 <= mark.low <= mark.at + 1e-6
            assert mark.at - 1e-6 <= mark.high <= 100 + 1e-6
        places = [at for at, _ in axis.ticks]
        assert places == sorted(places)
        assert 2 <= len(places) <= 8
        assert (places[0], places[-1]) == pytest.approx((0, 100))
    zero = gain_axis(found).zero
    assert zero is not None
    assert any(at == zero and text == "0" for at, text in gain_axis(found).ticks)


@pytest.mark.parametrize(
    ("p_value", "text"),
    [
        (1.0, "p = 1.00"),
        (0.04999, "p = 0.0500"),
        (0.031, "p = 0.0310"),
        (0.002, "p = 0.0020"),
        (1e-9, "p < 0.0001"),
    ],
)
def test_p_values_are_not_rounded_over_the_limit(p_value, text):
    assert p_text(p_value) == text


def test_words_for_each_verdict():
    assert headline(comparison_of(60, 12, 100, 128)) == "Better by 16.0 points"
    assert headline(comparison_of(12, 60, 100, 128)) == "Worse by 16.0 points"
    unsure = comparison_of(3, 1, 10, 10)
    assert headline(unsure) == "Cannot tell (+8.3 points)"
    assert "found four times in five" in explanation(unsure)
    assert "cannot show any difference" in explanation(comparison_of(1, 0, 1, 0))


def test_the_terminal_shows_figures_warnings_and_the_place_of_the_report(tmp_path):
    found = comparison_of(60, 12, 100, 128)

    class Sealed:
        dir = tmp_path

    result = EvaluateResult(
        Sealed(),
        found,
        ("[bold]careful[/bold]",),
        report_of(found, valid={"base": 150, "tuned": 270}),
    )
    out = StringIO()
    Console(file=out, width=120).print(render_summary(result))
    text = out.getvalue()
    for words in (
        "Better by 16.0 points",
        "53.3 %",
        "90.0 %",
        "[bold]careful[/bold]",
        "report.html",
    ):
        assert words in text, words
    assert re.search(r"base +112 +300 +37\.3 %", text)


def test_pairs_are_counted_from_both_lists():
    assert Pairs.of([True, False, True, False], [True, True, False, False]) == Pairs(1, 1, 1, 1)
