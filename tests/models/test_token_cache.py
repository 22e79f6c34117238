"""The cache of tokens: found only under an equal key, verified, bounded, and never in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tunesmith.models.token_cache import ENTRY, TOKENS, TokenCache, code_hash

PARTS = {"rows": "a" * 64, "template": "t", "max_row_tokens": 8}
ARRAYS = {"tokens": np.arange(100, dtype=np.int32), "lines": np.array([1, 2])}


@pytest.fixture
def cache(tmp_path):
    return TokenCache(10**6, tmp_path / "tokens")


def place_of(cache):
    (entry,) = cache.entries()
    return entry.place


def test_what_was_kept_is_found_under_an_equal_key(cache):
    assert cache.find(PARTS).why == "none cached yet"
    assert cache.keep(PARTS, ARRAYS) == ""
    found = TokenCache(10**6, cache.place).find(dict(PARTS))
    assert found.why == "from cache"
    assert {name: array.tolist() for name, array in found.arrays.items()} == {
        name: array.tolist() for name, array in ARRAYS.items()
    }


@pytest.mark.parametrize("name", PARTS)
def test_another_value_of_any_part_is_another_key_and_is_named(cache, name):
    cache.keep(PARTS, ARRAYS)
    found = cache.find(PARTS | {name: "other"})
    assert found.arrays is None
    assert found.why == f"the nearest cached ones differ in {name}"


def test_the_nearest_entry_is_the_one_that_differs_least(cache):
    cache.keep(PARTS | {"rows": "x", "template": "y"}, ARRAYS)
    cache.keep(PARTS | {"rows": "x"}, ARRAYS)
    assert cache.nearest(PARTS).differs_in(PARTS) == ("rows",)


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / TOKENS).write_bytes((place / TOKENS).read_bytes()[:-1] + b"\1"),
        lambda place: (place / TOKENS).write_bytes(b""),
        lambda place: (place / TOKENS).unlink(),
        lambda place: (place / ENTRY).write_text("{"),
        lambda place: (place / ENTRY).unlink(),
        lambda place: (place / ENTRY).write_text(
            (place / ENTRY).read_text().replace('"template": "t"', '"template": "u"')
        ),
    ],
)
def test_a_damaged_entry_is_removed_and_said(cache, damage):
    cache.keep(PARTS, ARRAYS)
    place = place_of(cache)
    damage(place)
    found = cache.find(PARTS)
    assert found.arrays is None
    assert found.why.startswith("the cached ones are damaged")
    assert not place.exists()
    cache.keep(PARTS, ARRAYS)
    assert cache.find(PARTS).why == "from cache"


def test_entries_used_longest_ago_go_when_there_is_no_room(tmp_path):
    one = TokenCache(10**6, tmp_path / "t")
    one.keep(PARTS, ARRAYS)
    size = one.entries()[0].n_bytes
    cache = TokenCache(2 * size, tmp_path / "t")
    cache.keep(PARTS | {"rows": "second"}, ARRAYS)
    for number, entry in enumerate(sorted(cache.entries(), key=lambda e: e.parts["rows"])):
        os.utime(entry.place / ENTRY, (number, number))
    cache.find(PARTS)
    cache.keep(PARTS | {"rows": "third"}, ARRAYS)
    assert {entry.parts["rows"] for entry in cache.entries()} == {PARTS["rows"], "third"}


def test_what_is_larger_than_the_bound_is_not_kept_and_said(tmp_path):
    cache = TokenCache(10, tmp_path / "t")
    assert "more than the cache may hold" in cache.keep(PARTS, ARRAYS)
    assert cache.entries() == []


def test_a_folder_that_cannot_be_written_is_said_and_no_reason_to_stop(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in TokenCache(10**6, tmp_path / "file" / "tokens").keep(PARTS, ARRAYS)


def test_what_a_killed_process_left_is_no_entry(cache):
    cache.keep(PARTS, ARRAYS)
    half = cache.place / f".{place_of(cache).name}.part"
    half.mkdir()
    (half / ENTRY).write_text(json.dumps({"parts": {}, "sha256": "", "bytes": 1}))
    assert len(cache.entries()) == 1
    assert cache.keep(PARTS, ARRAYS) == ""
    assert not half.exists()


def test_no_space_is_no_cache():
    assert TokenCache.of(0) is None
    assert TokenCache.of(0.5).limit_bytes == 2**29


def test_code_counts_by_its_text(tmp_path):
    first, second = tmp_path / "a.py", tmp_path / "b.py"
    first.write_text("x = 1\n")
    second.write_text("x = 1\n")
    before = code_hash([str(first), None])
    assert code_hash([str(second), None]) == before
    second.write_text("x = 2\n")
    assert code_hash([str(second), None]) != before


NAMES = """
import json, sys
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_tokenizer
from tunesmith.models.token_cache import renderer_parts
from pathlib import Path
print(json.dumps(renderer_parts(ChatRenderer(load_tokenizer(Path(sys.argv[1]))))))
"""


@pytest.mark.slow
def test_two_processes_name_the_same_tokens_alike(embedded_base):
    """Python orders sets in each process by a seed of its own."""
    told = {
        subprocess.run(
            [sys.executable, "-c", NAMES, str(embedded_base.dir)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(told) == 1
    assert "control tokens" in told.pop()
