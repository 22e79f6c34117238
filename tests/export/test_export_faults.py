"""Whatever goes wrong while an export runs: nothing is half sealed, the reason is told, a resume ends the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.config import ModelConfig
from tunesmith.errors import EnvironmentProblem, ModelError, TunesmithError
from tunesmith.models.load import resolve_base
from tunesmith.store import MANIFEST, Artifact, signatures
from tunesmith.store.failpoints import FAILPOINTS

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("export_server.py")
LOOSE = {"greedy_agreement": 0.1, "mean_kl": 9.0, "perplexity_ratio": 9.0}
FORMS = ["adapter", "merged", "gguf-f16"]
SETTINGS = {
    "parity_prompts": 2,
    "parity_tokens": 4,
    "forms": FORMS,
    "limits": dict.fromkeys(("merged", "gguf-f16"), LOOSE),
}
POINTS = [
    *(name for name in FAILPOINTS if name.startswith("export-")),
    *("seal-begin", "seal-manifest", "seal-end"),
]
FULL = ("export-reference", "export-merge", "export-facts", "export-proved", "seal-manifest")


@pytest.fixture(scope="module")
def server(bench):
    words = [str(place) for place in (bench.base.dir, bench.dataset.dir, bench.trained.dir)]
    child = subprocess.Popen(
        [sys.executable, str(SERVER), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def ask(place, failpoint="", **settings):
        asked = {"place": str(place), "failpoint": failpoint, "settings": SETTINGS | settings}
        child.stdin.write(json.dumps(asked) + "\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    yield ask
    child.stdin.close()
    child.wait(60)
    child.stdout.close()


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    folder = tmp_path_factory.mktemp("key")
    signatures.new_key(folder / "key.pem")
    return folder / "key.pem"


def contents(place):
    """Name -> hash of the sealed files; what the clock decides is left out."""
    artifact = Artifact.open(place, "export")
    artifact.verify()
    return {
        name: entry.sha256
        for name, entry in artifact.files.items()
        if name not in ("parity.json", "README.md")
    }


@pytest.fixture(scope="module")
def straight(server, tmp_path_factory):
    place = tmp_path_factory.mktemp("straight") / "out"
    found = server(place)
    assert found["code"] == 0, found["error"]
    return contents(place)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_step_nothing_is_half_sealed_and_a_resume_ends_the_same(
    server, straight, key, tmp_path, point
):
    place = tmp_path / "out"
    found = server(place, point, signing_key=str(key))
    assert found["code"] == -9, found["error"]
    if (place / MANIFEST).exists():
        assert point in ("export-sign", "seal-end")
    for form in ("adapter", "merged"):
        # A folder under its name has all its files.
        if (place / form).exists():
            wanted = {name for name in straight if name.startswith(f"{form}/")}
            there = {p.relative_to(place).as_posix() for p in (place / form).rglob("*")}
            assert wanted <= there
    if (place / MANIFEST).exists():
        assert contents(place) == straight
        return
    again = server(place, signing_key=str(key))
    assert again["code"] == 0, again["error"]
    assert contents(place) == straight
    signatures.verify(place, Path(f"{key}.pub"))


@pytest.mark.parametrize("point", FULL)
def test_a_full_disk_is_one_clear_error_and_nothing_is_sealed(server, straight, tmp_path, point):
    place = tmp_path / "out"
    found = server(place, f"{point}=enospc")
    assert found["code"] == 8, found["error"]
    assert "StorageError" in found["error"]
    assert not (place / MANIFEST).exists()
    assert not list(place.rglob("*.part"))
    assert server(place)["code"] == 0
    assert contents(place) == straight


def test_a_target_that_cannot_be_written_is_one_clear_error(bench, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount")
    try:
        with pytest.raises(TunesmithError, match=r"cannot write|not writable|Read-only"):
            bench.export(disk / "out")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert list(disk.iterdir()) == []


def test_a_base_without_its_tokenizer_is_refused_before_anything_is_written(bench, make, tmp_path):
    folder = Path(shutil.copytree(bench.base.dir, tmp_path / "base"))
    for file in folder.glob("*token*"):
        file.unlink()
    bare = resolve_base(ModelConfig(base=str(folder)))
    model, fingerprint = make.adapted(bench.base), bench.renderer.fingerprint
    trained = make.run(tmp_path / "train", bare, bench.dataset, model, fingerprint)
    wrong = make.Workbench(tmp_path, bare, bench.renderer, bench.dataset, trained)
    with pytest.raises((ModelError, EnvironmentProblem)) as caught:
        wrong.export(tmp_path / "out")
    assert "token" in str(caught.value)
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {"run.json", ".lock"}
