"""Rows that cannot be read refuse their files, or are left out one by one: none is lost, none is twice there."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.cli.data.clean import clean
from tunesmith.cli.data.split import split
from tunesmith.config import CleanConfig
from tunesmith.data.clean import clean_files, plan_clean
from tunesmith.data.intake import Intake, Piece, digest
from tunesmith.data.problems import Problems
from tunesmith.data.read import Limits, open_source, parse_chunk, parse_each
from tunesmith.data.rows import BadRow
from tunesmith.data.schemas import HEAD_ROWS, Options, tell
from tunesmith.errors import DataError

DROP = CleanConfig(unreadable="drop")


def good(k):
    turns = [
        {"role": "user", "content": f"What is {k} in words, twice?"},
        {"role": "assistant", "content": f"word {k}, word {k}"},
    ]
    return json.dumps({"messages": turns, "k": k})


EMPTY = '{"messages":  [{"role":"user","content":""},{"role":"assistant","content":"x"}], "n":1.50}'
ORDER = (
    '{"messages": [{"role": "assistant", "content": "first"}, {"role": "user", "content": "b"}]}'
)
OTHER = '{"text": "a row of another schema"}'
CUT = '{"messages": [{"role": "user", "con'
BAD = {
    "empty": (EMPTY, "messages[0].content: empty", EMPTY),
    "order": (ORDER, "messages", ORDER),
    "other": (OTHER, "mixed schemas: a text row in a file of chat", OTHER),
    "cut": (CUT, "not valid JSON", {"raw": CUT}),
    "list": ("[1, 2]", "a row is a JSON object, this is a list", {"raw": "[1, 2]"}),
    "twice": ('{"a": 1, "a": 2}', "'a' stands twice", {"raw": '{"a": 1, "a": 2}'}),
    "no field": ("{}", "the field 'messages' is missing", "{}"),
    "NUL": ("a\0b", "a NUL byte", {"raw": "a\0b"}),
}


def mixed(names, n_good=40):
    """Lines of good rows with bad ones among them: the line numbers of the bad ones, and all lines."""
    lines, places = [], {}
    for k in range(n_good):
        lines.append(good(k))
        if k < len(names):
            lines.append(BAD[names[k]][0])
            places[names[k]] = len(lines)
    return places, lines


def side(folder, name="dropped.jsonl"):
    text = Path(folder, name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def cleaned(path, out, config=DROP, **more):
    result = clean_files([path], config, out=out, processes=1, **more)
    return result, side(out), side(out, "rows.jsonl")


def files(path, **more):
    return {"source": {"kind": "files", "train": str(path)}, **more}


LEAVE = {"clean": {"unreadable": "drop"}}


def check_dropped(path, places, dropped):
    assert [one["where"] for one in dropped] == [f"{path}:{places[name]}" for name in places]
    assert {one["rule"] for one in dropped} == {"unreadable"}
    for one, name in zip(dropped, places, strict=True):
        _, reason, row = BAD[name]
        assert reason in one["reason"]
        assert str(path) not in one["reason"]
        assert one["row"] == (json.loads(row) if isinstance(row, str) else row)


def test_data_clean_leaves_unreadable_rows_out_and_keeps_each_as_it_stands(lines, tmp_path):
    places, texts = mixed(list(BAD))
    path = lines("rows.jsonl", texts)
    result, dropped, rows = cleaned(path, tmp_path / "out")
    check_dropped(path, places, dropped)
    assert [row["meta"]["k"] for row in rows] == list(range(40))
    assert (result.rows_in, result.rows_out, dict(result.dropped)) == (48, 40, {"unreadable": 8})
    assert (result.files[0]["rows"], result.files[0]["unreadable"]) == (48, 8)
    # The characters of every value are kept, not only the value.
    text = (tmp_path / "out/dropped.jsonl").read_text(encoding="utf-8")
    assert '[{"role":"user","content":""},{"role":"assistant","content":"x"}], "n": 1.50}' in text


def test_data_build_leaves_unreadable_rows_out_and_counts_them(lines, seal):
    places, texts = mixed(list(BAD))
    path = lines("rows.jsonl", texts)
    result = seal(files(path, **LEAVE))
    check_dropped(path, places, side(result.artifact.dir))
    report = result.report
    assert report["left_out"]["by_rule"] == {"unreadable": 8}
    assert report["rows_read"] == 48 == sum(result.rows.values()) + 8
    assert (report["files"][0]["rows"], report["files"][0]["unreadable"]) == (40, 8)
    card = result.artifact.path("README.md").read_text(encoding="utf-8")
    assert "| unreadable | 8 | 0 |" in card


def test_unless_told_otherwise_they_refuse_all_and_the_setting_is_named(lines, seal, tmp_path):
    places, texts = mixed(list(BAD))
    path = lines("rows.jsonl", texts)
    refused = []
    for make in (
        lambda: seal(files(path)),
        lambda: clean_files([path], CleanConfig(), out=tmp_path / "out", processes=1),
    ):
        with pytest.raises(DataError) as caught:
            make()
        refused.append(caught.value)
    for error in refused:
        for name, line in places.items():
            assert f"{path}:{line}: " in error.what
            assert BAD[name][1] in error.what
        assert "data.clean.unreadable=drop" in error.fix
    assert not (tmp_path / "out").exists()


def test_the_setting_is_not_named_where_it_would_not_help(lines, seal):
    path = lines("rows.jsonl", [good(k) for k in range(30)])
    with pytest.raises(DataError) as caught:
        seal(files(path, split={"group": "owner"}))
    assert "unreadable" not in caught.value.fix


@pytest.mark.parametrize("n_bad", [8, 9])
def test_a_file_of_which_more_than_half_is_unreadable_is_refused(lines, seal, tmp_path, n_bad):
    other = lines("other.jsonl", [good(k) for k in range(100, 200)])
    path = lines("rows.jsonl", [good(k) for k in range(8)] + [ORDER] * n_bad)
    section = {"source": {"kind": "files", "train": [str(other), str(path)]}, **LEAVE}
    for make in (
        lambda: seal(section),
        lambda: clean_files([other, path], DROP, out=tmp_path / "out", processes=1),
    ):
        if n_bad == 8:
            make()
            continue
        with pytest.raises(DataError) as caught:
            make()
        assert f"{path}: 9 of 17 rows cannot be read" in caught.value.what
        assert f"{path}:9: messages" in caught.value.what
        assert "data inspect" in caught.value.fix
        assert not (tmp_path / "out").exists()


def test_lines_that_are_no_text_are_shown_with_their_bytes_escaped(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = [good(k).encode() for k in range(5)]
    long = b'{"a": "' + b"x" * 20_000
    path.write_bytes(b"\n".join([*texts, b'{"a": "caf\xe9"}', long, b""]))
    _, dropped, _ = cleaned(path, tmp_path / "out")
    assert dropped[0]["row"] == {"raw": '{"a": "caf\\xe9"}'}
    assert "not UTF-8: byte 0xe9" in dropped[0]["reason"]
    assert dropped[1]["row"] == {
        "raw": long.decode()[:10_000],
        "cut_characters": len(long) - 10_000,
    }


def test_rows_of_tables_lists_and_parquet_are_left_out_too(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"prompt": f"p {k}", "completion": f"c {k}", "score": k / 2} for k in range(6)]
    made = {
        "rows.csv": 'prompt,completion\np,c\n"a ""b""",c,"d,e"\nq,\nr,c\ns,d\n',
        "rows.json": json.dumps([*rows, 7, {"prompt": "p"}]),
    }
    for name, text in made.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    rows[3]["score"] = float("nan")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = {
        name: cleaned(tmp_path / name, tmp_path / f"{name}.out")[1]
        for name in ("rows.csv", "rows.json", "rows.parquet")
    }
    assert [one["row"] for one in found["rows.csv"]] == [
        {"raw": '"a ""b""",c,"d,e"'},
        {"prompt": "q", "completion": ""},
    ]
    assert [one["row"] for one in found["rows.json"]] == [{"raw": "7"}, {"prompt": "p"}]
    assert [one["where"] for one in found["rows.parquet"]] == [f"{tmp_path / 'rows.parquet'}:4"]
    assert '"p 3"' in found["rows.parquet"][0]["row"]["raw"]


DAMAGED = {
    "rows.jsonl.gz": gzip.compress("\n".join(map(good, range(2_000))).encode())[:-200],
    "rows.json": f"[{good(1)}, {good(2)}, {{'a': 1}}, {good(3)}]".encode(),
    "open.csv": b'prompt,completion\np,c\nq,d\nr,"e\ns,f\n',
    "bytes.csv": b"prompt,completion\np,c\nq,d\nr,caf\xe9\ns,f\n",
    "rows.txt": b"one\n\ntwo\n\ncaf\xe9\n\nfour\n",
    "utf16.jsonl": "\n".join(map(good, range(9))).encode("utf-16"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_damages_more_than_a_row_is_refused_all_the_same(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(DAMAGED[name])
    with pytest.raises(DataError) as caught:
        clean_files([path], DROP, processes=1)
    assert "data.clean.unreadable" not in caught.value.fix


def test_a_row_over_the_limits_cannot_be_shown_and_so_not_be_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{good(1)}\n" + '{"a": "' + "x" * 400 + '"}\n', encoding="utf-8")
    limits, problems = Limits(max_row_bytes=300), Problems()
    chunks = open_source(path, limits=limits).chunks()
    found = [row for chunk in chunks for row in parse_each(chunk, problems)]
    assert [row.text for row in found if isinstance(row, BadRow)] == [""]
    plan = plan_clean(DROP)
    chunk = next(iter(open_source(path, limits=limits).chunks()))
    taken = digest(Intake(Options(), clean=plan), Piece(chunk, tell([]), 0, 0))
    assert taken.problems.n_problems == 1
    assert "dropped" not in taken.sides


def test_a_file_whose_begin_is_unreadable_says_so(lines):
    path = lines("rows.jsonl", ["no json", "no json either"])
    with pytest.raises(DataError) as caught:
        clean_files([path], CleanConfig(), processes=1)
    assert f"{path}:1: " in caught.value.what
    assert f"{path}:2: " in caught.value.what


def test_what_is_private_is_masked_in_sealed_unreadable_rows_and_their_reasons(lines, seal):
    bad = [
        '{"messages": [{"role": "ann@example.com", "content": "I am ann@example.com"}]}',
        '{"messages": "write to bob@example.com',
    ]
    path = lines("rows.jsonl", [*bad, *map(good, range(30))])
    result = seal(files(path, clean={"unreadable": "drop", "pii": {"action": "mask"}}))
    text = result.artifact.path("dropped.jsonl").read_text(encoding="utf-8")
    assert "example.com" not in text
    first, second = side(result.artifact.dir)
    assert first["row"]["messages"][0]["role"] == "[EMAIL_1]"
    assert "[EMAIL_1]" in first["reason"]
    assert second["row"]["raw"] == '{"messages": "write to [EMAIL_1]'


@pytest.mark.slow
def test_the_files_are_the_same_whatever_the_number_of_processes(lines, tmp_path):
    texts = [BAD[list(BAD)[k % 8]][0] if k % 97 == 0 else good(k) for k in range(30_000)]
    path = lines("rows.jsonl", texts)
    found = []
    for processes in (1, 2):
        out = tmp_path / f"out-{processes}"
        clean_files([path], DROP, out=out, processes=processes)
        found.append([file.read_bytes() for file in sorted(out.iterdir())])
    assert found[0] == found[1]
    assert len(side(tmp_path / "out-1")) == len(range(0, 30_000, 97))


line = st.one_of(
    st.integers(0, 99).map(lambda k: good(k).encode()),
    st.sampled_from([one[0].encode() for one in BAD.values()]),
    st.sampled_from([b"", b"  ", b"\xff\xfe", b"{", b'"', b"null", b"\xef\xbb\xbf{}"]),
    st.binary(max_size=8).map(lambda data: data.replace(b"\n", b"")),
)


@given(some=st.lists(line, max_size=12), chunk_bytes=st.sampled_from([1, 60, 2**20]))
@settings(deadline=None)
def test_every_line_is_a_row_or_is_left_out_once(tmp_path_factory, some, chunk_bytes):
    path = tmp_path_factory.mktemp("mixed") / "rows.jsonl"
    # As many good rows at the end, so that the file stays one of chat, and is not refused.
    texts = [good(100).encode(), *some, *(good(k).encode() for k in range(101, 115))]
    path.write_bytes(b"\n".join(texts))
    wanted = [n for n, text in enumerate(texts, 1) if text.strip(b" \t\r\v\f")]
    result = clean_files([path], DROP, out=path.with_name("out"), processes=1)
    out = path.with_name("out")
    left_out = [int(one["where"].rsplit(":", 1)[1]) for one in side(out)]
    assert result.rows_in == len(wanted) == result.rows_out + len(left_out)
    assert set(left_out) <= set(wanted)
    kept = [texts[n - 1] for n in wanted if n not in left_out]
    rows = side(out, "rows.jsonl")
    assert [json.loads(text)["k"] for text in kept] == [row["meta"]["k"] for row in rows]
    assert taken_in(path, chunk_bytes) == (left_out, [row["meta"]["k"] for row in rows])


def taken_in(path, chunk_bytes):
    """Lines left out and rows kept, by the data stage's own reading in chunks of another size."""
    source = open_source(path, limits=Limits(chunk_bytes=chunk_bytes))
    chunks = list(source.chunks())
    told = tell([raw for chunk in chunks for raw in parse_chunk(chunk)[0]][:HEAD_ROWS])
    intake = Intake(Options(), clean=plan_clean(DROP))
    left_out, kept = [], []
    for chunk in chunks:
        found = digest(intake, Piece(chunk, told, 0, 0))
        assert not found.problems.n_problems
        for text in found.sides.get("dropped", b"").split(b"\n")[:-1]:
            left_out.append(int(json.loads(text)["where"].rsplit(":", 1)[1]))
        kept += [json.loads(text)["meta"]["k"] for text in found.rows.split(b"\n")[:-1]]
        assert found.counts["read"] == len(found.facts) + found.unread.n_rows
    return left_out, kept


def test_the_commands_name_the_option_take_it_and_count_the_rows(lines, tmp_path):
    _, texts = mixed(["cut", "empty"])
    path = lines("rows.jsonl", [*texts, good(0)])
    run = CliRunner().invoke
    out = str(tmp_path / "cleaned")
    refused = run(clean, [str(path), "--out", out])
    assert "--unreadable drop" in refused.exception.fix
    done = run(clean, [str(path), "--out", out, "--unreadable", "drop"])
    assert done.exit_code == 0, done.output
    assert "43 rows in = 40 out + 3 dropped" in done.output
    assert {one["rule"] for one in side(out)} == {"unreadable", "exact"}
    made = run(split, [str(path), "--out", str(tmp_path / "split"), "--unreadable", "drop"])
    assert made.exit_code == 0, made.output
    assert "dropped: unreadable" in made.output
