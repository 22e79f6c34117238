"""What the ways to synthesize share: how they ask, and what they make of a reply."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tunesmith.data.grow.ask import Ask, Refused, Reply, seed_of
from tunesmith.data.rows import Row

__all__ = ["Candidate", "Method", "Sampler", "Taken", "refusal_in", "system_of"]

_REFUSAL = re.compile(
    r"(?:i['’]?m sorry|i am sorry|sorry,|i apologi[sz]e|unfortunately,? i|i can(?:not|['’]t)|"
    r"i(?:['’]m| am) (?:unable|not able)|as an ai\b|as a language model)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sampler:
    """How answers are drawn."""

    temperature: float = 0.7
    max_answer_tokens: int = 512
    seed: int = 0

    def ask(
        self,
        ask_id: str,
        prompt: str,
        *,
        system: Sequence[Mapping[str, str]] = (),
        notes: Mapping[str, Any] | None = None,
    ) -> Ask:
        """A request of one user turn."""
        turns = (*system, {"role": "user", "content": prompt})
        return self.ask_turns(ask_id, turns, notes or {})

    def ask_turns(
        self, ask_id: str, turns: Sequence[Mapping[str, str]], notes: Mapping[str, Any]
    ) -> Ask:
        """A request of a whole conversation; its seed depends on the sampler's and on `ask_id`."""
        seed = seed_of(self.seed, ask_id)
        return Ask(ask_id, tuple(turns), self.temperature, self.max_answer_tokens, seed, notes)


@dataclass(frozen=True)
class Candidate:
    """What was not kept, and why."""

    prompt: str
    reason: str
    answer: str = ""


@dataclass(frozen=True)
class Taken:
    """What a reply gave.

    Attributes:
        rows: canonical rows without meta; with each, what its meta says, and what it was made from.
        rejected: what was not kept.
    """

    rows: tuple[tuple[Mapping[str, Any], Mapping[str, Any], tuple[str, ...]], ...] = ()
    rejected: tuple[Candidate, ...] = ()


class Method(Protocol):
    """A way to make rows. What it makes of replies depends on them and their order alone.

    A run that goes on hears `take` for all earlier replies, without `next_ask` before.
    """

    name: str
    template: str
    """The words of its prompts; their hash goes into every row's origin."""

    def next_ask(self) -> Ask | None:
        """What to ask now; None while replies are waited for, and at the end."""
        ...

    def take(self, ask: Ask, reply: Reply | Refused) -> Taken:
        """What a reply gave."""
        ...


def refusal_in(answer: str) -> bool:
    """Whether an answer begins with a refusal."""
    return bool(_REFUSAL.match(answer.strip()))


def system_of(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The system message of the rows, when they all have the same one."""
    found = {
        turn["content"] if (turn := row.messages[0])["role"] == "system" else None
        for row in rows
        if row.messages
    }
    only = found.pop() if len(found) == 1 else None
    return [] if not isinstance(only, str) else [{"role": "system", "content": only}]
