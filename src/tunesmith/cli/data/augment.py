"""`tunesmith data augment`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.data.growing import (
    database_option,
    databases_of,
    refuse_overwriting,
    refuse_stdout,
)
from tunesmith.cli.data.reading import Reading, reading_options
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json
from tunesmith.errors import counted

if TYPE_CHECKING:
    from typing import TextIO

    from tunesmith.data.grow import Augmented, AugmentOptions
    from tunesmith.data.grow.source import Grounds

__all__ = ["augment"]

_RULES = click.Choice(["rename", "paraphrase", "noise", "shuffle"])


@click.command
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--rule", "rules", type=_RULES, multiple=True, required=True, help="See above.")
@click.option("--times", default=1, show_default=True, help="New rows a row and rule.")
@click.option("--seed", default=0, show_default=True, help="Decides everything that is drawn.")
@click.option("--out", default="-", metavar="FILE", help="Where to; stdout when not given, or -.")
@click.option("--side", metavar="FILE", help="What was not made, and why; OUT-side.jsonl.")
@click.option(
    "--held-out",
    multiple=True,
    metavar="FILE",
    help="Rows that nothing may repeat, such as your test file. May be repeated.",
)
@click.option("--held-out-too", is_flag=True, help="Take a sealed dataset's held-out files, too.")
@click.option("--only-new", is_flag=True, help="Leave the rows themselves out of the result.")
@database_option
@click.option("--databases-out", metavar="FOLDER", help="Renamed copies; OUT-databases.")
@reading_options()
@json_option
def augment(
    files: tuple[str, ...], out: str, reading: Reading, as_json: bool, **asked: Any
) -> None:
    """New rows with the same answer: renamed tables, paraphrases, slips, shuffled context.

    FILES are files, - for stdin, or a sealed dataset's folder, whose training rows are taken. Each row
    is followed by those that were made of it, which say so in `meta.origin`.

    \b
    Rules:
      rename      tables and columns of text-to-SQL rows get other names, in the prompt, the query
                  and a copy of the database; kept when both queries return the same rows
      paraphrase  the question in a politer, plainer or contracted form
      noise       slips of the keyboard in the question, never in what the answer needs
      shuffle     tables, columns, documents and examples of the prompt in another order

    \b
    Examples:
      tunesmith data augment examples.jsonl --rule paraphrase --rule noise --out more.jsonl
      tunesmith data augment train.jsonl --rule rename --database shop=shop.sqlite --out more.jsonl
      cat rows.jsonl | tunesmith data augment - --rule shuffle --times 2 > more.jsonl
    """
    from tunesmith.data.grow.source import grounds_of, read_rows

    if as_json and out == "-":
        raise click.UsageError("--json and the rows would both go to stdout: name a file by --out")
    refuse_stdout(side=asked["side"], databases_out=asked["databases_out"])
    for target in (out, asked["side"]):
        refuse_overwriting([*files, *asked["held_out"]], target)
    reading.refuse_sealed(*files)
    grounds = grounds_of(
        files, reading.options, may_be_held_out=asked["held_out_too"], form=reading.form
    )
    if asked["held_out"]:
        grounds.held_out.extend(read_rows(asked["held_out"], reading.options, reading.form))
    counts = _write(grounds, _options(grounds, out, asked), out, asked)
    if as_json:
        print_json(counts)
    else:
        _tell(counts, out)


def _options(grounds: Grounds, out: str, asked: dict[str, Any]) -> AugmentOptions:
    from tunesmith.data.grow import AugmentOptions

    databases = {**grounds.databases, **databases_of(asked["databases"])}
    folder = asked["databases_out"]
    if folder is None and "rename" in asked["rules"]:
        if out == "-":
            raise click.UsageError("--rule rename writes databases: name a folder, --databases-out")
        folder = Path(out).with_name(f"{Path(out).name.removesuffix('.jsonl')}-databases")
    return AugmentOptions(
        tuple(dict.fromkeys(asked["rules"])),
        asked["times"],
        asked["seed"],
        tuple(grounds.held_out),
        databases,
        None if folder is None else Path(folder),
    )


def _write(
    grounds: Grounds, options: AugmentOptions, out: str, asked: dict[str, Any]
) -> dict[str, Any]:
    """Write rows and side lines as they come; returns counts."""
    from tunesmith.data.grow import augment as grown
    from tunesmith.telemetry import progress

    made: Counter[str] = Counter()
    left_out: Counter[tuple[str, str]] = Counter()
    side: list[str] = []
    with (
        _target(out) as target,
        progress("augment", len(grounds.rows), unit="rows") as bar,
    ):
        for one in grown(grounds.rows, options):
            target.writelines(f"{line}\n" for line in _lines(one, only_new=asked["only_new"]))
            made.update(row.meta["origin"]["rule"] for row in one.made)
            left_out.update((left.rule, _kind_of(left.reason)) for left in one.left_out)
            side += [left.as_line() for left in one.left_out]
            bar.advance(note=f"{made.total()} new")
    place = _write_side(side, out, asked["side"])
    return {
        "rows": len(grounds.rows),
        "made": made.total(),
        "made_by": dict(made),
        "left_out": left_out.total(),
        "reasons": [
            {"rule": rule, "reason": reason, "rows": n}
            for (rule, reason), n in left_out.most_common()
        ],
        "side": place,
        "databases": str(options.databases_folder) if options.databases_folder else None,
    }


def _kind_of(reason: str) -> str:
    """A reason without its particulars, which the side file has."""
    return reason.split(": ", 1)[0]


def _lines(one: Augmented, *, only_new: bool) -> Sequence[str]:
    own = () if only_new else (one.row,)
    return [row.text for row in (*own, *one.made)]


@contextmanager
def _target(out: str) -> Iterator[TextIO]:
    """Stdout, or a file that is there only when it is whole."""
    from tunesmith.store import storage_errors, writing

    if out == "-":
        with storage_errors(Path("stdout")):
            yield sys.stdout
            sys.stdout.flush()
        return
    with writing(Path(out)) as part, part.open("w", encoding="utf-8", newline="") as stream:
        yield stream


def _write_side(lines: Sequence[str], out: str, side: str | None) -> str | None:
    """The side file's path; None when it is not asked for and the rows went to stdout."""
    from tunesmith.store import write_atomically

    if side is None and out == "-":
        return None
    path = Path(side or Path(out).with_name(f"{Path(out).name.removesuffix('.jsonl')}-side.jsonl"))
    write_atomically(path, "".join(f"{line}\n" for line in lines))
    return str(path)


def _tell(counts: dict[str, Any], out: str) -> None:
    by = ", ".join(f"{n} by {rule}" for rule, n in counts["made_by"].items())
    to = "stdout" if out == "-" else out
    note(f"{counted(counts['rows'], 'row')}, {counts['made']} new ({by or 'none'}), to {to}")
    for entry in counts["reasons"][:10]:
        note(f"  not made by {entry['rule']}: {entry['rows']} times: {entry['reason']}")
    if len(counts["reasons"]) > 10:
        note(f"  ... and {len(counts['reasons']) - 10} more reasons")
    if counts["side"]:
        note(f"what was not made, and why: {counts['side']}")
    if counts["databases"]:
        note(f"databases of the new rows: {counts['databases']} (name them under data.databases)")
