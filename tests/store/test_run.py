"""Run directories: claimed once, sealed last, whole or absent after a crash or a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.errors import BusyError, MissingError, StorageError, UsedDirectoryError
from tunesmith.store import Artifact, Run, sha256_of_json, write_atomically, writing

CRASHES = """
import os, signal, sys
from pathlib import Path
from tunesmith.errors import MissingError
from tunesmith.store import Artifact, Run

def write(folder, die_at):
    seen = 0

    def watch(event, arguments):
        nonlocal seen
        events = ("open", "os.rename", "os.mkdir", "os.remove", "shutil.rmtree")
        if event in events and str(folder) in str(arguments[0]):
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    with Run.open(folder, "data", inputs={"a": 1}, resume=True) as at:
        at.write_text("rows.txt", "hello")
        at.write_text("scratch/half", "x")
        at.finish({"rows": 1})

def in_a_child(folder, die_at):
    child = os.fork()
    if child == 0:
        try:
            write(folder, die_at)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for moment in range(1, 200):
    folder = Path(sys.argv[1]) / f"run{moment}"
    ended = in_a_child(folder, moment)
    try:
        Artifact.open(folder).verify()
        state = "whole"
    except MissingError:
        again = in_a_child(folder, 0)
        made = Artifact.open(folder) if again == 0 else None
        state = "resumed" if made and set(made.files) == {"rows.txt"} else "stuck"
    print(moment, ended, state)
    if ended == 0:
        break
"""


def python(code: str, *arguments: object, before=None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=before,
        check=False,
    )


def open_run(folder, *, inputs=None, resume=False):
    return Run.open(folder, "data", inputs=inputs or {"a": 1}, resume=resume)


def interrupt(folder):
    with open_run(folder) as at:
        at.write_text("rows.txt", "half")


def test_a_finished_run_is_never_opened_again(tmp_path):
    with open_run(tmp_path / "a") as at:
        at.finish({})
    for resume in (False, True):
        with (
            pytest.raises(UsedDirectoryError, match="finished run"),
            open_run(tmp_path / "a", resume=resume),
        ):
            pytest.fail("it was opened")


def test_a_folder_with_files_of_others_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsedDirectoryError, match="not empty"), open_run(tmp_path):
        pytest.fail("it was opened")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_unfinished_run_names_the_ways_out(tmp_path):
    interrupt(tmp_path / "a")
    with (
        pytest.raises(UsedDirectoryError, match="unfinished") as caught,
        open_run(tmp_path / "a"),
    ):
        pytest.fail("it was opened")
    assert "--resume" in caught.value.fix


def test_an_unfinished_run_goes_on_with_resume(tmp_path):
    interrupt(tmp_path / "a")
    with open_run(tmp_path / "a", resume=True) as at:
        assert at.resumed
        assert (at.dir / "rows.txt").read_text() == "half"
        at.write_text("rows.txt", "whole")
        at.finish({})
    assert Artifact.open(tmp_path / "a").path("rows.txt").read_text() == "whole"


def test_an_unfinished_run_of_other_inputs_is_never_mixed_with_this_one(tmp_path):
    interrupt(tmp_path / "a")
    with (
        pytest.raises(UsedDirectoryError, match="other inputs"),
        open_run(tmp_path / "a", inputs={"a": 2}, resume=True),
    ):
        pytest.fail("it was opened")


def test_a_claim_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with (
        pytest.raises(UsedDirectoryError, match="other inputs"),
        open_run(tmp_path, resume=True),
    ):
        pytest.fail("it was opened")


def test_two_processes_never_write_the_same_run(tmp_path):
    code = """
    import sys
    from tunesmith.store import Run
    with Run.open(sys.argv[1], "data", inputs={"a": 1}, resume=True):
        pass
    """
    with open_run(tmp_path / "a"):
        second = python(code, tmp_path / "a")
        assert "BusyError" in second.stderr
        with (
            pytest.raises(BusyError, match="another process"),
            open_run(tmp_path / "a", resume=True),
        ):
            pytest.fail("it was opened twice")
    assert python(code, tmp_path / "a").returncode == 0


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_run_that_is_whole_or_can_go_on(tmp_path):
    found = python(CRASHES, tmp_path)
    states = [line.split() for line in found.stdout.splitlines()]
    assert states[-1][1:] == ["0", "whole"], found.stderr
    killed = states[:-1]
    assert len(killed) > 8
    assert {ended for _, ended, _ in killed} == {str(-signal.SIGKILL)}
    assert [state for state in states if state[2] == "stuck"] == []
    assert {state for _, _, state in killed} == {"whole", "resumed"}


def limited():
    # Beyond the limit the kernel answers EFBIG, once the signal that comes with it is ignored.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))


FILL = """
import sys
from tunesmith.errors import StorageError
from tunesmith.store import Run
try:
    with Run.open(sys.argv[1], "data", inputs={"a": 1}) as at:
        at.write_text("small.txt", "fits")
        at.write_text("large.txt", "x" * 100_000)
        at.finish({})
except StorageError as error:
    print(error)
"""


def test_a_file_that_does_not_fit_leaves_nothing_half_written(tmp_path):
    found = python(FILL, tmp_path / "a", before=limited)
    assert "cannot write" in found.stdout, found.stderr
    assert "large.txt" in found.stdout
    assert "fix:" in found.stdout
    assert sorted(p.name for p in (tmp_path / "a").iterdir() if p.name[0] != ".") == [
        "run.json",
        "small.txt",
    ]


def test_a_full_disk_is_named_and_nothing_is_sealed(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        found = python(FILL, disk / "a")
        assert "the disk is full" in found.stdout, found.stderr
        assert not list(disk.rglob("*.part"))
        with pytest.raises(MissingError):
            Artifact.open(disk / "a")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_is_named_when_safetensors_writes(tmp_path):
    code = """
    import sys
    import numpy
    from pathlib import Path
    from safetensors.numpy import save_file
    from tunesmith.errors import StorageError
    from tunesmith.store import storage_errors
    try:
        with storage_errors(Path(sys.argv[1])):
            save_file({"a": numpy.zeros(10_000)}, sys.argv[1])
    except StorageError as error:
        print(error)
    """
    found = python(code, tmp_path / "a.safetensors", before=limited)
    assert "cannot write" in found.stdout, found.stderr
    assert "fix:" in found.stdout


def test_a_file_where_the_folder_should_be_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(StorageError, match="cannot write") as caught, open_run(place):
            pytest.fail("it was opened")
        assert caught.value.why
        assert "workspace" in caught.value.fix


def test_a_read_only_disk_is_a_storage_error(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a disk")
    try:
        with pytest.raises(StorageError) as caught, open_run(disk / "a"):
            pytest.fail("it was opened")
        assert "read-only" in caught.value.why
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError) as caught, open_run(tmp_path / "a"):
        pytest.fail("it was opened")
    assert "permission" in caught.value.why


def test_a_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "f.txt"
    write_atomically(path, "old")
    with pytest.raises(FileNotFoundError), writing(path):
        pass  # Nothing was written: there is nothing to rename.
    with suppress(ZeroDivisionError), writing(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_what_is_written_is_what_is_read(tmp_path, content):
    path = tmp_path / "deep/er/f"
    write_atomically(path, content)
    expected = content.encode() if isinstance(content, str) else content
    assert path.read_bytes() == expected


def test_a_place_that_no_folder_can_be_made_in_is_a_storage_error(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for place in (Path("/proc/x/y"), tmp_path / ("x" * 300), loop / "x"):
        with pytest.raises(StorageError, match="cannot write") as caught, open_run(place):
            pytest.fail("it was opened")
        assert caught.value.why


def test_a_missing_file_elsewhere_is_no_storage_error(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "a/b") as half:
        half.write_text((tmp_path / "elsewhere/source").read_text())
    with pytest.raises(StorageError, match="removed meanwhile"), writing(tmp_path / "c/d") as half:
        half.parent.rmdir()


def test_half_of_a_surrogate_pair_is_written_as_its_escape_in_json(tmp_path):
    half = {"name \ud800": 1}
    with open_run(tmp_path / "run") as at:
        path = at.write_json("a.json", half)
    assert json.loads(path.read_text(encoding="utf-8")) == half
    assert sha256_of_json(half) != sha256_of_json({"name \\ud800": 1})


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_whoever_may_read_a_file_by_the_umask_may_read_each_one_that_is_sealed(
    tmp_path, umask, mode
):
    import numpy
    from safetensors.numpy import save_file

    before = os.umask(umask)
    try:
        with Run.open(tmp_path / "a", "train", inputs={}) as at:
            save_file({"x": numpy.ones(2)}, at.path("adapter/adapter_model.safetensors"))
            at.write_text("README.md", "")
            sealed = at.finish({})
    finally:
        os.umask(before)
    modes = {name: (sealed.dir / name).stat().st_mode & 0o777 for name in sealed.files}
    assert modes == {"README.md": mode, "adapter/adapter_model.safetensors": mode}
