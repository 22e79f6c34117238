"""`tunesmith data annotate export | import`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.data.growing import refuse_overwriting, refuse_stdout
from tunesmith.cli.data.reading import Reading, reading_options
from tunesmith.cli.lazy import LazyGroup
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json, table
from tunesmith.errors import counted

if TYPE_CHECKING:
    from tunesmith.data.annotate import Imported

__all__ = ["COMMANDS", "annotate", "export", "import_"]

_HERE = "tunesmith.cli.data.annotate"
COMMANDS: dict[str, tuple[str, str]] = {
    "export": (f"{_HERE}:export", "Rows as Label Studio tasks, with the labelling interface."),
    "import": (f"{_HERE}:import_", "What annotators said: rows, agreement and conflicts."),
}
"""Name -> where it is, and its one line of help."""

_FORM = click.option(
    "--as",
    "form",
    type=click.Choice(["chat", "classification", "pairs"]),
    help="What annotators do; by the rows when not given.",
)


@click.group(cls=LazyGroup, table=COMMANDS)
def annotate() -> None:
    """Rows to Label Studio and back, with agreement between annotators.

    `tunesmith data review` is the same work in the terminal, by one person.

    \b
    Examples:
      tunesmith data annotate export rows.jsonl --out tasks.json --config interface.xml
      tunesmith data annotate import rows.jsonl --results export.json --out labelled.jsonl
    """


@click.command
@click.argument("file")
@_FORM
@click.option("--labels", default="", metavar="A,B,C", help="Of a classification; the rows' own.")
@click.option("--out", required=True, metavar="FILE", help="The tasks: upload it as data.")
@click.option("--config", required=True, metavar="FILE", help="The labelling interface (XML).")
@click.option("--predictions", is_flag=True, help="Show the rows' own labels to annotators.")
@reading_options()
@json_option
def export(
    file: str, form: Any, labels: str, out: str, config: str, reading: Reading, **asked: Any
) -> None:
    """Rows as Label Studio tasks, with the labelling interface.

    In Label Studio: new project, Settings > Labeling Interface > Code takes the XML; Import takes the
    tasks. Keep FILE as it is: results are matched to its rows by their content.

    \b
    Examples:
      tunesmith data annotate export rows.jsonl --out tasks.json --config interface.xml
      tunesmith data annotate export mails.jsonl --labels refund,delivery --out tasks.json --config interface.xml
    """
    from tunesmith.data.annotate import export as exported
    from tunesmith.data.annotate import form_of
    from tunesmith.data.grow.source import read_rows
    from tunesmith.store import write_atomically

    refuse_stdout(out=out, config=config)
    for target in (out, config):
        refuse_overwriting([file], target)
    rows = read_rows([file], reading.options, reading.form)
    named = tuple(label.strip() for label in labels.split(",") if label.strip())
    made = exported(rows, form or form_of(rows, named), named, predictions=asked["predictions"])
    write_atomically(Path(out), json.dumps(made.tasks, ensure_ascii=False, indent=1) + "\n")
    write_atomically(Path(config), made.config)
    if asked["as_json"]:
        print_json({"as": made.form, "tasks": len(made.tasks), "out": out, "config": config})
    else:
        note(
            f"{counted(len(made.tasks), 'task')} ({made.form}) in {out}, the interface in {config}"
        )


@click.command("import")
@click.argument("file")
@click.option("--results", required=True, metavar="FILE", help="Label Studio's export, type JSON.")
@click.option(
    "--out", required=True, metavar="FILE", help="The rows after annotation; - for stdout."
)
@click.option("--side", metavar="FILE", help="Dropped and changed rows; OUT-side.jsonl.")
@_FORM
@click.option(
    "--on-conflict",
    type=click.Choice(["majority", "drop", "keep"]),
    default="majority",
    show_default=True,
    help="When annotators differ: what most say, drop the row, or keep it as it was.",
)
@click.option("--adjudicator", metavar="WHO", help="Whose annotation settles differences.")
@reading_options()
@json_option
def import_(
    file: str, results: str, form: Any, reading: Reading, as_json: bool, **asked: Any
) -> None:
    """What annotators said: rows, agreement and conflicts.

    FILE is the file that was exported. A majority decides, or who is named by --adjudicator; an
    annotation marked as ground truth always does. Each annotated row has the votes in its meta.

    \b
    Examples:
      tunesmith data annotate import rows.jsonl --results export.json --out labelled.jsonl
      tunesmith data annotate import rows.jsonl --results export.json --adjudicator ann --out labelled.jsonl
    """
    from tunesmith.data.annotate import form_in, import_results, read_results
    from tunesmith.data.grow.source import read_rows
    from tunesmith.store import write_atomically

    refuse_stdout(side=asked["side"])
    to_stdout = asked["out"] == "-"
    if to_stdout and (as_json or not asked["side"]):
        raise click.UsageError("--out - needs --side FILE, and goes without --json")
    for target in (asked["out"], asked["side"]):
        refuse_overwriting([file, results], target)
    if not Path(results).is_file():
        raise click.UsageError(f"--results {results!r} is not there")
    rows = read_rows([file], reading.options, reading.form)
    shape = form or form_in(Path(results))
    annotated = read_results(Path(results), rows, shape)
    made = import_results(
        rows,
        annotated,
        shape,
        on_conflict=asked["on_conflict"],
        adjudicator=asked["adjudicator"],
    )
    out = Path(asked["out"])
    side = Path(asked["side"] or out.with_name(f"{out.name.removesuffix('.jsonl')}-side.jsonl"))
    write_atomically(side, "".join(f"{line}\n" for line in (*made.dropped, *made.changed)))
    text = "".join(f"{row.text}\n" for row in made.rows)
    if to_stdout:
        click.echo(text, nl=False)
    else:
        write_atomically(out, text)
    if as_json:
        print_json({**made.as_dict(), "out": os.fspath(out), "side": os.fspath(side)})
    else:
        _tell(made, "stdout" if to_stdout else out, side)


def _tell(made: Imported, out: Path | str, side: Path) -> None:
    found = made.agreement
    note(
        f"{counted(len(made.rows), 'row')} in {out} ({made.n_annotated} annotated, {len(made.changed)} changed), "
        f"{len(made.dropped)} dropped; as they were: {side}"
    )
    figures = [
        ("rows with several labels", found.n_items),
        ("annotators", found.n_annotators),
        ("all say the same", _figure(found.observed, "{:.1%}")),
        ("Cohen's kappa", _figure(found.kappa, "{:.3f}")),
        ("Krippendorff's alpha", _figure(found.alpha, "{:.3f}")),
    ]
    if isinstance(out, Path):
        table(("agreement", ""), figures, right=(1,))
    else:
        note("; ".join(f"{name}: {figure}" for name, figure in figures))
    if found.why:
        note(found.why)
    for conflict in made.conflicts[:20]:
        votes = ", ".join(f"{who}: {vote}" for who, vote in conflict["votes"].items())
        note(f"  {conflict['where']}: {votes} ({conflict['settled']})")
    if len(made.conflicts) > 20:
        note(f"  ... and {len(made.conflicts) - 20} more conflicts; --json lists them all")


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
