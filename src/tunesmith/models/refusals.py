"""What transformers, tokenizers and their Rust parts raise on a model's odd or damaged files, as one error of ours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tunesmith.errors import ModelError, reason_of

__all__ = ["REFUSALS", "encoding", "refuse_odd_length", "refuse_silent", "refuse_unfit", "refusing"]

REFUSALS: tuple[type[Exception], ...] = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(AssertionError, ArithmeticError, ImportError),
)
"""Raised when a file's value is not of the form that the library reads; `refusing` knows more."""

_MOST_REASON = 300
_TEXTS = ("Hi", "2 + 2?", "Ünïcode: 你好")


@contextmanager
def refusing(what: str, fix: str) -> Iterator[None]:
    """Around a library's call that reads a model's files, and nothing else.

    The tokenizers package raises `Exception` itself; where its Rust code panics, an exception that is
    no `Exception`.

    Raises:
        ModelError: the library refuses the files; its reason is the error's `why`.
    """
    try:
        yield
    except BaseException as error:
        if not _is_refusal(error):
            raise
        raise ModelError(what, why=reason_of(error), fix=fix) from error


def _is_refusal(error: BaseException) -> bool:
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    kind = type(error)
    return (
        isinstance(error, (*REFUSALS, StrictDataclassError, SafetensorError))
        or kind is Exception
        or (kind.__module__, kind.__name__) == ("pyo3_runtime", "PanicException")
    )


def encoding() -> AbstractContextManager[None]:
    """`refusing` around a tokenizer's work on a text."""
    return refusing(
        "the model's tokenizer cannot cut a text into tokens",
        "restore its tokenizer.json and tokenizer_config.json from where the model came from",
    )


def refuse_unfit(tokenizer: Any) -> None:
    """Refuse a tokenizer that no conversation can be rendered with.

    Raises:
        ModelError: no chat template, no end-of-sequence token, not a fast one, or no tokens.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "the model's tokenizer has no chat template",
            why="a base model that was never taught to chat has none",
            fix="use the instruct version of the model",
        )
    if tokenizer.eos_token_id is None:
        raise ModelError("the model's tokenizer has no end-of-sequence token")
    if not tokenizer.is_fast:
        raise ModelError(
            "the model's tokenizer does not tell where each token starts",
            why="it is not a fast tokenizer",
            fix="use a model that has a tokenizer.json",
        )
    refuse_odd_length(tokenizer)
    refuse_silent(tokenizer)


def refuse_odd_length(tokenizer: Any) -> None:
    """Refuse a tokenizer that would compare each text's length with no number.

    Raises:
        ModelError: its `model_max_length` is none.
    """
    length = tokenizer.model_max_length
    if type(length) not in (int, float) or not math.isfinite(length):
        raise ModelError(
            f"the tokenizer's model_max_length is {length!r}"[:_MOST_REASON],
            why="the length of each text is compared with it, and it is no number",
            fix="set model_max_length in tokenizer_config.json to the model's context in tokens",
        )


def refuse_silent(tokenizer: Any) -> None:
    """Refuse a tokenizer that makes nothing of any text.

    Raises:
        ModelError: it makes no tokens, or cannot cut a text at all.
    """
    with encoding():
        made = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in _TEXTS]
    if not any(made):
        raise ModelError(
            "the model's tokenizer makes no tokens of a text",
            why=f"of {', '.join(map(repr, _TEXTS))} nothing is left: the model would be asked nothing",
            fix="restore its tokenizer.json from where the model came from",
        )
