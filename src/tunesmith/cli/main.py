"""The `tunesmith` command: a table of commands, each imported when it is called, and the error door."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import click

from tunesmith.cli.lazy import LazyGroup

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("tunesmith.cli.doctor:doctor", "Check this machine and what it can train."),
    "demo": ("tunesmith.cli.demo:demo", "The whole journey on the sample data, in minutes."),
    "init": ("tunesmith.cli.init:init", "Write a commented recipe for your own examples."),
    "run": ("tunesmith.cli.run:run", "Run a recipe's stages; what is unchanged is used again."),
    "data": ("tunesmith.cli.data:data", "From any file to a sealed, clean dataset."),
    "prove": ("tunesmith.cli.prove:prove", "Prove on your model and rows that training is exact."),
    "train": ("tunesmith.cli.train:train", "Train on the recipe's dataset."),
    "replay": (
        "tunesmith.cli.replay:replay",
        "Run a micro batch again whose loss or gradient was not finite.",
    ),
    "evaluate": ("tunesmith.cli.evaluate:evaluate", "Compare the base and the tuned model."),
    "export": ("tunesmith.cli.export:export", "Write the model out, each form checked against it."),
    "forms": ("tunesmith.cli.forms:forms", "Measure every exported form side by side."),
    "quantise": ("tunesmith.cli.quantise:quantise", "Make a GGUF file smaller, as llama.cpp does."),
    "merge": ("tunesmith.cli.merge:merge", "Merge several models, or adapters, into one."),
    "check": ("tunesmith.cli.check:check", "Everything that is wrong with a model, with remedies."),
    "sign": ("tunesmith.cli.sign:sign", "Sign a sealed folder with your own key."),
    "push": ("tunesmith.cli.push:push", "Upload a sealed bundle to a model hub."),
    "serve": ("tunesmith.cli.serve:serve", "Serve an exported model over HTTP."),
    "show": ("tunesmith.cli.show:show", "An artifact's facts, files and lineage."),
    "config": ("tunesmith.cli.config:config", "Every setting: its value, origin and meaning."),
    "completion": ("tunesmith.cli.completion:completion", "Print a shell's completion script."),
}
"""Name -> where it is, and its one line of help: `--help` needs no command's imports."""

COMPLETE = "_TUNESMITH_COMPLETE"
"""Environment variable by which a shell asks for completions, as click has it."""
BUG = 70
BROKEN_PIPE = 141
INTERRUPTED = 130


class _Commands(LazyGroup):
    """The table, and the one command of two words."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """`serve keys` is a command of its own."""
        if args[:2] == ["serve", "keys"]:
            from tunesmith.cli.keys import keys

            return "serve keys", keys, args[2:]
        return super().resolve_command(ctx, args)


def _version(ctx: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        from tunesmith import __version__

        click.echo(f"tunesmith {__version__}")
        ctx.exit()


@click.group(
    cls=_Commands,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `tunesmith demo`, then `tunesmith init` for your own examples.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version and exit.",
)
def commands() -> None:
    """From examples to a small language model that is proved to be better.

    A recipe (YAML) says which examples, which base model, how to train, and how to judge. Each
    stage seals what it made in a folder; nothing is made twice.
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The entry point: run a command, and turn whatever happens into an exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    sys.exit(_door(args))


def _door(args: list[str]) -> int:
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _let_go_of_readers()
        return BROKEN_PIPE
    except OSError as error:
        if not _is_full(error):
            raise
        return _tell_full_stdout(error)


def _is_full(error: OSError) -> bool:
    """Whether it is a full disk behind stdout: what is written to files names the file."""
    return error.errno == errno.ENOSPC and error.filename is None


def _tell_full_stdout(error: OSError) -> int:
    from tunesmith.cli.screen import show_error
    from tunesmith.errors import StorageError
    from tunesmith.telemetry import point_nowhere

    point_nowhere(sys.stdout)
    known = StorageError(
        "cannot write stdout", why=str(error), fix="free some space where stdout goes"
    )
    with _heard_or_not():
        show_error(known, as_json=False)
    return known.exit_code


def _run(args: list[str]) -> int:
    if COMPLETE in os.environ:
        from tunesmith.cli.completion import offer_files

        offer_files()
    try:
        code = commands.main(args=args, prog_name="tunesmith", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        return _show_usage(error, as_json="--json" in args)
    except (KeyboardInterrupt, click.Abort):
        with _heard_or_not():
            click.echo("stopped; what was sealed is kept", err=True)
        return INTERRUPTED
    except BrokenPipeError as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        # On Ctrl-C click writes a line end to stderr, whose reader had left.
        _let_go_of_readers()
        return INTERRUPTED
    except OSError as error:
        if _is_full(error):
            raise
        return _show(error, as_json="--json" in args)
    except Exception as error:  # noqa: BLE001 - the one door: a bug of ours is shown whole
        return _show(error, as_json="--json" in args)


@contextmanager
def _heard_or_not() -> Iterator[None]:
    """The exit code of what went wrong stands, whether or not anybody reads the text.

    With `|& tee log`, Ctrl-C ends `tee` too.
    """
    try:
        yield
    except BrokenPipeError:
        _let_go_of_readers()


def _let_go_of_readers() -> None:
    """Python would complain once more when it closes a stream whose reader (`| head`) has left."""
    from tunesmith.telemetry import point_nowhere

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            point_nowhere(stream)


def _show_usage(error: click.ClickException, *, as_json: bool) -> int:
    with _heard_or_not():
        if as_json:
            from tunesmith.cli.screen import print_json

            what = error.format_message()
            print_json({"error": "UsageError", "what": what, "exit_code": error.exit_code})
        else:
            error.show()
    return error.exit_code


def _show(error: Exception, *, as_json: bool) -> int:
    from tunesmith.cli.screen import show_bug, show_error
    from tunesmith.errors import TunesmithError

    known: Exception = error
    if isinstance(error, ModuleNotFoundError):
        from tunesmith.plan.packages import as_problem

        known = as_problem(error) or error
    with _heard_or_not():
        if isinstance(known, TunesmithError):
            show_error(known, as_json=as_json)
        else:
            show_bug(error, as_json=as_json)
    return known.exit_code if isinstance(known, TunesmithError) else BUG
