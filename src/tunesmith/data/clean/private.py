"""Personal data and secrets in text: where they stand, and stand-ins for them.

Most texts hold none, so each search begins with cheap tests that can only be wrong by letting a text
through: single characters, a run of digits, and words that one of the finders needs.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import get_args

from tunesmith.config.privacy import PiiKind
from tunesmith.data.clean import names, numbers, personal, phones, secrets
from tunesmith.data.clean.spans import Span, resolve

__all__ = ["KINDS", "PII_KINDS", "REGIONS", "Finder", "Span", "StandIns", "find", "mask"]

PII_KINDS: tuple[PiiKind, ...] = get_args(PiiKind)
SECRET = "secret"
KINDS = (*PII_KINDS, SECRET)
REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "IN")
"""Countries whose numbers are understood without their country's code."""

_DIGITS = re.compile(r"\d(?:[ .()/\u00a0‐‑‒–-]{0,3}\d){6}")
"""Seven digits that belong together: the shortest phone number, card, account or identity number."""
_CODED = re.compile(
    r"\d(?<=[A-Za-z]{2}\d)\d ?\d\d|\d(?<=[A-Z]{2} \d)\d \d\d \d\d|\d(?<=[A-Z]{5}\d)\d{3}[A-Z]|\d{6}[-+A-Y]\d{3}"
    r"|\d\d[A-Za-z]\d\d[A-Za-z]\d{3}"
)
"""Identity numbers with fewer digits together: letters among them."""
_OF_PERSONS = frozenset(
    {"email", "phone", "card", "iban", "national_id", "birth_date", "address", "name"}
)
"""Where one of these stands, a given name and a family name are a person's."""


class Finder:
    """Finds some kinds of personal data and secrets. Make one and use it for many texts.

    Args:
        kinds: of `KINDS`.
        regions: countries (ISO 3166) whose phone numbers are understood without the country's code.
        allow: values that may stay: exactly, without regard to case, with `*` and `?` as in file
            names (`*@ourcompany.test`).
    """

    def __init__(
        self,
        kinds: Sequence[str] = KINDS,
        regions: Sequence[str] = REGIONS,
        allow: Sequence[str] = (),
    ) -> None:
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"no kind {unknown[0]!r}; kinds: {', '.join(KINDS)}")
        self.kinds = frozenset(kinds)
        self.regions = tuple(regions)
        self.allow = tuple(allow)
        self._allow = [re.compile(fnmatch.translate(value.casefold())) for value in allow]

    def find(self, text: str) -> list[Span]:
        """What the text holds, without overlaps, in its order."""
        found = [span for finder in self._candidates(text) for span in finder]
        if not found:
            return found
        if "name" in self.kinds and any(span.kind in _OF_PERSONS for span in found):
            found += names.find_full_names(text)
        return [span for span in resolve(found) if not self._is_allowed(span)]

    def _is_allowed(self, span: Span) -> bool:
        value = span.text.casefold()
        return any(pattern.match(value) for pattern in self._allow)

    def _candidates(self, text: str) -> Iterator[Iterator[Span]]:
        """Searches that the cheap tests let through."""
        kinds, lower = self.kinds, text.lower()
        if "email" in kinds and "@" in text:
            yield personal.find_emails(text)
        n_digits = sum(map(text.count, "0123456789"))
        if n_digits:
            yield from self._numbers(text, lower, n_digits)
        if "name" in kinds:
            yield names.find_names(text)
            if any(map(text.__contains__, names.LOWER_CUES)):
                yield names.find_lower_names(text)
        if SECRET in kinds:
            yield secrets.find_tokens(text)
            yield secrets.find_assigned(text, lower)

    def _numbers(self, text: str, lower: str, n_digits: int) -> Iterator[Iterator[Span]]:
        """Searches in texts with digits."""
        kinds = self.kinds
        has_number = n_digits >= 7 and _DIGITS.search(text) is not None
        if has_number and "card" in kinds:
            yield numbers.find_cards(text)
        if has_number and "phone" in kinds:
            yield phones.find_phones(text, self.regions)
        if has_number or (n_digits >= 4 and _CODED.search(text)):
            if "iban" in kinds:
                yield numbers.find_ibans(text)
            if "national_id" in kinds:
                yield numbers.find_national_ids(text)
        if "birth_date" in kinds and any(map(lower.__contains__, personal.BIRTH_CUES)):
            yield personal.find_birth_dates(text, lower)
        if "address" in kinds and personal.may_hold_address(text, lower):
            yield personal.find_addresses(text)
        if "mac" in kinds and (
            text.count(":") >= 5 or text.count("-") >= 5 or text.count(".") >= 2
        ):
            yield personal.find_macs(text)
        if "ip" in kinds and (text.count(".") >= 3 or text.count(":") >= 2):
            yield personal.find_ips(text)


@lru_cache(maxsize=32)
def _finder(kinds: tuple[str, ...], regions: tuple[str, ...], allow: tuple[str, ...]) -> Finder:
    return Finder(kinds, regions, allow)


def find(
    text: str,
    kinds: Sequence[str] = KINDS,
    *,
    regions: Sequence[str] = REGIONS,
    allow: Sequence[str] = (),
) -> list[Span]:
    """Personal data and secrets in a text, without overlaps, in its order.

    Args:
        kinds: of `KINDS`.
        regions: countries whose phone numbers are understood without the country's code.
        allow: values that may stay, with `*` and `?` as in file names.

    Raises:
        ValueError: there is no such kind.
        EnvironmentProblem: a package that a kind needs is not installed.
    """
    return _finder(tuple(kinds), tuple(regions), tuple(allow)).find(text)


class StandIns:
    """Numbers what is masked in one row: the same value always gets the same stand-in.

    Args:
        taken: text of the row; numbers of stand-ins that stand in it already are not given out.
    """

    _KNOWN = re.compile(rf"\[({'|'.join(kind.upper() for kind in KINDS)})_(\d{{1,6}})\]")

    def __init__(self, taken: str = "") -> None:
        self._last: dict[str, int] = {}
        self._given: dict[tuple[str, str], str] = {}
        for kind, number in self._KNOWN.findall(taken):
            self._last[kind] = max(self._last.get(kind, 0), int(number))

    def of(self, span: Span) -> str:
        """The stand-in of a finding, such as `[EMAIL_1]`."""
        key = (span.kind, _same(span))
        if key not in self._given:
            kind = span.kind.upper()
            self._last[kind] = self._last.get(kind, 0) + 1
            self._given[key] = f"[{kind}_{self._last[kind]}]"
        return self._given[key]


def _same(span: Span) -> str:
    """Equal for two spellings of one value."""
    match span.kind:
        case "secret":
            return span.text
        case "email" | "name" | "address" | "ip" | "birth_date":
            return " ".join(span.text.casefold().split())
        case _:
            return re.sub(r"\W", "", span.text).casefold()


def mask(text: str, spans: Sequence[Span], stand_ins: StandIns | None = None) -> str:
    """The text with a stand-in for each finding; everything else stays as it is.

    Args:
        spans: from `find` on this text.
        stand_ins: give the same one for all texts of a row.
    """
    given = stand_ins or StandIns(text)
    parts: list[str] = []
    done = 0
    for span in sorted(spans, key=lambda span: span.start):
        parts += (text[done : span.start], given.of(span))
        done = span.end
    return "".join((*parts, text[done:]))
