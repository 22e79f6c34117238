"""The checker: row after row, some 50 bytes kept of each, and findings over all of them at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, islice
from typing import Any, Literal

from tunesmith.data.check import domains, sets, text
from tunesmith.data.check.columns import Columns, answer_of
from tunesmith.data.check.finding import Finding, finding, shortened
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.check.tokens import Masks, TokenMeter
from tunesmith.data.check.turns import in_turns, named_turns, said
from tunesmith.data.rows import Row
from tunesmith.data.schemas import parse_sealed
from tunesmith.errors import counted

__all__ = ["Checker", "check_rows"]

_MARGIN_TOKENS = 64
_BLOCK = 256
"""Rows that are cut into tokens at a time."""


class Checker:
    """Checks rows one by one; parts of a dataset can be checked apart and merged in order.

    Args:
        options: what to look for.
        meter: measures rows in tokens; without one those checks are left out, which is a note.

    Raises:
        EnvironmentProblem: a domain that is asked for needs a package that is not installed.
    """

    def __init__(self, options: CheckOptions, meter: TokenMeter | None = None) -> None:
        self.options = options
        self._meter = meter
        self._columns = Columns()
        self._masks = Masks()
        self._why_not = ""
        self._domains: dict[str, domains.Domain] = {}
        if options.domain not in ("auto", "none"):
            self._domain(options.domain)

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to merge: connections and the model stay here."""
        return {**self.__dict__, "_domains": {}, "_meter": None}

    @property
    def n_rows(self) -> int:
        """Rows seen."""
        return len(self._columns)

    def see(self, row: Row) -> list[Finding]:
        """Findings about a row by itself. It is remembered for `finish`."""
        answer = answer_of(row)
        domain = domains.of_row(row, answer, self.options)
        wrong: list[Finding] = []
        if domain != "none" and answer.strip() and _is_learned(row):
            wrong += self._domain(domain).check(row, answer, _answer_field(row))
        # Code that is right may quote a refusal.
        found = list(in_turns(row))
        found += _in_texts(row, domain, may_refuse=domain == "none" or bool(wrong))
        found += wrong
        n_tokens, more = self._measured(row)
        found += more
        self._columns.add(row, domain=domain, n_tokens=n_tokens)
        return self._allowed(found)

    def _measured(self, row: Row) -> tuple[int, list[Finding]]:
        """The row's length in tokens, 0 when it is not measured, and findings about it."""
        if self._meter is None:
            return 0, []
        wanted = self._wanted(row.text.encode("utf-8", "surrogatepass"))
        if not wanted:
            return 0, []
        # Long rows that were not drawn would bend the sums.
        masks = self._masks if wanted == "drawn" else Masks()
        return self._meter.measure([row], masks, self.options)[0]

    def _wanted(self, text: bytes) -> Literal["drawn", "long", ""]:
        """Why a row is measured, if it is: it was drawn, or it could be too long."""
        share, longest = self.options.token_share, self.options.max_row_tokens
        if share >= 1 or _draw(text) < share:
            return "drawn"
        # No text has more tokens than bytes; the rest of the row's JSON makes up for the template.
        return "" if len(text) < longest - _MARGIN_TOKENS else "long"

    @property
    def n_measured(self) -> int:
        """Conversations that were measured in tokens; a pair has two."""
        return self._masks.n_rows

    def only(self, kept: Sequence[bool], row_of: Callable[[int], Row]) -> Checker:
        """A checker that saw some of the rows, for `weigh` and `closing`.

        Args:
            kept: for each row that was seen, whether it is one of them.
            row_of: reads a row again; called for the fewer of those that stay and those that go.
        """
        made = Checker(self.options.drawn_of(sum(kept)))
        made._columns = self._columns.only(kept, row_of)
        return made

    def weigh(self, texts: Iterable[bytes], meter: TokenMeter) -> Iterator[Finding]:
        """Measure rows that were seen before, in blocks: about so many as `options.token_share` says.

        Args:
            texts: all rows that were seen, in order, as lines of canonical JSON in UTF-8.
        """
        names = list(self._columns.files)
        wanted = (
            (place, why, parse_sealed(self._columns.where(place, names), text.decode()))
            for place, text in enumerate(texts)
            if (why := self._wanted(text))
        )
        while block := list(islice(wanted, _BLOCK)):
            found: dict[int, tuple[int, list[Finding]]] = {}
            for masks, reason in ((self._masks, "drawn"), (Masks(), "long")):
                some = {place: row for place, why, row in block if why == reason}
                sizes = meter.measure(list(some.values()), masks, self.options)
                found |= dict(zip(some, sizes, strict=True))
            for place, (n_tokens, findings) in sorted(found.items()):
                self._columns.measured(place, n_tokens)
                yield from self._allowed(findings)

    def left_out_since(self, why: str) -> None:
        """Say in the note on what was not measured why it was not."""
        self._why_not = f": {why}"

    def merge(self, other: Checker) -> None:
        """Add what another checker saw, of the rows that come after one's own."""
        self._columns.merge(other._columns)
        self._masks.merge(other._masks)

    def finish(self) -> list[Finding]:
        """Findings over all rows that were seen."""
        return list(self.closing())

    def closing(self) -> Iterator[Finding]:
        """The same as `finish`, one by one: a million duplicates need not be in memory."""
        every = chain(
            sets.over_all(self._columns, self.options),
            self._masks.findings(self.options),
            self._left_out(),
        )
        for found in every:
            if found.check not in self.options.allow:
                yield found

    def _left_out(self) -> Iterator[Finding]:
        """What was not checked in tokens."""
        n_rows, n_measured = len(self._columns), self._masks.n_rows
        name, what = self.options.name, ""
        if n_measured == 0 and n_rows:
            what = (
                "lengths, truncation, share of learned tokens and the stop token were not checked"
                f"{self._why_not}"
            )
        elif self.options.token_share < 1:
            what = f"{n_measured:,} of {counted(n_rows, 'row')} measured, and all that could be too long"
        if what:
            fix = "" if n_measured == 0 else "raise check.token_rows to measure more"
            yield finding(name, "tokens-left-out", what, fix=fix)

    def _allowed(self, found: list[Finding]) -> list[Finding]:
        allow = self.options.allow
        return [one for one in found if one.check not in allow] if allow else found

    def _domain(self, name: str) -> domains.Domain:
        if name not in self._domains:
            self._domains[name] = domains.DOMAINS.load(name)(self.options)
        return self._domains[name]


def check_rows(rows: Iterable[Row], options: CheckOptions) -> Iterator[Finding]:
    """All findings about rows, as they stream by; those over the whole dataset come last.

    The domain is told from the first thousand rows unless `options` names one.
    """
    stream = iter(rows)
    head = list(islice(stream, domains.HEAD_ROWS))
    checker = Checker(options.told(domains.tell(head)))
    for row in chain(head, stream):
        yield from checker.see(row)
    yield from checker.closing()


def _draw(text: bytes) -> float:
    """A number from 0 to 1 by the row's content, so that the same rows are drawn however it is cut."""
    digest = blake2b(text, digest_size=4, person=b"tokens").digest()
    return int.from_bytes(digest, "big") / 2**32


def _is_learned(row: Row) -> bool:
    """Whether the answer is one to learn: not one that was marked as bad."""
    return not (row.kind == "feedback" and row.value.get("label") is False)


def _answer_field(row: Row) -> str:
    match row.kind:
        case "problem":
            return "answer"
        case "text":
            return "text"
        case "pair":
            return "chosen[0].content"
        case "feedback":
            return "completion[0].content"
        case "chat":
            return f"messages[{len(row.value['messages']) - 1}].content"


def _in_texts(row: Row, domain: str, *, may_refuse: bool) -> Iterator[Finding]:
    """Faults of each text of the row, with its path; refusals where an answer may be one."""
    if row.kind == "text":
        texts = [("text", "text", str(row.value["text"]))]
    else:
        texts = [
            (f"{at}.content", str(turn.get("role")), said(turn)) for at, turn in named_turns(row)
        ]
        if row.kind == "problem" and isinstance(row.value["answer"], str):
            texts.append(("answer", "assistant", row.value["answer"]))
    markup: bool | None = None
    for at, role, said_here in texts:
        if not said_here:
            continue
        if markup is None and ("<" in said_here or "&" in said_here):
            markup = any(text.speaks_of_markup(one) for _, _, one in texts)
        faults = list(text.in_text(said_here, about_markup=bool(markup)))
        is_rejected = at.startswith("rejected") or not _is_learned(row)
        if role == "assistant" and not is_rejected:
            faults += text.in_answer(said_here)
        for fault in faults:
            if _is_meant(fault, domain, texts) or (fault.check == "refusal" and not may_refuse):
                continue
            value = shortened(said_here, fault.at)
            yield finding(row.where, fault.check, fault.what, field=at, value=value)


def _is_meant(fault: text.Fault, domain: str, texts: list[tuple[str, str, str]]) -> bool:
    """Whether what looks like a fault is what such rows are about."""
    if fault.check == "null-answer":
        return domain == "json"
    if fault.check == "unfilled":
        return domain == "python" or any(text.speaks_of_templates(one) for _, _, one in texts)
    return False
