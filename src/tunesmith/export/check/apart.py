"""`ChatRenderer` on a template that nobody has tried yet: what it writes comes out of the limited child."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.export.check.sandbox import Order, Written, write_all
from tunesmith.models.chat import probe_conversations
from tunesmith.models.templates import with_one_template

__all__ = ["refuse_endless_template", "write_apart"]

MOST_TEXT = 1 << 17
"""Characters of a probe: its tokens are looked at one by one."""
_FIX = "use the template of the model that it was trained from"

_Key = tuple[str, bool]


def write_apart(tokenizer: Any, messages: Sequence[Mapping[str, Any]], for_answer: bool) -> str:
    """A conversation as the template writes it, for `ChatRenderer`; the template never runs in this process.

    Raises:
        jinja2.TemplateError: the template refuses the conversation.
        ModelError: it takes too much time or memory, or writes too much.
        EnvironmentProblem: jinja2 is not installed.
    """
    from jinja2.exceptions import TemplateError

    template, special = _given(tokenizer)
    key = _key(messages, for_answer)
    known = _probes_written(template, special)
    if key not in known:
        known = _written(template, special, [(messages, for_answer)])
    text, reason = known[key]
    if text is None:
        raise TemplateError(reason)
    if len(text) > MOST_TEXT:
        raise ModelError(
            f"the model's chat template writes {len(text):,} characters for {len(messages)} short turns",
            why=f"{MOST_TEXT:,} is the most",
            fix=_FIX,
        )
    return text


def refuse_endless_template(tokenizer: Any, place: Path) -> None:
    """Before `ChatRenderer` runs a foreign template in this process: once in the limited child.

    A template that behaves there may do otherwise on other conversations.

    Raises:
        ModelError: it cannot be rendered within the child's limits; or none of several is the default.
        EnvironmentProblem: jinja2 is not installed.
    """
    one, _ = with_one_template(tokenizer)
    if not one.chat_template:
        return
    try:
        _probes_written(*_given(one))
    except ModelError as error:
        raise ModelError(f"{place}: {error.what}", why=error.why, fix=error.fix) from error


def _given(tokenizer: Any) -> tuple[str, str]:
    special = {name: _plain(value) for name, value in tokenizer.special_tokens_map.items()}
    return str(tokenizer.chat_template), json.dumps(special)


def _plain(value: Any) -> Any:
    """Tokens as the texts that templates see."""
    return [str(one) for one in value] if isinstance(value, list | tuple) else str(value)


def _key(messages: Sequence[Mapping[str, Any]], for_answer: bool) -> _Key:
    return json.dumps([dict(message) for message in messages]), for_answer


@lru_cache(maxsize=8)
def _probes_written(template: str, special: str) -> Mapping[_Key, Written]:
    probes = [
        (messages, opening) for messages in probe_conversations() for opening in (False, True)
    ]
    return _written(template, special, probes)


def _written(template: str, special: str, orders: Sequence[Order]) -> dict[_Key, Written]:
    found = write_all(template, json.loads(special), orders)
    if isinstance(found, str):
        raise ModelError(
            f"the model's chat template cannot be rendered: {found}",
            why="a template is a program, and this one would hold up whatever asks the model",
            fix=_FIX,
        )
    return {_key(*order): one for order, one in zip(orders, found, strict=True)}
