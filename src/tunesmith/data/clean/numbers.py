"""Payment cards, bank accounts and national identity numbers in text, by their check digits."""

from __future__ import annotations

import importlib
import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tunesmith.data.clean.spans import Span
from tunesmith.errors import EnvironmentProblem

__all__ = [
    "ID_CUES",
    "NATIONAL_IDS",
    "NationalId",
    "find_cards",
    "find_ibans",
    "find_national_ids",
    "need",
]


def need(package: str, module: str) -> Any:
    """A module of an optional package.

    Raises:
        EnvironmentProblem: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"finding personal data needs the package {package!r}, which is not installed",
            fix="pip install 'tunesmith[data]'",
        ) from error


_CARD = re.compile(r"(?<![\w./-])(?:\d[ -]?){12,18}\d(?!\w|[.-]\d)")
_GROUPED = re.compile(
    r"\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{4}([ -])\d{6}\2\d{4,5}|\d{13,19}"
)
# ISO/IEC 7812 numbers by issuer: lengths as the issuers publish them (Visa, Mastercard incl. the 2-series,
# American Express, Discover, Diners Club, JCB, UnionPay, Maestro, Mir, RuPay, Troy).
_ISSUERS = tuple(
    (re.compile(begins), frozenset(lengths))
    for begins, lengths in (
        (r"4", (13, 16, 19)),
        (r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),
        (r"3[47]", (15,)),
        (r"6011|64[4-9]|65", (16, 17, 18, 19)),
        (r"30[0-5]|309|36|3[89]", (14, 15, 16, 17, 18, 19)),
        (r"352[89]|35[3-8]", (16, 17, 18, 19)),
        (r"62|81", (16, 17, 18, 19)),
        (r"50|5[6-9]|6[0-9]", (13, 14, 15, 16, 17, 18, 19)),
        (r"220[0-4]|9792|508|82", (16, 17, 18, 19)),
    )
)
_CARD_CUE = re.compile(
    r"(?:card|visa|master ?card|amex|american express|credit|debit|maestro|discover|pan|karte|tarjeta|carte"
    r"|carta|cartão|cc)"
    r"[^\n]{0,24}\Z",
    re.IGNORECASE,
)
_NUMBER_OF_A_THING = re.compile(
    r"(?:order|invoice|tracking|track|parcel|shipment|ticket|case|ref(?:erence)?|transaction|serial|part|sku"
    r"|isbn|ean|upc|"
    r"imei|model|version|build|commit|timestamp|epoch|population|id|no|nr|#)[\s#:.=]{0,4}(?:number|no\.?|nr\.?"
    r"|id|code|is)?[\s#:.=\"']{0,4}\Z",
    re.IGNORECASE,
)


def find_cards(text: str) -> Iterator[Span]:
    """Payment card numbers: 13 to 19 digits, an issuer's range and length, and the Luhn check digit.

    Digits are together, or grouped as on cards; after "order number" and the like only when grouped.
    """
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if not (_GROUPED.fullmatch(match[0]) and _is_issued(digits) and _has_luhn(digits)):
            continue
        before = text[max(0, match.start() - 40) : match.start()]
        plain = match[0].isdigit()
        if plain and _NUMBER_OF_A_THING.search(before) and not _CARD_CUE.search(before):
            continue
        if (
            len(digits) not in (14, 16)
            and plain
            and not digits.startswith(("34", "37"))
            and not _CARD_CUE.search(before)
        ):
            continue
        yield Span.of(text, *match.span(), "card")


def _is_issued(digits: str) -> bool:
    return len(set(digits)) > 1 and any(
        begins.match(digits) and len(digits) in lengths for begins, lengths in _ISSUERS
    )


def _has_luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1, annex B."""
    total = sum(map(int, digits[-1::-2]))
    return (total + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])) % 10 == 0


_IBAN = re.compile(
    r"(?<![A-Za-z0-9])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}(?![A-Za-z0-9])"
    r"|(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{1,4}){3,8}"
)


def find_ibans(text: str) -> Iterator[Span]:
    """International bank account numbers: check digits (ISO 13616) and the country's own form."""
    iban = need("python-stdnum", "stdnum.iban")
    place = 0
    while match := _IBAN.search(text, place):
        place = match.start() + 2
        end = _iban_end(text, *match.span(), iban)
        if end:
            yield Span.of(text, match.start(), end, "iban")
            place = end


def _iban_end(text: str, start: int, end: int, iban: Any) -> int:
    """Where a valid number ends that begins at `start`; 0 when there is none.

    Words may follow that look like more of it, so shorter ends are tried too.
    """
    places = [place for place in range(start, end) if text[place] not in " -"]
    for n in range(min(34, len(places)), 14, -1):
        last = places[n - 1] + 1
        compact = "".join(text[place] for place in places[:n]).upper()
        if last < len(text) and text[last].isalnum():
            continue
        if int(
            "".join(str(int(c, 36)) for c in compact[4:] + compact[:4])
        ) % 97 == 1 and iban.is_valid(compact, check_country=False):
            return last
    return 0


@dataclass(frozen=True, slots=True)
class NationalId:
    """A kind of identity number.

    Attributes:
        name: country and kind; `stdnum.<name>` checks it unless `module` is another.
        pattern: how it is written.
        alone: it is found without a word beside it that tells what it is: its form and check digits
            are seldom met by chance.
        module: of python-stdnum; empty when only the form can be checked.
    """

    name: str
    pattern: re.Pattern[str]
    alone: bool
    module: str


def _id(name: str, pattern: str, *, alone: bool = False, module: str | None = None) -> NationalId:
    compiled = re.compile(rf"(?<![\w.+-])(?:{pattern})(?!\w|[.-]\d)")
    return NationalId(name, compiled, alone, name if module is None else module)


NATIONAL_IDS: tuple[NationalId, ...] = (
    # Letters and check characters, or a date and two check digits: found wherever they stand.
    _id("es.dni", r"\d{8}-?[A-Za-z]", alone=True),
    _id("es.nie", r"[XYZxyz]-?\d{7}-?[A-Za-z]", alone=True),
    _id("it.codicefiscale", r"[A-Za-z]{6}\d{2}[A-Za-z]\d{2}[A-Za-z]\d{3}[A-Za-z]", alone=True),
    _id("fr.nir", r"[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}", alone=True),
    _id("cn.ric", r"\d{17}[\dXx]", alone=True),
    _id("mx.curp", r"[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z0-9]\d", alone=True),
    _id("ch.ssn", r"756\.?\d{4}\.?\d{4}\.?\d{2}", alone=True),
    _id("br.cpf", r"\d{3}\.\d{3}\.\d{3}-\d{2}", alone=True),
    _id("fi.hetu", r"\d{6}[-+ABCDEFYXWVU]\d{3}[0-9A-Y]", alone=True),
    _id("cl.rut", r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]", alone=True),
    _id("kr.rrn", r"\d{6}-[1-8]\d{6}", alone=True),
    _id("be.nn", r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}", alone=True),
    _id("se.personnummer", r"(?:19|20)?\d{6}[-+]\d{4}", alone=True),
    _id("no.fodselsnummer", r"\d{6} \d{5}", alone=True),
    _id("ar.cuit", r"(?:20|23|24|27)-\d{8}-\d", alone=True),
    # The United States gives no check digit: three groups of their own lengths, never 000, 666 or 9xx.
    _id("us.ssn", r"\d{3}-\d{2}-\d{4}", alone=True),
    # The United Kingdom's insurance number has no check digit either, but a form of its own (HMRC, NIM39110).
    _id(
        "gb.nino",
        r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]",
        alone=True,
        module="",
    ),
    _id("in.aadhaar", r"[2-9]\d{3} \d{4} \d{4}", alone=True, module="in_.aadhaar"),
    # One check digit or none in plain digits: every tenth number has it by chance, so a word must stand near.
    _id("us.ssn", r"\d{3}[ -]?\d{2}[ -]?\d{4}"),
    _id("us.itin", r"9\d{2}-?\d{2}-?\d{4}"),
    _id("in.aadhaar", r"\d{4}[ -]?\d{4}[ -]?\d{4}", module="in_.aadhaar"),
    _id("in.pan", r"[A-Z]{3}[ABCFGHLJPT][A-Z]\d{4}[A-Z]", module="in_.pan"),
    _id("br.cpf", r"\d{11}"),
    _id("de.idnr", r"\d{2} ?\d{3} ?\d{3} ?\d{3}"),
    _id("nl.bsn", r"\d{9}|\d{4}\.\d{2}\.\d{3}"),
    _id("pl.pesel", r"\d{11}"),
    _id("gb.nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}"),
    _id("ca.sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", module="luhn"),
    _id("au.tfn", r"\d{3}[ -]?\d{3}[ -]?\d{2,3}"),
    _id("se.personnummer", r"(?:19|20)?\d{6}[-+]?\d{4}"),
    _id("no.fodselsnummer", r"\d{11}"),
    _id("dk.cpr", r"\d{6}-?\d{4}"),
    _id("be.nn", r"\d{2}[. ]?\d{2}[. ]?\d{2}[- ]?\d{3}[. ]?\d{2}"),
    _id("pt.nif", r"\d{3} ?\d{3} ?\d{3}"),
    _id("bg.egn", r"\d{10}"),
    _id("cz.rc", r"\d{6}/?\d{3,4}"),
    _id("ro.cnp", r"\d{13}"),
    _id("hr.oib", r"\d{11}"),
    _id("ee.ik", r"\d{11}"),
    _id("lt.asmens", r"\d{11}"),
    _id("gr.amka", r"\d{11}"),
    _id("tr.tckimlik", r"\d{11}"),
    _id("za.idnr", r"\d{6} ?\d{4} ?\d{3}"),
    _id("kr.rrn", r"\d{6}-?\d{7}"),
    _id("cl.rut", r"\d{7,8}-?[\dkK]"),
    _id("ar.cuit", r"\d{2}-?\d{8}-?\d"),
    _id("il.idnr", r"\d{9}"),
    _id("ie.pps", r"\d{7}[A-W][ABHWTX]?"),
    _id("my.nric", r"\d{6}-?\d{2}-?\d{4}"),
    _id("at.vnr", r"\d{4} ?\d{6}"),
    _id("ch.ssn", r"756\d{10}"),
    _id("id.nik", r"\d{16}"),
)  # fmt: skip

ID_CUES = re.compile(
    r"\bssn\b|\bsin\b|social (?:security|insurance)|soc\.? ?sec|national (?:id|identi|insurance)|\bnino?\b"
    r"|\bni number|"
    r"\bnhs\b|\btax(?:payer)?[ _-]?(?:id|file|number|no)|\btin\b|\bitin\b|\btfn\b|\bid(?:entity"
    r"|entification)?[ _-]?(?:card|number|no\b|nr|code)|"
    r"identit|passport|personal (?:id|code|number|identi)|aadhaar|aadhar|\bpan\b|\bcpf\b|\brut\b|\bcuit\b"
    r"|\bcuil\b|\bcurp\b|"
    r"\bdni\b|\bnie\b|\bnif\b|\bnir\b|s[ée]curit[ée] sociale|n° s[ée]cu|codice fiscale|steuer|\bidnr\b|\bbsn\b"
    r"|burgerservice|"
    r"\bpesel\b|personnummer|fødselsnummer|fodselsnummer|\bcpr\b|rijksregister|registre national|\bniss\b"
    r"|\begn\b|\bегн\b|"
    r"rodn[ée] [čc][ií]slo|\bcnp\b|\boib\b|isikukood|asmens kodas|personas kods|\bamka\b|αμκα|t\.?c\.? kimlik|kimlik|"
    r"\bahv\b|\bavs\b|\bhetu\b|henkilötunnus|\bpps\b|\bnric\b|mykad|sozialversicherung|svnr|teudat|身份证|주민등록"
    r"|\bnik\b|\bktp\b|"
    r"gov(?:ernment)?[ _-]?id|national_id|\bsocial\b",
    re.IGNORECASE,
)
"""One of these stands near every number that is found only with a word beside it."""
_NEAR = 60


def find_national_ids(text: str) -> Iterator[Span]:
    """National identity, insurance and tax numbers of persons, each with its check digits.

    Numbers that digits meet by chance too often are found only within 60 characters after a word
    that tells what they are, such as "PESEL" or "social security".
    """
    cues = [match.end() for match in ID_CUES.finditer(text)]
    for kind in NATIONAL_IDS:
        if not kind.alone and not cues:
            continue
        for match in kind.pattern.finditer(text):
            near = _is_near(cues, match.start())
            if (
                (kind.alone or near)
                and _is_valid(kind, match[0])
                and not _of_a_thing(text, match.start(), near=near)
            ):
                yield Span.of(text, *match.span(), "national_id", kind.name)


def _is_near(cues: Sequence[int], start: int) -> bool:
    """Whether one of the places, which are in order, is at most so far before."""
    at = bisect(cues, start)
    return at > 0 and cues[at - 1] >= start - _NEAR


def _of_a_thing(text: str, start: int, *, near: bool) -> bool:
    return not near and _NUMBER_OF_A_THING.search(text[max(0, start - 32) : start]) is not None


def _is_valid(kind: NationalId, found: str) -> bool:
    if not kind.module:
        return True
    digits = [c for c in found if c.isdigit()]
    module, compact = _module(kind.module), re.sub(r"[ ./-]", "", found)
    return len(set(digits)) > 1 and bool(module.is_valid(found) or module.is_valid(compact))


@cache
def _module(name: str) -> Any:
    return need("python-stdnum", f"stdnum.{name}")
