"""What a file is, told from its content, and what its rows are then."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.config import DataConfig
from tunesmith.data.problems import Problems
from tunesmith.data.read import AUTO, FORMS, Limits, open_source
from tunesmith.errors import ConfigError

ROW = b'{"a": "x", "b": 1}'
CSV = b"a,b\nx,1\ny,2\n"
LIST = b'[{"a": "x"}, {"a": "y"}]'


def rows_of(path, **options):
    """Values of each row, their lines, and the problems."""
    problems = Problems()
    source = open_source(path, **options)
    rows = list(source.rows(problems))
    for row in rows:
        assert all(json.loads(field.raw) == field.value for field in row.fields.values())
        assert all(json.loads(field.raw_key) == name for name, field in row.fields.items())
    values = [{name: field.value for name, field in row.fields.items()} for row in rows]
    return values, [row.line for row in rows], [p.partition(": ")[2] for p in problems.lines]


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "form"),
    [
        ("rows", ROW + b"\n" + ROW, "jsonl"),
        ("rows.txt", ROW + b"\n" + ROW, "jsonl"),
        ("rows.json", ROW + b"\n" + ROW, "jsonl"),
        ("rows.csv", ROW + b"\n" + ROW, "jsonl"),
        ("rows.jsonl", LIST, "json"),
        ("rows", LIST, "json"),
        ("rows", b'{"version": "1",\n "data": [\n{"a": 1}]}', "json"),
        ("rows.json", b'{"data": [{"a": 1}]}', "json"),
        ("rows", b'{"data": [{"a": 1}]}', "json"),
        ("one", b'{"messages": [{"role": "user"}]}', "jsonl"),
        ("one.json", b'{"messages": [{"role": "user"}]}', "jsonl"),
        ("one.jsonl", b'{"data": [{"a": 1}]}', "jsonl"),
        ("one.json", b'{\n "a": 1\n}', "json"),
        ("table", CSV, "csv"),
        ("table.txt", CSV, "txt"),
        ("table.csv", CSV.replace(b",", b"\t"), "tsv"),
        ("table.tsv", CSV.replace(b",", b"\t"), "tsv"),
        ("table", CSV.replace(b",", b";"), "csv"),
        ("single.csv", b"text\none\ntwo\n", "csv"),
        ("page", b"# Title\n\nWords, and words.\n", "markdown"),
        ("page.txt", b"# Title\n\nWords.\n", "txt"),
        ("page.md", b"Words without a heading.\n", "markdown"),
        ("code.py", b"# A comment, and more\nx = 1\n", "txt"),
        ("prose", b"Words.\n\nMore words.\n", "txt"),
        ("curly.md", b"{not json} at all\n", "markdown"),
        ("bad.jsonl", b"not json\n", "jsonl"),
        ("bad.json", b"not json\n", "json"),
    ],
)
def test_the_form_is_told_from_the_content_and_the_name_settles_the_rest(
    tmp_path, name, content, form
):
    path = written(tmp_path, name, content)
    assert open_source(path).form == form
    packed = written(tmp_path, f"{name}.gz", gzip.compress(content))
    found = open_source(packed)
    assert (found.form, found.compression) == (form, "gzip")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04rest", "a ZIP archive or an Excel file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"%PDF-1.7", "a PDF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", "a pointer of Git LFS"),
        (b"\x80\x04\x95\x00\x00", "a pickle, which could run code"),
        (b"\x89PNG\r\n", "an image"),
        (b"ARROW1\0\0", "an Arrow file: save it as Parquet"),
        (gzip.compress(gzip.compress(b"a")), "compressed twice"),
        (b"\0\0\0\0\0", "binary data, not text"),
        ("a,b\n1,2\n".encode("utf-16"), "not UTF-8: it looks like UTF-16"),
        ("a,b\n1,2\n".encode("utf-16-be"), "not UTF-8: it looks like UTF-16"),
    ],
)
def test_a_file_of_another_kind_is_one_clear_problem(tmp_path, content, said):
    path = written(tmp_path, "file.csv", content)
    values, _, problems = rows_of(path)
    assert values == []
    assert len(problems) == 1
    assert problems[0].startswith(said)
    assert open_source(path).form == ""


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("a,b\né,1\n".encode(), "UTF-8"),
        ("\ufeffa,b\né,1\n".encode(), "UTF-8 with a byte order mark"),
        ("a,b\né,1\n".encode("cp1252"), "not UTF-8"),
        (("a,b\n1," + "é" * 40_000 + "\n").encode(), "UTF-8"),
    ],
)
def test_the_encoding_is_told(tmp_path, content, encoding):
    assert open_source(written(tmp_path, "t.csv", content)).encoding == encoding


def test_the_user_may_say_what_a_file_is(tmp_path):
    path = written(tmp_path, "table.txt", CSV)
    assert rows_of(path, form="csv")[0] == [{"a": "x", "b": "1"}, {"a": "y", "b": "2"}]
    assert rows_of(path, form="markdown")[0] == [{"text": CSV.decode().strip(), "heading": ""}]
    with pytest.raises(ConfigError, match="did you mean 'csv'"):
        open_source(path, form="cvs")


def test_the_recipes_forms_are_those_that_there_are():
    named = DataConfig.model_fields["form"].annotation.__args__
    assert set(named) == {AUTO, *FORMS}
    for form in FORMS:
        assert callable(FORMS.load(form).parse)


def test_cells_keep_line_breaks_quotation_marks_and_spaces(tmp_path):
    content = 'a,b\r\n"x\r\n""y"", z", w \r\n\r\n5" pipe,"é"\r\n'
    values, lines, problems = rows_of(written(tmp_path, "t.csv", "\ufeff" + content))
    assert values == [{"a": 'x\r\n"y", z', "b": " w "}, {"a": '5" pipe', "b": "é"}]
    assert lines == [2, 5]
    assert problems == []


def test_cells_may_be_long_and_pythons_own_limit_stays_as_it_is(tmp_path):
    path = written(tmp_path, "t.csv", f"a,b\n1,{'x' * 200_000}\n")
    before = csv.field_size_limit()
    assert len(rows_of(path)[0][0]["b"]) == 200_000 > before
    assert csv.field_size_limit() == before


def test_quotation_marks_mean_nothing_in_a_tsv_that_uses_them_as_characters(tmp_path):
    values, *_ = rows_of(written(tmp_path, "t.tsv", 'a\tb\n"so" he said\t1\n12"\t2\n'))
    assert values == [{"a": '"so" he said', "b": "1"}, {"a": '12"', "b": "2"}]
    quoted, *_ = rows_of(written(tmp_path, "q.tsv", 'a\tb\n"x\ty"\t1\n'))
    assert quoted == [{"a": "x\ty", "b": "1"}]


def test_what_is_wrong_in_a_table_is_named_with_the_line_where_its_record_begins(tmp_path):
    content = b'a,b\n1,2\n"3\n3",4,5\n6\n"7"x,8\n\xff,9\n10,11\n"12,\n13'
    values, lines, problems = rows_of(written(tmp_path, "t.csv", content))
    assert values == [{"a": "1", "b": "2"}, {"a": "10", "b": "11"}]
    assert lines == [2, 8]
    assert problems == [
        "text follows after a cell's closing quotation mark; "
        "inside of quoted cells write quotation marks twice",
        "not UTF-8: byte 0xff at byte 27 of the file",
        "a quoted cell of the record that starts here never ends",
        "3 cells; the heading has 2",
        "1 cell; the heading has 2",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,a\n1,2\n", "the name 'a' stands twice in the heading"),
        ("a,\n1,2\n", "column 2 has no name in the heading"),
        ("a,b\n", "no rows under the heading"),
        ("", "empty file"),
    ],
)
def test_a_heading_has_to_name_every_column(tmp_path, content, said):
    values, _, problems = rows_of(written(tmp_path, "t.csv", content))
    assert (values, problems) == ([], [said])


def test_a_paragraph_is_a_row(tmp_path):
    values, lines, _ = rows_of(written(tmp_path, "t.txt", "\n one\n two\n\n \n\nthree\r\nfour"))
    assert values == [{"text": " one\n two"}, {"text": "three\r\nfour"}]
    assert lines == [2, 7]


def test_a_section_is_a_row_with_the_headings_above_it(tmp_path):
    page = (
        "---\ntitle: left out\n---\nBefore.\n\n# Guide #\n\n## Install\n\n```sh\n# no heading\n```\n"
        "### On `Linux`\ntext\n#no heading\n## Use\n    # code, no heading\n# End\n"
    )
    values, lines, _ = rows_of(written(tmp_path, "t.md", page))
    assert values == [
        {"text": "Before.", "heading": ""},
        {"text": "## Install\n\n```sh\n# no heading\n```", "heading": "Guide > Install"},
        {
            "text": "### On `Linux`\ntext\n#no heading",
            "heading": "Guide > Install > On `Linux`",
        },
        {"text": "## Use\n    # code, no heading", "heading": "Guide > Use"},
    ]
    assert lines == [4, 8, 13, 16]


def test_the_rows_of_an_object_are_its_one_list_of_objects(tmp_path):
    content = (
        '{\n"info": {"n": [1]}, "turns": [{"x": 1}],\n"dialogues": [\n{"a": 1},\n {"a": 2}]\n}'
    )
    path = written(tmp_path, "t.json", content)
    assert open_source(path).container == "dialogues"
    assert rows_of(path) == ([{"a": 1}, {"a": 2}], [4, 5], [])


def test_objects_one_after_the_other_over_several_lines_are_rows(tmp_path):
    values, lines, _ = rows_of(written(tmp_path, "t.json", '{\n"a": 1\n}\n{\n"a": [2,\n3]}\n'))
    assert values == [{"a": 1}, {"a": [2, 3]}]
    assert lines == [1, 4]


@given(
    cells=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2)
    ),
    delimiter=st.sampled_from(",\t;|"),
    chunk_bytes=st.integers(1, 200),
)
def test_a_table_gives_back_every_cell(tmp_path_factory, cells, delimiter, chunk_bytes):
    # A NUL is a problem, and a bare carriage return would be quoted by no CSV writer but Python's.
    cells = [[cell.replace("\0", "").replace("\r", "") for cell in row] for row in cells]
    cells = [row for row in cells if any(row)]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows([["a", "b"], *cells])
    path = written(tmp_path_factory.mktemp("csv"), "t.csv", text.getvalue())
    limits = Limits(chunk_bytes=chunk_bytes)
    source = open_source(path, form="tsv" if delimiter == "\t" else "csv", limits=limits)
    if source.delimiter == delimiter:
        problems = Problems()
        found = [[f.value for f in row.fields.values()] for row in source.rows(problems)]
        assert found == cells
        assert problems.lines == ([] if cells else [f"{path}: no rows under the heading"])


def test_a_file_named_parquet_that_is_a_text_is_refused_and_one_that_is_rows_is_read(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_text("a cut-off page")
    values, _, problems = rows_of(path)
    assert (values, [said.partition(",")[0] for said in problems]) == ([], ["not Parquet"])
    path.write_text('{"a": 1}\n')
    assert open_source(path).form == "jsonl"
