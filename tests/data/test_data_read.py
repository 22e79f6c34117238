"""Files to raw rows: nothing is lost, and every fault is named with its place."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.problems import Problems
from tunesmith.data.read import Limits, open_source
from tunesmith.errors import DataError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), json_values, max_size=4)


def problems_of(path):
    problems = Problems()
    rows = list(open_source(path).rows(problems))
    return problems.lines, rows


@given(rows=st.lists(objects, min_size=1, max_size=5), ascii_only=st.booleans())
def test_every_value_is_read_with_its_exact_characters(tmp_path_factory, rows, ascii_only):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    data = "\n".join(texts).encode("utf-8", "surrogatepass")
    path.write_bytes(data)
    problems = Problems()
    source = open_source(path)
    found = list(source.rows(problems))
    assert problems.lines == []
    assert source.sha256 == hashlib.sha256(data).hexdigest()
    assert [row.line for row in found] == list(range(1, len(rows) + 1))
    for row, expected in zip(found, rows, strict=True):
        assert {name: field.value for name, field in row.fields.items()} == expected
        for name, field in row.fields.items():
            assert field.raw == json.dumps(expected[name], ensure_ascii=ascii_only)


def test_numbers_keep_the_form_that_they_have_in_the_file(lines):
    path = lines(
        "a.jsonl", ['{"a": 1.50, "b": 1E5, "c": 0.1000000000000000000001, "d": "\\u00e9"}']
    )
    _, rows = problems_of(path)
    raws = {name: field.raw for name, field in rows[0].fields.items()}
    assert raws == {"a": "1.50", "b": "1E5", "c": "0.1000000000000000000001", "d": '"\\u00e9"'}


def test_a_json_list_is_read_with_the_line_of_each_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n {"a": 1},\n\n {"a":\n   {"b": 2}}\n]\n', encoding="utf-8")
    lines_found, rows = problems_of(path)
    assert lines_found == []
    assert [row.line for row in rows] == [2, 4]
    assert rows[1].fields["a"].raw == '{"b": 2}'


def test_line_breaks_within_a_value_become_spaces_since_a_row_is_one_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a": [1,\r\n 2]}, {"\\u0062":\n{"c":\n"x\\n"}}]')
    _, rows = problems_of(path)
    assert rows[0].fields["a"].raw == "[1,   2]"
    assert {f.raw_key: f.raw for f in rows[1].fields.values()} == {'"\\u0062"': '{"c": "x\\n"}'}
    assert rows[1].fields["b"].value == {"c": "x\n"}


def test_a_value_that_was_read_in_part_is_not_taken_for_the_whole(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": "xyz"}, 123456, {"a": true}]', encoding="utf-8")
    for chunk_bytes in range(1, 20):
        problems = Problems()
        rows = list(open_source(path, limits=Limits(chunk_bytes=chunk_bytes)).rows(problems))
        assert [row.fields["a"].raw for row in rows] == ['"xyz"', "true"]
        assert problems.lines == [f"{path}:2: a row is a JSON object, this is a number"]


def test_a_byte_order_mark_blank_lines_and_windows_line_ends_do_no_harm(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}')
    lines_found, rows = problems_of(path)
    assert lines_found == []
    assert [(row.line, row.fields["a"].value) for row in rows] == [(1, 1), (3, 2)]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b"", "a.jsonl: empty file"),
        ("a.jsonl", b"\n \n", "a.jsonl: no rows, only blank lines"),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a" 2}\n',
            "a.jsonl:2: not valid JSON at character 6: Expecting ':'",
        ),
        ("a.jsonl", b'{"a": 1}\n{"a": "hal', "a.jsonl:2: the last line is cut off: not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n\xff\n', "a.jsonl:2: not UTF-8: byte 0xff at byte 9 of the file"),
        (
            "a.jsonl",
            b'{"a": "\xe9t\xe9"}\n',
            "a.jsonl:1: not UTF-8: byte 0xe9 at byte 7 of the file",
        ),
        ("a.jsonl", b'{"a": 1}\n{"a": "\0"}\n', "a.jsonl:2: a NUL byte at byte 16 of the file"),
        (
            "a.jsonl",
            ('{"a": 1}\n' * 3).encode("utf-16-le"),
            "a.jsonl: not UTF-8: it looks like UTF-16",
        ),
        (
            "a.jsonl",
            ('{"a": 1}\n' * 3).encode("utf-16"),
            "a.jsonl: not UTF-8: it looks like UTF-16",
        ),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: a row is a JSON object, this is a number"),
        ("a.jsonl", b"7\n", "a.jsonl:1: a row is a JSON object, this is a number"),
        ("a.jsonl", b'{"a": 1, "a": 2}\n', "a.jsonl:1: the key 'a' stands twice in one object"),
        ("a.jsonl", b'{"a": {"b": 1, "b": 1}}\n', "the key 'b' stands twice"),
        ("a.jsonl", b'{"a": NaN}\n', "a.jsonl:1: NaN is not JSON"),
        ("a.jsonl", b'{"a": ' + b"[" * 200_000 + b"\n", "a.jsonl:1: nested too deeply"),
        (
            "a.jsonl",
            b'{"a": ' + b"9" * 5_000 + b"}\n",
            "a.jsonl:1: a number of more than 4,300 digits",
        ),
        ("a.json", b'[{"a": 1},\n {"a": ', "a.json:2: not valid JSON in the row that starts here"),
        ("a.json", b'[{"a": 1}\n', "the list does not end here as it should"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', "a.json:2: the list does not end here as it should"),
        ("a.json", b'[{"a": 1},\n 5]', "a.json:2: a row is a JSON object, this is a number"),
        ("a.json", b'[{"a": 1}] x', "a.json:1: text follows after the list's end"),
        ("a.json", b'[{"a": 1}, {"a": "\xff"}]', "not UTF-8: byte 0xff at byte 18 of the file"),
        ("a.json", b'[{"a": 1},\n {"a": "\0"}]', "a.json:2: a NUL byte at byte 19 of the file"),
        ("a.json", b'{"a": 1}\n{"a": }', "a.json:2: not valid JSON at character 7"),
        (
            "a.json",
            b'{"rows": [{"a": 1}], "b": [{"a": 1}]}',
            "more than one list of rows: 'rows' and 'b'",
        ),
        ("a.json", b'{"rows": [{"a": 1}], "b": 1', "the object does not end here as it should"),
        ("a.json", b"[]", "a.json: no rows"),
        ("a.json", b'[{"a": 1},\n]', "a.json:2: a comma stands before the list's end"),
        ("a.jsonl", b"{'a': 1}\n", "is it Python's notation? json.dumps writes JSON"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    found, _ = problems_of(path)
    assert len(found) == 1
    assert expected in found[0]
    assert found[0].startswith(str(path))


@pytest.mark.parametrize("chunk_bytes", [1, 16, 1_000])
def test_a_line_over_the_limit_is_a_problem_and_the_lines_after_it_are_read(tmp_path, chunk_bytes):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 100 + '"}\n\n{"a": 3}\n', encoding="utf-8")
    problems = Problems()
    source = open_source(path, limits=Limits(max_row_bytes=64, chunk_bytes=chunk_bytes))
    rows = list(source.rows(problems))
    assert problems.lines == [f"{path}:2: the line is longer than 64 bytes"]
    assert [row.line for row in rows] == [1, 4]


def test_numbers_too_large_for_a_float_or_very_long_keep_their_characters(lines):
    digits = "9" * 400
    _, rows = problems_of(lines("a.jsonl", [f'{{"a": 1e999, "b": {digits}, "c": [-0.0, 1E+2]}}']))
    raws = {name: field.raw for name, field in rows[0].fields.items()}
    assert raws == {"a": "1e999", "b": digits, "c": "[-0.0, 1E+2]"}
    assert rows[0].fields["b"].value == int(digits)


def test_half_of_a_surrogate_pair_keeps_its_characters(lines):
    _, rows = problems_of(lines("a.jsonl", ['{"a": "\\ud800x"}']))
    assert rows[0].fields["a"].raw == '"\\ud800x"'


def test_nesting_is_counted_outside_of_strings(lines):
    limits = Limits(max_depth=3)
    path = lines("a.jsonl", ['{"a": "' + "[{" * 50 + '\\"["}', '{"a": [[1], [2], [3], [4]]}'])
    problems = Problems()
    assert len(list(open_source(path, limits=limits).rows(problems))) == 2
    assert problems.lines == []
    deep = lines("b.jsonl", ['{"a": [[[1]]]}'])
    assert list(open_source(deep, limits=limits).rows(problems)) == []
    assert problems.lines == [f"{deep}:1: nested too deeply: more than 3 levels"]


def test_a_files_hash_and_size_are_those_on_the_disk_whatever_is_wrong_in_it(tmp_path):
    content = gzip.compress(b'{"a": 1}\n{"a" 2}\n' * 100)[:-9]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content)
    problems = Problems()
    source = open_source(path)
    assert (source.sha256, source.n_bytes) == ("", 0)
    rows = list(source.rows(problems))
    assert len(rows) == 100
    assert problems.n_problems == 101
    assert source.sha256 == hashlib.sha256(content).hexdigest()
    assert source.n_bytes == len(content)


def test_a_problem_of_every_row_is_told_once_and_chunks_change_nothing():
    rows = [(f"a.jsonl:{n}", "no prompt") for n in range(1, 3_080)]
    rows.insert(20, ("a.jsonl:20", "no answer"))
    whole = Problems()
    for where, what in rows:
        whole.add(where, what)
    parts = Problems()
    for start in range(0, len(rows), 700):
        part = Problems()
        for where, what in rows[start : start + 700]:
            part.add(where, what)
        parts.merge(part)
    assert parts.lines == whole.lines
    first, second = whole.lines
    assert first.startswith("a.jsonl:1: no prompt (the same in 3,078 other rows: :2, :3, ")
    assert first.endswith(":50 and 3,029 more)")
    assert second == "a.jsonl:20: no answer"
    with pytest.raises(DataError, match=r"^3,080 problems") as caught:
        parts.raise_any("mend it")
    assert "more\n" not in caught.value.what


def test_a_problem_of_ten_rows_is_named_for_each():
    problems = Problems()
    for n in range(10):
        problems.add(f"a.jsonl:{n}", "no prompt")
    assert problems.lines == [f"a.jsonl:{n}: no prompt" for n in range(10)]


def test_one_error_names_the_first_fifty_problems_and_counts_all(lines):
    path = lines("a.jsonl", ["{"] * 60)
    problems = Problems()
    assert list(open_source(path).rows(problems)) == []
    with pytest.raises(DataError) as caught:
        problems.raise_any("mend it")
    text = str(caught.value)
    assert "60 problems" in text
    assert text.count("not valid JSON") == 1
    assert f"{path}:1: not valid JSON" in text
    assert ":49, :50 and 10 more)" in text
    assert f"{path}:51:" not in text
    assert "and 10 more" in text
    assert "fix: mend it" in text


@pytest.mark.parametrize(
    "text", ['[{"a": 1}, {"a": 2},\n {"a": 3}]', '{"a": 1} {"a": 2} {"a": 3}\n']
)
def test_rows_of_a_document_on_one_line_are_told_apart_by_their_numbers(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    rows = list(open_source(path, form="json").rows(Problems()))
    assert [(row.line, row.fields["a"].value) for row in rows] == [(1, 1), (2, 2), (3, 3)]


def test_a_document_that_breaks_in_its_second_row_keeps_the_first(tmp_path):
    path, problems = tmp_path / "rows.json", Problems()
    path.write_text('[{"a": 1}, {"a": ]')
    rows = list(open_source(path).rows(problems))
    assert [row.fields["a"].value for row in rows] == [1]
    assert problems.n_problems == 1
