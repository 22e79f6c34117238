"""The demo's question: chosen from the held-out rows, asked over HTTP, its SQL executed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.errors import EngineError, counted

if TYPE_CHECKING:
    from tunesmith.serve import Ready
    from tunesmith.store import Artifact

__all__ = ["Answer", "Question", "ask", "choose", "execute"]

ROWS_SHOWN = 20
SECONDS_TO_ANSWER = 120.0
_KINDS = (
    ("won", "the base model got it wrong, the tuned model right"),
    ("both right", "both models got it right"),
    ("still wrong", "the tuned model got it wrong too"),
    ("lost", "the tuned model got it wrong"),
)


@dataclass(frozen=True)
class Question:
    """A held-out row.

    Attributes:
        messages: the prompt, as the model was evaluated on it.
        asked: the user's message in it.
        reference: the row's own answer.
        found: what the evaluation found about this row.
        database: the SQLite file that the query is for; None when the row has none.
    """

    messages: tuple[Mapping[str, str], ...]
    asked: str
    reference: str
    found: str
    database: Path | None


@dataclass(frozen=True)
class Answer:
    """What came back, and how soon.

    Attributes:
        first_token_seconds: from the request to the first text.
    """

    text: str
    first_token_seconds: float
    seconds: float


def choose(report: Artifact, dataset: Artifact) -> Question:
    """The first held-out row that training has won; without one, the first row of the next kind."""
    lines = report.path("rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    row, found = next(
        (row, found) for kind, found in _KINDS for row in rows if row["outcome"] == kind
    )
    messages = tuple(row["prompt"])
    return Question(
        messages=messages,
        asked=next(m["content"] for m in reversed(messages) if m["role"] == "user"),
        reference=row["reference"],
        found=found,
        database=_database(row["meta"], dataset),
    )


def _database(meta: Mapping[str, Any], dataset: Artifact) -> Path | None:
    names = dataset.facts["databases"]
    name = meta.get("database") or (names[0] if len(names) == 1 else None)
    return dataset.path(f"databases/{name}.sqlite") if name else None


def ask(
    ready: Ready, question: Question, *, max_tokens: int, show: Callable[[str], None]
) -> Answer:
    """Ask the gateway with OpenAI's own client, streamed.

    Args:
        ready: where it listens.
        question: what to ask.
        max_tokens: longest answer.
        show: called with each piece of text as it comes.

    Raises:
        EngineError: the gateway refused or broke off.
    """
    import openai

    # No proxy of the environment stands between a loopback client and its server.
    http = openai.DefaultHttpxClient(trust_env=False)
    started = time.perf_counter()
    first = None
    pieces = []
    with openai.OpenAI(
        base_url=ready.base_url, api_key=ready.key or "", max_retries=0, http_client=http
    ) as client:
        try:
            stream: Any = client.chat.completions.create(
                model=ready.model,
                messages=[dict(message) for message in question.messages],  # type: ignore[misc]
                temperature=0,
                max_tokens=max_tokens,
                stream=True,
                timeout=SECONDS_TO_ANSWER,
            )
            for chunk in stream:
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    first = first or time.perf_counter() - started
                    pieces.append(text)
                    show(text)
        except openai.APIError as error:
            raise EngineError(
                f"the gateway did not answer: {error}",
                fix="run `tunesmith serve` on the exported bundle and look at its log",
            ) from error
    seconds = time.perf_counter() - started
    return Answer("".join(pieces), first if first is not None else seconds, seconds)


def execute(sql: str, database: Path) -> tuple[list[list[Any]] | None, str]:
    """Rows of a query on a read-only database, at most 20; None and the reason when it fails."""
    from tunesmith.store.sqlite import QueryFailed, QueryRunner

    with QueryRunner(seconds=5.0) as runner:
        found = runner.run(database, sql, max_rows=ROWS_SHOWN)
    if isinstance(found, QueryFailed):
        return None, found.error
    rows = [[c.hex() if isinstance(c, bytes) else c for c in row] for row in found.rows]
    return rows, f"the first {ROWS_SHOWN} rows" if found.more else counted(len(rows), "row")
