"""Secrets in text: tokens of published forms, and values that a word beside them calls secret.

A form with a prefix of its own is told by it alone; a value without one (`api_key = "..."`) must stand
beside a word that calls it secret and be as irregular as keys are.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Iterator

from tunesmith.data.clean.formats import FORMATS
from tunesmith.data.clean.spans import Span

__all__ = ["find_assigned", "find_tokens"]

_ALL_NEEDLES = tuple(dict.fromkeys(needle for form in FORMATS for needle in form.needles))
_SHORTEST = 16
"""Characters without a space that every token has."""
_SHORT = ("://", "PRIVATE KEY", "uthorization", "UTHORIZATION", "-u ", "--user")
"""Needles of forms that may be shorter."""

_WORDS = (
    r"pass(?:word|wd|phrase|code|wort|e)?|pwd|kennwort|contrase[nñ]a|senha|wachtwoord|has[lł]o|"
    r"пароль|密码|密碼|パスワード|secret|token|api[ _.-]?key|access[ _.-]?key|auth[_.-]?key|"
    r"private[ _.-]?key|(?:encryption|signing|master|session|shared|account|license|client)[_.-]?key|"
    r"credentials?|auth"
)
_STEMS = (
    "pass", "pwd", "kennwort", "contrase", "senha", "wachtwoord", "hasło", "haslo", "пароль", "密码", "密碼",
    "パスワード", "secret", "token", "auth", "credential", "identified",
)  # fmt: skip
_KEY_STEMS = (
    "api", "access", "private", "encryption", "signing", "master", "session", "shared", "account", "license", "client",
)  # fmt: skip
"""How the words begin that call something secret, in lower case; these only where `key` stands in the text."""
_PASSWORDS = re.compile(
    r"pass|pwd|kennwort|contrase|senha|wachtwoord|has[lł]o|пароль|密|パス|identified", re.IGNORECASE
)
_VALUE = (
    r"(?:(?P<q>\\?[\"'`])(?P<quoted>(?:(?!(?P=q))[^\n]){4,300})(?P=q)"
    r"|(?P<bare>[^\s\"'`,;<>(){}\[\]\\]{6,300}))"
)
_ASSIGNED = re.compile(
    rf"(?P<word>{_WORDS})(?P<more>(?:s|[_-]?\d{{1,2}}|_(?:key|value|id|hash|prod|dev|test|live|staging))?)"
    r"(?![A-Za-z])(?:\\?[\"'`\]]){0,2}(?: (?:for|to|of|on|at)(?: [\w'-]{1,20}){1,4}?)?\s{0,8}"
    r"(?P<op>:=|=>|==|=|::?|>|\bis:?|\bist:?|\blautet:?|\bes:?|\best:?|\be:|\bé:?|：|是)\s{0,8}"
    + _VALUE,
    re.IGNORECASE,
)
_SQL = re.compile(
    r"(?P<word>identified (?:with \w{1,40} )?by|password)\s{1,4}(?=['\"])" + _VALUE, re.IGNORECASE
)
_FLAG = re.compile(
    r"(?P<word>--(?:pass(?:word|wd|phrase)?|token|api-?key|secret|[a-z]{1,20}-(?:password|token|secret"
    r"|key)))[ =]{1,2}" + _VALUE,
    re.IGNORECASE,
)
_PIN = re.compile(r"\bpin(?: code| number)?(?: is|:|=) {0,2}(?P<bare>\d{4,8})\b", re.IGNORECASE)
_NO_VALUE = re.compile(
    r"(?:your|my[_-]|the[_-]|some|enter|insert|replace|change[_-]?(?:me|it|this)|put|x{3,}|\*{2,}|\.{3}|<|\$"
    r"|%[({a-z]|\{|#\{|@|"
    r"process\.env|os\.(?:environ|getenv)|env[.(\[:]|getenv|config[.\[(]|settings|self\.|this\.|none|null|nil|true|"
    r"false|undefined|string|str$|required|optional|redacted|hidden|\[?[A-Z]{2,12}_\d{1,4}\]?$|"
    r"(?:sha|md|bcrypt|scram)[-_]?\d|(?:https?|file|ftp)://)",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(r"[A-Za-z]+(?:[_.-][A-Za-z]+)*[_.-]?\d{0,2}")
_STRONG_SYMBOL = re.compile(r"[!@#$%^&*+~|§€£]")


def find_tokens(text: str) -> Iterator[Span]:
    """Secrets of published forms; they may overlap."""
    if max(map(len, text.split()), default=0) < _SHORTEST and not any(
        map(text.__contains__, _SHORT)
    ):
        return
    there = {needle for needle in _ALL_NEEDLES if needle in text}
    for form in FORMATS:
        if there.isdisjoint(form.needles):
            continue
        for match in form.pattern.finditer(text):
            start, end = _place(match)
            if _holds(form.name, text[start:end]):
                yield Span.of(text, start, end, "secret", form.name)


def _place(match: re.Match[str]) -> tuple[int, int]:
    return match.span("secret") if "secret" in match.re.groupindex else match.span()


_MIXED = frozenset(
    {
        "ai-key",
        "aws-secret-key",
        "hosting-token",
        "adyen-key",
        "authorization",
        "azure-sas",
        "resend-key",
        "cargo-token",
        "discord-token",
    }
)


def _holds(name: str, found: str) -> bool:
    """Whether what has a secret's form can be one."""
    match name:
        case "authorization-basic":
            return ":" in _decoded(found)
        case "password-in-url":
            return not _NO_VALUE.match(found) and found.lower() not in ("password", "pass", "pwd")
        case "password-in-command":
            return not _NO_VALUE.match(found)
        case "gitlab-token":
            # Of random tokens so short as these one in 33 has no digit.
            return _entropy(found) >= 3.0 and (_has_digit(found) or _is_jumbled(found))
        case name if name in _MIXED:
            return _entropy(found) >= 3.0 and _has_digit(found)
        case _:
            return True


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def _is_jumbled(text: str) -> bool:
    """Whether small letters and capitals are both many, as in no name that is made of words."""
    capitals = [letter.isupper() for letter in text if letter.isalpha()]
    return 0.3 * len(capitals) <= sum(capitals) <= 0.7 * len(capitals)


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return ""


_IN_VALUES = "0123456789@#$%^&*+~|!§€£"
"""Every value that counts has one of these."""


def find_assigned(text: str, lower: str) -> Iterator[Span]:
    """Values that a word beside them calls secret; they may overlap.

    Args:
        lower: `text.lower()`. Where it is as long as the text, it tells where to look.
    """
    if not any(map(text.__contains__, _IN_VALUES)):
        return
    if len(lower) != len(text):
        matches = [m for pattern in (_ASSIGNED, _SQL, _FLAG) for m in pattern.finditer(text)]
    else:
        matches = [m for m in _matches(text, lower) if m]
    for match in matches:
        span = _value_of(text, match)
        if span:
            yield span
    for match in _PIN.finditer(text) if "pin" in lower else ():
        yield Span.of(text, *match.span("bare"), "secret", "pin")


def _matches(text: str, lower: str) -> Iterator[re.Match[str] | None]:
    """What stands at each word that may call something secret."""
    stems = (*_STEMS, *_KEY_STEMS) if "key" in lower else _STEMS
    for stem in stems:
        at = lower.find(stem)
        while at >= 0:
            yield _ASSIGNED.match(text, at)
            if stem in ("pass", "identified"):
                yield _SQL.match(text, at)
            at = lower.find(stem, at + 1)
    at = text.find(" --")
    while at >= 0:
        yield _FLAG.match(text, at + 1)
        at = text.find(" --", at + 1)


def _value_of(text: str, match: re.Match[str]) -> Span | None:
    """The value, when it looks like a password or a key."""
    group = "quoted" if match["quoted"] is not None else "bare"
    start, end = match.span(group)
    found = text[start:end]
    if group == "bare" and match.groupdict().get("op", "=")[0] in "ieél:":
        found = found.rstrip(".:?")
    is_password = _PASSWORDS.search(match["word"]) is not None
    likely = _is_password if is_password else _is_key
    if not likely(found, quoted=group == "quoted") or _NO_VALUE.match(found):
        return None
    detail = "password" if is_password else "assigned"
    return Span.of(text, start, start + len(found), "secret", detail)


def _is_password(found: str, *, quoted: bool) -> bool:
    """A password has a digit or a symbol among other characters, and no space."""
    if any(map(str.isspace, found)) or len(found) < (4 if quoted else 6):
        return False
    has_digit = any(map(str.isdigit, found))
    has_letter = any(map(str.isalpha, found))
    has_symbol = _STRONG_SYMBOL.search(found) is not None
    if not has_letter:
        return (has_digit and len(found) >= 6 and found.isdigit()) or (has_digit and has_symbol)
    return has_digit or has_symbol


def _is_key(found: str, *, quoted: bool) -> bool:
    """A key is long, mixes letters and digits, and is not a name made of words."""
    if len(found) >= 8 and _STRONG_SYMBOL.search(found) and _is_password(found, quoted=quoted):
        return any(map(str.isdigit, found))
    if len(found) < (12 if quoted else 16) or any(map(str.isspace, found)):
        return False
    n_digits = sum(map(str.isdigit, found))
    n_letters = sum(map(str.isalpha, found))
    is_long = len(found) >= 20 and not found.islower() and not found.isupper()
    if n_digits < (1 if is_long else 2) or n_letters < 2 or _IDENTIFIER.fullmatch(found):
        return False
    return _entropy(found) >= 3.0


def _entropy(text: str) -> float:
    """Bits a character, by how often each one occurs (Shannon 1948)."""
    n = len(text)
    return -sum(c / n * math.log2(c / n) for c in Counter(text).values())
