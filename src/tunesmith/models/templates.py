"""Which of a tokenizer's chat templates conversations are written by, and how."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from tunesmith.errors import ModelError

__all__ = ["with_one_template", "written"]

DEFAULT = "default"
"""The one that transformers takes for conversations without tools."""


def with_one_template(tokenizer: Any) -> tuple[Any, tuple[str, ...]]:
    """The tokenizer with the template that conversations are written by, and the names of its others.

    Several come as a list in `tokenizer_config.json` or as files in `additional_chat_templates/`.

    Raises:
        ModelError: none of several is the default.
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, Mapping) or not templates:
        return tokenizer, ()
    names = sorted(map(str, templates))
    if DEFAULT not in templates:
        raise ModelError(
            f"the model's tokenizer has several chat templates and none is the default: {', '.join(names)}",
            why="which of them conversations are written by is not said",
            fix="copy the model's folder, write the text of one into chat_template.jinja there, and name the copy",
        )
    one = copy.copy(tokenizer)
    one.chat_template = templates[DEFAULT]
    return one, tuple(name for name in names if name != DEFAULT)


def written(tokenizer: Any, messages: Sequence[Mapping[str, Any]], for_answer: bool) -> str:
    """A conversation as the tokenizer's template writes it, run in this process and without limits."""
    return str(
        tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=for_answer,
        )
    )
