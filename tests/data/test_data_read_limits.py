"""No file, however it was made, takes more memory or time than its size allows, or slips by changed."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tunesmith.data.problems import Problems
from tunesmith.data.read import Limits, open_source
from tunesmith.errors import DataError, MissingError

MIB = 2**20


def read(path, **options):
    problems = Problems()
    source = open_source(path, **options)
    return list(source.rows(problems)), problems.lines


def peak_growth_mib(code, *arguments):
    """MiB by which a process's memory grows while it runs `code`, beyond what imports take."""
    whole = (
        "import resource, sys\n"
        "from itertools import islice\n"
        "from tunesmith.data.read import open_source, Limits\n"
        "from tunesmith.data.problems import Problems\n"
        "import tunesmith.data.read.document, tunesmith.data.read.jsonl\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "before, problems = peak(), Problems()\n"
        f"{code}\n"
        "print(peak() - before, '|', *problems.lines)"
    )
    done = subprocess.run(
        [sys.executable, "-c", whole, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, _, said = done.stdout.partition("|")
    return int(grown), said.strip()


COUNT = "n = sum(1 for row in open_source(sys.argv[1]).rows(problems))"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.md", "noname"])
def test_one_line_of_200_mb_is_one_problem_in_bounded_memory(tmp_path, name):
    path = tmp_path / name
    begin = {"a.json": b'[{"a": "', "a.csv": b'a,b\n"'}.get(name, b'{"a": "')
    with path.open("wb") as stream:
        stream.write(begin)
        for _ in range(200):
            stream.write(b"x" * MIB)
    grown, said = peak_growth_mib(COUNT, path)
    assert said.count(str(path)) == 1
    assert "longer than 32 MiB" in said or "is over 32 MiB" in said or "longer than a row" in said
    assert grown < 400


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_large_file_is_read_in_bounded_memory(tmp_path, name):
    path = tmp_path / name
    row = b'{"a": "' + b"x" * 500 + b'"}'
    with path.open("wb") as stream:
        stream.write(b"[" if name == "a.json" else b"")
        for at in range(120):
            between = b",\n" if name == "a.json" else b"\n"
            stream.write((between if at else b"") + between.join([row] * 2_000))
        stream.write(b"]" if name == "a.json" else b"\n")
    grown, said = peak_growth_mib(f"{COUNT}; assert n == 240_000, n", path)
    assert said == ""
    assert grown < 60


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_the_last_of_very_many_names_may_stand_twice(tmp_path, name):
    path = tmp_path / name
    names = [*(f"k{at}" for at in range(20_000)), "k19999"]
    keys = ", ".join(f'"{key}": 1' for key in names)
    text = f"{{{keys}}}\n" if name == "a.jsonl" else f"{','.join(names)}\n"
    path.write_text(text, encoding="utf-8")
    rows, problems = read(path)
    assert rows == []
    assert len(problems) == 1
    assert "'k19999' stands twice" in problems[0]


@pytest.mark.parametrize("brackets", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_hundred_thousand_brackets_are_one_problem(tmp_path, brackets, name):
    path = tmp_path / name
    path.write_text('{"a": 1}\n{"a": ' + brackets * 100_000, encoding="utf-8")
    rows, problems = read(path)
    assert len(rows) == 1
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}:2: nested too deeply")
    path.write_text("[" * 100_000, encoding="utf-8")
    assert len(read(path)[1]) == 1


def test_a_gzip_bomb_is_refused_by_its_ratio(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n' + b"\n" * (4 * MIB)))
    rows, problems = read(path, limits=Limits(free_bytes=MIB))
    assert len(rows) == 1
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}: the gzip data expands to more than 250 times its size")
    rows, problems = read(path, limits=Limits(max_ratio=2_000, free_bytes=MIB))
    assert problems == []
    rows, problems = read(path, limits=Limits(max_expanded_bytes=2 * MIB))
    assert problems == [f"{path}: the gzip data expands to more than 2 MiB"]


def test_a_record_of_many_cells_with_line_breaks_has_a_limit(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n" + '"\n",' * 1_000, encoding="utf-8")
    rows, problems = read(path, limits=Limits(max_row_bytes=500))
    assert len(rows) == 1
    assert problems == [f"{path}:3: the record that starts here is longer than 500 bytes"]


@pytest.mark.parametrize("cut", [1, 9, 30, 200])
def test_a_gzip_file_that_is_cut_off_gives_the_rows_before_that(tmp_path, cut):
    path = tmp_path / "a.jsonl.gz"
    content = b"".join(b'{"a": %d}\n' % (at * 7919) for at in range(2_000))
    path.write_bytes(gzip.compress(content)[:-cut])
    rows, problems = read(path)
    assert len(problems) == 1
    assert "the gzip data is cut off after byte" in problems[0]
    assert [row.fields["a"].value for row in rows] == [at * 7919 for at in range(len(rows))]
    assert len(rows) > 1_000


def test_gzip_members_one_after_the_other_are_one_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n') + b"\0" * 100)
    assert [row.fields["a"].value for row in read(path)[0]] == [1, 2]
    path.write_bytes(gzip.compress(b'{"a": 1}\n') + b"more")
    rows, problems = read(path)
    assert len(rows) == 1
    assert "damaged gzip data" in problems[0]


def test_a_zstd_file_that_begins_with_a_frame_to_be_skipped_is_told_by_it(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    pack = zstandard.ZstdCompressor().compress
    path = tmp_path / "rows"
    path.write_bytes(b"\x5f\x2a\x4d\x18\x02\0\0\0ab" + pack(b'{"a": 1}\n'))
    assert open_source(path).compression == "zstd"
    rows, problems = read(path)
    assert ([row.fields["a"].value for row in rows], problems) == ([1], [])


def test_zstd_frames_one_after_the_other_are_one_file(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    pack = zstandard.ZstdCompressor().compress
    path = tmp_path / "rows.jsonl.zst"
    content = b"".join(b'{"a": %d}\n' % (at * 7919) for at in range(20_000))
    path.write_bytes(pack(content) + b"\x50\x2a\x4d\x18\x02\0\0\0ab" + pack(b'{"a": -1}\n'))
    source = open_source(path)
    assert (source.form, source.compression) == ("jsonl", "zstd")
    rows, problems = read(path)
    assert problems == []
    assert [row.fields["a"].value for row in rows] == [*(at * 7919 for at in range(20_000)), -1]
    for cut in (1, 40, 9_000):
        path.write_bytes(pack(content)[:-cut])
        rows, problems = read(path)
        assert len(problems) == 1
        assert "the zstd data is cut off after byte" in problems[0]
        assert [row.fields["a"].value for row in rows] == [at * 7919 for at in range(len(rows))]


def test_zstd_bombs_are_refused_by_ratio_and_by_window(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(b'{"a": 1}\n' + b"\n" * (4 * MIB)))
    _, problems = read(path, limits=Limits(free_bytes=MIB))
    assert len(problems) == 1
    assert "it looks like a bomb" in problems[0]
    wide = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    path.write_bytes(packer.compress(b'{"a": 1}\n') + packer.flush())
    rows, problems = read(path)
    assert rows == []
    assert "requires too much memory" in problems[0]


@pytest.mark.parametrize("change", ["grow", "rewrite", "truncate"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, change, name):
    path = tmp_path / name
    content = {
        "a.jsonl": '{"a": 1}\n' * 100,
        "a.json": "[" + ",\n".join(['{"a": 1}'] * 100) + "]",
        "a.csv": "a\n" + "1\n" * 100,
    }[name]
    path.write_text(content, encoding="utf-8")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    source = open_source(path, limits=Limits(chunk_bytes=64))
    rows = source.rows(Problems())
    next(rows)
    if change == "truncate":
        os.truncate(path, 200)
    else:
        with path.open("r+" if change == "rewrite" else "a", encoding="utf-8") as stream:
            stream.write("\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(rows)
    assert source.sha256 == ""


def test_a_pipe_is_read_once(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b'{"a": 1}\n',))
    writer.start()
    source = open_source(pipe)
    assert [row.line for row in source.rows(Problems())] == [1]
    writer.join()
    with pytest.raises(DataError, match="was read already"):
        list(source.rows(Problems()))


def test_stdin_is_read_by_its_own_name_and_stays_open(monkeypatch):
    stream = io.BytesIO(b'{"a": 1}\n{"a": 1, "a": 2}\n')
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
    rows, problems = read("-")
    assert [row.where for row in rows] == ["stdin:1"]
    assert problems == ["stdin:2: the key 'a' stands twice in one object"]
    assert not stream.closed


@pytest.mark.parametrize("place", ["missing.jsonl", ".", "/dev/null"])
def test_what_is_no_file_is_said_so(place):
    with pytest.raises(MissingError, match=Path(place).name or "folder"):
        open_source(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_said_so(tmp_path):
    path = tmp_path / "a.jsonl"
    path.touch(mode=0)
    with pytest.raises(MissingError, match="cannot be read: Permission denied"):
        open_source(path)


@pytest.mark.parametrize("values", [{"chunk_bytes": 0}, {"max_depth": 501}, {"max_ratio": -1.0}])
def test_limits_that_nothing_meets_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Limits(**values)
