"""Any bytes give rows or problems of ours; pieces parsed anywhere give what reading in order gives."""

from __future__ import annotations

import gzip
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.problems import Problems
from tunesmith.data.read import AUTO, FORMS, Limits, open_source, parse_chunk
from tunesmith.data.read.objects import Refused, fields_of

TEXT_FORMS = [form for form in FORMS if form != "parquet"]
SMALL = Limits(max_row_bytes=200, max_depth=8, chunk_bytes=7, free_bytes=1_000)

VALID = {
    "rows.jsonl": b'\xef\xbb\xbf{"a": "x\\u00e9", "b": [1, {"c": null}]}\r\n\n{"a": "\xc3\xa9"}\n',
    "rows.json": b'[{"a": "x"},\n {"a": {"b": [1.50, -2e9]}}\n]\n',
    "held.json": b'{"version": 2, "data": [{"a": "x"},\n {"a": "y"}], "end": {}}',
    "rows.csv": b'a,b\n"x, ""y""\nz",1\nw,\n',
    "rows.tsv": b"a\tb\nx\t1\ny\t2\n",
    "rows.txt": b"one\ntwo\n\nthree\n",
    "rows.md": b"---\nx: 1\n---\n# A\ntext\n```\n# b\n```\n## C\nmore\n",
}
VALID |= {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in VALID.items()}

OFTEN = settings(max_examples=5 * settings().max_examples, deadline=None)
MARKS = [b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"\r\n", b"\t", b"\\", b"\0", b" " * 9]
WORDS = [b"#", b"```", b"---", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"1e999", b"NaN", b"tru"]
PARTS = [
    b'{"a": 1}',
    b'{"a": [',
    b"PAR1",
    b"\x1f\x8b\x08",
    b"\xe2\x80\xa8",
    b"a,b\n1,2\n",
    b"\\ud800",
]
pieces = st.sampled_from([*MARKS, *WORDS, *PARTS])
soups = st.lists(pieces | st.binary(max_size=12), max_size=30).map(b"".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples."""
    return tmp_path_factory.mktemp("fuzz")


def check_reading(path, form, limits):
    """Read to the end, and hold rows, problems and pieces to their promises."""
    source = open_source(path, form=form, limits=limits)
    problems = Problems()
    rows = list(source.rows(problems))
    assert rows or problems.n_problems
    assert source.n_bytes == path.stat().st_size
    for row in rows:
        for name, field in row.fields.items():
            assert "\n" not in field.raw
            assert json.loads(field.raw_key) == name
            parsed = json.loads(field.raw)
            assert parsed == field.value or parsed != parsed
    found, noted = [], Problems()
    for chunk in source.chunks():
        some, wrong = parse_chunk(pickle.loads(pickle.dumps(chunk)))
        found += some
        noted.merge(wrong)
    assert found == rows
    assert (noted.n_problems, noted.lines) == (problems.n_problems, problems.lines)


@given(
    form=st.sampled_from([AUTO, *TEXT_FORMS]),
    content=soups,
    is_packed=st.booleans(),
    limits=st.sampled_from([SMALL, Limits()]),
)
@OFTEN
def test_any_bytes_are_rows_or_problems(folder, form, content, is_packed, limits):
    path = folder / "file"
    path.write_bytes(gzip.compress(content) if is_packed else content)
    check_reading(path, form, limits)


@given(name=st.sampled_from(sorted(VALID)), data=st.data())
@OFTEN
def test_files_with_a_few_changed_bytes_are_rows_or_problems(folder, name, data):
    path = folder / name
    path.write_bytes(data.draw(mutated(VALID[name])))
    check_reading(path, AUTO, data.draw(st.sampled_from([SMALL, Limits()])))


@st.composite
def mutated(draw, content):
    """The content with some bytes changed, cut out, put in or moved."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        to = min(len(found), at + draw(st.integers(0, 6)))
        put = draw(st.binary(max_size=4) | pieces | st.just(bytes(found[at:])))
        found[at:to] = put
    return bytes(found[: draw(st.integers(0, len(found)))] if draw(st.booleans()) else found)


json_texts = st.recursive(
    st.sampled_from(
        ["null", "true", "1", "-0.0", "1E5", "1e999", '"x"', '"\\u00e9\\n"', '"[{"', "{}"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda some: f"[{', '.join(some)}]")
        | st.lists(
            st.tuples(st.sampled_from("abc"), inner), max_size=3, unique_by=lambda p: p[0]
        ).map(lambda some: "{" + " , ".join(f'"{k}" :{v}' for k, v in some) + "}")
    ),
    max_leaves=10,
)


@given(values=st.lists(json_texts, max_size=5), space=st.text(" \t\r\n", max_size=2))
def test_fields_are_cut_out_exactly_as_they_stand(values, space):
    parts = [f'{space}"k{at}"{space}:{space}{value}{space}' for at, value in enumerate(values)]
    found = fields_of(f"{space}{{{space}{','.join(parts)}}}{space}", 256)
    assert [field.raw for field in found.values()] == values
    assert [field.raw_key for field in found.values()] == [f'"k{at}"' for at in range(len(values))]


@given(text=soups.map(lambda data: data.decode("utf-8", "replace")) | json_texts)
@OFTEN
def test_what_is_taken_for_a_row_is_what_a_strict_parser_takes(text):
    def strict(pairs):
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    def refuse(_):
        raise ValueError("no JSON")

    try:
        expected = json.loads(text, object_pairs_hook=strict, parse_constant=refuse)
    except (ValueError, AssertionError):
        expected = None
    try:
        found = {name: field.value for name, field in fields_of(text, 256).items()}
    except Refused:
        found = None
    assert found == (expected if isinstance(expected, dict) else None)


@given(
    rows=st.lists(
        st.dictionaries(st.text(max_size=3), st.text(max_size=20), max_size=3), max_size=9
    ),
    chunk_bytes=st.integers(1, 300),
    is_list=st.booleans(),
)
def test_pieces_of_any_size_give_the_same_rows(tmp_path_factory, rows, chunk_bytes, is_list):
    path = tmp_path_factory.mktemp("chunks") / ("rows.json" if is_list else "rows.jsonl")
    texts = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = f"[{(',' + chr(10)).join(texts)}]" if is_list else "\n".join(texts)
    path.write_text(text, encoding="utf-8")
    problems = Problems()
    found = list(open_source(path, limits=Limits(chunk_bytes=chunk_bytes)).rows(problems))
    assert [{name: f.value for name, f in row.fields.items()} for row in found] == rows
    assert [row.line for row in found] == list(range(1, len(rows) + 1))
    assert problems.n_problems == (0 if rows else 1)
