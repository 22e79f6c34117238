"""A folder that replaces another one: the older one is there until the new one is."""

from __future__ import annotations

import errno
import itertools
import shutil
import sys
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


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the test's own file
def test_ctrl_c_at_any_call_leaves_a_whole_folder_and_no_half_one(tmp_path):
    """Python raises it when a call into C returns, so also out of the call that has just made the folder."""
    for number in itertools.count(1):
        place = tmp_path / str(number) / "a"
        write(place, "old")
        try:
            stopped = write_stopped_at(number, place)
        finally:
            sys.setprofile(None)
        assert [p.name for p in place.parent.iterdir() if p.name.endswith(".part")] == [], number
        put_back(place.parent, "")
        assert [p.name for p in place.parent.iterdir()] == ["a"]
        assert (place / "file").read_text() == ("old" if stopped == "before" else "new")
        if not stopped:
            break
    assert number > 20


def write_stopped_at(number: int, place: Path) -> str:
    """Write with Ctrl-C at the `number`-th return from C: before or after the new name, or "" when there is none."""
    calls = itertools.count(1)

    def count(frame, event, argument):
        # Python 3.11's rmtree closes a file twice when it is stopped right after the first time.
        if frame.f_code.co_filename == shutil.__file__:
            return
        if event == "c_return" and next(calls) == number:
            sys.setprofile(None)
            raise KeyboardInterrupt

    sys.setprofile(count)
    try:
        write(place, "new")
    except KeyboardInterrupt:
        is_new = place.is_dir() and (place / "file").read_text() == "new"
        return "after" if is_new else "before"
    return ""
