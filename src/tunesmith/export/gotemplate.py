"""A chat template in the Go language that Ollama reads, derived from our renderer and proved on it.

Only templates of ChatML's shape can be derived: each turn is `before + role + between + content +
after`, with the same parts for every role. Go's own rules for them are few: text outside of `{{ }}`
is copied, and an action without trim markers takes no white space with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tunesmith.errors import ModelError
from tunesmith.models.chat import ChatRenderer

__all__ = ["ChatShape", "derive", "evaluate"]

Message = Mapping[str, str]

_S, _U, _A, _V = "Sy5sTem0", "uS3r1", "aN5wer2", "uS3r4"
_PROBES: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hi"},),
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}),
    (
        {"role": "system", "content": " {{ .System }} \n"},
        {"role": "user", "content": "  spaces\tand\n\nlines  "},
        {"role": "assistant", "content": "Ünï 你好 {% raw %}"},
        {"role": "user", "content": '"""quoted""" <b>&amp;</b>'},
    ),
    (
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "user", "content": "e"},
    ),
)


@dataclass(frozen=True)
class ChatShape:
    """The fixed parts of a template of ChatML's shape.

    Attributes:
        lead: written before a conversation whose first turn is not a system message.
        before, between, after: around role and content of each turn.
        opening: begins the answer.
    """

    lead: str
    before: str
    between: str
    after: str
    opening: str

    def as_go(self) -> str:
        """The template in Go's language."""
        lead = (
            '{{ if eq $i 0 }}{{ if ne $m.Role "system" }}' + self.lead + "{{ end }}{{ end }}"
            if self.lead
            else ""
        )
        return (
            "{{ range $i, $m := .Messages }}"
            + lead
            + self.before
            + "{{ $m.Role }}"
            + self.between
            + "{{ $m.Content }}"
            + self.after
            + "{{ end }}"
            + self.opening
        )


def derive(renderer: ChatRenderer) -> tuple[str | None, str]:
    """The Go template and "", or None and why there is none.

    The template is given only when it reproduces the renderer's text on every probe.
    """
    try:
        shape = _shape(renderer)
        if shape is None:
            return None, "its turns are not of one shape for all roles"
        if any("{{" in part or "}}" in part for part in vars(shape).values()):
            return None, "its fixed text holds braces that Go would read as an action"
        go = shape.as_go()
        for probe in _PROBES:
            if evaluate(go, probe) != renderer.render(probe, for_answer=True).text:
                return None, "a Go template of its shape renders some conversations otherwise"
    except ModelError as error:
        return None, f"it refuses a conversation ({error.what.splitlines()[0][:100]})"
    return go, ""


def _shape(renderer: ChatRenderer) -> ChatShape | None:
    turns = [
        {"role": "system", "content": _S},
        {"role": "user", "content": _U},
        {"role": "assistant", "content": _A},
        {"role": "user", "content": _V},
    ]
    whole = renderer.render(turns, for_answer=True).text
    closed = renderer.render(turns).text
    alone = renderer.render(turns[1:2]).text
    found = re.fullmatch(f"(.*){_S}(.*){_U}(.*){_A}(.*){_V}(.*)", closed, re.DOTALL)
    if found is None or not whole.startswith(closed):
        return None
    first, *_, after = found.groups()
    if not all(found[i].startswith(after) for i in (2, 3, 4)):
        return None
    opens = [first, *(found[i].removeprefix(after) for i in (2, 3))]
    before, role, between = first.partition("system")
    if not role or opens != [before + r + between for r in ("system", "user", "assistant")]:
        return None
    tail = f"{before}user{between}{_U}{after}"
    if not alone.endswith(tail):
        return None
    return ChatShape(alone.removesuffix(tail), before, between, after, whole.removeprefix(closed))


_ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)


def evaluate(template: str, messages: Sequence[Message]) -> str:
    """What Go's text/template prints for a template that `ChatShape.as_go` wrote.

    Raises:
        ValueError: the template holds an action that `as_go` does not write.
    """
    head, loop, rest = template.partition("{{ range $i, $m := .Messages }}")
    if not loop or head:
        raise ValueError("the template does not begin with a loop over the messages")
    pieces = _ACTION.split(rest)
    turns = [_turn(pieces, index, message) for index, message in enumerate(messages)]
    return "".join(text for text, _ in turns) + "".join(pieces[turns[0][1] :])


def _turn(pieces: Sequence[str], index: int, message: Message) -> tuple[str, int]:
    """One pass through the loop's body: its text, and where the text after the loop starts."""
    values = {"$m.Role": message["role"], "$m.Content": message["content"]}
    tests = {"if eq $i 0": index == 0, 'if ne $m.Role "system"': message["role"] != "system"}
    out: list[str] = []
    shown = [True]
    for position, piece in enumerate(pieces):
        if position % 2 == 0:
            out.append(piece if all(shown) else "")
        elif piece in values:
            out.append(values[piece] if all(shown) else "")
        elif piece in tests:
            shown.append(tests[piece])
        elif piece == "end":
            shown.pop()
            if not shown:
                return "".join(out), position + 1
        else:
            raise ValueError(f"the template holds the action {piece!r}, which is not known here")
    raise ValueError("the template's loop has no end")
