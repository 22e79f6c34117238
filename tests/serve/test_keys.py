"""Keys are shown once, stored as hashes, and checked against the file as it is now."""

from __future__ import annotations

import hashlib
import os
import stat

import pytest

from tunesmith.errors import ConfigError, MissingError, StorageError
from tunesmith.serve import create_key, remove_key
from tunesmith.serve.keys import Keys, KeysFile, new_secret, read


def test_a_made_key_is_admitted_and_the_file_holds_only_its_hash(tmp_path):
    path = tmp_path / "keys"
    key = create_key(path, "laptop")
    assert read(path).admit(key.secret)
    assert not read(path).admit(key.secret[:-1])
    digest = hashlib.sha256(key.secret.encode()).hexdigest()
    assert path.read_text() == f"{digest}  laptop\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_does_not_show_in_its_repr():
    key = create_key_in_memory = new_secret()
    assert key not in repr(Keys.of(create_key_in_memory))


def test_new_keys_differ_and_have_256_bits():
    keys = {new_secret() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("sk-") and len(key) >= 46 for key in keys)


def test_a_second_key_is_added_and_the_first_still_works(tmp_path):
    path = tmp_path / "new" / "keys"
    first, second = create_key(path, "a"), create_key(path, "b")
    keys = read(path)
    assert keys.names == ("a", "b")
    assert keys.admit(first.secret)
    assert keys.admit(second.secret)


def test_a_used_or_bad_name_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "keys"
    create_key(path, "a")
    before = path.read_bytes()
    for name in ("a", "", "two words", "line\nbreak", "x" * 65):
        with pytest.raises(ConfigError):
            create_key(path, name)
    assert path.read_bytes() == before


def test_a_removed_key_stops_working_without_a_restart(tmp_path):
    path = tmp_path / "keys"
    first, second = create_key(path, "a"), create_key(path, "b")
    keys = KeysFile(path)
    assert keys.admit(first.secret)
    remove_key(path, "a")
    assert not keys.admit(first.secret)
    assert keys.admit(second.secret)


def test_a_key_that_is_added_later_works_without_a_restart(tmp_path):
    path = tmp_path / "keys"
    create_key(path, "a")
    keys = KeysFile(path)
    later = create_key(path, "b")
    assert keys.admit(later.secret)


@pytest.mark.parametrize("harm", ["gone", "open to all", "damaged"])
def test_a_keys_file_that_breaks_later_admits_nobody_until_it_is_mended(tmp_path, harm, caplog):
    path = tmp_path / "keys"
    key = create_key(path)
    keys = KeysFile(path)
    good = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "open to all":
        path.chmod(0o644)
    else:
        path.write_bytes(good + b"no hash\n")
    assert not keys.admit(key.secret)
    assert "no key is accepted" in caplog.text
    path.write_bytes(good)
    path.chmod(0o600)
    os.utime(path, ns=(1, 1))
    assert keys.admit(key.secret)


def test_a_damaged_line_is_named_by_its_number_and_never_shown(tmp_path):
    path = tmp_path / "keys"
    create_key(path)
    with path.open("a") as file:
        file.write("sk-pasted-by-mistake\n")
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert f"{path}:2" in str(caught.value)
    assert "pasted" not in str(caught.value)


def test_a_file_that_others_may_read_is_refused_with_the_command_that_mends_it(tmp_path):
    path = tmp_path / "keys"
    create_key(path)
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="0640") as caught:
        read(path)
    assert caught.value.fix == f"chmod 600 {path}"


def test_missing_empty_and_binary_files_are_refused(tmp_path):
    with pytest.raises(MissingError):
        read(tmp_path / "none")
    with pytest.raises(MissingError):
        remove_key(tmp_path / "none" / "keys", "a")
    assert not (tmp_path / "none").exists()
    empty = tmp_path / "empty"
    empty.touch(0o600)
    with pytest.raises(ConfigError, match="no key"):
        read(empty)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(binary)


def test_removing_an_unknown_key_names_the_known_ones(tmp_path):
    path = tmp_path / "keys"
    create_key(path, "laptop")
    with pytest.raises(MissingError) as caught:
        remove_key(path, "desktop")
    assert "laptop" in caught.value.fix


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        create_key(tmp_path / "file" / "keys")
