"""Phone numbers in text, by the numbering plans of Google's libphonenumber."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tunesmith.data.clean.numbers import need
from tunesmith.data.clean.spans import Span

__all__ = ["find_phones"]

_DASH = r"\-‐‑‒–"
_CANDIDATE = re.compile(
    rf"(?<![\w./#$€£%{_DASH}+])(?:\+|00)?\(?\+?\d(?:[ .()/\u00a0{_DASH}]{{0,3}}\d){{6,16}}(?![\w%€£]|[.:/]\d"
    rf"|[ ]?[€£%])"
)
_DATE_OR_TIME = re.compile(
    r"(?:19|20)\d\d[-/. ]\d{1,2}[-/. ]\d{1,2}(?:[ -]\d{1,2}.*)?|\d{1,2}[-/. ]\d{1,2}[-/. ](?:19|20)\d\d(?:[ -]\d.*)?"
    r"|(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:\d{6})?|(?:19|20)\d\d ?[-–/] ?(?:19|20)\d\d"
    r"|(?:\d{1,2}\.){3}\d{1,4}|1[0-9]{9}(?:\d{3})?(?:\.\d+)?"
)
"""Dates, spans of years, and seconds or milliseconds since 1970."""
_OTHER = re.compile(
    r"\d{3}-\d{1,5}-\d{1,7}-\d{1,7}-[\dX]|97[89][- ]?\d(?:[- ]?\d){9}|\d{1,3}(?:[ .]\d{3}){2,}|0\.\d+"
    r"|\d{3}-\d{2}-\d{4}"
)
"""ISBN (ISO 2108), numbers with groups of three, decimal fractions, social security numbers."""
_CUE = re.compile(
    r"phone|\btel\b|tel[.:]|telephone|mobile|\bcell|whats ?app|signal|telegram|viber|\bsms\b|\btext\b|\bcall\b"
    r"|calling|called|\bdial|\bring\b|\bfax|"
    r"reach (?:me|us|him|her|them)|contact|hotline|helpline|my (?:new |old |work |home |cell |mobile )?number"
    r"|number to (?:call|reach)|msisdn|"
    r"telefon|handy|mobil|rufnummer|\banrufen|ruf(?:en)? |téléphone|\btél|portable|appele[zr]|joindre|teléfono"
    r"|móvil|celular|llám|llama|"
    r"cellulare|chiam|telefone|telemóvel|ligue|telefoon|\bbel\b|bellen|gsm|numer|zadzwo|puhelin|ring mig|τηλ"
    r"|телефон|звон|позвон|"
    r"电话|電話|手机|手機|전화|☎|📞|📱",
    re.IGNORECASE,
)
_VETO = re.compile(
    r"order|invoice|tracking|parcel|shipment|ticket|\bcase\b|\bref\b|reference|transaction|serial|\bpart\b"
    r"|\bsku\b|isbn|issn|\bean\b|upc|imei|"
    r"model|version|build|commit|timestamp|epoch|population|account|acct|\bid\b|bestell|rechnung|commande"
    r"|facture|pedido|factura|ordine|"
    r"fattura|\bdoi\b|arxiv|sort code|routing|iban|\bpin\b|postcode|\bzip\b|"
    r"license|licence|policy|patent|\bcve\b|barcode|booking|member",
    re.IGNORECASE,
)
_BREAK = re.compile(r"[,;|\n]")
"""After these, what was said before is of something else: the fields of a table."""
_FIRM = re.compile(
    r"phone|\btel\b|tel[.:]|mobile|\bcell|\bfax|telefon|teléfono|handy|电话|手机", re.IGNORECASE
)
"""Words that can be of nothing but a phone: short plain digits need one of these."""
_AFTER = re.compile(r" ?[(,]?(?:phone|mobile|cell|tel\b|fax|телефон|手机|电话)", re.IGNORECASE)
_NEAR = 40
# The North American plan as it is written (also 555, which films use and which no plan gives out).
_NORTH_AMERICAN = re.compile(
    rf"(?:\+?1[ .{_DASH}]?)?(?:\([2-9]\d\d\)[ .{_DASH}]?|[2-9]\d\d[ .{_DASH}])[2-9]?\d{{2,3}}[ .{_DASH}]\d{{4}}"
)
_LOCAL = re.compile(
    rf"\d{{3,4}}[ .{_DASH}]\d{{4}}|\d{{2,4}}[ .{_DASH}]\d{{2,3}}[ .{_DASH}]\d{{2,3}}"
)


def find_phones(text: str, regions: Sequence[str]) -> Iterator[Span]:
    """Phone numbers.

    With a country's code (`+49 ...`): numbers of a possible length. Without: as one writes them in
    `regions`, when they are of that form or a word such as "call" stands within 40 characters before.
    Dates, ISBNs, order numbers and the like are none.

    Args:
        regions: ISO 3166 codes of countries, the likeliest first.
    """
    library = need("phonenumbers", "phonenumbers")
    for match in _CANDIDATE.finditer(text):
        start = match.start()
        for part in re.split(r" / | {2,3}", match[0]):
            at = text.index(part, start)
            start = at + len(part)
            found = part.rstrip(" (./")
            if found.count("(") > found.count(")"):
                found = found.split("(")[0].rstrip() if not found.startswith("(") else found[1:]
                at = text.index(found, at)
            if found.count("(") < found.count(")"):
                found = found[: found.index(")")].rstrip()
            before, after = text[max(0, at - _NEAR) : at], text[at + len(found) :][:12]
            if _is_phone(found, before, after, regions, library):
                yield Span.of(text, at, at + len(found), "phone")


def _is_phone(found: str, before: str, after: str, regions: Sequence[str], library: Any) -> bool:
    digits = sum(map(str.isdigit, found))
    if not 7 <= digits <= 15:
        return False
    if found.startswith("+"):
        return _possible(found, None, library)
    cue, veto = _last(_CUE, before), _last(_VETO, before)
    cued, vetoed = (
        cue > veto or (veto < 0 and _AFTER.match(after) is not None),
        veto > max(cue, _last(_BREAK, before)),
    )
    if vetoed or (_OTHER.fullmatch(found) and not cued):
        return False
    if _DATE_OR_TIME.fullmatch(found) and not (cued and found.isdigit()):
        return False
    if found.startswith("00"):
        return _possible(f"+{found[2:].lstrip()}", None, library)
    if _NORTH_AMERICAN.fullmatch(found):
        return True
    if cued and found.isdigit() and digits < 9 and not _FIRM.search(before):
        return False
    if cued:
        return _LOCAL.fullmatch(found) is not None or any(
            _possible(found, r, library) for r in regions
        )
    is_written = (
        found.startswith(("0", "(0")) and not found.isdigit() and not found.startswith("0.")
    )
    return is_written and digits >= 9 and any(_valid(found, region, library) for region in regions)


def _last(pattern: re.Pattern[str], before: str) -> int:
    """Where the last match ends; -1 without one."""
    return max((match.end() for match in pattern.finditer(before)), default=-1)


def _possible(found: str, region: str | None, library: Any) -> bool:
    try:
        return bool(library.is_possible_number(library.parse(found, region)))
    except library.NumberParseException:
        return False


def _valid(found: str, region: str, library: Any) -> bool:
    try:
        return bool(library.is_valid_number_for_region(library.parse(found, region), region))
    except library.NumberParseException:
        return False
