"""Rule `paraphrase`: the same question in a politer, plainer or contracted form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunesmith.data.grow.rule import Draw, Made, Unfit
from tunesmith.data.grow.turns import asks, question_path, question_span, remade
from tunesmith.data.rows import Row

__all__ = ["TEMPLATES", "Paraphrase", "core"]

_INTERROGATIVES_TEXT = "what which who whom whose when where why how"
_INTERROGATIVES = frozenset(_INTERROGATIVES_TEXT.split())
_AUXILIARIES_TEXT = "is are was were do does did can could will would should has have had"
_AUXILIARIES = frozenset(_AUXILIARIES_TEXT.split())
_IMPERATIVES_TEXT = (
    "list show give name find count tell return get display compute calculate print write explain "
    "describe identify compare summarise summarize"
)
_IMPERATIVES = frozenset(_IMPERATIVES_TEXT.split())
_ABOUT_A_TEXT_WORDS = (
    "classify convert correct extract paraphrase print rephrase rewrite summarise summarize translate "
    "write"
)
_ABOUT_A_TEXT = frozenset(_ABOUT_A_TEXT_WORDS.split())
"""Requests with a text after them, which begins and ends where nothing says so."""


@dataclass(frozen=True)
class Template:
    """One way to say the same.

    Attributes:
        fits: whether a question may be put this way.
        put: the question, put this way.
    """

    fits: Callable[[str], bool]
    put: Callable[[str], str]


def _first(text: str) -> str:
    words = text.split(maxsplit=1)
    return words[0].casefold() if words else ""


def _always(text: str) -> bool:
    return True


def _is_question(text: str) -> bool:
    return text.endswith("?") and _first(text) in _INTERROGATIVES | _AUXILIARIES


def _is_request(text: str) -> bool:
    is_plain = not text.endswith(("?", "!")) and _first(text) not in _ABOUT_A_TEXT
    return _first(text) in _IMPERATIVES and is_plain and _is_one_sentence(text)


def _is_one_sentence(text: str) -> bool:
    return not re.search(r"[.!?:;]\s", text)


def _may_be_followed(text: str) -> bool:
    """Whether words after it cannot be taken for a part of what is asked about."""
    is_about_what_follows = not _ABOUT_A_TEXT.isdisjoint(text.casefold().split()[:4])
    ends = text[-1:] in "?.!" and _is_one_sentence(text)
    return ends and asks(text) and not is_about_what_follows


def _lowered(text: str) -> str:
    """With a small first letter; only for first words that are no names."""
    return text[:1].lower() + text[1:]


def _as_question(text: str) -> str:
    return text.rstrip(".! ") + "?"


def _contracted(pattern: str, short: str) -> Template:
    compiled = re.compile(pattern)

    def put(text: str) -> str:
        return compiled.sub(lambda match: match.expand(short), text, count=1)

    return Template(lambda text: bool(compiled.match(text)), put)


def _prefix(words: str) -> Template:
    return Template(_always, lambda text: f"{words} {text}")


def _suffix(words: str) -> Template:
    return Template(_may_be_followed, lambda text: f"{text} {words}")


TEMPLATES: Mapping[str, Template] = {
    "please-answer": _prefix("Please answer this:"),
    "a-question": _prefix("I have a question."),
    "quick-question": _prefix("Quick question:"),
    "like-to-know": _prefix("Here is what I would like to know:"),
    "can-you-help": _prefix("Can you help me with this?"),
    "hello": _prefix("Hello!"),
    "hi": _prefix("Hi,"),
    "need": _prefix("I need help with this:"),
    "thanks": _suffix("Thanks."),
    "thank-you": _suffix("Thank you!"),
    "in-advance": _suffix("Thanks in advance."),
    "please-after": _suffix("Please tell me."),
    "please-do": Template(_is_request, lambda text: f"Please {_lowered(text)}"),
    "can-you": Template(_is_request, lambda text: _as_question(f"Can you {_lowered(text)}")),
    "could-you": Template(
        _is_request, lambda text: _as_question(f"Could you please {_lowered(text)}")
    ),
    "i-want-you": Template(_is_request, lambda text: f"I would like you to {_lowered(text)}"),
    "tell-me": Template(_is_question, lambda text: f"Tell me, {_lowered(text)}"),
    "so": Template(_is_question, lambda text: f"So, {_lowered(text)}"),
    "what-is": _contracted(r"(What|Who|Where) is (?=\w)", r"\1's "),
    "whats": _contracted(r"(What|Who|Where)'s (?=(?:the|a|an|my|your|this|that)\b)", r"\1 is "),
}
"""Name -> a form that keeps the meaning: what is asked about stays letter by letter."""

_BEFORE = re.compile(
    r"(?:please answer this:|i have a question\.|quick question:|here is what i would like to know:|"
    r"can you help me with this\?|hello!|hi,|i need help with this:|tell me,|so,|please|"
    r"i would like you to|could you please|can you)\s+",
)
_AFTER = (" thanks.", " thank you!", " thanks in advance.", " please tell me.")
_CONTRACTED = re.compile(r"^(what|who|where)'s\b")
_MARKS = re.compile(r"[^\w\s]+")


def core(question: str) -> str:
    """What is left of a question without the forms of this table, case and punctuation.

    Two questions with the same core ask the same.
    """
    text = " ".join(question.casefold().split())
    start, end = 0, len(text)
    while before := _BEFORE.match(text, start):
        start = before.end()
    while after := next((words for words in _AFTER if text.endswith(words, start, end)), ""):
        end -= len(after)
    return " ".join(_MARKS.sub(" ", _CONTRACTED.sub(r"\1 is", text[start:end])).split())


class Paraphrase:
    """Puts the question another way; system message, context and answer stay as they are.

    A row is left alone unless its question plainly asks (by its first word or a question mark):
    around a text that is to be classified or translated, added words would be a part of it.
    """

    name = "paraphrase"

    def make(self, row: Row, draw: Draw) -> Made | Unfit:
        """The row with one template of the table, another one for each number."""
        path = question_path(row)
        if path is None:
            return Unfit("it has no question of a user")
        text = str(row.value[path[0]][path[1]]["content"])
        span = question_span(text)
        if span is None or not asks(text[slice(*span)]):
            return Unfit("nothing in the user's turn is plainly a question or a request")
        question = text[slice(*span)]
        fitting = [name for name, template in TEMPLATES.items() if template.fits(question)]
        draw.rng.shuffle(fitting)
        if draw.number > len(fitting):
            return Unfit(f"only {len(fitting)} forms fit this question")
        name = fitting[draw.number - 1]
        put = TEMPLATES[name].put(question)
        new = f"{text[: span[0]]}{put}{text[span[1] :]}"
        return Made(remade(row, {path: new}), {"template": name})

    def close(self) -> None:
        """Nothing to give back."""
