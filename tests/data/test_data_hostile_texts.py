"""Long texts of one repeated piece take time as they are long, not as its square: each case ends at once."""

from __future__ import annotations

from random import Random

import pytest

from tunesmith.data.check.domains import fenced, looks_like, unfenced
from tunesmith.data.check.domains.dialects import has_trailing_comma, prose_in
from tunesmith.data.check.domains.python import why_not_python
from tunesmith.data.clean.normalise import normalised, without_html
from tunesmith.data.clean.private import find
from tunesmith.data.grow.noise import open_words
from tunesmith.data.grow.paraphrase import core
from tunesmith.data.grow.schema_text import name_spans
from tunesmith.data.grow.shuffle import shuffled
from tunesmith.data.grow.turns import question_span
from tunesmith.data.grow.verify import code_in, final_value
from tunesmith.data.make.ddl import _statements

N = 400_000
"""With so many characters a square takes minutes, the texts as they should be read less than a second."""
CASES = {
    "spaces inside": (normalised, "a", " ", "b\n"),
    "tabs inside": (normalised, "a", "\t", "b\n"),
    "open scripts": (without_html, "", "<script>", ""),
    "scripts without an end of tag": (without_html, "", "<script", ""),
    "open comments": (without_html, "", "<!--", ""),
    "begun tokens": (find, "", "-eyJaaaaaaaa", ""),
    "begun keys": (find, "", "/AQE", " é"),
    "streets without a number": (find, "1 Main St. ", f"Calle {'A' * 100} ", ""),
    "greetings": (core, "", "hi, ", "x"),
    "thanks": (core, "what?", " thanks.", ""),
    "empty lines before a question": (question_span, "", "\n", "x"),
    "a line of spaces": (question_span, "x\n", " ", "\nx"),
    "backticks": (fenced, "", "```", ""),
    "a long word after a fence": (unfenced, "```", "a", ""),
    "fences in a line": (looks_like, "", "``` ", ""),
    "spaces after a fence": (code_in, "```", " ", "é"),
    "spaces in an answer": (final_value, "answer: a", " ", "b"),
    "open brackets": (prose_in, "", "[", ""),
    "open comments of SQL": (has_trailing_comma, "", "/*", ""),
    "a long word": (prose_in, "", "a", ""),
    "a long word of a question": (lambda text: open_words(text, ""), "", "a", ""),
    "open quotes": (lambda text: open_words(text, ""), "", "“", ""),
    "semicolons in a quote": (
        lambda text: name_spans(text, {"x": ("a",)}),
        "create table x ('",
        ";",
        "",
    ),
    "empty lines of Python": (why_not_python, "", "\n" * 40, "x ="),
    "values of one statement": (lambda text: list(_statements(text)), "insert ", "('a'), ", ";"),
    "lines of a schema": (
        lambda text: shuffled(text, is_sql=True, refers=False, rng=Random(0)),
        "",
        "x(a b)\n",
        "",
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", CASES)
def test_a_long_text_of_one_piece_is_read_at_once(name):
    read, before, piece, after = CASES[name]
    n = 190_000 if read is why_not_python else N
    read(f"{before}{piece * (n // len(piece))}{after}")


def test_mended_white_space_is_what_it_was():
    assert normalised("a \t\n b  \n \n\t") == ("a\n b", ("white space",))
    assert normalised("a\u00a0 \nb \u00a0") == ("a\u00a0\nb", ("white space",))


def test_scripts_and_comments_go_whole_and_open_ones_stay():
    text = "<p>a<script>x < y</script >b<!-- c <style> -->d<STYLE>e</style>f<!-- g <script>h</p>"
    assert without_html(text) == "abdf<!-- g <script>h"
