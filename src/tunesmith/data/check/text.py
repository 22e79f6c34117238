"""Faults in one text, told from the text alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "Fault",
    "in_answer",
    "in_text",
    "is_null",
    "refuses",
    "speaks_of_markup",
    "speaks_of_templates",
]


@dataclass(frozen=True, slots=True)
class Fault:
    """A check's name, what is wrong, and the character at which it starts."""

    check: str
    what: str
    at: int


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_HIDDEN = re.compile(
    "[\u200b\u2060-\u2064\ufeff\u202a-\u202e\u2066-\u2069\u206a-\u206f\ufff9-\ufffb"
    "\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)
_JOINER = re.compile("(?<=[!-~])[\u200c\u200d\u00ad\u200e\u200f](?=[!-~])")
"""Joiners, marks and soft hyphens between two characters of ASCII: emoji and scripts that need them
do not look so."""
_FLAG = "\U0001f3f4"
_UTF8_READ_AS_LATIN = re.compile(
    "[\u00c2-\u00f4](?:[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc"
    "\u2013-\u2022\u2026\u2030\u2039\u203a\u20ac\u2122]){1,3}"
)
_UTF8_READ_AS_CYRILLIC = re.compile("(?:[РС][^\\x00-\\x7fа-яё]|Р[°-џ]|С[ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏ]){3,}")
_TAG = re.compile(
    r"</?(?:p|br|div|span|a|b|i|u|em|strong|ul|ol|li|table|t[rdh]|tbody|thead|h[1-6]|img|font|script|"
    r"style|iframe|blockquote|pre|code|center|sup|sub|hr|input|button|form|section|article|body|html|head|meta|link)"
    r"(?:\s+[\w:-]+\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*\s*/?>|<!--|<!DOCTYPE",
    re.IGNORECASE,
)
_ENTITY = re.compile(
    r"&(?:amp|lt|gt|quot|apos|nbsp|[mn]dash|hellip|[lr][sd]quo|#\d{2,6}|#x[0-9a-fA-F]{2,5});"
)
_MARKUP_WORDS = re.compile(r"\b(?:html5?|xml|svg|jsx|markup|css|tags? like)\b", re.IGNORECASE)
_MARKER = re.compile(
    r"<\|[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|</s>(?=\s*(?:\Z|<s>|\[INST\]))|<(?:start|end)_of_turn>|<｜[^｜>]{2,30}｜>"
)
_SPEAKER = re.compile(
    r"^(?:#{2,3} ?(?:Human|Assistant|User|Instruction|Response|Input|Output|System):?|"
    r"(?:Human|Assistant|USER|ASSISTANT):)\s",
    re.MULTILINE,
)
_UNFILLED = re.compile(
    r"\{\{ ?[A-Za-z_][\w. ]{0,40} ?\}\}|\[(?:insert|your|enter|add|fill in)\b[^\]\n]{0,60}\]|"
    r"<(?:insert|your)[ _-][^<>\n]{1,60}>|\blorem ipsum\b|(?-i:\bTODO\b|\bFIXME\b)|\[(?:YOUR|INSERT)[^\]\n]{0,60}\]",
    re.IGNORECASE,
)
_TEMPLATE_WORDS = re.compile(
    r"\b(?:jinja|templat|mustache|handlebars|to-?do|letter|e-?mail|form|code|function|script)|```",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
_CANNOT = (
    r"(?:can(?:no|')t|can ?not|could ?n[o']t|won't|am (?:unable|not able|not allowed)|'m (?:unable|not able)|"
    r"do(?:n't| not) (?:have|know|feel comfortable)|must (?:decline|refuse))"
)
_REFUSAL = re.compile(
    rf"\b(?:i(?:'m| am) )?(?:very |so |really |truly )?(?:sorry|apologi[sz]e|afraid)[,.;:]?(?: but| that)?,? "
    rf"(?:as an ai[^.]{{0,40}} )?i(?: {_CANNOT}|'m (?:unable|not able))|"
    rf"\bas an? (?:ai|artificial intelligence|(?:large )?language)[ -](?:language )?(?:model|assistant|chatbot)?|"
    rf"^(?:i(?: {_CANNOT}|'m (?:unable|not able)) (?:to )?(?:help|assist|provide|answer|do|comply|fulfil|"
    rf"complete|generate|create|write|discuss|engage|access|browse|have|process)\b)|"
    r"\bas an ai\b|\b(?:je suis désolée?|désolée?),? (?:mais )?je ne (?:peux|suis)|"
    r"\blo siento,? (?:pero )?no puedo|\btut mir leid,? (?:aber )?(?:ich|das) kann|"
    r"\bich kann (?:ihnen|dir) dabei nicht|\bsinto muito,? (?:mas )?não posso",
    re.IGNORECASE | re.MULTILINE,
)
_REFUSAL_HINTS = (
    "sorry", "apolog", "afraid", "as a", "i can", "i won", "i am ", "i'm ", "i must", "i do",
    "désol", "siento", "leid", "ich kann", "sinto",
)  # fmt: skip
_NULL_LIST = (
    "nan|null|none|n/a|#n/a|na|nil|undefined|<na>|nat|#value!|#ref!|#name?|#div/0!|...|…|-|--|?|.|"
    "[object object]|[deleted]|[removed]|{}|[]"
)
_NULLS = frozenset(_NULL_LIST.split("|"))
_HEAD_CHARACTERS = 300


def in_text(text: str, *, about_markup: bool) -> Iterator[Fault]:
    """Faults that any text of a row may have.

    Args:
        about_markup: the row speaks of HTML or code, so that tags are no remains.
    """
    if found := _CONTROL.search(text):
        escape = _ESCAPE.match(text, found.start())
        what = "a terminal's colour code" if escape else f"the control character {_code(found[0])}"
        yield Fault("control-characters", what, found.start())
    if not text.isascii():
        yield from _in_wide_text(text)
    if "<" in text or "&" in text:
        yield from _in_markup(text, about_markup)
    if "[" in text or "#" in text or ":" in text:
        yield from _markers(text)


def _code(character: str) -> str:
    return f"U+{ord(character):04X}"


def _in_wide_text(text: str) -> Iterator[Fault]:
    found = _HIDDEN.search(text) or _JOINER.search(text)
    if found and not (found[0] >= "\U000e0000" and _FLAG in text):
        yield Fault("invisible-characters", f"the character {_code(found[0])}", found.start())
    at = text.find("\ufffd")
    if at >= 0:
        yield Fault("mojibake", "U+FFFD stands where bytes could not be decoded", at)
        return
    for match in _UTF8_READ_AS_LATIN.finditer(text):
        if meant := _decoded(match[0], "cp1252"):
            yield Fault("mojibake", f"should most likely be {meant!r}", match.start())
            return
    cyrillic = _UTF8_READ_AS_CYRILLIC.search(text)
    if cyrillic and (meant := _decoded(cyrillic[0], "cp1251")):
        yield Fault("mojibake", f"should most likely be {meant!r}", cyrillic.start())


def _decoded(text: str, encoding: str) -> str:
    """What UTF-8 bytes mean that were read in `encoding`; empty when they are no UTF-8."""
    data = bytearray()
    for character in text:
        try:
            data += character.encode(encoding)
        except UnicodeEncodeError:
            if ord(character) > 0xFF:
                return ""
            data.append(ord(character))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        whole = bytes(data[: error.start])
        return whole.decode("utf-8") if encoding == "cp1251" and len(whole) >= 4 else ""


def _in_markup(text: str, about_markup: bool) -> Iterator[Fault]:
    if found := _MARKER.search(text):
        yield Fault("chat-markers", f"{found[0]!r} is a marker of a chat template", found.start())
    if about_markup:
        return
    if (found := _TAG.search(text)) and not _MARKER.fullmatch(found[0]):
        yield Fault("html", f"the tag {found[0][:30]!r}", found.start())
    elif found := _ENTITY.search(text):
        yield Fault("html", f"the entity {found[0]!r}", found.start())


def _markers(text: str) -> Iterator[Fault]:
    if "[" in text and "<" not in text and (found := _MARKER.search(text)):
        yield Fault("chat-markers", f"{found[0]!r} is a marker of a chat template", found.start())


def in_answer(text: str) -> Iterator[Fault]:
    """Faults of a text that is learned; `unfilled` is none where templates are what the row is about."""
    if is_null(text):
        yield Fault("null-answer", "the whole answer is what an empty cell becomes", 0)
        return
    if found := refuses(text):
        yield Fault("refusal", "the answer refuses", found.start())
    if (":" in text) and (found := _SPEAKER.search(text)):
        yield Fault("chat-markers", f"{found[0].strip()!r} begins another turn", found.start())
    if _may_be_unfilled(text) and (found := _UNFILLED.search(text)):
        yield Fault("unfilled", f"{found[0]!r} waits to be filled in", found.start())
    if ("```" in text or "~~~" in text) and len(_FENCE.findall(text)) % 2:
        yield Fault("open-fence", "a code block is opened and not closed", text.rfind("```"))
    if len(text) > 200:
        yield from _repetition(text)


def _may_be_unfilled(text: str) -> bool:
    return (
        "[" in text
        or "{{" in text
        or "<" in text
        or "TODO" in text
        or "FIXME" in text
        or "orem ipsum" in text
    )


def refuses(text: str) -> re.Match[str] | None:
    """Where the first sentences of an answer refuse."""
    head = text[:_HEAD_CHARACTERS].replace("’", "'")
    lower = head.lower()
    if not any(hint in lower for hint in _REFUSAL_HINTS):
        return None
    return _REFUSAL.search(head)


def is_null(text: str) -> bool:
    """Whether an answer is no answer but what an empty cell becomes: nan, null, N/A, ..."""
    return len(text) <= 20 and text.strip().lower() in _NULLS


def speaks_of_markup(text: str) -> bool:
    """Whether tags in a row with this text are likely meant."""
    return "```" in text or _MARKUP_WORDS.search(text) is not None


def speaks_of_templates(text: str) -> bool:
    """Whether open places in a row with this text are likely meant."""
    return _TEMPLATE_WORDS.search(text) is not None


def _repetition(text: str) -> Iterator[Fault]:
    words = text.split()
    if len(words) >= 60 and len(set(words)) / len(words) < 0.12:
        yield Fault("repetition", f"{len(words)} words, of which {len(set(words))} differ", 0)
        return
    lines = [line for line in text.split("\n") if len(line) > 10]
    for place in range(len(lines) - 3):
        if lines[place] == lines[place + 1] == lines[place + 2] == lines[place + 3]:
            yield Fault("repetition", "four equal lines in a row", text.find(lines[place]))
            return
