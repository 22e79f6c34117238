"""What a check says about a row or a dataset, and the table of all checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tunesmith.telemetry import visible

__all__ = ["CHECKS", "SEVERITIES", "Check", "Finding", "Severity", "finding", "shortened"]

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked for.

    Attributes:
        about: what it finds, in a few words.
        severity: of its findings, unless the check itself says otherwise.
        fix: what to do about them, in general.
    """

    severity: Severity
    about: str
    fix: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        where: "file:line" of the row; without a line it is about the whole file or dataset.
        check: a name of `CHECKS`.
        severity: `error`: cannot be trained on as it is meant; `warning`: likely harms; `note`: to know.
        field: path within the canonical row, such as "messages[1].content"; `answer` where only all rows show it; of
            files that are checked the name that they have for it. Empty for the whole row.
        value: what stands there, shortened and safe to print; empty when there is nothing to show.
        what: what is wrong.
        fix: what to do.
    """

    where: str
    check: str
    severity: Severity
    field: str
    value: str
    what: str
    fix: str

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def line(self) -> str:
        """All but the fix, on one line."""
        at = f" {self.field}:" if self.field else ""
        value = f" {self.value}" if self.value else ""
        return f"{self.where}:{at} {self.what}{value}"


def finding(
    where: str, check: str, what: str, *, field: str = "", value: str = "", fix: str = ""
) -> Finding:
    """A finding with the severity and, unless given, the remedy of its check."""
    row = CHECKS[check]
    return Finding(where, check, row.severity, field, value, what, fix or row.fix)


def shortened(value: object, at: int = 0) -> str:
    """A value in quotes, at most 60 characters of it around the character `at`, safe to print."""
    text = value if isinstance(value, str) else str(value)
    start = 0 if at < _SHOWN_CHARACTERS - 10 else at - 20
    part = text[start : start + _SHOWN_CHARACTERS].replace("\n", "\\n").replace("\t", "\\t")
    before = "…" if start else ""
    after = "…" if start + _SHOWN_CHARACTERS < len(text) else ""
    # What is not seen when printed is what many findings are about: also the joiners and odd
    # spaces that `visible` lets pass are spelled out here.
    spelled = part if part.isprintable() else "".join(map(_spelled, part))
    return f"'{before}{spelled}{after}'"


def _spelled(character: str) -> str:
    seen = character.isprintable() or visible(character) != character
    return visible(character) if seen else f"\\u{ord(character):04x}"


_EDIT = "mend or remove the row"
CHECKS: Mapping[str, Check] = {
    # What keeps a row from being read.
    "unreadable": Check("error", "bytes or JSON that cannot be read", "mend or remove the line"),
    "schema": Check("error", "fields that are missing or of another type", "mend the row's fields"),
    "idle-field": Check(
        "error",
        "a field that is mapped and that no row has",
        "correct its name; `tunesmith data inspect` shows the fields of a file",
    ),
    # The conversation.
    "roles": Check("error", "missing or wrong roles, order of turns", "put the turns in order"),
    "empty": Check("error", "a turn without text", "write the missing text, or remove the row"),
    "tool-calls": Check("error", "calls of tools that do not fit the tools", _EDIT),
    "equal-turns": Check("warning", "the answer repeats the question", _EDIT),
    "repeated-turn": Check("warning", "the same turn twice in a conversation", _EDIT),
    "equal-answers": Check("error", "chosen and rejected are the same", _EDIT),
    "null-answer": Check(
        "warning",
        "an answer such as nan, null or N/A",
        "write the real answer, or remove the row: it is what an empty cell of a table becomes",
    ),
    "answer-in-prompt": Check(
        "warning", "the prompt holds the answer", "take the answer out of the prompt"
    ),
    # The text.
    "mojibake": Check(
        "warning",
        "text decoded with the wrong encoding",
        "export the file again as UTF-8, or let `data.clean` normalise the text",
    ),
    "control-characters": Check(
        "warning", "characters that steer terminals", "remove them from the text"
    ),
    "invisible-characters": Check(
        "warning", "zero-width, direction-turning or private characters", "remove them"
    ),
    "html": Check("warning", "tags and entities of HTML", "turn the text into plain text"),
    "chat-markers": Check(
        "warning",
        "markers of a chat template inside a text",
        "split the text into turns; the model's own template writes the markers",
    ),
    "unfilled": Check(
        "warning", "text that waits to be filled in", "fill it in, or remove the row"
    ),
    "open-fence": Check(
        "warning", "a code block that is not closed", "close it: was the answer cut off?"
    ),
    "repetition": Check("warning", "the same words over and over", _EDIT),
    "refusal": Check(
        "warning",
        "an answer that refuses",
        "remove the row, or allow it with --set check.allow='[refusal]' if refusing is to be learned",
    ),
    "white-space": Check(
        "warning",
        "white space around some answers but not around others",
        "strip the texts, so that the model does not learn both",
    ),
    # What only the whole dataset shows.
    "language": Check(
        "warning",
        "a row in another language than the rest",
        "translate or remove it, or list its language in check.languages",
    ),
    "near-overlap": Check(
        "warning", "a prompt that is nearly one of another split", "leave the row out of training"
    ),
    "languages": Check("note", "share of each language", ""),
    "mixed-formats": Check(
        "warning", "an answer in another format than the rest", "give all answers one format"
    ),
    "duplicate": Check("warning", "the same row again", "remove it, or let `data.clean` do so"),
    "contradiction": Check(
        "warning",
        "equal prompts with different answers",
        "keep the right answer, or tell the model in the prompt what makes the difference",
    ),
    "too-few-rows": Check(
        "warning",
        "fewer rows than the task wants",
        "add rows: by hand, `tunesmith data augment` or `tunesmith data synthesize`",
    ),
    "too-few-of-a-class": Check(
        "warning", "a class with fewer rows than it wants", "add rows of this class"
    ),
    "class-balance": Check(
        "warning", "one class far larger than another", "add rows of the small classes"
    ),
    "label-spelling": Check(
        "warning", "one label spelled in two ways", "spell the label in one way"
    ),
    "rare-label": Check(
        "warning", "a label that is nearly another", "correct the label, or add rows that have it"
    ),
    # What the model's tokenizer shows.
    "length": Check(
        "warning", "rows far longer or shorter than the rest, in tokens", "look whether it is right"
    ),
    "truncation": Check(
        "error",
        "rows longer than train.max_row_tokens",
        "shorten them, raise train.max_row_tokens, or set train.on_long_row",
    ),
    "template": Check(
        "error", "conversations that the model's chat template refuses", "change the turns"
    ),
    "trained-tokens": Check(
        "warning", "share of tokens that are learned", "shorten the prompts or lengthen the answers"
    ),
    "stop-token": Check(
        "error",
        "answers whose stop token is not learned",
        "use a model whose template closes turns",
    ),
    "tokens-left-out": Check("note", "checks in tokens that were not made", ""),
    # Domains.
    "sql": Check("error", "answers that are no SQL", "correct the query"),
    "sql-runs": Check("error", "queries that do not run on their database", "correct the query"),
    "sql-no-rows": Check("note", "queries that return no rows", "look whether the query is right"),
    "sql-not-run": Check(
        "warning",
        "queries that are not run, after others that did not end",
        "mend or remove the queries that did not end, then check again",
    ),
    "sql-unknown": Check("note", "SQL that could not be checked", ""),
    "python": Check("error", "answers that Python does not compile", "correct the code"),
    "json": Check("error", "answers that are no JSON", "correct the JSON"),
    "json-schema": Check("error", "JSON that breaks the schema", "correct the values named"),
    "json-keys": Check(
        "warning", "JSON whose keys differ from nearly all others", "give all answers the same keys"
    ),
}
"""Name -> what it is. The names are what `check.allow` takes."""
