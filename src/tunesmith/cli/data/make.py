"""`tunesmith data make`: rows from the user's own material."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tunesmith.cli.data.growing import refuse_overwriting, refuse_stdout
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json, where
from tunesmith.errors import counted

if TYPE_CHECKING:
    from tunesmith.data.make import Made

__all__ = ["make"]

Command = TypeVar("Command", bound=Callable[..., Any])
_DATABASE = b"SQLite format 3\0"


def _from(name: str) -> Callable[[Command], Command]:
    """SOURCE; what comes by stdin is put into a file of that name, since builders read it twice."""

    def take(context: click.Context, _option: Any, source: Path) -> Path:
        if str(source) != "-":
            return source
        from tunesmith.store import storage_errors

        with storage_errors(Path(tempfile.gettempdir())):
            folder = Path(context.with_resource(tempfile.TemporaryDirectory(prefix="tunesmith-")))
            path = folder / name
            with path.open("wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            with path.open("rb") as file:
                is_database = file.read(len(_DATABASE)) == _DATABASE
            return path.rename(path.with_suffix(".sqlite")) if is_database else path

    return click.argument("source", type=click.Path(path_type=Path, allow_dash=True), callback=take)


_SOME = click.IntRange(min=1)
_SEED = click.option("--seed", default=0, show_default=True, help="Seed of all random choices.")


def _outputs(*, required: bool = True) -> Callable[[Command], Command]:
    """--out, --dropped and --json, which all builders share."""

    def decorate(command: Command) -> Command:
        out = click.option(
            "--out",
            type=click.Path(path_type=Path, allow_dash=True),
            required=required,
            help="FILE.jsonl for all rows, a new FOLDER for a file a split, or - for stdout.",
        )
        dropped = click.option(
            "--dropped",
            type=click.Path(path_type=Path),
            help="FILE.jsonl for everything that made no row, each with its reason.",
        )
        return out(dropped(json_option(command)))

    return decorate


@click.group
def make() -> None:
    """Make rows from your own database, code, manuals, labels or records.

    Every row says where it comes from, and everything that makes no row says why. A SOURCE of one file
    may be - for stdin.

    \b
    Examples:
      tunesmith data make sql shop.sqlite --out questions.jsonl
      tunesmith data make code-docs src --out docs.jsonl
      tunesmith data make support faq.md --out -
      cat tickets.csv | tunesmith data make classify - --out - > tickets.jsonl
      tunesmith data make classify tickets.csv --out tickets.jsonl
      tunesmith data make extract people.csv --template '{name} is {age}.' --out people.jsonl
    """


@make.command(short_help="Questions and queries over a database.")
@_from("stdin.sql")
@click.option("--rows", type=_SOME, default=500, show_default=True, help="Most rows.")
@click.option(
    "--names", type=click.Path(path_type=Path), help="YAML with words for tables and columns."
)
@click.option("--show-names", is_flag=True, help="Print the words in use as YAML, and stop.")
@click.option(
    "--schema",
    type=click.Choice(["compact", "ddl", "none"]),
    default="compact",
    show_default=True,
    help="How the prompt shows the tables.",
)
@click.option(
    "--instruction",
    default="Answer with one SQLite query.",
    show_default=True,
    help="First line of the system message.",
)
@click.option(
    "--hold-out",
    type=click.Choice(["nothing", "templates", "tables"]),
    default="nothing",
    show_default=True,
    help="Keep whole wordings, or whole tables, for the validation (10 %) and the test (20 %).",
)
@click.option(
    "--fill-rows",
    type=_SOME,
    default=40,
    show_default=True,
    help="Rows that each empty table of a DDL gets.",
)
@click.option(
    "--keep-database",
    type=click.Path(path_type=Path),
    help="Write the database that was filled from a DDL to this file.",
)
@_SEED
@_outputs(required=False)
def sql(source: Path, show_names: bool, out: Path | None, **asked: Any) -> None:
    """Questions and queries over a SQLite file, or over the tables of a DDL file; each query is run.

    \b
    Examples:
      tunesmith data make sql shop.sqlite --out questions.jsonl --rows 1000
      tunesmith data make sql shop.sqlite --show-names
      tunesmith data make sql tables.sql --hold-out templates --out questions
    """
    from tunesmith.data.make import SqlOptions, make_sql, read_names, words_used

    keep, dropped, as_json = (asked.pop(name) for name in ("keep_database", "dropped", "as_json"))
    refuse_stdout(keep_database=keep)
    names = asked.pop("names")
    words = read_names(names) if names else {}
    options = SqlOptions(n_rows=asked.pop("rows"), names=words, **asked)
    if show_names:
        click.echo(words_used(source, options), nl=False)
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    _deliver(make_sql(source, options, keep=keep), out, dropped, source, as_json=as_json)


@make.command(name="code-docs", short_help="Python functions and their docstrings.")
@_from("stdin.py")
@click.option(
    "--direction",
    type=click.Choice(["docs", "code", "both"]),
    default="docs",
    show_default=True,
    help="What the answer is: the docstring, the code, or a row for each.",
)
@click.option("--private", is_flag=True, help="Take names that begin with an underscore, too.")
@click.option(
    "--min-lines", default=2, show_default=True, help="Fewest lines of a body, docstring aside."
)
@click.option(
    "--max-lines",
    type=_SOME,
    default=120,
    show_default=True,
    help="Most lines of a body, docstring aside.",
)
@click.option("--min-words", default=4, show_default=True, help="Fewest words of a docstring.")
@_outputs()
def code_docs(source: Path, out: Path, dropped: Path | None, as_json: bool, **asked: Any) -> None:
    """Functions of a Python tree and their docstrings; nothing is imported.

    \b
    Examples:
      tunesmith data make code-docs src --out docs.jsonl
      tunesmith data make code-docs src --direction both --private --out both.jsonl
    """
    from tunesmith.data.make import CodeDocsOptions, make_code_docs

    _deliver(
        make_code_docs(source, CodeDocsOptions(**asked)), out, dropped, source, as_json=as_json
    )


@make.command
@_from("stdin.md")
@click.option(
    "--template",
    "templates",
    multiple=True,
    help="Question for headings that are none, such as 'Tell me about {heading}.' or '{path}?'. Repeatable.",
)
@click.option("--system", help="System message of every row.")
@click.option("--max-chars", type=_SOME, default=6_000, show_default=True, help="Longest answer.")
@_outputs()
def support(
    source: Path, templates: tuple[str, ...], out: Path, dropped: Path | None, as_json: bool, **asked: Any
) -> None:  # fmt: skip
    """Questions and answers from Markdown FAQs and manuals.

    \b
    Examples:
      tunesmith data make support faq.md --out faq.jsonl
      tunesmith data make support docs --template 'How does {heading} work?' --out faq.jsonl
    """
    from tunesmith.data.make import SupportOptions, make_support

    options = SupportOptions(templates=templates, **asked)
    _deliver(make_support(source, options), out, dropped, source, as_json=as_json)


@make.command(short_help="Texts and their labels.")
@_from("stdin")
@click.option("--text", help="Field of the text; found by its usual names otherwise.")
@click.option("--label", help="Field of the label; found by its usual names otherwise.")
@click.option(
    "--show",
    type=click.Choice(["list", "letters", "nothing"]),
    default="list",
    show_default=True,
    help="How the prompt shows the labels; with letters the answer is the letter.",
)
@click.option("--shuffled", is_flag=True, help="Lettered labels in another order in each row.")
@click.option(
    "--instruction",
    default="Which label fits the text? Answer with the label alone.",
    show_default=True,
    help="First line of the prompt.",
)
@click.option("--max-a-class", type=_SOME, help="Most rows of one label.")
@_SEED
@_outputs()
def classify(source: Path, out: Path, dropped: Path | None, as_json: bool, **asked: Any) -> None:
    """Rows that ask for a label, from a table, JSON lines, or a folder a class.

    \b
    Examples:
      tunesmith data make classify tickets.csv --out tickets.jsonl
      tunesmith data make classify mails --show letters --shuffled --out mails.jsonl
    """
    from tunesmith.data.make import ClassifyOptions, make_classify

    _deliver(make_classify(source, ClassifyOptions(**asked)), out, dropped, source, as_json=as_json)


@make.command(short_help="Texts and the JSON that they say.")
@_from("stdin")
@click.option(
    "--template",
    "templates",
    multiple=True,
    help="Text with {field} slots that tells a record. Repeatable.",
)
@click.option(
    "--schema",
    type=click.Path(path_type=Path),
    help="JSON schema of the answers; from the records otherwise.",
)
@click.option(
    "--text", default="text", show_default=True, help="Field of the text, without templates."
)
@click.option(
    "--answer", default="json", show_default=True, help="Field of the JSON, without templates."
)
@click.option(
    "--show",
    type=click.Choice(["schema", "fields", "nothing"]),
    default="fields",
    show_default=True,
    help="What the prompt says about the answer's form.",
)
@click.option(
    "--instruction",
    default="Extract the data from the text as JSON.",
    show_default=True,
    help="First line of the prompt.",
)
@click.option(
    "--texts-a-record",
    type=_SOME,
    default=1,
    show_default=True,
    help="Templates used for each record.",
)
@_SEED
@_outputs()
def extract(
    source: Path, templates: tuple[str, ...], out: Path, dropped: Path | None, as_json: bool, **asked: Any
) -> None:  # fmt: skip
    """Texts with the JSON that they say, each answer valid under its schema.

    \b
    Examples:
      tunesmith data make extract people.csv --template '{name} is {age}.' --out people.jsonl
      tunesmith data make extract pairs.jsonl --schema person.json --out people.jsonl
    """
    from tunesmith.data.make import ExtractOptions, make_extract

    options = ExtractOptions(templates=templates, **asked)
    _deliver(make_extract(source, options), out, dropped, source, as_json=as_json)


def _deliver(made: Made, out: Path, dropped: Path | None, source: Path, *, as_json: bool) -> None:
    """Write the rows, and say how many there are, what was dropped and why."""
    from tunesmith.data.make import lines_of, write
    from tunesmith.store import storage_errors

    refuse_stdout(dropped=dropped)
    for target in (out, dropped):
        refuse_overwriting([str(source)], None if target is None else str(target))
    if str(out) == "-":
        if as_json:
            raise click.UsageError("--json and --out - both need stdout; name a file.")
        write(made, None, dropped=dropped)
        with storage_errors(Path("stdout")):
            click.echo(lines_of(made.rows), nl=False)
        files: list[Path] = []
    else:
        files = write(made, out, dropped=dropped)
    summary = made.summary() | {"files": [where(file) for file in files]}
    if as_json:
        print_json(summary)
        return
    splits = "".join(f", {n} {split}" for split, n in summary["splits"].items())
    note(
        f"{counted(summary['rows'], 'row')}{splits}"
        + "".join(f"\n  {file}" for file in summary["files"])
    )
    for reason, n in summary["dropped"].items():
        note(f"left out: {n} x {reason}")
    for said in made.notes:
        note(f"note: {said}")
