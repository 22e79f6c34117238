"""`tunesmith check`: exit codes, JSON and the table."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from safetensors.numpy import save_file

import tunesmith.cli.check  # noqa: F401
from tunesmith.cli import main as door
from tunesmith.errors import ModelError
from tunesmith.store import Run
from tunesmith.telemetry import progress

command = sys.modules["tunesmith.cli.check"]


def run(capsys, *args):
    with pytest.raises(SystemExit) as ended:
        door.main(["check", *map(str, args)])
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    return path


def test_an_error_ends_with_its_code_and_the_remedy_is_printed(capsys, gguf):
    code, out, _ = run(capsys, gguf)
    assert code == ModelError.exit_code
    assert "gguf-architecture" in out
    assert "fix: convert or export the model again" in out
    assert "1 error, 0 warnings, 0 notes: not sound" in out


def test_the_json_has_stable_keys(capsys, gguf):
    code, out, _ = run(capsys, gguf, "--json")
    found = json.loads(out)
    assert code == ModelError.exit_code
    keys = {"format", "place", "kinds", "errors", "warnings", "notes", "findings", "facts"}
    assert set(found) == keys
    wanted = {"severity", "check", "file", "where", "what", "why", "fix"}
    assert set(found["findings"][0]) == wanted


def test_warnings_fail_only_when_that_is_asked_for(capsys, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    (folder / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert run(capsys, folder)[0] == 0
    assert run(capsys, folder, "--strict")[0] == ModelError.exit_code


def test_a_place_without_a_model_is_one_clear_error(capsys, tmp_path):
    code, _, err = run(capsys, tmp_path / "none")
    assert code == 5
    assert "there is nothing at" in err


def test_the_bar_counts_the_models_bytes_however_often_each_is_read(capsys, tmp_path, monkeypatch):
    with Run.open(tmp_path / "run", "train", inputs={}) as at:
        save_file({"x": np.ones(2_000_000, np.float32)}, at.path("model/model.safetensors"))
        at.finish({})
    monkeypatch.setattr(command, "_LONG_BYTES", 1)
    bars = []

    @contextmanager
    def kept(title, total, **more):
        with progress(title, total, **more) as bar:
            bars.append(bar)
            yield bar

    monkeypatch.setattr("tunesmith.telemetry.progress", kept)
    _, _, err = run(capsys, tmp_path / "run", "--values")
    assert "checking: 8 MB" in err
    assert (bars[0].total, bars[0].done) == (8, 8)


def test_names_that_steer_a_terminal_are_spelled_out(capsys, gguf):
    path = gguf.rename(gguf.with_name("m\x1b[31m.gguf"))
    _, out, _ = run(capsys, path)
    assert "\x1b[31m" not in out


def test_a_base_that_is_nowhere_is_to_be_named_by_the_commands_own_option(capsys, gguf):
    code, _, err = run(capsys, gguf, "--base", "nowhere")
    assert code == 5
    assert "no model at 'nowhere'" in err
    assert "--base" in err
    assert "model.base" not in err
