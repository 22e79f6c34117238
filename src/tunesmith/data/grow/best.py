"""Best of n: several answers to each prompt, of which a verifier keeps one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tunesmith.data.grow.ask import Ask, Refused, Reply
from tunesmith.data.grow.method import Candidate, Sampler, Taken
from tunesmith.data.grow.verify import Checked, Verifier, final_value
from tunesmith.data.rows import Row
from tunesmith.errors import DataError

__all__ = ["BestOfN"]

LEAST_SHARE = 0.5


@dataclass
class _Group:
    """The answers to one prompt."""

    row: Row
    asked: set[int] = field(default_factory=set)
    answers: list[tuple[str, Checked]] = field(default_factory=list)
    n_replies: int = 0
    is_done: bool = False


class BestOfN:
    """Draws up to n answers to each row's prompt, and keeps one that the verifier passes.

    With any verifier but `majority` the first answer that passes is kept, and no more are asked for.
    With `majority` all n are drawn, and the most frequent final value is kept when at least half of
    the answers have it (self-consistency, Wang et al. 2023).

    Args:
        rows: chats or problems; their own answers are what `sql` and `exact` compare with.
        sampler: temperature, longest answer, seed.
        verifier: judges.
        n_samples: answers a prompt.
        kind: `chat` keeps the answer as a conversation; `pair` makes a pair of one that passed and
            one that failed.

    Raises:
        DataError: no row can be asked.
    """

    name = "best-of-n"
    template = "the row's own prompt"

    def __init__(
        self,
        rows: Sequence[Row],
        sampler: Sampler,
        verifier: Verifier,
        n_samples: int,
        kind: Literal["chat", "pair"] = "chat",
    ) -> None:
        self._groups = [_Group(row) for row in rows if _can_be_asked(row)]
        if not self._groups:
            raise DataError(
                "no row has a prompt of texts alone",
                why="calls of tools and plain texts cannot be asked again",
                fix="name rows with a user's turn, such as chats or problems",
            )
        # Named beside the first reply, so that no row goes without a word.
        self._left_out = [
            Candidate(row.question, f"{row.where} has no prompt of texts alone")
            for row in rows
            if not _can_be_asked(row)
        ]
        self._sampler, self._verifier, self._n = sampler, verifier, n_samples
        self._kind = kind
        self._by_majority = verifier.name == "majority"
        self._first_open = 0

    def next_ask(self) -> Ask | None:
        """One more answer for the first prompt that needs it."""
        while self._first_open < len(self._groups) and self._groups[self._first_open].is_done:
            self._first_open += 1
        for number in range(self._first_open, len(self._groups)):
            group = self._groups[number]
            if group.is_done or (len(group.asked) > group.n_replies and not self._by_majority):
                continue
            sample = next((n for n in range(1, self._n + 1) if n not in group.asked), None)
            if sample is not None:
                group.asked.add(sample)
                notes = {"row": number, "sample": sample}
                ask_id = f"row-{number + 1}-{sample}"
                return self._sampler.ask_turns(ask_id, _prompt(group.row), notes)
        return None

    def take(self, ask: Ask, reply: Reply | Refused) -> Taken:
        """The row of a prompt, as soon as it is decided."""
        group = self._groups[int(ask.notes["row"])]
        group.n_replies += 1
        # A run that goes on hears a reply without having asked for it.
        group.asked.add(int(ask.notes["sample"]))
        if group.is_done:
            return Taken()
        rejected, self._left_out = self._left_out, []
        if isinstance(reply, Refused):
            rejected.append(Candidate(group.row.question, reply.reason))
        else:
            checked = self._checked(group.row, reply)
            group.answers.append((reply.text, checked))
            if not checked.passed:
                rejected.append(Candidate(group.row.question, checked.why, reply.text))
        value = self._decided(group)
        if value is not None:
            group.is_done = True
            row, why = value
            meta = {"verifier": {"name": self._verifier.name, "result": why}}
            return Taken(((row, meta, (group.row.where,)),), tuple(rejected))
        if group.n_replies >= self._n:
            group.is_done = True
            rejected.append(Candidate(group.row.question, self._why_none(group)))
        return Taken(rejected=tuple(rejected))

    def _checked(self, row: Row, reply: Reply) -> Checked:
        if reply.finish == "length":
            return Checked(False, "the answer was cut off at its longest length")
        if not reply.text.strip():
            return Checked(False, "the answer is empty")
        return self._verifier.check(row, reply.text)

    def _decided(self, group: _Group) -> tuple[Mapping[str, Any], str] | None:
        """The row and why; None while it is open, and when no answer will do."""
        if self._by_majority:
            return self._majority(group)
        passed = [(text, checked) for text, checked in group.answers if checked.passed]
        failed = [text for text, checked in group.answers if not checked.passed and text.strip()]
        if not passed or (self._kind == "pair" and not failed):
            return None
        text, checked = passed[0]
        share = f"{len(passed)} of {len(group.answers)} answers passed"
        return self._row(group.row, text, failed), f"{checked.why}; {share}"

    def _majority(self, group: _Group) -> tuple[Mapping[str, Any], str] | None:
        if group.n_replies < self._n:
            return None
        votes = Counter(final_value(text) for text, checked in group.answers if checked.passed)
        if not votes:
            return None
        (value, n_votes), *others = votes.most_common(2)
        if n_votes < LEAST_SHARE * self._n or (others and others[0][1] == n_votes):
            return None
        agreeing = [t for t, c in group.answers if c.passed and final_value(t) == value]
        differing = [t for t, c in group.answers if c.passed and final_value(t) != value]
        if self._kind == "pair" and not differing:
            return None
        why = f"{n_votes} of {self._n} answers end in {value[:40]!r}"
        return self._row(group.row, agreeing[0], differing), why

    def _row(self, row: Row, answer: str, failed: Sequence[str]) -> Mapping[str, Any]:
        turn = {"role": "assistant", "content": answer}
        prompt = _prompt(row)
        if self._kind == "pair":
            other = {"role": "assistant", "content": failed[0]}
            return {"prompt": prompt, "chosen": [turn], "rejected": [other]}
        return {"messages": [*prompt, turn]}

    def _why_none(self, group: _Group) -> str:
        n_passed = sum(checked.passed for _, checked in group.answers)
        if self._by_majority:
            return f"no final value has half of the {self._n} votes alone"
        if self._kind == "pair":
            return f"{n_passed} of {self._n} answers passed: a pair needs one of each"
        return f"none of {self._n} answers passed"


def _can_be_asked(row: Row) -> bool:
    """Whether the prompt has turns and each is a text: not a call of a tool or its result."""
    turns = [] if row.kind == "text" else _prompt(row)
    return bool(turns) and all(
        isinstance(turn.get("content"), str) and turn.get("role") != "tool" and len(turn) == 2
        for turn in turns
    )


def _prompt(row: Row) -> list[Mapping[str, Any]]:
    """What is asked: all turns before the answer."""
    return list(row.messages if row.kind == "problem" else row.messages[:-1])
