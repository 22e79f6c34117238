"""`tunesmith data`: a table of commands over the data room."""

from __future__ import annotations

from typing import Any

import click

from tunesmith.cli.lazy import LazyGroup

__all__ = ["COMMANDS", "data"]

_HERE = "tunesmith.cli.data"
COMMANDS: dict[str, tuple[str, str]] = {
    "build": (f"{_HERE}.build:build", "Read, check, split and seal the recipe's examples."),
    "inspect": (
        f"{_HERE}.inspect:inspect",
        "How files would be read: form, schema, mapping of fields, first rows.",
    ),
    "check": (
        f"{_HERE}.check:check",
        "Everything that is wrong with rows, all at once, and a score with its reasons.",
    ),
    "clean": (
        f"{_HERE}.clean:clean",
        "Drop duplicates and unwanted rows, mend texts, mask what is private.",
    ),
    "convert": (
        f"{_HERE}.convert:convert",
        "Write rows in another schema or form, and say what cannot be kept.",
    ),
    "split": (
        f"{_HERE}.split:split",
        "Files to train, validation and test, without leaks between them.",
    ),
    "show": (
        f"{_HERE}.show:show",
        "A row as the model sees it: each token by its role, trained tokens marked.",
    ),
    "stats": (
        f"{_HERE}.stats:stats",
        "Rows by split, lengths, labels, languages and repeats, and where every row came from.",
    ),
    "diff": (
        f"{_HERE}.diff:diff",
        "Rows that were added, removed, changed or moved to another split.",
    ),
    "card": (
        f"{_HERE}.card:card",
        "A sealed dataset's card: licence, sources, splits, cleaning, checks and hashes.",
    ),
    "explain-cache": (
        f"{_HERE}.explain_cache:explain_cache",
        "Why training finds its rows' tokens in the cache, or has to make them.",
    ),
    "make": (
        f"{_HERE}.make:make",
        "Make rows from your own database, code, manuals, labels or records.",
    ),
    "sample": (
        f"{_HERE}.sample:sample",
        "List the datasets that ship with tunesmith, or write one's files to a folder.",
    ),
    "augment": (
        f"{_HERE}.augment:augment",
        "New rows with the same answer: renamed tables, paraphrases, slips, shuffled context.",
    ),
    "synthesize": (
        f"{_HERE}.synthesize:synthesize",
        "Rows from a model: self-instruct, questions from documents, best of n with a verifier.",
    ),
    "annotate": (
        f"{_HERE}.annotate:annotate",
        "Rows to Label Studio and back, with agreement between annotators.",
    ),
    "review": (
        f"{_HERE}.review:review",
        "Look through rows in the terminal, the most suspicious first.",
    ),
}
"""Name -> where it is, and its one line of help."""


class _Room(LazyGroup):
    """The table; SIGTERM ends each of its commands as Ctrl-C does, so that no half file stays."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        from tunesmith.data.parallel import terminable

        with terminable():
            return super().invoke(ctx)


@click.group(cls=_Room, table=COMMANDS)
def data() -> None:
    """From any file to a sealed, clean dataset.

    Every row is accounted for: kept, changed or dropped with a reason.

    \b
    Examples:
      tunesmith data inspect examples.jsonl
      tunesmith data check examples.jsonl
      tunesmith data split examples.jsonl --out split
      tunesmith data build recipe.yaml
    """
