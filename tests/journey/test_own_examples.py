"""`tunesmith run` on a user's own files: made once, resumed, refused clearly, served."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import forked
import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).with_name("tunesmith")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_sets, tunesmith_in, write_examples):
    """A whole run on a user's file: its folder, its command, and its options."""
    folder = tmp_path_factory.mktemp("own")
    call = tunesmith_in(folder)
    write_examples(folder / "examples.jsonl", "chat")
    call("init")
    found = call("run", "recipe.yaml", *small_sets, "--json")
    return folder, call, json.loads(found.stdout)["stages"]


def actions(call, *args: object) -> dict[str, str]:
    found = json.loads(call("run", "recipe.yaml", *args, "--dry-run", "--json").stdout)
    return {step["stage"]: step["action"] for step in found["stages"]}


@pytest.mark.parametrize("schema", ["chat", "instruction", "prompt"])
def test_every_schema_trains(schema, tunesmith, small_sets, tmp_path, write_examples):
    write_examples(tmp_path / "examples.jsonl", schema)
    tunesmith("init")
    found = tunesmith("run", "recipe.yaml", *small_sets, "--until", "train", "--json")
    data, trained = json.loads(found.stdout)["stages"]
    assert data["facts"]["rows"] == {"train": 32, "validation": 4, "test": 4}
    assert trained["facts"]["steps"] == 2


def test_a_second_run_skips_every_stage(finished, small_sets):
    _, call, stages = finished
    again = json.loads(call("run", "recipe.yaml", *small_sets, "--json").stdout)["stages"]
    assert [stage["reused"] for stage in again] == [True] * 4
    assert [stage["sha256"] for stage in again] == [stage["sha256"] for stage in stages]


@pytest.mark.parametrize("command", ["data build", "train", "evaluate", "export"])
def test_a_stage_command_uses_what_is_there(command, finished, small_sets):
    _, call, _ = finished
    found = call(*command.split(), "recipe.yaml", *small_sets)
    assert "skipped (unchanged)" in found.stderr
    assert "unchanged, skipped" in found.stdout
    assert ("report.html" in found.stdout) == (command == "evaluate")


def test_other_evaluate_settings_run_only_evaluate_and_later_again(finished, small_sets):
    _, call, _ = finished
    change = ["--set", "evaluate.max_answer_tokens=9"]
    assert actions(call, *small_sets, *change) == {
        "data": "reuse",
        "train": "reuse",
        "evaluate": "run",
        "export": "run",
    }
    found = call("run", "recipe.yaml", *small_sets, *change, "--json")
    stages = json.loads(found.stdout)["stages"]
    assert [stage["reused"] for stage in stages] == [True, True, False, False]
    assert "evaluate.max_answer_tokens was 8, is 9" in found.stderr


def test_from_runs_a_stage_anew_without_touching_what_was_sealed(finished, small_sets):
    _, call, stages = finished
    found = call("run", "recipe.yaml", *small_sets, "--from", "evaluate", "--until", "evaluate")
    assert "forced by --from" in found.stderr
    old = stages[2]["directory"]
    assert Path(f"{old}-2/manifest.json").is_file()
    call("show", old, "--verify")


def test_a_row_is_shown_as_the_model_sees_it(finished, small_sets):
    _, call, _ = finished
    sets = small_sets[:2]
    text = call("data", "show", "recipe.yaml", *sets, "--row", "2").stdout
    assert "* assistant" in text
    shown = json.loads(call("data", "show", "examples.jsonl", *sets, "--json").stdout)
    assert shown["counts"]["trained"] > 0
    assert {token["role"] for token in shown["tokens"]} >= {"template", "user", "assistant"}


def test_lineage_goes_from_the_export_up_to_the_users_file(finished):
    _, call, stages = finished
    text = call("show", stages[3]["directory"]).stdout
    for word in ("evaluate", "train", "data", "examples.jsonl", "model"):
        assert word in text
    assert "(changed)" not in text
    assert "(gone)" not in text


def test_a_busy_port_is_named_before_anything_is_loaded(finished):
    _, call, stages = finished
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        found = call("serve", stages[3]["directory"], "--set", f"port={port}", code=13)
    assert str(port) in found.stderr
    assert "fix:" in found.stderr


def test_serve_answers_until_it_is_told_to_stop(finished):
    folder, _, stages = finished
    command = [PROGRAM, "serve", stages[3]["directory"], "--set", "port=0", "--json"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        lines = []
        while not lines or lines[-1] != "}\n":
            lines.append(server.stdout.readline())
            assert lines[-1], server.communicate()
        ready = json.loads("".join(lines))
        health = ready["base_url"].removesuffix("/v1") + "/healthz"
        with urllib.request.urlopen(health, timeout=30) as reply:
            assert reply.status == 200
        assert ready["model"] == "my-model"
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 0, errors
    assert "Traceback" not in errors


def training_at_step_7(folder: Path, *sets: str) -> forked.Child:
    """A run that waits, by SIGSTOP, where its seventh step was just written."""
    waits = {**os.environ, "TUNESMITH_FAILPOINT": "event-after:7=stop"}
    words = ["run", "recipe.yaml", *sets, "--until", "train"]
    child = forked.command(*words, cwd=folder, environment=waits)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and child.poll() is None:
        if psutil.Process(child.pid).status() == psutil.STATUS_STOPPED:
            return child
        time.sleep(0.05)
    child.kill()
    pytest.fail(f"it did not come to step 7: {child.communicate()}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_training_goes_on_where_it_was(
    number, tunesmith, small_sets, tmp_path, write_examples
):
    write_examples(tmp_path / "examples.jsonl", "prompt")
    tunesmith("init")
    steps = ["--set", "train.max_steps=16", "--set", "train.epochs=60"]
    every = ["--set", "train.checkpoint_every_steps=5"]
    sets = [*small_sets, *steps, *every]
    child = training_at_step_7(tmp_path, *sets)
    child.send_signal(number)
    child.send_signal(signal.SIGCONT)
    _, errors = child.communicate(timeout=120)
    (log,) = tmp_path.glob("runs/*/train-*/events.jsonl")
    if number == signal.SIGINT:
        assert child.returncode == 130, errors
        assert "saved" in errors
        refused = tunesmith("train", "recipe.yaml", *sets, code=7)
        assert "--resume" in refused.stderr
    else:
        assert child.returncode == -signal.SIGKILL
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [*range(1, 8)]
    saved = [event["step"] for event in events if event["event"] == "checkpoint"]
    assert saved[-1] == 7 if number == signal.SIGINT else 5 <= saved[-1] < 7
    assert actions(tunesmith, *sets)["train"] == "resume"
    # Once in a process that has not built the dataset before.
    fresh = number == signal.SIGINT
    found = tunesmith("train", "recipe.yaml", *sets, "--resume", "--json", fresh=fresh)
    assert json.loads(found.stdout)["facts"]["steps"] == 16
    assert f"going on after step {saved[-1]} " in found.stderr


def test_a_missing_model_is_named(tunesmith, tmp_path, write_examples):
    write_examples(tmp_path / "examples.jsonl", "chat")
    tunesmith("init")
    found = tunesmith("run", "recipe.yaml", "--set", "model.base=./no-such-model", code=5)
    assert "no-such-model" in found.stderr
    assert "fix:" in found.stderr
    assert not list(tmp_path.glob("runs/*/train-*"))


BAD = {
    "empty": b"",
    "truncated": b'{"prompt": "a", "completion": "b"}\n{"prompt": "c", "compl',
    "not UTF-8": b'{"prompt": "caf\xe9", "completion": "b"}\n',
    "wrong role": b'{"messages": [{"role": "robot", "content": "a"}]}\n',
    "no answer": b'{"messages": [{"role": "user", "content": "a"}]}\n',
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_a_wrong_file_is_named_and_nothing_is_half_made(content, tunesmith, tmp_path):
    (tmp_path / "examples.jsonl").write_bytes(content)
    tunesmith("init")
    found = tunesmith("run", "recipe.yaml", code=3)
    assert "examples.jsonl" in found.stderr
    assert "fix:" in found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_full_disk_during_training_is_named_and_the_run_goes_on_later(
    tunesmith, small_sets, tmp_path, write_examples
):
    write_examples(tmp_path / "examples.jsonl", "chat")
    tunesmith("init")
    disk = tmp_path / "runs"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        found = tunesmith("run", "recipe.yaml", *small_sets, "--until", "train", code=8)
        assert "the disk is full" in found.stderr
        assert "Traceback" not in found.stderr
        assert not list(disk.glob("*/train-*/manifest.json"))
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        tunesmith("run", "recipe.yaml", *small_sets, "--until", "train")
        assert list(disk.glob("*/train-*/manifest.json"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_first_example_runs_as_it_is_written(tiny_base, tmp_path):
    values = {
        "model.base": tiny_base,
        "workspace": tmp_path / "runs",
        "train.max_steps": 2,
        "export.limits.merged": "{greedy_agreement: 0.5, mean_kl: 9.0, perplexity_ratio: 9.0}",
        "export.forms": "[adapter, merged]",
    }
    sets = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    found = subprocess.run(
        [ROOT / "examples/01-your-own-examples/run.sh", *sets],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"},
        check=False,
    )
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr}"
    made = {
        place.parent.name.split("-")[0] for place in tmp_path.glob("runs/orders/*/manifest.json")
    }
    assert made == {"data", "train", "evaluate", "export"}


def _as_it_is_now(finished, small_sets):
    """The command and the newest artifact of each stage: other tests make stages anew."""
    _, call, _ = finished
    return call, json.loads(call("run", "recipe.yaml", *small_sets, "--json").stdout)["stages"]


def test_every_form_of_the_bundle_is_measured_side_by_side(finished, small_sets):
    call, stages = _as_it_is_now(finished, small_sets)
    # The limits are a random model's; what is measured here is the rest.
    asked = [*small_sets, "--form", "merged", "--form", "gguf-q8_0"]
    found = json.loads(call("forms", "recipe.yaml", *asked, "--json").stdout)
    place = Path(found["directory"])
    bundle = Path(next(s["directory"] for s in stages if s["stage"] == "export"))
    assert [row["form"] for row in found["forms"]] == ["merged", "gguf-q8_0"]
    for row, name in zip(
        found["forms"], ("merged/model.safetensors", "model-q8_0.gguf"), strict=True
    ):
        assert row["bytes"] >= (bundle / name).stat().st_size
        assert row["n"] == 4
        assert 0 <= row["interval"][0] <= row["accuracy"] <= row["interval"][1] <= 1
        assert min(row["load_seconds"], row["first_token_seconds"]) > 0
        assert row["peak_rss_bytes"] > 10e6
        assert -100 <= row["points"] <= 100
    assert (place / "quality.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((place / "forms.json").read_text())["forms"] == found["forms"]
    shown = call("forms", "recipe.yaml", *small_sets, "--form", "gguf-q8_0")
    assert "gguf-q8_0" in shown.stdout
    assert "n=4" in shown.stdout
    refused = call("forms", "recipe.yaml", *small_sets, "--form", "gguf-q8", code=2)
    assert "did you mean 'gguf-q8_0'" in refused.stderr


def test_a_bundle_is_signed_checked_and_served_only_when_it_is_as_it_was_signed(
    finished, small_sets, tmp_path
):
    call, stages = _as_it_is_now(finished, small_sets)
    bundle = Path(next(s["directory"] for s in stages if s["stage"] == "export"))
    call("sign", "--new-key", tmp_path / "mine.pem")
    assert not (bundle / "model.sig").exists()
    call("export", "recipe.yaml", *small_sets, "--set", f"signing_key={tmp_path}/mine.pem")
    assert (bundle / "model.sig").is_file()
    copied = Path(shutil.copytree(bundle, tmp_path / "copied"))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["facts"]["name"] = "another"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    refused = call("serve", copied, "--set", f"public_key={tmp_path}/mine.pem.pub", code=6)
    assert "is not what the owner of mine.pem.pub signed" in refused.stderr
