"""Parquet: every value as JSON, and no key that a row did not have."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.problems import Problems
from tunesmith.data.read import Limits, open_source, parse_chunk

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def parquet(table, **options):
    """A Parquet file's bytes."""
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


@pytest.fixture
def read(tmp_path):
    """Raw texts of each row of a Parquet file, and the problems."""

    def reads(content, name="rows.parquet", **options):
        path = tmp_path / name
        path.write_bytes(content)
        problems = Problems()
        source = open_source(path, **options)
        rows = list(source.rows(problems))
        assert source.n_bytes == len(content)
        assert [row.line for row in rows] == sorted({row.line for row in rows})
        raws = [{field.raw_key: field.raw for field in row.fields.values()} for row in rows]
        assert all(json.loads(f.raw) == f.value for row in rows for f in row.fields.values())
        return raws, [line.removeprefix(str(path)) for line in problems.lines]

    return reads


def test_schemas_and_arguments_of_tools_gain_no_nulls(read):
    tools = [
        [{"name": "now", "parameters": {"zone": {"type": "string"}}}],
        [{"name": "add", "parameters": {"a": {"type": "number", "enum": [1, 2]}}, "strict": True}],
    ]
    calls = [{"city": "Rome"}, {"limit": 3, "deep": {"x": None, "y": 1}}]
    rows, problems = read(parquet(pa.table({"tools": tools, "arguments": calls})))
    assert problems == []
    assert [json.loads(row['"tools"']) for row in rows] == tools
    # A null that was written and one that Arrow filled in are the same bits in the file.
    assert [json.loads(row['"arguments"']) for row in rows] == [
        {"city": "Rome"},
        {"limit": 3, "deep": {"y": 1}},
    ]


def test_a_column_of_arrows_json_type_is_read_byte_for_byte(read):
    texts = ['{"b": 1.50, "a": [null]}', '{"c":\n"\\u00e9"}', None]
    rows, problems = read(parquet(pa.table({"x": pa.array(texts, type=pa.json_())})))
    assert rows == [{'"x"': texts[0]}, {'"x"': '{"c": "\\u00e9"}'}, {}]
    assert problems == []
    rows, problems = read(parquet(pa.table({"x": pa.array(["{", "1"], type=pa.json_())})))
    assert rows == [{'"x"': "1"}]
    assert problems[0].startswith(":1: x: not valid JSON at character 2")


def test_null_cells_are_not_there_and_nulls_in_lists_stay(read):
    rows, _ = read(parquet(pa.table({"a": ["x", None], "b": [[1, None], None]})))
    assert rows == [{'"a"': '"x"', '"b"': "[1, null]"}, {}]


def test_every_type_that_json_has_a_form_for_is_read(read):
    day = datetime.date(2026, 3, 1)
    moment = datetime.datetime(2026, 3, 1, 12, 30, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "date": [day],
            "time": [moment],
            "exact": [decimal.Decimal("1.50")],
            "large": pa.array([2**64 - 1], type=pa.uint64()),
            "half": pa.array([0.1], type=pa.float32()),
            "map": pa.array([[("k", 1), ("n", None)]], type=pa.map_(pa.string(), pa.int64())),
            "word": pa.array(["x"]).dictionary_encode(),
            "flag": [True],
            "view": pa.array(["é\n"], type=pa.large_string()),
        }
    )
    rows, problems = read(parquet(table))
    assert problems == []
    assert rows == [
        {
            '"date"': '"2026-03-01"',
            '"time"': '"2026-03-01T12:30:00+00:00"',
            '"exact"': "1.50",
            '"large"': "18446744073709551615",
            '"half"': "0.10000000149011612",
            '"map"': '{"k": 1, "n": null}',
            '"word"': '"x"',
            '"flag"': "true",
            '"view"': '"é\\n"',
        }
    ]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([b"\0"]), "column 'x': JSON has no form for values of the type binary"),
        (pa.array([{"y": b""}]), "column 'x': JSON has no form for values of the type binary"),
        (pa.array([[(1, 2)]], type=pa.map_(pa.int64(), pa.int64())), "a map whose keys are int64"),
    ],
)
def test_a_column_that_json_has_no_form_for_is_named(read, column, said):
    rows, problems = read(parquet(pa.table({"x": column})))
    assert rows == []
    assert len(problems) == 1
    assert said in problems[0]


def test_a_value_that_is_no_json_is_a_problem_of_its_row(read):
    table = pa.table({"x": [1.0, float("nan"), float("-inf"), 2.0]})
    rows, problems = read(parquet(table))
    assert [row['"x"'] for row in rows] == ["1.0", "2.0"]
    assert problems == [":2: x: nan is not JSON", ":3: x: -inf is not JSON"]


def test_a_text_that_is_not_utf8_is_a_problem_of_its_row(read):
    damaged = pa.Array.from_buffers(
        pa.string(), 3, [None, *pa.array([b"ok", b"\xff", b"so"]).buffers()[1:]]
    )
    rows, problems = read(parquet(pa.table({"x": damaged})))
    assert [row['"x"'] for row in rows] == ['"ok"', '"so"']
    assert len(problems) == 1
    assert problems[0].startswith(":2: a value that is not valid")


def test_rows_come_by_groups_and_pieces_equal_the_whole(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"n": list(range(1_000)), "text": ["x" * 50] * 1_000})
    pq.write_table(table, path, row_group_size=300)
    source = open_source(path, limits=Limits(chunk_bytes=5_000))
    whole = list(source.rows(Problems()))
    chunks = list(source.chunks())
    assert len(chunks) > 4
    assert [row for chunk in chunks for row in parse_chunk(chunk)[0]] == whole
    assert [row.fields["n"].value for row in whole] == list(range(1_000))


def test_a_packed_parquet_file_is_read_as_well(read):
    content = parquet(pa.table({"a": ["x"]}))
    assert read(gzip.compress(content), "a.parquet.gz") == ([{'"a"': '"x"'}], [])


def test_a_column_that_expands_too_far_is_refused(read):
    table = pa.table({"x": ["a" * 2**17] * 16})
    content = parquet(table, compression="zstd", use_dictionary=False)
    _, problems = read(content, limits=Limits(free_bytes=2**20))
    assert len(problems) == 1
    assert "the columns expand to more than 250 times the file's size" in problems[0]
    assert len(read(content)[0]) == 16


@pytest.mark.parametrize("cut", [1, 8, 100])
def test_a_parquet_file_that_is_cut_off_is_one_problem(read, cut):
    rows, problems = read(parquet(pa.table({"x": ["a", "b"]}))[:-cut])
    assert rows == []
    assert len(problems) == 1
    assert "the Parquet file is damaged or cut off" in problems[0]


@given(data=st.data())
def test_a_parquet_file_with_changed_bytes_is_rows_or_problems(tmp_path_factory, data):
    content = bytearray(parquet(pa.table({"x": ["a", "b"], "y": [{"z": 1}, {"z": 2}]})))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    path.write_bytes(content)
    problems = Problems()
    rows = list(open_source(path).rows(problems))
    assert rows or problems.n_problems


@pytest.mark.slow
def test_parquet_needs_neither_numpy_nor_pandas(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x"], "t": [datetime.datetime(2026, 1, 1)]}), path)
    code = (
        "import sys; sys.modules.update(numpy=None, pandas=None)\n"
        "from tunesmith.data.read import open_source\n"
        "from tunesmith.data.problems import Problems\n"
        "from pathlib import Path\n"
        "(row,) = open_source(Path(sys.argv[1])).rows(Problems())\n"
        "print([f.raw for f in row.fields.values()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['\"x\"', '\"2026-01-01T00:00:00\"']\n"


def test_a_parquet_file_that_changes_while_it_is_read_is_refused(tmp_path):
    from tunesmith.errors import DataError

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x"] * 200}), path)
    rows = open_source(path, limits=Limits(chunk_bytes=1)).rows(Problems())
    next(rows)
    with Path(path).open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(DataError, match="changed while it was read"):
        list(rows)


def test_arrow_reads_a_file_of_its_own_also_where_ours_has_no_name_any_more(tmp_path):
    # A Python file that a thread of Arrow's lets go at exit ends the process with signal 6, now and then.
    import pyarrow

    from tunesmith.data.read.parquet import _native

    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and more")
    with path.open("rb") as file:
        file.read(4)
        path.unlink()
        native = _native(file, pyarrow)
        assert isinstance(native, pyarrow.OSFile)
        assert native.read() == b"PAR1 and more"
        assert file.tell() == 4
