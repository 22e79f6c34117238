"""Prompt and completion: two texts, or two lists of turns.

Source: TRL's "Dataset formats and types" (prompt-completion, standard and conversational).
"""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.data.rows import Field, Row
from tunesmith.data.schemas.cut import CannotHold, Cut, Turn, joined
from tunesmith.data.schemas.picked import Picked
from tunesmith.data.schemas.slices import fields_of, items_of, listed_as, object_of
from tunesmith.data.schemas.turns import conversation_problems, under_system

__all__ = ["both_problems", "prompt_and", "read", "write", "write_turns"]

_UNLEARNED = Field(0, '"weight"', "0")


def read(picked: Picked) -> Row | None:
    """A conversation in which the completion alone is learned.

    The assistant's turns of a prompt get OpenAI's `weight` 0, which says the same of a turn.
    """
    found = prompt_and(picked, "completion")
    tools = picked.tools()
    if found is None or picked.failed:
        return None
    prompt, completion = found
    if any(one["role"] == "assistant" for one in prompt.value):
        prompt = listed_as(map(_unlearned, items_of(prompt.raw)))
    messages = _together(under_system(prompt, picked.options.system), completion)
    return picked.row("chat", {"messages": messages, **({"tools": tools} if tools else {})})


def _together(first: Field, second: Field) -> Field:
    """Two lists as one, each item with its exact characters."""
    raw = f"{first.raw[:-1].rstrip()}, {second.raw[1:].lstrip()}"
    return Field([*first.value, *second.value], "", raw)


def _unlearned(item: Field) -> Field:
    if item.value["role"] != "assistant" or "weight" in item.value:
        return item
    return object_of({**fields_of(item.raw), "weight": _UNLEARNED})


def prompt_and(picked: Picked, use: str) -> tuple[Field, Field] | None:
    """The turns of the prompt and of its answer, checked as one conversation."""
    prompt = picked.turns_or_text("prompt", "user")
    answer = picked.turns_or_text(use, "assistant")
    if prompt is None or answer is None:
        return None
    at, name = picked.named("prompt"), picked.named(use)
    problems = list(both_problems(prompt, answer, at, name))
    picked.all_wrong(problems)
    return None if problems else (prompt, answer)


def both_problems(prompt: Field, answer: Field, at: str, name: str) -> Iterator[str]:
    """What is wrong with a prompt and its answer as one conversation; paths as in the file."""
    n_turns = len(prompt.value)
    for problem in conversation_problems([*prompt.value, *answer.value], "messages"):
        path, colon, text = problem.partition(":")
        if not path.startswith("messages["):
            yield f"{name}{colon}{text}"
            continue
        index, rest = path.removeprefix("messages[").split("]", 1)
        here, place = (at, int(index)) if int(index) < n_turns else (name, int(index) - n_turns)
        yield f"{here}[{place}]{rest}{colon}{text}"


def write(cut: Cut) -> dict[str, str]:
    """Two texts."""
    prompt, completion = cut.question_and_answer()
    return {"prompt": prompt.raw, "completion": completion.raw}


def _is_learned(one: Turn) -> bool:
    return one.role == "assistant" and one.whole.value.get("weight") != 0


def write_turns(cut: Cut) -> dict[str, str]:
    """Two lists of turns: all up to the last of the user, and what follows it."""
    turns = cut.conversation()
    last = max(place for place, one in enumerate(turns) if one.role == "user")
    prompt, completion = turns[: last + 1], turns[last + 1 :]
    if not any(map(_is_learned, completion)):
        raise CannotHold("its last answer has weight 0, and a completion is learned")
    if any(map(_is_learned, prompt)):
        cut.lose("learning of earlier answers")
    own = {"prompt": joined(prompt), "completion": joined(completion)}
    return {**own, **({"tools": cut.tools.raw} if cut.tools else {})}
