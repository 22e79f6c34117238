"""Self-instruct: new instructions after the manner of given ones, each answered (Wang et al. 2022)."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from random import Random

from tunesmith.data.grow.ask import Ask, Refused, Reply, seed_of
from tunesmith.data.grow.method import Candidate, Sampler, Taken, refusal_in, system_of
from tunesmith.data.grow.rouge import RougePool, words_of
from tunesmith.data.grow.turns import question_path
from tunesmith.data.rows import Row
from tunesmith.errors import DataError

__all__ = ["SelfInstruct"]

SHOWN_SEEDS, SHOWN_MADE = 6, 2
MOST_SIMILAR = 0.7
FEWEST_WORDS, MOST_WORDS = 3, 150
MOST_LISTS_WITHOUT_ANY = 20
"""So many replies in a row without one new instruction end the run."""
_WITHOUT_EYES = re.compile(
    r"\b(?:images?|graphs?|pictures?|files?|maps?|draw|plot|go to|video|audio|music|flowchart|diagram)\b",
    re.IGNORECASE,
)
_ITEM = re.compile(r"(?mi)^[ \t]*(?:\*\*)?(?:task\s*)?(\d{1,3})\s*[.):](?:\*\*)?\s*")

ASK_TEMPLATE = """Come up with {n_new} new tasks for an assistant, in the manner of the tasks below. \
Each must be different from the others, complete in itself, and of one or two sentences. \
Write only the numbered list of tasks, no answers.

{shown}
"""


class SelfInstruct:
    """Asks for new instructions, keeps those unlike all others, and asks for an answer to each.

    As in the paper, a prompt shows eight tasks (six given, two made, in a drawn order), and an
    instruction is kept when its ROUGE-L with every other is below 0.7, it has 3 to 150 words, and it
    holds none of the paper's words for what text cannot show. Unlike the paper, each instruction gets
    one answer, by one request.

    Args:
        seeds: rows whose questions are the manner to follow.
        sampler: temperature, longest answer, seed.
        n_wanted: rows to make.
        n_new: instructions asked for in one request.

    Raises:
        DataError: no seed has a question.
    """

    name = "self-instruct"
    template = ASK_TEMPLATE

    def __init__(
        self, seeds: Sequence[Row], sampler: Sampler, n_wanted: int, *, n_new: int = 4
    ) -> None:
        self._seeds = [(row.where, said) for row in seeds if (said := _asked(row))]
        if not self._seeds:
            raise DataError(
                "no seed row has a question", fix="name rows with a user's turn, such as chats"
            )
        self._system = system_of(seeds)
        self._sampler, self._n_wanted, self._n_new = sampler, n_wanted, n_new
        self._pool = RougePool(question for _, question in self._seeds)
        self._made: list[tuple[str, str]] = []
        self._waiting: deque[tuple[str, str, list[str]]] = deque()
        self._open: set[str] = set()
        self._n_list_asks = 0
        self._n_accepted = 0
        self._n_without_any = 0

    def next_ask(self) -> Ask | None:
        """An answer that is waited for, else more instructions; None when enough is under way."""
        if self._waiting:
            ask_id, instruction, parents = self._waiting.popleft()
            self._open.add(ask_id)
            return self._answer_ask(ask_id, instruction, parents)
        on_the_way = sum(self._n_new if is_list(ask_id) else 1 for ask_id in self._open)
        if self._n_accepted + on_the_way >= self._n_wanted:
            return None
        if self._n_without_any >= MOST_LISTS_WITHOUT_ANY:
            return None
        return self._list_ask()

    def _list_ask(self) -> Ask:
        self._n_list_asks += 1
        ask_id = f"list-{self._n_list_asks}"
        self._open.add(ask_id)
        rng = Random(seed_of(self._sampler.seed, ask_id))
        made = rng.sample(self._made, min(SHOWN_MADE, len(self._made)))
        n_seeds = min(SHOWN_SEEDS + SHOWN_MADE - len(made), len(self._seeds))
        shown = [*rng.sample(self._seeds, n_seeds), *made]
        rng.shuffle(shown)
        lines = "\n".join(f"{n}. {_one_line(text)}" for n, (_, text) in enumerate(shown, 1))
        prompt = ASK_TEMPLATE.format(n_new=self._n_new, shown=lines)
        notes = {"parents": [where for where, _ in shown]}
        return self._sampler.ask(ask_id, prompt, notes=notes)

    def _answer_ask(self, ask_id: str, instruction: str, parents: list[str]) -> Ask:
        notes = {"instruction": instruction, "parents": parents}
        return self._sampler.ask(ask_id, instruction, system=self._system, notes=notes)

    def take(self, ask: Ask, reply: Reply | Refused) -> Taken:
        """New instructions into the pool, or an answer into a row."""
        self._open.discard(ask.id)
        if is_list(ask.id):
            number = int(ask.id.removeprefix("list-"))
            self._n_list_asks = max(self._n_list_asks, number)
            return self._take_list(ask, reply)
        # A run that goes on hears an answer without having asked for it.
        self._waiting = deque(item for item in self._waiting if item[0] != ask.id)
        return self._take_answer(ask, reply)

    def _take_list(self, ask: Ask, reply: Reply | Refused) -> Taken:
        if isinstance(reply, Refused):
            self._n_without_any += 1
            return Taken(rejected=(Candidate("", reply.reason),))
        rejected: list[Candidate] = []
        n_kept = 0
        for number, instruction in enumerate(listed_items(reply.text), 1):
            reason = self._why_not(instruction)
            if reason:
                rejected.append(Candidate(instruction, reason))
                continue
            n_kept += 1
            self._pool.add(instruction)
            answer_id = f"answer-{ask.id.removeprefix('list-')}-{number}"
            self._waiting.append((answer_id, instruction, list(ask.notes["parents"])))
        if not n_kept and not rejected:
            rejected.append(Candidate(reply.text[:500], "no numbered list of tasks"))
        self._n_without_any = 0 if n_kept else self._n_without_any + 1
        return Taken(rejected=tuple(rejected))

    def _why_not(self, instruction: str) -> str:
        n_words = len(words_of(instruction))
        if n_words < FEWEST_WORDS:
            return f"too short: {n_words} words"
        if n_words > MOST_WORDS:
            return f"too long: {n_words} words"
        if found := _WITHOUT_EYES.search(instruction):
            return f"it asks for what text cannot give ({found[0]!r})"
        if near := self._pool.nearest(instruction, MOST_SIMILAR):
            return f"ROUGE-L {near[0]:.2f} with {near[1][:80]!r}"
        return ""

    def _take_answer(self, ask: Ask, reply: Reply | Refused) -> Taken:
        instruction = str(ask.notes["instruction"])
        if isinstance(reply, Refused):
            return Taken(rejected=(Candidate(instruction, reply.reason),))
        answer = reply.text.strip()
        reason = ""
        if not answer:
            reason = "the answer is empty"
        elif reply.finish == "length":
            reason = "the answer was cut off at its longest length"
        elif words_of(answer) == words_of(instruction):
            reason = "the answer repeats the instruction"
        elif refusal_in(answer):
            reason = "the answer is a refusal"
        if reason:
            return Taken(rejected=(Candidate(instruction, reason, answer),))
        self._n_accepted += 1
        self._made.append((f"synthetic:{ask.id}", instruction))
        turns = [*self._system, {"role": "user", "content": instruction}]
        value = {"messages": [*turns, {"role": "assistant", "content": answer}]}
        return Taken(rows=((value, {}, tuple(ask.notes["parents"])),))


def _asked(row: Row) -> str:
    """The last turn of the user, without what surrounds it."""
    path = question_path(row)
    return str(row.value[path[0]][path[1]]["content"]).strip() if path else ""


def is_list(ask_id: str) -> bool:
    """Whether a request is for instructions, not for an answer."""
    return ask_id.startswith("list-")


def listed_items(text: str) -> list[str]:
    """The items of a numbered list, in order, each on one line."""
    starts = list(_ITEM.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)] * bool(starts)
    items = (text[match.end() : end] for match, end in zip(starts, ends, strict=True))
    return [item for item in (_one_line(item).strip("* ") for item in items) if item]


def _one_line(text: str) -> str:
    return " ".join(text.split())
