"""`tunesmith data synthesize instruct | questions | best`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.data.growing import database_option, databases_of, refuse_stdout
from tunesmith.cli.data.reading import Reading, reading_options
from tunesmith.cli.lazy import LazyGroup
from tunesmith.cli.options import json_option
from tunesmith.cli.screen import note, print_json
from tunesmith.errors import counted

if TYPE_CHECKING:
    from tunesmith.data.grow import SynthesisResult
    from tunesmith.data.grow.ask import Engine
    from tunesmith.data.grow.method import Method, Sampler

__all__ = ["COMMANDS", "best", "instruct", "questions", "synthesize"]

_HERE = "tunesmith.cli.data.synthesize"
COMMANDS: dict[str, tuple[str, str]] = {
    "instruct": (f"{_HERE}:instruct", "New instructions after the manner of yours, answered."),
    "questions": (f"{_HERE}:questions", "Questions from documents, with answers that they prove."),
    "best": (f"{_HERE}:best", "Several answers to each prompt; a verifier keeps one."),
}
"""Name -> where it is, and its one line of help."""


@click.group(cls=LazyGroup, table=COMMANDS)
def synthesize() -> None:
    """Rows from a model: self-instruct, questions from documents, best of n with a verifier.

    The model is any endpoint that speaks the OpenAI protocol (--endpoint and --model; its key is read
    from the environment only), or a local one (--local). Every reply goes to a journal beside OUT
    before the next request: after Ctrl-C, a limit or a kill the same command goes on.

    \b
    Examples:
      tunesmith data synthesize instruct seeds.jsonl --rows 200 --local embedded --out made.jsonl
      tunesmith data synthesize questions docs/ --endpoint http://127.0.0.1:8000/v1 --model m --out qa.jsonl
      tunesmith data synthesize best q.jsonl --verify python --local embedded --out best.jsonl
    """


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--out", required=True, metavar="FILE", help="Where the rows go."),
    click.option("--endpoint", metavar="URL", help="Up to and including /v1."),
    click.option("--model", metavar="NAME", help="The model's name at the endpoint."),
    click.option(
        "--key-env",
        default="OPENAI_API_KEY",
        show_default=True,
        metavar="NAME",
        help="Environment variable with the endpoint's key.",
    ),
    click.option("--local", metavar="MODEL", help="embedded, or a .gguf file, run here."),
    click.option("--temperature", default=0.7, show_default=True, help="0 takes the likeliest."),
    click.option("--max-answer-tokens", default=512, show_default=True, help="Longest reply."),
    click.option("--seed", default=0, show_default=True, help="Decides everything that is drawn."),
    click.option("--concurrency", default=2, show_default=True, help="Requests side by side."),
    click.option("--max-requests", type=int, help="Most requests, each retry being one."),
    click.option("--max-tokens", type=int, help="Most tokens, prompts and answers together."),
    click.option("--max-seconds", type=float, help="Longest time of this attempt."),
    json_option,
)


def _shared(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every way to synthesize."""

    @wraps(command)
    def with_options(*args: Any, **named: Any) -> Any:
        refuse_stdout(out=named["out"])
        return command(*args, **named)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options


@click.command
@click.argument("seeds", nargs=-1, required=True, metavar="SEEDS...")
@click.option("--rows", "n_rows", default=100, show_default=True, help="Rows to make.")
@reading_options()
@_shared
def instruct(seeds: tuple[str, ...], n_rows: int, reading: Reading, **asked: Any) -> None:
    """New instructions after the manner of yours, answered.

    SEEDS are rows: eight of their questions stand in each prompt. What is like a seed or an earlier
    instruction (ROUGE-L 0.7 or more) is rejected, as are empty answers, refusals and those cut off.

    \b
    Examples:
      tunesmith data synthesize instruct seeds.jsonl --rows 20 --local embedded --out made.jsonl
      tunesmith data synthesize instruct seeds.jsonl --endpoint http://127.0.0.1:8000/v1 --model m --out made.jsonl
    """
    from tunesmith.data.grow import SelfInstruct
    from tunesmith.data.grow.source import grounds_of

    reading.refuse_sealed(*seeds)
    rows = grounds_of(seeds, reading.options, form=reading.form).rows
    _refuse_none(rows, "seed rows")
    sampler = _sampler(asked)
    inputs = {"rows": _digest(row.text for row in rows), "n_rows": n_rows}
    _run(SelfInstruct(rows, sampler, n_rows), sampler, inputs, n_rows, asked)


@click.command
@click.argument("documents", nargs=-1, required=True, metavar="DOCUMENT...")
@click.option("--per-chunk", default=3, show_default=True, help="Questions for 1,500 characters.")
@click.option("--rows", "n_rows", type=int, help="Stop when there are so many rows.")
@click.option("--with-context", is_flag=True, help="Put the text into the prompt of the row.")
@_shared
def questions(
    documents: tuple[str, ...],
    per_chunk: int,
    n_rows: int | None,
    with_context: bool,
    **asked: Any,
) -> None:
    """Questions from documents, with answers that they prove.

    DOCUMENTs are text or Markdown files, or folders of them. A question is kept when the quote that
    comes with it stands in the text, and its answer uses the text's words and numbers.

    \b
    Examples:
      tunesmith data synthesize questions handbook.md --local embedded --out qa.jsonl
      tunesmith data synthesize questions docs/ --endpoint http://127.0.0.1:8000/v1 --model m --out qa.jsonl
    """
    from tunesmith.data.grow import QuestionsFromDocuments, read_documents

    chunks = read_documents([Path(document) for document in documents])
    _refuse_none(chunks, "chunks of 20 words or more")
    sampler = _sampler(asked)
    method = QuestionsFromDocuments(
        chunks, sampler, n_questions=per_chunk, n_wanted=n_rows, with_context=with_context
    )
    digest = _digest(f"{chunk.where}\n{chunk.text}" for chunk in chunks)
    inputs = {
        "chunks": digest,
        "per_chunk": per_chunk,
        "n_rows": n_rows,
        "with_context": with_context,
    }
    _run(method, sampler, inputs, n_rows or len(chunks) * per_chunk, asked)


@click.command
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPTS...")
@click.option(
    "--verify",
    type=click.Choice(["sql", "json", "python", "exact", "majority"]),
    required=True,
    help="sql: it runs, with the rows of the row's own query if it has one; json: it parses and fits "
    "--json-schema; python: it compiles; exact: it is the row's answer; majority: most agree.",
)
@click.option("--samples", default=4, show_default=True, help="Answers a prompt.")
@click.option("--as", "kind", type=click.Choice(["chat", "pair"]), default="chat", help="Rows.")
@click.option("--json-schema", metavar="FILE", help="What JSON answers must keep to.")
@database_option
@reading_options()
@_shared
def best(
    prompts: tuple[str, ...],
    verify: str,
    samples: int,
    kind: Any,
    reading: Reading,
    **asked: Any,
) -> None:
    """Several answers to each prompt; a verifier keeps one.

    PROMPTS are rows. With --as pair a kept answer and a failed one make a preference pair.

    \b
    Examples:
      tunesmith data synthesize best sums.jsonl --verify exact --samples 8 --local embedded --out b.jsonl
      tunesmith data synthesize best q.jsonl --verify sql --database shop=shop.sqlite --local embedded --out b.jsonl
    """
    from tunesmith.data.grow import BestOfN
    from tunesmith.data.grow.source import grounds_of
    from tunesmith.data.grow.verify import VERIFIERS
    from tunesmith.store import sha256_of_file

    reading.refuse_sealed(*prompts)
    grounds = grounds_of(prompts, reading.options, form=reading.form)
    _refuse_none(grounds.rows, "rows")
    databases = {**grounds.databases, **databases_of(asked["databases"])}
    schema = Path(asked["json_schema"]) if asked["json_schema"] else None
    verifier = VERIFIERS.load(verify)(databases=databases, json_schema=schema)
    sampler = _sampler(asked)
    inputs = {
        "rows": _digest(row.text for row in grounds.rows),
        "verify": verify,
        "samples": samples,
        "as": kind,
        "databases": {name: sha256_of_file(path) for name, path in sorted(databases.items())},
        "json_schema": sha256_of_file(schema) if schema else None,
    }
    try:
        method = BestOfN(grounds.rows, sampler, verifier, samples, kind)
        _run(method, sampler, inputs, len(grounds.rows), asked)
    finally:
        verifier.close()


def _refuse_none(found: Any, what: str) -> None:
    from tunesmith.errors import DataError

    if not found:
        raise DataError(f"there are no {what} to begin with", fix="name files that hold some")


def _sampler(asked: Mapping[str, Any]) -> Sampler:
    from tunesmith.data.grow.method import Sampler
    from tunesmith.engine import Sampling

    # The engine's own check of the values: all problems at once.
    Sampling(max_tokens=asked["max_answer_tokens"], temperature=asked["temperature"])
    return Sampler(asked["temperature"], asked["max_answer_tokens"], asked["seed"])


def _digest(texts: Any) -> str:
    from tunesmith.store import sha256_of_json

    return sha256_of_json(list(texts))


def _engine(asked: Mapping[str, Any]) -> Engine:
    if (asked["endpoint"] is None) == (asked["local"] is None):
        raise click.UsageError(
            "say who answers: --endpoint URL with --model NAME, or --local MODEL"
        )
    if asked["local"] is not None:
        from tunesmith.data.grow import LocalEngine

        return LocalEngine(asked["local"], slots=asked["concurrency"])
    if not asked["model"]:
        raise click.UsageError("--endpoint needs --model NAME")
    from tunesmith.data.grow import Endpoint

    return Endpoint(asked["endpoint"], asked["model"], key_variable=asked["key_env"])


def _run(
    method: Method,
    sampler: Sampler,
    inputs: Mapping[str, Any],
    n_expected: int,
    asked: Mapping[str, Any],
) -> None:
    """Run with a bar, and say what came of it."""
    from tunesmith.data.grow import Places
    from tunesmith.data.grow import synthesize as make
    from tunesmith.data.grow.ask import Budget
    from tunesmith.errors import InterruptedRun
    from tunesmith.telemetry import progress

    places = Places.beside(Path(asked["out"]))
    budget = Budget(asked["max_requests"], asked["max_tokens"], asked["max_seconds"])
    engine = _engine(asked)
    try:
        with progress("synthesize", n_expected, unit="rows") as bar:
            result = make(
                method,
                engine,
                places,
                sampler=sampler,
                inputs=inputs,
                budget=budget,
                concurrency=asked["concurrency"],
                on_reply=lambda made: bar.advance(
                    len(made.rows) - bar.done, f"{len(made.rejected)} rejected"
                ),
            )
    except KeyboardInterrupt as error:
        raise InterruptedRun(
            "stopped",
            why=f"what was accepted is in {places.out}, all replies are in {places.journal}",
            fix=f"the same command goes on: {shlex.join(['tunesmith', *sys.argv[1:]])}",
        ) from error
    finally:
        engine.close()
    _tell(result, places, asked["as_json"])


def _tell(result: SynthesisResult, places: Any, as_json: bool) -> None:
    if as_json:
        print_json(
            {**result.as_dict(), "out": str(places.out), "rejected_in": str(places.rejected)}
        )
        return
    n = len(result.rejected)
    note(f"{counted(len(result.rows), 'row')} in {places.out}, {n} rejected in {places.rejected}")
    for reason, count in result.reasons.most_common(8):
        note(f"  rejected {count} times: {reason}")
    note(
        f"{counted(result.n_requests, 'request')}, {counted(result.n_tokens, 'token')}; ended by: {result.ended}"
    )
