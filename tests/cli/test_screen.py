"""Tables keep names, paths and figures whole, whatever the width of the terminal."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from tunesmith.cli.screen import table

FOLDER = "runs/my-model/evaluate-5ce03a9c6768"
RESULT = "12.5% -> 71.0%, gain +58.5 points [+51.2, +65.8], n=279: better"


def shown(headers, rows, width, right=()):
    out = io.StringIO()
    screen = Console(file=out, width=width, highlight=False)
    table(headers, rows, right=right, to=screen)
    assert screen.width == width
    return out.getvalue()


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_folder_is_in_one_piece_at_any_width(width):
    row = ("evaluate", "unchanged, skipped", "123.4", RESULT, FOLDER)
    text = shown(("stage", "", "seconds", "result", "directory"), [row], width, right=(2,))
    assert FOLDER in text
    if width >= 100:
        assert max(map(len, text.splitlines())) <= width


def test_the_table_of_forms_fits_a_hundred_columns_with_its_names_whole():
    headers = ("form", "MB", "load s", "first token ms", "tokens/s", "memory MB", "same tokens")
    headers += ("perplexity", "right (95 %)", "against the report")
    row = ("gguf-q4_k_m", "104.8", "0.31", "88", "62", "412", "97.3 %", "+1.2 %")
    row += ("61.3 % [55.5, 66.8] n=279", "-0.7 points [-3.1, +1.6]: no difference found")
    text = shown(headers, [row], 100, right=range(1, 8))
    for whole in ("gguf-q4_k_m", "perplexity", "tokens/s", "97.3 %"):
        assert whole in text
    assert max(map(len, text.splitlines())) <= 100


def test_text_without_spaces_is_broken_and_styles_stay():
    text = shown(("a", "b"), [("\u6587" * 90, Text("x" * 300, style="red"))], 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("x") == 300
    assert text.count("\u6587") == 90


@given(
    st.lists(st.tuples(*3 * [st.text("ab c%-\u6587\u00e9", max_size=60)]), max_size=4),
    st.integers(20, 120),
)
def test_no_character_of_a_cell_is_lost(rows, width):
    rows = [[" ".join(cell.split()) for cell in row] for row in rows]
    text = shown(("a", "b", "c"), rows, width)
    wanted = sorted("".join("".join(map("".join, rows)).split()))
    got = sorted("".join(text.split()))
    for char in {"a", "b", "c", *wanted} - {"\u2500"}:
        assert got.count(char) >= wanted.count(char)
