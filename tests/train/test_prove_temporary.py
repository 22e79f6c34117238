"""The folder of the proofs is removed at the end, at a signal, and by the next proving after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tunesmith.config import recipe_from
from tunesmith.pipeline.proofs import rooms_of
from tunesmith.store import failpoints
from tunesmith.train.prove import prove
from tunesmith.train.prove.temporary import temporary
from tunesmith.train.stopping import terminable

sys.path.insert(0, str(Path(__file__).parent))
from small_base import save_small_base, sealed_sums

KILLED = """
import os, signal, sys
from pathlib import Path
from tunesmith.train.prove.temporary import temporary
with temporary(Path(sys.argv[1])) as place:
    (place / "weights").write_text("large")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def _disarmed():
    """Nothing armed afterwards, and a SIGTERM that nobody catches fails this test alone."""

    def unheard(number, frame):
        raise AssertionError("nobody caught the signal")

    before = signal.signal(signal.SIGTERM, unheard)
    yield
    failpoints.arm("")
    signal.signal(signal.SIGTERM, before)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    found = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert found.returncode == -signal.SIGKILL
    (stale,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert (stale / "weights").is_file()
    (tmp_path / ".prove-older").mkdir()  # without a lock
    (tmp_path / "prove-0123").mkdir()  # a sealed report
    with temporary(tmp_path) as place:
        assert left(tmp_path) == sorted(["prove-0123", place.name, f"{place.name}.lock"])
    assert left(tmp_path) == ["prove-0123"]


def test_the_folder_of_a_process_that_lives_is_spared(tmp_path):
    other = tmp_path / ".prove-other"
    other.mkdir()
    with FileLock(tmp_path / ".prove-other.lock"):
        with temporary(tmp_path):
            pass
        assert other.is_dir()
    with temporary(tmp_path):
        assert not other.exists()


def test_two_at_once_spare_each_other(tmp_path):
    with temporary(tmp_path) as one, temporary(tmp_path) as two:
        assert one.is_dir()
        assert two.is_dir()
    assert left(tmp_path) == []


@pytest.mark.usefixtures("_disarmed")
def test_sigterm_ends_a_block_as_ctrl_c_does_and_then_means_what_it_meant(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable(), temporary(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
    assert left(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
@pytest.mark.usefixtures("_disarmed")
@pytest.mark.parametrize("name", ["resume", "training"])
def test_sigterm_in_a_proof_and_in_a_rehearsed_stage_leaves_nothing(tmp_path, name):
    base = save_small_base(tmp_path / "base")
    rows = sealed_sums(tmp_path / "data")
    train = {"precision": "fp32", "threads": 1, "sample_rows": 0, "method": {"kind": "lora"}}
    recipe = recipe_from({"model": {"base": str(base)}, "train": train})
    failpoints.arm("step-begin=term")
    with pytest.raises(KeyboardInterrupt):
        prove(recipe, rows, tmp_path / "runs", rooms_of(recipe), only=[name])
    assert left(tmp_path / "runs") == []
