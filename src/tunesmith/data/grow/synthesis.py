"""A synthesis: requests side by side, each reply in the journal before the next request, rows at the end."""

from __future__ import annotations

import json
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tunesmith import __version__
from tunesmith.data.grow.ask import Ask, Budget, Engine, Refused, Reply, Spent
from tunesmith.data.grow.journal import Journal
from tunesmith.data.grow.method import Method, Sampler, Taken
from tunesmith.data.grow.pieces import as_json
from tunesmith.errors import (
    ArtifactError,
    ConfigError,
    EngineError,
    TunesmithError,
    UsedDirectoryError,
)
from tunesmith.store import sha256_of_json, storage_errors, write_atomically

__all__ = ["Places", "SynthesisResult", "synthesize"]

MOST_REFUSED_IN_A_ROW = 5
_TICK_SECONDS = 0.2


@dataclass(frozen=True)
class Places:
    """The files of a synthesis.

    Attributes:
        out: the rows; written when the run ends, also when it is stopped.
        journal: every reply, as it comes.
        rejected: what was not kept, with reasons; written with `out`.
    """

    out: Path
    journal: Path
    rejected: Path

    @classmethod
    def beside(cls, out: Path) -> Places:
        """`OUT.journal.jsonl` and `OUT.rejected.jsonl` beside `OUT.jsonl`."""
        stem = out.name.removesuffix(".jsonl")
        return cls(
            out,
            out.with_name(f"{stem}.journal.jsonl"),
            out.with_name(f"{stem}.rejected.jsonl"),
        )


@dataclass
class SynthesisResult:
    """What a run has made so far.

    Attributes:
        rows: accepted rows as lines of JSON.
        rejected: what was not kept: prompt, answer, reason.
        ended: why the run ended.
        n_requests, n_tokens: spent, earlier attempts of the same run included.
    """

    rows: list[str] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    ended: str = ""
    n_requests: int = 0
    n_tokens: int = 0

    @property
    def reasons(self) -> Counter[str]:
        """How often each kind of reason was given; figures and quotations in them do not count."""
        import re

        cut = (re.split(r"['\":(]|\d", entry["reason"], maxsplit=1)[0] for entry in self.rejected)
        return Counter(reason.strip() or "other" for reason in cut)

    def as_dict(self) -> dict[str, Any]:
        """Counts, for `--json`."""
        return {
            "rows": len(self.rows),
            "rejected": len(self.rejected),
            "reasons": dict(self.reasons.most_common()),
            "ended": self.ended,
            "requests": self.n_requests,
            "tokens": self.n_tokens,
        }


def synthesize(
    method: Method,
    engine: Engine,
    places: Places,
    *,
    sampler: Sampler,
    inputs: Mapping[str, Any],
    budget: Budget | None = None,
    concurrency: int = 4,
    on_reply: Callable[[SynthesisResult], None] | None = None,
) -> SynthesisResult:
    """Make rows until the method has enough, or a limit is reached.

    A run that was stopped or killed goes on where it was, when it is called with the same method,
    engine, sampler and inputs. Its replies are then read from the journal, not asked for again.
    Limits may differ between the attempts; requests and tokens of all of them count, but for those
    under way when an attempt was killed.

    Args:
        method: what to ask, and what to make of replies.
        engine: who answers.
        places: files.
        sampler: for the rows' origins.
        inputs: everything else that the rows depend on, as JSON values.
        budget: limits.
        concurrency: requests side by side.
        on_reply: called after each reply, from this thread.

    Raises:
        ConfigError: the endpoint does not let us in.
        EngineError: it keeps failing, or refuses every request.
        UsedDirectoryError: the journal belongs to another run, or `out` is there without a journal.
        ArtifactError: the journal is damaged.
        StorageError: the disk refuses. In each case the rows that were accepted are written.
        KeyboardInterrupt: Ctrl-C; as well.
    """
    if concurrency < 1:
        raise ConfigError(f"--concurrency is {concurrency}; it must be at least 1")
    budget = budget or Budget()
    _refuse_a_file_of_others(places)
    head = {
        "journal": 1,
        "method": method.name,
        "template": sha256_of_json(method.template)[:16],
        **engine.about,
        "sampler": asdict(sampler),
        "inputs": dict(inputs),
    }
    fix = f"move {places.journal} away to start anew, or choose another --out"
    result = SynthesisResult()
    with Journal(places.journal, head, what="synthesis", fix=fix) as journal:
        run = _Run(method, engine, sampler, budget, journal, result)
        try:
            for entry in journal.entries:
                run.replay(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{places.journal} is damaged: {type(error).__name__} {error}", fix=fix
            ) from error
        if on_reply is not None:
            on_reply(result)
        try:
            result.ended = run.go(concurrency, on_reply)
        finally:
            result.n_requests, result.n_tokens = budget.n_requests, budget.n_tokens
            _write(result, places)
            run.note_unanswered()
    return result


def _refuse_a_file_of_others(places: Places) -> None:
    with storage_errors(places.out):
        is_there = places.out.exists() and not places.journal.exists()
    if is_there:
        raise UsedDirectoryError(
            f"{places.out} is there already",
            why="it has no journal beside it, so no synthesis made it",
            fix="choose another --out, or move the file away",
        )


def _write(result: SynthesisResult, places: Places) -> None:
    write_atomically(places.out, "".join(f"{row}\n" for row in result.rows))
    lines = (json.dumps(entry, ensure_ascii=False) for entry in result.rejected)
    text = "".join(f"{line}\n" for line in lines)
    write_atomically(places.rejected, text.encode("utf-8", "backslashreplace"))


@dataclass
class _Heard:
    """What a worker brings back."""

    ask: Ask
    reply: Reply | Refused | None = None
    error: Spent | TunesmithError | None = None

    @property
    def outcome(self) -> Reply | Refused:
        """The reply.

        Raises:
            TunesmithError: what kept it from coming.
            RuntimeError: the worker died of a bug, whose traceback is on stderr.
        """
        if self.error is not None:
            raise self.error
        if self.reply is None:
            raise RuntimeError(f"the worker that asked {self.ask.id} died")
        return self.reply


class _Run:
    """The state of one call of `synthesize`."""

    def __init__(
        self,
        method: Method,
        engine: Engine,
        sampler: Sampler,
        budget: Budget,
        journal: Journal,
        result: SynthesisResult,
    ) -> None:
        self._method, self._engine, self._sampler = method, engine, sampler
        self._budget, self._journal, self._result = budget, journal, result
        self._asks: queue.SimpleQueue[Ask | None] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[_Heard] = queue.SimpleQueue()
        self._n_refused = 0
        self._n_noted = 0

    def replay(self, entry: Mapping[str, Any]) -> None:
        """Take a reply of an earlier attempt, or the number of its requests that had none."""
        if "unanswered" in entry:
            self._n_noted += int(entry["unanswered"])
            self._budget.n_requests += int(entry["unanswered"])
            return
        asked, said = entry["ask"], entry["reply"]
        ask = Ask(
            asked["id"],
            (),
            self._sampler.temperature,
            self._sampler.max_answer_tokens,
            asked["seed"],
            asked["notes"],
        )
        reply: Reply | Refused = Refused(**said) if "reason" in said else Reply(**said)
        self._take(ask, reply)
        self._n_noted += reply.n_attempts
        self._budget.n_requests += reply.n_attempts
        self._budget.n_tokens += reply.tokens if isinstance(reply, Reply) else 0

    def go(self, concurrency: int, on_reply: Callable[[SynthesisResult], None] | None) -> str:
        """Ask until there is nothing left to ask; returns why it ended."""
        with ExitStack() as stack:
            for _ in range(concurrency):
                # Daemons: a request that hangs must not keep a stopped program alive.
                threading.Thread(target=self._work, daemon=True).start()
                stack.callback(self._asks.put, None)
            stack.callback(self._budget.stopped.set)
            return self._loop(concurrency, on_reply)

    def _loop(self, concurrency: int, on_reply: Callable[[SynthesisResult], None] | None) -> str:
        n_open, ended = 0, ""
        pending: Ask | None = None
        while True:
            while not ended and n_open < concurrency:
                pending = pending or self._method.next_ask()
                if pending is None:
                    break
                try:
                    self._budget.reserve(pending)
                except Spent as spent:
                    # Requests under way hold more than they will use: ask again when they are back.
                    ended = "" if n_open else str(spent)
                    break
                self._asks.put(pending)
                pending, n_open = None, n_open + 1
            if not n_open:
                return ended or "nothing is left to ask"
            heard = self._next()
            n_open -= 1
            if isinstance(heard.error, Spent):
                # One that was tried before says more of the same limit.
                if str(heard.error).startswith(ended):
                    ended = str(heard.error)
                continue
            self._keep(heard.ask, heard.outcome)
            if on_reply is not None:
                on_reply(self._result)

    def _next(self) -> _Heard:
        """The next reply; waits in short turns, so that Ctrl-C is heard on every system."""
        while True:
            try:
                return self._heard.get(timeout=_TICK_SECONDS)
            except queue.Empty:
                continue

    def _work(self) -> None:
        while (ask := self._asks.get()) is not None:
            heard = _Heard(ask)
            try:
                heard.reply = self._engine.ask(ask, self._budget)
            except (Spent, TunesmithError) as error:
                heard.error = error
            finally:
                tokens = heard.reply.tokens if isinstance(heard.reply, Reply) else 0
                self._budget.settle(ask, tokens)
                self._heard.put(heard)

    def _keep(self, ask: Ask, reply: Reply | Refused) -> None:
        """Into the journal first, then into the rows."""
        asked = {"id": ask.id, "seed": ask.seed, "notes": dict(ask.notes)}
        self._journal.add({"ask": asked, "reply": asdict(reply)})
        self._n_noted += reply.n_attempts
        self._take(ask, reply)
        self._n_refused = self._n_refused + 1 if isinstance(reply, Refused) else 0
        if self._n_refused >= MOST_REFUSED_IN_A_ROW and isinstance(reply, Refused):
            raise EngineError(
                f"the endpoint refused {self._n_refused} requests in a row: {reply.reason}",
                fix="check the model's name and its longest prompt; what was made is kept",
            )

    def note_unanswered(self) -> None:
        """Note the requests that no reply in the journal accounts for: the next attempt counts them, too."""
        n_unanswered = self._budget.n_requests - self._n_noted
        if n_unanswered > 0:
            self._journal.add({"unanswered": n_unanswered})
            self._n_noted += n_unanswered

    def _take(self, ask: Ask, reply: Reply | Refused) -> None:
        taken = self._method.take(ask, reply)
        self._result.rows += [
            self._line(value, meta, parents, ask, reply) for value, meta, parents in taken.rows
        ]
        self._result.rejected += _rejected(taken, ask, self._method.name)

    def _line(
        self,
        value: Mapping[str, Any],
        meta: Mapping[str, Any],
        parents: Sequence[str],
        ask: Ask,
        reply: Reply | Refused,
    ) -> str:
        """A canonical row that says where it comes from."""
        origin = {
            "rule": self._method.name,
            **self._engine.about,
            "template": sha256_of_json(self._method.template)[:16],
            "temperature": self._sampler.temperature,
            "seed": ask.seed,
            "time": reply.time,
            "ask": ask.id,
            "parents": list(parents),
            "tunesmith": __version__,
        }
        verifier = meta.get("verifier")
        if verifier is not None:
            origin["verifier"] = verifier
        others = {name: said for name, said in meta.items() if name != "verifier"}
        return as_json({**value, "meta": {"synthetic": True, **others, "origin": origin}})


def _rejected(taken: Taken, ask: Ask, rule: str) -> list[dict[str, Any]]:
    return [
        {
            "where": ask.id,
            "rule": rule,
            "reason": candidate.reason,
            "prompt": candidate.prompt,
            "answer": candidate.answer,
        }
        for candidate in taken.rejected
    ]
