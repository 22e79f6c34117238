"""A folder that replaces another one: the older one is there until the new one is."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tunesmith.errors import StorageError
from tunesmith.store import failpoints, put_back, writing_folder


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    failpoints.arm("")


def write(place: Path, text: str) -> None:
    with writing_folder(place) as half:
        (half / "file").write_text(text)


def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path):
    for text in ("old", "new"):
        write(tmp_path / "a", text)
    assert (tmp_path / "a/file").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_when_the_name_cannot_be_given_the_older_folder_has_it_again(tmp_path):
    write(tmp_path / "a", "old")
    failpoints.arm("folder-aside=enospc")
    with pytest.raises(StorageError) as caught:
        write(tmp_path / "a", "new")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert (tmp_path / "a/file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_was_left_aside_gets_its_name_back_or_is_removed_when_it_was_replaced(tmp_path):
    for name in ("a", "b", "other"):
        write(tmp_path / name, name)
        (tmp_path / name).rename(tmp_path / f".{name}.old")
    write(tmp_path / "other", "newer")
    (tmp_path / "b").mkdir()
    put_back(tmp_path, "a")
    assert (tmp_path / "a/file").read_text() == "a"
    assert (tmp_path / ".b.old").is_dir()
    put_back(tmp_path, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "other"]
    assert (tmp_path / "other/file").read_text() == "newer"
    assert not list((tmp_path / "b").iterdir())
    put_back(tmp_path / "nowhere", "")
