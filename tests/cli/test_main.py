"""The command's door: help without heavy imports, errors as what/why/fix, exit codes, JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from command_line import call

from tunesmith import __version__
from tunesmith.cli.main import COMMANDS, commands
from tunesmith.errors import StorageError

PROGRAM = Path(sys.executable).with_name("tunesmith")
HEAVY = ("torch", "transformers", "fastapi", "pydantic", "numpy", "rich")


def every_command(group: click.Group = commands, path: tuple[str, ...] = ()):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))


ALL = [*every_command(), (("serve", "keys", "new"), None), (("serve", "keys", "remove"), None)]


def test_help_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from tunesmith.cli.main import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    print([m for m in sys.argv[1:] if m in sys.modules], file=sys.stderr)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *HEAVY], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stderr.strip() == "[]"


def test_importing_a_room_loads_no_torch():
    light = ("errors", "registry", "config", "store", "telemetry", "engine", "pipeline", "plan")
    stages = ("data", "train", "evaluate", "export", "serve")
    code = (
        "import importlib, sys\n"
        "for room in sys.argv[1:]:\n"
        "    importlib.import_module(f'tunesmith.{room}')\n"
        "    found = [m for m in ('torch', 'transformers', 'fastapi') if m in sys.modules]\n"
        "    assert not found, (room, found)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *light, *stages], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr


def test_help_names_every_command(capsys):
    assert call("--help") == 0
    text = capsys.readouterr().out
    for name, (_, line) in COMMANDS.items():
        assert name in text
        assert line in text


@pytest.mark.parametrize(("path", "command"), ALL, ids=[" ".join(path) for path, _ in ALL])
def test_every_command_has_help_with_examples_and_a_sentence_for_each_option(path, command, capsys):
    assert call(*path, "--help") == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert "tunesmith " + " ".join(path) in text
    if command is None:
        return
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert option.help.strip().endswith("."), option.help


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_says_what_the_command_says_itself(name):
    command = commands.get_command(click.Context(commands), name)
    assert command is not None
    assert (command.help or "").split("\n")[0] == COMMANDS[name][1]


def test_the_examples_in_help_are_commands_that_are_there():
    known = {" ".join(path) for path, _ in ALL}
    for _, command in ALL:
        for line in (command.help or "").splitlines() if command else ():
            words = line.strip().split()
            if words[:1] == ["tunesmith"]:
                assert " ".join(words[1:2]) in known, line


def test_version(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"tunesmith {__version__}\n"


def test_an_unknown_command_names_the_nearest(capsys):
    assert call("trian") == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


def test_an_error_says_what_why_and_fix_on_stderr(capsys):
    assert call("show", "nowhere") == 5
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == [
        "error: nowhere is not a sealed artifact",
        "  why: there is no such folder",
        "  fix: name a folder that a tunesmith stage has finished",
    ]


def test_markup_in_an_error_is_printed_as_it_is(capsys):
    assert call("show", "[bold]x[/nope]") == 5
    assert "[bold]x[/nope]" in capsys.readouterr().err


def test_an_error_is_json_on_stdout_when_asked(capsys):
    assert call("run", "nothing-here", "--json") == 5
    found = capsys.readouterr()
    error = json.loads(found.out)
    assert error["error"] == "MissingError"
    assert error["exit_code"] == 5
    assert "nothing-here" in error["what"]
    assert error["fix"]
    assert found.err == ""


def test_a_wrong_option_is_json_when_asked(capsys):
    assert call("run", "demo", "--nope", "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"] == "UsageError"


def test_all_problems_of_a_recipe_are_printed_with_their_lines(tmp_path, capsys):
    file = tmp_path / "r.yaml"
    file.write_text("train:\n  epochs: -1\n  bogus: 2\n")
    assert call("run", str(file)) == 2
    text = capsys.readouterr().err
    assert f"{file}:2" in text
    assert f"{file}:3" in text


def test_anything_else_is_a_bug_with_a_traceback_and_where_to_report_it(monkeypatch, capsys):
    @click.command
    def broken() -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(commands.commands, "broken", broken)
    monkeypatch.setitem(COMMANDS, "broken", ("tests_broken:broken", ""))
    monkeypatch.setitem(sys.modules, "tests_broken", type("M", (), {"broken": broken}))
    assert call("broken") == 70
    text = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in text
    assert "report" in text


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    @click.command
    def needy() -> None:
        raise ModuleNotFoundError("no module", name="openai")

    monkeypatch.setitem(COMMANDS, "needy", ("tests_needy:needy", ""))
    monkeypatch.setitem(sys.modules, "tests_needy", type("M", (), {"needy": needy}))
    assert call("needy") == 14
    assert "pip install 'tunesmith[all]'" in capsys.readouterr().err


@pytest.mark.parametrize("is_read", [True, False])
def test_ctrl_c_ends_with_130(is_read):
    code = (
        "import sys, types, click, time\n"
        "from tunesmith.cli import main as door\n"
        "@click.command\n"
        "def wait():\n    print('up', flush=True); time.sleep(60)\n"
        "sys.modules['w'] = types.SimpleNamespace(wait=wait)\n"
        "door.COMMANDS['wait'] = ('w:wait', '')\n"
        "door.main(['wait'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "up\n"
        if not is_read:
            child.stderr.close()
        child.send_signal(signal.SIGINT)
        errors = child.stderr.read() if is_read else ""
    assert child.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize("call", ["show nowhere", "show nowhere --json", "trian", "trian --json"])
def test_an_errors_exit_code_stands_when_nobody_reads_it(call):
    reads, writes = os.pipe()
    os.close(reads)
    try:
        found = subprocess.run(
            [PROGRAM, *call.split()], stdout=writes, stderr=writes, check=False, timeout=60
        )
    finally:
        os.close(writes)
    assert found.returncode == (5 if call.startswith("show") else 2)


def test_a_reader_that_leaves_early_makes_no_noise():
    found = subprocess.run(
        f"{PROGRAM} config explain | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert found.stdout.startswith("name = run")
    assert found.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell, capsys):
    assert call("completion", shell) == 0
    assert "_TUNESMITH_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "word", "offered"),
    [
        ("tunesmith eva", 1, "plain,evaluate"),
        ("tunesmith forms --form gguf-q8", 3, "plain,gguf-q8_0"),
        ("tunesmith push --form gguf-q8", 3, "plain,gguf-q8_0"),
    ],
)
def test_completion_completes_commands_and_forms(typed, word, offered):
    found = subprocess.run(
        [PROGRAM],
        env={
            **os.environ,
            "_TUNESMITH_COMPLETE": "bash_complete",
            "COMP_WORDS": typed,
            "COMP_CWORD": str(word),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert offered in found.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
@pytest.mark.parametrize("args", [["completion", "bash"], ["--version"]])
def test_a_full_disk_behind_stdout_is_one_clear_error(args):
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "tunesmith", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert found.returncode == StorageError.exit_code
    assert "cannot write stdout" in found.stderr
    assert "Traceback" not in found.stderr
