"""Signatures: what is signed is whole, whoever else signs or changes it is found out."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.errors import ArtifactError, ConfigError, MissingError, StorageError
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
        at.write_text("weights/a.txt", "one")
        at.write_text("b.txt", "two")
        artifact = at.finish({"forms": {}})
    return artifact.dir


def test_a_signed_folder_is_accepted_with_its_public_key(sealed, keys):
    assert not signatures.is_signed(sealed)
    signatures.sign(sealed, keys / "mine.pem")
    signatures.verify(sealed, keys / "mine.pem.pub")
    signatures.sign(sealed, keys / "mine.pem")
    signatures.verify(sealed, keys / "mine.pem.pub")


def test_a_folder_named_from_where_one_stands_is_signed_twice_without_what_is_private(
    sealed, keys, monkeypatch
):
    (sealed / "scratch").mkdir()
    (sealed / "scratch/timing.json").write_text("{}")
    monkeypatch.chdir(sealed.parent)
    folder = Path(sealed.name)
    for key in ("other.pem", "mine.pem"):
        signatures.sign(folder, keys / key)
    (sealed / "scratch/timing.json").unlink()
    (sealed / ".lock").unlink()
    signatures.verify(folder, keys / "mine.pem.pub")
    signatures.verify(sealed, keys / "mine.pem.pub")


def change(folder):
    (folder / "b.txt").write_text("twO")


def remove(folder):
    (folder / "weights/a.txt").unlink()


def add(folder):
    (folder / "weights/more.txt").write_text("new")


def swap(folder):
    first, second = folder / "weights/a.txt", folder / "b.txt"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def change_manifest(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"facts": {"forms": {"gguf-f16": "evil.gguf"}}}))


def cut_signature(folder):
    path = folder / signatures.SIGNATURE
    path.write_bytes(path.read_bytes()[:-40])


def forge_signature(folder):
    path = folder / signatures.SIGNATURE
    path.write_text(json.dumps({"dsseEnvelope": {"payload": "", "signatures": []}}))


@pytest.mark.parametrize(
    "damage", [change, remove, add, swap, change_manifest, cut_signature, forge_signature]
)
def test_what_is_not_as_it_was_signed_is_refused(sealed, keys, damage):
    signatures.sign(sealed, keys / "mine.pem")
    damage(sealed)
    with pytest.raises(ArtifactError, match=r"is not what the owner of mine\.pem\.pub signed"):
        signatures.verify(sealed, keys / "mine.pem.pub")


def refusal(folder, public):
    with pytest.raises(ArtifactError) as caught:
        signatures.verify(folder, public)
    return caught.value


def test_files_that_differ_are_named_and_no_raw_bytes_are_shown(sealed, keys):
    signatures.sign(sealed, keys / "mine.pem")
    before = hashlib.sha256((sealed / "b.txt").read_bytes()).hexdigest()
    (sealed / "b.txt").write_text("other")
    now = hashlib.sha256(b"other").hexdigest()
    remove(sealed)
    add(sealed)
    told = refusal(sealed, keys / "mine.pem.pub").why
    assert told == (
        f"b.txt was changed (SHA-256 {before[:16]}… was signed, it is {now[:16]}…); "
        "weights/a.txt is gone; weights/more.txt was added"
    )


def test_of_many_files_that_differ_a_few_are_named(sealed, keys):
    signatures.sign(sealed, keys / "mine.pem")
    for number in range(100):
        (sealed / f"more-{number:02}.txt").write_text("new")
    told = refusal(sealed, keys / "mine.pem.pub").why
    assert told.endswith("more-04.txt was added; and 95 more")


def test_another_signer_is_refused(sealed, keys):
    signatures.sign(sealed, keys / "other.pem")
    error = refusal(sealed, keys / "mine.pem.pub")
    assert "is not what the owner of mine.pem.pub signed" in error.what
    assert error.why == "model.sig names another key"
    assert "your own" not in error.fix
    assert "public key of whoever signed it" in error.fix


def test_a_signature_that_is_none_is_told_in_words(sealed, keys):
    signatures.sign(sealed, keys / "mine.pem")
    forge_signature(sealed)
    assert "cannot be read as a signature" in refusal(sealed, keys / "mine.pem.pub").why
    bundle = json.loads(signatures.sign(sealed, keys / "mine.pem").read_text())
    bundle["dsseEnvelope"]["payload"] = bundle["dsseEnvelope"]["payload"][::-1]
    (sealed / signatures.SIGNATURE).write_text(json.dumps(bundle))
    told = refusal(sealed, keys / "mine.pem.pub").why
    assert told == "model.sig was changed, or was not made with this key"


def test_a_signature_without_a_keys_name_prints_nothing(sealed, keys, capsys):
    signatures.sign(sealed, keys / "mine.pem")
    bundle = json.loads((sealed / signatures.SIGNATURE).read_text())
    bundle["verificationMaterial"]["publicKey"].pop("hint")
    (sealed / signatures.SIGNATURE).write_text(json.dumps(bundle))
    signatures.verify(sealed, keys / "mine.pem.pub")
    assert capsys.readouterr() == ("", "")


def test_an_unsigned_folder_is_refused(sealed, keys):
    with pytest.raises(ArtifactError, match="is not signed"):
        signatures.verify(sealed, keys / "mine.pem.pub")


def test_a_private_key_is_its_owners_alone_and_never_overwritten(tmp_path):
    public = signatures.new_key(tmp_path / "key.pem")
    assert stat.S_IMODE(os.stat(tmp_path / "key.pem").st_mode) == 0o600
    assert b"PRIVATE" not in public.read_bytes()
    before = (tmp_path / "key.pem").read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        signatures.new_key(tmp_path / "key.pem")
    assert (tmp_path / "key.pem").read_bytes() == before


def test_what_is_no_key_is_named(sealed, tmp_path, keys):
    with pytest.raises(MissingError, match=r"no signing key at .*nowhere"):
        signatures.sign(sealed, tmp_path / "nowhere.pem")
    (tmp_path / "bad.pem").write_text("not a key")
    with pytest.raises(ConfigError, match=r"bad\.pem cannot be used as a signing key"):
        signatures.sign(sealed, tmp_path / "bad.pem")
    with pytest.raises(ConfigError, match="cannot be used as a signing key"):
        signatures.sign(sealed, keys / "mine.pem.pub")
    assert not signatures.is_signed(sealed)


@pytest.mark.parametrize("odd", ["link", "pipe"])
def test_what_is_no_file_is_not_signed_and_named(sealed, keys, odd):
    place = sealed / odd
    place.symlink_to("/etc/hostname") if odd == "link" else os.mkfifo(place)
    with pytest.raises(ArtifactError, match="cannot be signed") as found:
        signatures.sign(sealed, keys / "mine.pem")
    assert str(place) in found.value.why
    assert "allow_symlinks" not in found.value.why
    assert not signatures.is_signed(sealed)


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_a_key_of_another_kind_is_named(sealed, tmp_path, kind, keys):
    from cryptography.hazmat.primitives import serialization as told
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    made = (
        rsa.generate_private_key(65537, 2048)
        if kind == "rsa"
        else ed25519.Ed25519PrivateKey.generate()
    )
    pem, form = told.Encoding.PEM, told.PrivateFormat.PKCS8
    secret, open_to_all = tmp_path / "other.pem", tmp_path / "other.pub"
    secret.write_bytes(made.private_bytes(pem, form, told.NoEncryption()))
    shown = made.public_key().public_bytes(pem, told.PublicFormat.SubjectPublicKeyInfo)
    open_to_all.write_bytes(shown)
    with pytest.raises(ConfigError, match="signing key") as found:
        signatures.sign(sealed, secret)
    assert "no elliptic key" in found.value.why
    signatures.sign(sealed, keys / "mine.pem")
    with pytest.raises(ConfigError, match="public key") as found:
        signatures.verify(sealed, open_to_all)
    assert "no elliptic key" in found.value.why


@pytest.mark.slow
def test_the_projects_own_command_line_verifies_our_signature(sealed, keys):
    signatures.sign(sealed, keys / "mine.pem")
    words = ["verify", "key", str(sealed), "--signature", str(sealed / signatures.SIGNATURE)]
    command = [sys.executable, "-m", "model_signing", *words, "--public_key"]
    good = subprocess.run([*command, str(keys / "mine.pem.pub")], capture_output=True, text=True)
    assert good.returncode == 0, good.stderr
    change(sealed)
    bad = subprocess.run([*command, str(keys / "mine.pem.pub")], capture_output=True, text=True)
    assert bad.returncode != 0


def test_who_signed_is_told_without_reading_the_files(sealed, keys):
    mine, other = keys / "mine.pem", keys / "other.pem"
    assert not signatures.is_signed_by(sealed, mine)
    signatures.sign(sealed, mine)
    assert signatures.is_signed_by(sealed, mine)
    assert not signatures.is_signed_by(sealed, other)
    (sealed / signatures.SIGNATURE).write_text('{"verificationMaterial": []}')
    assert not signatures.is_signed_by(sealed, mine)


def test_half_a_key_pair_is_not_left(tmp_path):
    # The private key's name fits; the public one's is too long while it is written.
    private = tmp_path / ("k" * 240)
    with pytest.raises(StorageError):
        signatures.new_key(private)
    assert list(tmp_path.iterdir()) == []
