"""`tunesmith data split`: files in, the files of a sealed dataset out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from tunesmith.cli.data.reading import reading_options
from tunesmith.cli.options import json_option, processes_option
from tunesmith.cli.screen import note, print_json, table, where
from tunesmith.errors import counted

__all__ = ["print_report", "split", "warn_of_leaks"]

_MAX_SHARE = 0.5
"""What `data.test_ratio` and `data.validation_ratio` must be under."""
_SHOWN_FILES = 10
_SHOWN_REASONS = 5
_LEAKS = ("contamination", "passage-overlap", "near-overlap")
_MANY_LEAKS = 0.1
_POLICY = click.Choice(["report", "refuse", "drop_from_train"])


@click.command
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--out", required=True, metavar="FOLDER", help="Where the splits go; a new folder.")
@click.option("--validation", default="0.1", help="Share (0.1) or number (500) of validation rows.")
@click.option("--test", default="0.1", help="Share (0.1) or number (500) of test rows.")
@reading_options()
@click.option("--seed", default=0, show_default=True, help="Seed of the draw.")
@click.option("--stratify", metavar="FIELD", help="Same shares of its values in every split.")
@click.option("--group", metavar="FIELD", help="Rows with the same value stay on one side.")
@click.option("--time", metavar="FIELD", help="Hold out the latest rows, by this field.")
@click.option("--by-template", is_flag=True, help="Rows made from one template stay on one side.")
@click.option(
    "--near-duplicates/--no-near-duplicates",
    default=None,
    help="Rows with nearly equal prompts stay on one side (they do unless told otherwise).",
)
@click.option(
    "--unreadable",
    type=click.Choice(["refuse", "drop"]),
    default="refuse",
    show_default=True,
    help="Rows that cannot be read: refuse the files, or drop these rows.",
)
@click.option(
    "--on-near-overlap",
    type=_POLICY,
    help="What to do with those that do not, with "
    "--time or --no-near-duplicates, and with passages: report them (unless told otherwise), refuse, or drop.",
)
@click.option(
    "--overlap-words",
    type=click.IntRange(8, 50),
    metavar="N",
    help="Also look for passages of N words, such as 13, of held-out rows in the rows before them.",
)
@click.option("--resume", is_flag=True, help="Go on with an unfinished split of the same inputs.")
@processes_option
@json_option
def split(files: tuple[str, ...], out: str, as_json: bool, **asked: Any) -> None:
    """Files to train, validation and test, without leaks between them.

    FILES are files or folders of any form and schema; stdin, as -, is saved as FOLDER.stdin first.
    The folder is a sealed dataset: train.jsonl, validation.jsonl and test.jsonl with canonical rows, the side files
    dropped.jsonl, changed.jsonl and findings.jsonl, a report and a card. Every row is in one of them.

    \b
    Examples:
      tunesmith data split examples.jsonl --out split
      tunesmith data split a.jsonl b.jsonl --out split --stratify label --test 500
      tunesmith data split intents.csv --out split --field prompt=text --field completion=category
      tunesmith data split log.jsonl --out split --time created --on-near-overlap drop_from_train
      cat rows.jsonl | tunesmith data clean - --out - | tunesmith data split - --out split
    """
    from tunesmith.config import recipe_from
    from tunesmith.data import build

    processes, resume, seed = asked.pop("processes"), asked.pop("resume"), asked.pop("seed")
    _refuse_streams(files, out)
    section = _section(files, asked)
    with _saved(files, out) as saved:
        section["source"]["train"] = saved
        recipe = recipe_from({"seed": seed, "data": section})
        result = build(recipe, out, resume=resume, processes=processes)
    if as_json:
        print_json({"directory": str(result.artifact.dir), **result.report})
        return
    rows = result.rows
    click.echo(
        f"{where(result.artifact.dir)}: {rows['train']} train, {rows['validation']} validation, "
        f"{rows['test']} test rows"
    )
    print_report(result.report)


def _refuse_streams(files: Sequence[str], out: str) -> None:
    if out == "-":
        raise click.UsageError(
            "a split is a folder of files, which stdout is not: name a new folder by --out"
        )
    if list(files).count("-") > 1:
        raise click.UsageError("stdin can be read once: name - once")


@contextmanager
def _saved(files: Sequence[str], out: str) -> Iterator[list[str]]:
    """The files, stdin as `OUT.stdin`: a sealed dataset names its sources, and rows are read twice.

    A dataset that is not made leaves no such file, unless the work can go on.

    Raises:
        UsedDirectoryError: the file is there and holds something else.
        StorageError: the disk refuses.
    """
    if "-" not in files:
        yield list(files)
        return
    from tunesmith.errors import InterruptedRun, UsedDirectoryError
    from tunesmith.store import sha256_of_file, storage_errors, writing

    folder = Path(out)
    place = folder.with_name(f"{folder.name}.stdin")
    with storage_errors(place):
        was_there = place.exists()
    with writing(place) as part:
        with part.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        if was_there and sha256_of_file(place) != sha256_of_file(part):
            raise UsedDirectoryError(
                f"{place} is there already, and holds other rows than stdin",
                why="stdin is saved there, since a sealed dataset names its sources",
                fix="remove it, or name another folder by --out",
            )
    try:
        yield [str(place) if file == "-" else file for file in files]
    except InterruptedRun:
        raise
    except BaseException:
        if not was_there:
            place.unlink(missing_ok=True)
        raise


def _section(files: tuple[str, ...], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the recipe's section `data`."""
    section: dict[str, Any] = {"source": {"kind": "files", "train": list(files)}}
    section |= asked["reading"].settings
    section["clean"] = {"unreadable": asked["unreadable"]}
    for name in ("validation", "test"):
        section.update(_amount(name, asked[name]))
    if asked["on_near_overlap"]:
        section["on_near_overlap"] = asked["on_near_overlap"]
    if asked["overlap_words"]:
        section["overlap_words"] = asked["overlap_words"]
    _refuse_idle_policy(asked)
    random = {name: asked[name] for name in ("stratify", "group") if asked[name]}
    random |= {"by_template": True} if asked["by_template"] else {}
    if asked["near_duplicates"] is not None:
        random["near_duplicates"] = asked["near_duplicates"]
    if asked["time"] and random:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in random)
        raise click.UsageError(f"--time holds out the latest rows: it goes without {given}")
    if asked["time"]:
        section["split"] = {"kind": "time", "field": asked["time"]}
    elif random:
        section["split"] = {"kind": "random", **random}
    return section


def _refuse_idle_policy(asked: Mapping[str, Any]) -> None:
    may_be_near = asked["time"] or asked["near_duplicates"] is False or asked["overlap_words"]
    if asked["on_near_overlap"] and not may_be_near:
        raise click.UsageError(
            "--on-near-overlap has nothing to do: rows with nearly equal prompts stay on one side; "
            "it goes with --time, --no-near-duplicates or --overlap-words"
        )


def _amount(name: str, text: str) -> dict[str, int | float]:
    """A share or a number of rows as its setting; 1.0 is no number of rows: it may mean all of them."""
    try:
        value = float(text)
        n_rows = int(text) if text.strip().isdecimal() else 0
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no number", param_hint=f"--{name}") from error
    if n_rows:
        return {f"{name}_rows": n_rows}
    if not 0 < value < _MAX_SHARE:
        raise click.BadParameter(
            f"{text} is neither a number of rows (1, 2, ...) nor a share of them (over 0, under "
            f"{_MAX_SHARE:g})",
            param_hint=f"--{name}",
        )
    return {f"{name}_ratio": value}


def print_report(report: Mapping[str, Any]) -> None:
    """How files were read, what became of the rows, and what the test set can tell, on stdout."""
    _print_files(report["files"])
    kept = sum(report["rows"].values())
    dropped = {rule: n for rule, n in report["left_out"]["by_rule"].items() if n}
    rows = [
        ("read", report["rows_read"]),
        *((f"dropped: {rule}", n) for rule, n in dropped.items()),
    ]
    for name, share in report["mix"].items():
        rows.append((f"mixed: {name} (each row {share['repeats']:g} times)", share["in_mix"]))
    table(("rows", "number"), [*rows, ("sealed", kept)], right=(1,))
    near = report["near_overlaps"]
    n_leaks = near["found"] + sum(dropped.get(rule, 0) for rule in _LEAKS)
    warn_of_leaks(n_leaks, report["rows_read"])
    if near["found"]:
        n_near = counted(near["found"], "row")
        passages = " or a passage" if near.get("passages_of_words") else ""
        click.echo(f"{n_near} with nearly the prompt{passages} of a held-out row:")
        for line in near["first"]:
            click.echo(f"  {line}")
        click.echo("  leave them out with data.on_near_overlap=drop_from_train")
    for name, n in report["held_out"].get("strata_without_rows", {}).items():
        if n:
            values = counted(n, "value")
            click.echo(f"{values} of {report['held_out']['stratified_by']} without a row in {name}")
    click.echo(_what_can_be_told(report["test_can_tell"]))
    _print_score(report)


def warn_of_leaks(n_leaks: int, n_rows: int) -> None:
    """Say loudly that so many rows leak that it may be their form that they share with the others."""
    if n_leaks <= _MANY_LEAKS * n_rows:
        return
    note(
        f"warning: {n_leaks:,} of {counted(n_rows, 'row')} ({n_leaks / n_rows:.0%}) hold what a held-out "
        "or benchmark row holds; look at some of them: it may be a form that all rows have"
    )


def _print_score(report: Mapping[str, Any]) -> None:
    """The score of what is sealed and what cost most; datasets of older versions have no tokens."""
    score = report["score"]
    lost = [reason for reason in score["reasons"] if reason["points"]][:_SHOWN_REASONS]
    why = ", ".join(f"{one['check']} {one['points']:g}" for one in lost)
    click.echo(
        f"score {score['points']} of 100, {score['colour']}"
        + (f"; lost by {why}: findings.jsonl names the rows" if why else "")
    )
    if why_not := report.get("tokens", {}).get("why_not"):
        note(f"checks in tokens are left out: {why_not}")


def _print_files(files: Sequence[Mapping[str, Any]]) -> None:
    """What each file was taken for, and by what; datasets of older versions do not say it."""
    from tunesmith.telemetry import visible

    for file in files[:_SHOWN_FILES]:
        if "why" in file:
            named = [f"{use} = {name}" for use, name in file["mapping"].items() if use != name]
            path = file["path"]
            rows = counted(file["rows"], f"{file['schema']} row")
            click.echo(visible(f"{path}: {rows} ({file['why']})"))
            if named:
                click.echo(visible(f"  fields: {', '.join(named)}"))
    if len(files) > _SHOWN_FILES:
        click.echo(
            f"... and {counted(len(files) - _SHOWN_FILES, 'more file')}: report.json has them"
        )


def _what_can_be_told(figures: Mapping[str, Any]) -> str:
    """The smallest gain that the test set shows, in one sentence."""
    points, n_rows = figures["detectable_points"], counted(figures["test_rows"], "test row")
    found = [(share, gain) for share, gain in points.items() if gain is not None]
    if not found:
        most = list(points)[-1]
        return f"{n_rows}: too few to show a gain in a paired test, where up to {most} of the answers change"
    told = ", ".join(
        f"{gain:.1f}{' points where' if i == 0 else ' where'} {share} {'of the answers change' if i == 0 else 'do'}"
        for i, (share, gain) in enumerate(found)
    )
    none = " or ".join(share for share, gain in points.items() if gain is None)
    told += f", none where {none} do" if none else ""
    return f"{n_rows}: a paired test finds, four times in five, a gain of {told}"
