"""Problems: a prompt with an answer that can be checked; the assistant's turn is yet to be made.

Source: TRL's "Dataset formats and types" (prompt-only, with the columns that reward functions read).
"""

from __future__ import annotations

from tunesmith.data.rows import Row
from tunesmith.data.schemas.cut import Cut, Turn, joined
from tunesmith.data.schemas.picked import Picked
from tunesmith.data.schemas.turns import conversation_problems, under_system

__all__ = ["read", "write", "write_texts"]


def read(picked: Picked) -> Row | None:
    """A prompt, as a text or turns, and any JSON value as its answer."""
    prompt = picked.turns_or_text("prompt", "user")
    answer = picked.need("answer")
    if prompt is not None:
        picked.all_wrong(conversation_problems(prompt.value, picked.named("prompt"), ends="other"))
    if answer is not None and (answer.value is None or answer.value == ""):
        picked.wrong(f"{picked.named('answer')}: empty")
    tools = picked.tools()
    if prompt is None or answer is None or picked.failed:
        return None
    parts = {"prompt": under_system(prompt, picked.options.system), "answer": answer}
    return picked.row("problem", {**parts, **({"tools": tools} if tools else {})})


def write(cut: Cut) -> dict[str, str]:
    """The turns of the prompt, and the answer."""
    prompt, answer = _parts(cut)
    own = {"prompt": joined(prompt), "answer": answer}
    if cut.row.kind != "chat":
        own["prompt"] = cut.fields["prompt"].raw
    return {**own, **({"tools": cut.tools.raw} if cut.tools else {})}


def write_texts(cut: Cut) -> dict[str, str]:
    """The prompt as a text, and the answer."""
    prompt, answer = _parts(cut)
    cut.lose_tools()
    return {"prompt": cut.single_question(prompt).raw, "answer": answer}


def _parts(cut: Cut) -> tuple[list[Turn], str]:
    if cut.row.kind == "problem":
        return cut.turns("prompt"), cut.fields["answer"].raw
    turns = cut.conversation()
    return turns[:-1], cut.plain(turns[-1]).raw
