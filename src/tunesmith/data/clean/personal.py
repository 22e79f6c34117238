"""E-mail and network addresses, dates of birth and street addresses in text."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from tunesmith.data.clean.spans import Span

__all__ = [
    "BIRTH_CUES",
    "STREET_CUES",
    "find_addresses",
    "find_birth_dates",
    "find_emails",
    "find_ips",
    "find_macs",
    "may_hold_address",
]

# RFC 5321, 4.5.3.1: at most 64 characters before the at sign, 255 after it. Letters of any script
# (RFC 6531); of the punctuation that RFC 5322 allows only what addresses in use have.
_LOCAL = re.compile(r"[\w](?:[\w.+%'&-]{0,63})\Z")
_DOMAIN = re.compile(
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?P<top>[^\W\d_]{2,24}|xn--[\w-]{2,60})(?![\w-])"
)
_NO_TOP_WORDS = """
    png jpg jpeg gif svg webp css js json html xml txt pdf shape dtype weight weights data grad
    values mean sum dot transpose numpy
"""
_NO_TOP = frozenset(_NO_TOP_WORDS.split())
"""What follows the last full stop in file names and in Python's matrix products, not in domains."""


def find_emails(text: str) -> Iterator[Span]:
    """E-mail addresses; `git@host:path` and file names such as `logo@2x.png` are none."""
    at = text.find("@")
    while at >= 0:
        local = _LOCAL.search(text, max(0, at - 64), at)
        domain = _DOMAIN.match(text, at + 1)
        if local and domain and domain["top"].lower() not in _NO_TOP:
            is_remote = local[0] in ("git", "hg") and text[domain.end() : domain.end() + 1] == ":"
            if not is_remote:
                yield Span.of(text, local.start(), domain.end(), "email")
        at = text.find("@", at + 1)


_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_IPV6 = re.compile(
    r"(?<![\w:.])(?:[0-9A-Fa-f]{1,4}:|::)[0-9A-Fa-f:]{2,38}(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?![\w:])"
)
_NUMBERED = re.compile(
    r"(?:\b(?:v|versions?|releases?|ver\.?|rev\.?|revision|build|section|chapter|clause|paragraph|article"
    r"|figure|table|"
    r"appendix|annex|step|firmware|driver|pip install \S{1,40}|oid)|§|==|>=|<=|~=|\^)(?: (?:is|of|number))?"
    r"[\s:=\"'-]{0,3}\Z",
    re.IGNORECASE,
)
"""What stands right before a number of four parts that is a version or a heading."""


def find_ips(text: str) -> Iterator[Span]:
    """IPv4 and IPv6 addresses of hosts.

    Left out: addresses that every machine has (loopback, unspecified), masks, multicast, and numbers
    of four parts after a word such as "version" or "section".
    """
    for match in _IPV4.finditer(text):
        before = text[max(0, match.start() - 24) : match.start()]
        if not _NUMBERED.search(before) and _is_host(match[0]):
            yield Span.of(text, *match.span(), "ip", "ipv4")
    if text.count(":") >= 2:
        for match in _IPV6.finditer(text):
            if _is_full(match[0]) and _is_host(match[0]):
                yield Span.of(text, *match.span(), "ip", "ipv6")


def _is_host(found: str) -> bool:
    try:
        address = ipaddress.ip_address(found)
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified or address.is_multicast:
        return False
    return address.version == 6 or not found.startswith(("255.", "0."))


def _is_full(found: str) -> bool:
    """Eight groups, or a shortened address of a range in use (RFC 4291): C++ names have `::` too."""
    if "::" not in found:
        return found.count(":") == 7 or ("." in found and found.count(":") == 6)
    first = found.split(":", 1)[0].lower()
    return re.fullmatch(r"[23][0-9a-f]{3}|f[cd][0-9a-f]{2}|fe[89ab][0-9a-f]", first) is not None


_MAC = re.compile(
    r"(?<![\w:.-])(?:[0-9A-Fa-f]{2}(?P<s>[:-])(?:[0-9A-Fa-f]{2}(?P=s)){4}[0-9A-Fa-f]{2}"
    r"|[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4}\.[0-9A-Fa-f]{4})(?![\w:]|[.-]\w)"
)


def find_macs(text: str) -> Iterator[Span]:
    """MAC addresses (IEEE 802: six octets), but neither broadcast nor all zeros."""
    for match in _MAC.finditer(text):
        digits = re.sub(r"[:.-]", "", match[0]).lower()
        is_number = digits.isdigit() and "." in match[0]
        if digits not in ("f" * 12, "0" * 12) and not is_number:
            yield Span.of(text, *match.span(), "mac")


BIRTH_CUES = (
    "birth", "born", "dob", "d.o.b", "geboren", "geburt", "naissance", "né le", "née le", "nacimiento",
    "nacid", "nascita", "nato il", "nata il", "nascimento", "nascid", "geboorte", "urodz", "födelse",
    "född", "fødsel", "født", "рожд", "родил", "出生", "生年月日", "생년월일", "doğum",
)  # fmt: skip
"""One of these stands, in lower case, in every text with a date of birth."""
_MONTH = (
    r"(?:jan|feb|fév|fev|mar|mär|mrz|apr|avr|abr|may|mai|mag|mayo|maj|jun|juin|giu|jul|juil|lug|aug|"
    r"août|ago|sep|set|oct|okt|ott|out|nov|dec|dez|déc|dic)[^\W\d_]{0,9}\.?"
)
_DATE = re.compile(
    r"(?<![\w/.-])(?:"
    r"(?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])[-/. ](?:0?[1-9]|[12]\d|3[01])[-/. ](?:(?:19|20)\d\d|\d\d)"
    rf"|(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th|er|\.)?(?: of| de|-)?[ -]{_MONTH},?(?: de| del)?[ -](?:(?:19"
    rf"|20)\d\d|\d\d)"
    rf"|{_MONTH} (?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?,? (?:19|20)\d\d"
    r"|(?:19|20)\d\d ?年 ?\d{1,2} ?月 ?\d{1,2} ?日|(?:19|20)\d\d년 ?\d{1,2}월 ?\d{1,2}일"
    r"|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(?![\w/-]|\.\d)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[;!?]|\. ")
_NEAR = 40


def find_birth_dates(text: str, lower: str) -> Iterator[Span]:
    """Dates that a word about birth stands before (at most 40 characters), or right after.

    A year alone is no date of birth.
    """
    for match in _DATE.finditer(text):
        before = _SENTENCE.split(lower[max(0, match.start() - _NEAR) : match.start()])[-1]
        after = lower[match.end() : match.end() + 14]
        near_by = any(cue in before for cue in BIRTH_CUES)
        if near_by or any(cue in after for cue in ("born", "birth", "geboren", "出生", "nacid")):
            yield Span.of(text, *match.span(), "birth_date")


STREET_CUES = (
    " st", " ave", " road", " rd", "boulevard", " blvd", " lane", " ln", " drive", " dr", " court", " ct",
    " way", " place", " terrace", " square", " close", " crescent", " parkway", " highway", "straße",
    "strasse", "str.", "weg", "platz", "allee", "gasse", "ufer", "rue ", "avenue ", "chemin", "impasse",
    "quai", "calle", "avenida", "plaza", "paseo", "carrer", "via ", "viale", "piazza", "corso", "rua ",
    "travessa", "straat", "laan", "gracht", "plein", "ulica", "ul. ", "p.o. box", "po box", "postfach",
)  # fmt: skip
"""One of these stands, in lower case, in every text with a street address but those with a post code."""
_POST_CODE = re.compile(r", ?(?:D-)?\d{5}(?!\d)")
_UP = r"[A-ZÀ-ÖØ-ÞŁŚŻ]"
_WORD = rf"{_UP}[\w'’-]{{1,24}}"
_NO_WORD = (
    r"(?!(?:In|On|At|The|And|For|From|To|By|Of|January|February|March|April|June|July|August|September|"
    r"October|November|December)\b)"
)
_ENGLISH = (
    rf"(?<![\w.,$€£/-])\d{{1,5}}[A-Za-z]?,? (?:[NSEW]{{1,2}}\.? |(?:North|South|East|West) )?"
    rf"(?:{_NO_WORD}(?:{_WORD}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,4}}"
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Way|Place|Pl|Terrace|Ter|Square|Sq|"
    r"Close|Crescent|Cres|Parkway|Pkwy|Highway|Hwy|Circle|Cir|Grove|Gardens|Mews|Row|Hill|Walk)\b(?! (?!Apt"
    r"|Suite|Ste|Unit|Flat|Floor)[A-Z][a-z])\.?"
    r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|#)\.? ?[\w-]{1,6})?"
)
_TOWN = rf"(?:,? ?(?:\n ?)?(?:{_WORD}[ -]?){{1,3}})?"
_TAIL = (
    rf"(?:{_TOWN},? (?:[A-Z]{{2}} )?\d{{5}}(?:-\d{{4}})?(?!\d)"
    rf"|{_TOWN},? [A-Z]{{1,2}}\d[A-Z\d]? \d[A-Z]{{2}}(?!\w)|,? \d{{4,5}} {_WORD})?"
)
_STREETS = tuple(
    re.compile(pattern)
    for pattern in (
        _ENGLISH + _TAIL,
        # German, Dutch: the kind of street ends its name, the number follows.
        rf"(?<!\w)(?:{_WORD}[ -]){{0,2}}(?:{_UP}[\w'’-]{{0,24}}(?:straße|strasse|str\.|weg|platz|allee|gasse"
        rf"|ufer|damm|ring|"
        rf"straat|laan|gracht|plein|kade)|(?:Straße|Strasse|Str\.|Allee|Platz|Weg)) ?\d{{1,4}}(?: ?[a-hA-H])?\b"
        rf"(?:-\d{{1,3}})?(?:,? ?\n?(?:D-)?\d{{4,5}}(?: [A-Z]{{2}})? {_WORD}(?: {_WORD})?)?",
        # German without a kind of street: the post code tells.
        rf"(?<!\w){_WORD}(?: (?:{_WORD}|den|dem|der|am|im)){{0,3}} \d{{1,4}} ?[a-h]?, ?(?:D-)?\d{{5}} {_WORD}",
        # French: the number stands first.
        rf"(?<![\w.])\d{{1,4}}(?: (?:bis|ter|quater))?,? (?:[Rr]ue|[Aa]venue|[Bb]oulevard|[Pp]lace|[Cc]hemin"
        rf"|[Aa]llée|[Ii]mpasse|"
        rf"[Qq]uai|[Cc]ours|[Rr]oute)(?: (?:de|du|des|la|le|les|l'|d'|de l'|à))*(?: |(?<='))(?:{_WORD}[ -]?){{1,4}}"
        rf"(?:,? ?\n?\d{{5}} {_WORD}(?:[ -]{_WORD})?)?",
        # Spanish, Italian, Portuguese, Catalan, Polish: the kind of street, its name, the number.
        rf"(?<!\w)(?:[Cc]alle|C/|[Aa]venida|Av\.|Avda\.|[Pp]laza|[Pp]aseo|[Cc]arrer|[Vv]ia|[Vv]iale|[Pp]iazza"
        rf"|[Cc]orso|[Rr]ua|"
        rf"[Tt]ravessa|[Uu]lica|[Uu]l\.)(?: (?:de|del|la|las|los|el|da|do|dos|das|dei|degli|della|delle))* ?"
        rf"(?:{_WORD}+(?: (?:de|del|da|do|e|y|di))? ?){{1,4}},? ?(?:n[.º°]? ?)?\d{{1,4}}\b(?:/?[A-Za-z]\b)?"
        rf"(?:,? ?\n?\d{{2}}-?\d{{3}}(?:-\d{{3}})? {_WORD}(?: {_WORD})?)?",
        r"(?<!\w)(?:P\.? ?O\.? Box|Postfach|Apartado(?: de Correos)?) \d{1,3} ?\d{1,5}\b",
    )
)


def may_hold_address(text: str, lower: str) -> bool:
    """Whether one of the words or a post code is there that every address has."""
    return any(map(lower.__contains__, STREET_CUES)) or _POST_CODE.search(text) is not None


def find_addresses(text: str) -> Iterator[Span]:
    """Street addresses: a street with a house number, in the usual forms of nine languages.

    Names of towns, countries and streets without a number are none.
    """
    for pattern in _STREETS:
        for match in pattern.finditer(text):
            found = match[0].rstrip(" ,\n-")
            yield Span.of(text, match.start(), match.start() + len(found), "address")
