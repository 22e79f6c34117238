"""Binary feedback: a prompt, an answer, and whether it was good.

Source: TRL's "Dataset formats and types" (unpaired preference).
"""

from __future__ import annotations

from tunesmith.data.rows import Field, Row
from tunesmith.data.schemas.completion import prompt_and
from tunesmith.data.schemas.cut import CannotHold, Cut
from tunesmith.data.schemas.picked import Picked
from tunesmith.data.schemas.turns import under_system
from tunesmith.errors import counted

__all__ = ["label_of", "read", "verdict_of", "write", "write_texts"]


def label_of(value: object) -> bool | None:
    """A label that is true or false, or spells it as tables do; None for any other."""
    if isinstance(value, bool):
        return value
    spelled = {"true": True, "false": False}
    return spelled.get(value.strip().casefold()) if isinstance(value, str) else None


def verdict_of(value: object) -> bool | None:
    """As `label_of`, for rows that are known to be feedback: 1 and 0 say it as well."""
    spelled = str(value).strip() if isinstance(value, int | str) else ""
    return {"1": True, "0": False}.get(spelled, label_of(value))


def read(picked: Picked) -> Row | None:
    """A prompt, one turn of the assistant, and its label."""
    found = prompt_and(picked, "completion")
    label = picked.need("label")
    tools = picked.tools()
    if found is not None and len(found[1].value) != 1:
        picked.wrong(
            f"{picked.named('completion')}: {counted(len(found[1].value), 'turn')}; "
            "it must be one turn of the assistant"
        )
    good = verdict_of(label.value) if label else None
    if label is not None and good is None:
        picked.wrong(f"{picked.named('label')}: {label.value!r} is neither true nor false, 1 nor 0")
    if found is None or good is None or picked.failed:
        return None
    parts = {
        "prompt": under_system(found[0], picked.options.system),
        "completion": found[1],
        "label": Field(good, "", "true" if good else "false"),
        **({"tools": tools} if tools else {}),
    }
    return picked.row("feedback", parts)


def write(cut: Cut) -> dict[str, str]:
    """Two lists of turns and the label."""
    if cut.row.kind == "feedback":
        names = ("prompt", "completion", "label")
        own = {name: cut.fields[name].raw for name in names}
    elif cut.row.kind == "pair":
        cut.lose("rejected")
        own = {"prompt": cut.fields["prompt"].raw, "completion": cut.fields["chosen"].raw}
        own["label"] = "true"
    else:
        raise CannotHold("nothing says whether its answer is good")
    return {**own, **({"tools": cut.tools.raw} if cut.tools else {})}


def write_texts(cut: Cut) -> dict[str, str]:
    """Two texts and the label."""
    own = write(cut)
    cut.lose_tools()
    answer = cut.turns("completion" if cut.row.kind == "feedback" else "chosen")[0]
    return {
        "prompt": cut.single_question(cut.turns("prompt")).raw,
        "completion": cut.plain(answer).raw,
        "label": own["label"],
    }
