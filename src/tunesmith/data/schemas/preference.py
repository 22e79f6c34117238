"""Pairs: a prompt with a chosen and a rejected answer, in the four forms that are in use.

Source: TRL's "Dataset formats and types" (preference, with an explicit and an implicit prompt);
Anthropic's HH-RLHF for the text form (arXiv 2204.05862).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.data.rows import Field, Row
from tunesmith.data.schemas.completion import both_problems
from tunesmith.data.schemas.cut import CannotHold, Cut, Turn, joined
from tunesmith.data.schemas.picked import Picked
from tunesmith.data.schemas.slices import as_field, items_of, json_text, listed_as
from tunesmith.data.schemas.turns import said_in, turn, under_system
from tunesmith.errors import counted

__all__ = [
    "HUMAN",
    "read",
    "read_hh",
    "read_implicit",
    "write",
    "write_hh",
    "write_implicit",
    "write_texts",
]

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_MARKER = re.compile(r"\n\n(Human|Assistant):[ ]?")


def read(picked: Picked) -> Row | None:
    """A prompt and two answers, as lists of turns or as texts.

    LLaMA-Factory's forms have the prompt in `conversations`, or in `instruction` and `input`.
    """
    prompt = _prompt(picked)
    chosen = picked.turns_or_text("chosen", "assistant")
    rejected = picked.turns_or_text("rejected", "assistant")
    if prompt is None or chosen is None or rejected is None:
        return None
    return _pair(picked, prompt, chosen, rejected)


def _prompt(picked: Picked) -> Field | None:
    """The turns before the answer; `input` alone is a prompt, beside an instruction a part of it."""
    name = picked.options.name_in(picked.raw.fields, "prompt")
    if name not in (None, "input") or not picked.has("instruction"):
        use = "messages" if name is None and picked.has("messages") else "prompt"
        return picked.turns_or_text(use, "user")
    asked, added = picked.text("instruction"), picked.text_if_any("input")
    system = picked.text_if_any("system")
    if asked is None:
        return None
    question = asked if added is None else as_field(f"{asked.value}\n\n{added.value}")
    return under_system(listed_as([turn("user", question)]), system)


def _pair(picked: Picked, prompt: Field, chosen: Field, rejected: Field) -> Row | None:
    picked.all_wrong(_problems(picked, prompt, chosen, rejected))
    tools = picked.tools()
    if picked.failed:
        return None
    parts = {
        "prompt": under_system(prompt, picked.options.system),
        "chosen": chosen,
        "rejected": rejected,
        **({"tools": tools} if tools else {}),
    }
    return picked.row("pair", parts)


def _problems(picked: Picked, prompt: Field, chosen: Field, rejected: Field) -> Iterator[str]:
    """What is wrong with a pair, each with the field's path; what is wrong with a prompt once."""
    at, told = picked.named("prompt"), set[str]()
    for use, answer in (("chosen", chosen), ("rejected", rejected)):
        name = picked.named(use)
        if len(answer.value) != 1:
            yield f"{name}: {counted(len(answer.value), 'turn')}; it must be one turn of the assistant"
            continue
        for problem in both_problems(prompt, answer, at, name):
            if problem not in told:
                told.add(problem)
                yield problem
    are_single = len(chosen.value) == len(rejected.value) == 1
    if are_single and said_in(chosen.value[0]) == said_in(rejected.value[0]):
        yield "chosen and rejected are the same answer, so there is nothing to prefer"


def read_implicit(picked: Picked) -> Row | None:
    """Two whole conversations; what they begin with alike is the prompt.

    A text `prompt` beside them that repeats their last question is left out, as it says nothing
    more.
    """
    chosen, rejected = picked.turns("chosen"), picked.turns("rejected")
    if chosen is None or rejected is None:
        return None
    return _split(picked, chosen, rejected)


def _split(picked: Picked, chosen: Field, rejected: Field) -> Row | None:
    n_shared = 0
    for one, other in zip(chosen.value[:-1], rejected.value[:-1], strict=False):
        if one != other:
            break
        n_shared += 1
    if not n_shared:
        picked.wrong("chosen and rejected begin with different turns, so they share no prompt")
        return None
    first, second = items_of(chosen.raw), items_of(rejected.raw)
    prompt = picked.take("prompt")
    if prompt is not None and prompt.value != chosen.value[n_shared - 1].get("content"):
        picked.leave("prompt")
    return _pair(
        picked,
        listed_as(first[:n_shared]),
        listed_as(first[n_shared:]),
        listed_as(second[n_shared:]),
    )


def read_hh(picked: Picked) -> Row | None:
    """Two texts of `Human:` and `Assistant:` after empty lines; their shared turns are the prompt."""
    chosen, rejected = picked.text("chosen"), picked.text("rejected")
    if chosen is None or rejected is None:
        return None
    turns = [
        _dialogue(picked, use, one.value)
        for use, one in (("chosen", chosen), ("rejected", rejected))
    ]
    if picked.failed:
        return None
    return _split(picked, *turns)


def _dialogue(picked: Picked, use: str, text: str) -> Field:
    marks = list(_MARKER.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        picked.wrong(f"{picked.named(use)}: it does not begin with an empty line and Human:")
        return listed_as([])
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return listed_as(
        turn("user" if mark[1] == "Human" else "assistant", as_field(text[mark.end() : end]))
        for mark, end in zip(marks, ends, strict=True)
    )


def _parts(cut: Cut) -> tuple[list[Turn], Turn, Turn]:
    if cut.row.kind != "pair":
        raise CannotHold("it has one answer, and a pair needs a rejected one too")
    return cut.turns("prompt"), cut.turns("chosen")[0], cut.turns("rejected")[0]


def write(cut: Cut) -> dict[str, str]:
    """Three lists of turns."""
    _parts(cut)
    names = ("prompt", "chosen", "rejected", *(("tools",) if cut.tools else ()))
    return {name: cut.fields[name].raw for name in names}


def write_texts(cut: Cut) -> dict[str, str]:
    """Three texts."""
    prompt, chosen, rejected = _parts(cut)
    cut.lose_tools()
    return {
        "prompt": cut.single_question(prompt).raw,
        "chosen": cut.plain(chosen).raw,
        "rejected": cut.plain(rejected).raw,
    }


def write_implicit(cut: Cut) -> dict[str, str]:
    """Two whole conversations."""
    prompt, chosen, rejected = _parts(cut)
    own = {"chosen": joined([*prompt, chosen]), "rejected": joined([*prompt, rejected])}
    return {**own, **({"tools": cut.tools.raw} if cut.tools else {})}


def write_hh(cut: Cut) -> dict[str, str]:
    """Two texts of `Human:` and `Assistant:`."""
    prompt, chosen, rejected = _parts(cut)
    cut.lose_tools()
    if prompt[0].role == "system":
        cut.lose("system message")
        prompt = prompt[1:]
    shared = "".join(_said(cut, one) for one in prompt)
    return {
        "chosen": json_text(shared + _said(cut, chosen)),
        "rejected": json_text(shared + _said(cut, rejected)),
    }


def _said(cut: Cut, one: Turn) -> str:
    content = cut.plain(one).value
    if one.role not in ("user", "assistant"):
        raise CannotHold(f"it has a turn of {one.role!r}")
    text = f"{HUMAN if one.role == 'user' else ASSISTANT} {content}"
    if len(_MARKER.findall(text)) != 1:
        raise CannotHold(f"a turn of {one.role!r} spells Human: or Assistant: after an empty line")
    return text
