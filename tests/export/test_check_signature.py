"""`tunesmith check --public-key`: whose folder it is, and that it is as it was signed."""

from __future__ import annotations

import hashlib
import json

import pytest

from tunesmith.cli import main as door
from tunesmith.errors import ArtifactError, ConfigError, MissingError
from tunesmith.export.check import CheckOptions, check_model
from tunesmith.export.check.run import bytes_to_read
from tunesmith.store import Run, signatures


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name in ("mine.pem", "other.pem"):
        signatures.new_key(folder / name)
    return folder


@pytest.fixture
def sealed(tmp_path):
    with Run.open(tmp_path / "bundle", "export", inputs={}) as at:
        at.write_text("README.md", "one")
        at.write_text("notes.txt", "two")
        return at.finish({"forms": {}}).dir


def told(folder, public=None):
    """Exit code, state of the signature, and the findings about it."""
    result = check_model(folder, CheckOptions(public_key=public))
    found = [one for one in result.findings if "signature" in one.check]
    return result.exit_code(), result.facts.get("bundle", {}).get("signature"), found


def test_a_signed_folder_is_sound_and_the_key_is_named(sealed, keys):
    signatures.sign(sealed, keys / "mine.pem")
    assert told(sealed, keys / "mine.pem.pub") == (0, "right", [])
    result = check_model(sealed, CheckOptions(public_key=keys / "mine.pem.pub"))
    assert result.facts["bundle"]["public_key"] == "mine.pem.pub"
    assert result.findings == ()


def test_a_signature_that_nobody_asked_about_is_a_note_and_no_stray_file(sealed, keys):
    assert told(sealed) == (0, None, [])
    signatures.sign(sealed, keys / "mine.pem")
    code, state, found = told(sealed)
    assert (code, state) == (0, "not looked at")
    assert [(one.severity, one.file) for one in found] == [("note", "model.sig")]
    assert check_model(sealed).count("warning") == 0


def test_an_unsigned_folder_is_an_error_when_a_key_is_given(sealed, keys):
    code, state, found = told(sealed, keys / "mine.pem.pub")
    assert (code, state) == (ArtifactError.exit_code, "none")
    assert found[0].check == "seal-signature"
    assert found[0].what == "the folder is not signed"
    assert "tunesmith sign" in found[0].fix


def other_signer(folder, keys):
    signatures.sign(folder, keys / "other.pem")


def rewritten(folder, keys):
    """File and manifest both changed: without a signature nothing is wrong with it."""
    signatures.sign(folder, keys / "mine.pem")
    (folder / "notes.txt").write_text("twO")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["notes.txt"]["sha256"] = hashlib.sha256(b"twO").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert told(folder)[0] == 0


def added(folder, keys):
    signatures.sign(folder, keys / "mine.pem")
    (folder / "more.txt").write_text("new")


def swapped(folder, keys):
    signatures.sign(folder, keys / "mine.pem")
    first, second = folder / "README.md", folder / "notes.txt"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def endless(folder, keys):
    signatures.sign(folder, keys / "mine.pem")
    with (folder / "model.sig").open("r+b") as stream:
        stream.truncate(1 << 40)


def deep(folder, keys):
    (folder / "model.sig").write_text("[" * 200_000)


@pytest.mark.parametrize("damage", [other_signer, rewritten, added, swapped, endless, deep])
def test_what_is_not_as_its_owner_signed_it_is_an_error_of_the_seal(sealed, keys, damage):
    damage(sealed, keys)
    code, state, found = told(sealed, keys / "mine.pem.pub")
    assert (code, state) == (ArtifactError.exit_code, "wrong")
    assert found[0].what == "the folder is not what the owner of mine.pem.pub signed"
    assert found[0].why


def test_a_key_that_is_none_says_so_and_blames_no_bundle(sealed, keys, tmp_path):
    signatures.sign(sealed, keys / "mine.pem")
    with pytest.raises(MissingError, match="no public key at") as found:
        told(sealed, tmp_path / "nowhere.pub")
    assert "--new-key" not in found.value.fix
    (tmp_path / "bad.pub").write_text("no key")
    for path in (tmp_path / "bad.pub", keys / "mine.pem"):
        with pytest.raises(ConfigError, match="cannot be used as a public key"):
            told(sealed, path)


def test_a_single_file_is_not_told_to_be_signed(sealed, keys):
    *_, found = told(sealed / "README.md", keys / "mine.pem.pub")
    assert [one.what for one in found] == ["a single file has no signature"]
    assert "tunesmith sign" not in found[0].fix


def test_the_command_says_it_in_table_json_and_exit_code(sealed, keys, capsys):
    signatures.sign(sealed, keys / "other.pem")
    words = ["check", str(sealed), "--public-key", str(keys / "mine.pem.pub")]
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            door.main([*words, *more])
        assert ended.value.code == ArtifactError.exit_code
        out = capsys.readouterr().out
        assert "seal-signature" in out
        if more:
            assert json.loads(out)["facts"]["bundle"]["signature"] == "wrong"
        else:
            assert "mine.pem.pub signed" in " ".join(out.split())


def test_the_bar_counts_what_the_signature_makes_it_read_again(sealed, keys):
    read = []
    options = CheckOptions(public_key=keys / "mine.pem.pub", advance=read.append)
    signatures.sign(sealed, keys / "mine.pem")
    check_model(sealed, options)
    size, plain = bytes_to_read(sealed, CheckOptions())
    assert size == sum(file.stat().st_size for file in sealed.rglob("*") if file.is_file())
    assert plain < sum(read) <= bytes_to_read(sealed, options)[1]


def test_a_key_that_is_not_there_is_told_before_anything_is_read(sealed, tmp_path):
    read: list[int] = []
    options = CheckOptions(public_key=tmp_path / "none.pub", advance=read.append)
    with pytest.raises(MissingError, match="no public key"):
        check_model(sealed, options)
    assert read == []
