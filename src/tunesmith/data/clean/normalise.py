"""Texts mended: characters that stand for others, that nobody sees, or that a page left behind."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable

from tunesmith.data.check.text import speaks_of_markup
from tunesmith.data.wording import is_code
from tunesmith.errors import EnvironmentProblem

__all__ = ["normalised", "without_html"]

_LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
_INVISIBLE = re.compile(
    "[\u200b\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069\u206a-\u206f\ufff9-\ufffb]"
    "|(?<=[!-~])[\u200c\u200d\u00ad\u200e\u200f](?=[!-~])"
)
"""Joiners and direction marks only between ASCII characters: emoji and other scripts need them."""
_TRAILING = re.compile(r"(?<![ \t])[ \t]++(?=\n)")
_DIRTY = re.compile("[\x00-\x08\x0b-\x1f\x7f]|[ \t\n](?:\n|\\Z)")
_MAY_BE_MISREAD = re.compile("[\u0080-\u009f\u00c2-\u00f4\u0402-\u045f\u2500-\u25ff]")

_SILENT = re.compile(r"<(script|style)\b|<!--", re.IGNORECASE)
_SILENT_ENDS = {
    "script": re.compile(r"</script\s*>", re.IGNORECASE),
    "style": re.compile(r"</style\s*>", re.IGNORECASE),
    "": re.compile("-->"),
}
_BREAK = re.compile(r"<br\s*/?>|</(?:p|div|li|tr|h[1-6]|blockquote|ul|ol|table)\s*>", re.IGNORECASE)
_TAG = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|ul|ol|li|table|t[rdh]|tbody|thead|h[1-6]|img|font|"
    r"blockquote|pre|code|center|sup|sub|hr|input|button|form|section|article|body|html|head|meta|link|small|"
    r"iframe)(?:\s[^<>]*)?/?>|<!DOCTYPE[^<>]*>",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"&(?:[a-zA-Z]{2,8}|#\d{1,6}|#x[0-9a-fA-F]{1,6});")
_BLANK_LINES = re.compile(r"\n{3,}")
_ROUNDS = 20
"""Nearly all texts need one round and one that finds nothing more; a hostile one must not take for ever."""


def normalised(text: str) -> tuple[str, tuple[str, ...]]:
    """The text mended, and what was mended.

    In this order: mojibake (UTF-8 read as another encoding, put right where that is certain), Unicode NFC (never
    NFKC, which would change code), line ends to one line feed, control and invisible characters removed, white
    space at line ends and at the end removed (not in code and fenced text, where it may matter). A mended text
    stays as it is when it is mended again.

    Raises:
        EnvironmentProblem: the package ftfy is needed and not installed.
    """
    done: list[str] = []
    for _ in range(_ROUNDS):
        text, names = _mended_once(text)
        done += names
        # What a removed character stood between may now be mojibake, or compose.
        if not names:
            break
    return text, tuple(dict.fromkeys(done))


def _mended_once(text: str) -> tuple[str, list[str]]:
    """All steps one after the other."""
    done: list[str] = []
    if not text.isascii():
        text = _step("mojibake", _decoded_again, text, done)
        text = _step("Unicode NFC", _composed, text, done)
    elif not _DIRTY.search(text):
        return text, []
    text = _step("line ends", lambda found: _LINE_END.sub("\n", found), text, done)
    text = _step("control characters", _without_controls, text, done)
    if not text.isascii():
        text = _step("invisible characters", lambda found: _INVISIBLE.sub("", found), text, done)
    if "```" not in text and not is_code(text):
        text = _step("white space", lambda found: _TRAILING.sub("", found.rstrip()), text, done)
    return text, done


def _step(name: str, change: Callable[[str], str], text: str, done: list[str]) -> str:
    changed = change(text)
    if changed != text:
        done.append(name)
    return changed


def _decoded_again(text: str) -> str:
    if not _MAY_BE_MISREAD.search(text):
        return text
    try:
        import ftfy
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "mending mojibake needs the package 'ftfy', which is not installed",
            fix="pip install 'tunesmith[data]'",
        ) from error
    return str(ftfy.fix_encoding(text))


def _composed(text: str) -> str:
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def _without_controls(text: str) -> str:
    return _CONTROL.sub("", _ESCAPE.sub("", text))


def without_html(text: str) -> str:
    """A text without HTML tags, scripts and entities; as it is when it is code or speaks of markup.

    Ends of paragraphs, list items and table rows become line feeds. Only names of HTML elements count as tags, so
    that "a < b and c > d" and "<your name>" stay.
    """
    if ("<" not in text and "&" not in text) or speaks_of_markup(text):
        return text
    plain = _TAG.sub("", _BREAK.sub("\n", _without_silent(text)))
    if "&" in plain:
        plain = _ENTITY.sub(lambda match: html.unescape(match[0]), plain).replace("\u00a0", " ")
    return text if plain == text else _BLANK_LINES.sub("\n\n", plain).strip()


def _without_silent(text: str) -> str:
    """Without scripts, styles and comments that end; those that do not end cost no second look."""
    parts: list[str] = []
    at, ends = 0, dict(_SILENT_ENDS)
    for found in _SILENT.finditer(text):
        kind = (found[1] or "").lower()
        if found.start() < at or kind not in ends:
            continue
        inside = text.find(">", found.end()) + 1 if kind else found.end()
        end = ends[kind].search(text, inside) if inside else None
        if end is None:
            del ends[kind]
        else:
            parts.append(text[at : found.start()])
            at = end.end()
    return "".join((*parts, text[at:]))
