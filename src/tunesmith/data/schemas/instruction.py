"""Alpaca's instruction, input and output, with `system` and `history` as LLaMA-Factory has them.

Source: Stanford Alpaca; LLaMA-Factory's data/README.md (`history` is a list of
pairs of an earlier question and its answer).
"""

from __future__ import annotations

from tunesmith.data.rows import Field, RawRow, Row
from tunesmith.data.schemas.cut import CannotHold, Cut
from tunesmith.data.schemas.picked import Options, Picked
from tunesmith.data.schemas.slices import as_field, inner, items_of, listed_as
from tunesmith.data.schemas.turns import text_problems, turn, under_system

__all__ = ["parts_of", "read", "write"]


def read(picked: Picked) -> Row | None:
    """A conversation; `input` follows its instruction after an empty line."""
    asked, answered = picked.text("instruction"), picked.text("output")
    added = picked.text_if_any("input")
    system = picked.text_if_any("system")
    turns = _history(picked)
    tools = picked.tools()
    if picked.failed or asked is None or answered is None:
        return None
    if added is not None:
        asked = as_field(f"{asked.value}\n\n{added.value}")
    turns += [turn("user", asked), turn("assistant", answered)]
    messages = under_system(under_system(listed_as(turns), system), picked.options.system)
    return picked.row("chat", {"messages": messages, **({"tools": tools} if tools else {})})


def parts_of(raw: RawRow, options: Options) -> tuple[Field, Field] | None:
    """A question's `instruction` and `input`, of a row that has both."""
    names = [options.name_in(raw.fields, use) for use in ("instruction", "input")]
    instruction, added = (raw.fields[name] if name else None for name in names)
    return (instruction, added) if instruction and added else None


def _history(picked: Picked) -> list[Field]:
    """Earlier questions and answers as turns."""
    found = picked.take("history")
    if found is None or not found.value:
        return []
    listed, at = inner(found), picked.named("history")
    turns: list[Field] = []
    if listed is None or not isinstance(listed.value, list):
        picked.wrong(f"{at}: not a list of questions with their answers")
        return []
    for index, item in enumerate(items_of(listed.raw)):
        if not isinstance(item.value, list) or len(item.value) != 2:
            picked.wrong(f"{at}[{index}]: not a list of a question and its answer")
            continue
        for place, (role, said) in enumerate(
            zip(("user", "assistant"), items_of(item.raw), strict=True)
        ):
            path = f"{at}[{index}][{place}]"
            picked.all_wrong(f"{path}: {problem}" for problem in text_problems(said.value))
            turns.append(turn(role, said))
    return turns


def write(cut: Cut) -> dict[str, str]:
    """`instruction`, `input`, `output`; `system` and `history` where the row has them.

    `input` is empty unless the question was read in two such parts.
    """
    turns = cut.conversation()
    own: dict[str, str] = {}
    if turns[0].role == "system":
        own["system"] = cut.plain(turns[0]).raw
        turns = turns[1:]
    cut.lose_tools()
    asked, answers = turns[0::2], turns[1::2]
    if any(one.role != "user" for one in asked) or any(one.role != "assistant" for one in answers):
        raise CannotHold("its turns are not questions and answers in turn")
    pairs = [(cut.plain(q).raw, cut.plain(a).raw) for q, a in zip(asked, answers, strict=True)]
    if len(pairs) > 1:
        own["history"] = f"[{', '.join(f'[{q}, {a}]' for q, a in pairs[:-1])}]"
    question, answer = pairs[-1]
    added = '""'
    if cut.parts is not None:
        first, second = cut.parts
        if cut.plain(asked[-1]).value == f"{first.value}\n\n{second.value}":
            question, added = first.raw, second.raw
    return {"instruction": question, "input": added, "output": answer, **own}
