"""Lengths and masks of rows in tokens of the chosen model, as training will see them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith.data.check.finding import Finding, finding, shortened
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.check.turns import said
from tunesmith.data.rows import Row
from tunesmith.errors import (
    ArtifactError,
    EnvironmentProblem,
    MissingError,
    ModelError,
    StorageError,
    counted,
)

if TYPE_CHECKING:
    from tunesmith.config import ModelConfig
    from tunesmith.models.chat import ChatRenderer, Size

__all__ = ["Masks", "TokenMeter", "meter_of", "offline_meter"]

Turn = Mapping[str, Any]
_LOW_TRAINED_SHARE = 0.02
_MIN_STOPPED_SHARE = 0.99


def meter_of(model: ModelConfig) -> TokenMeter:
    """A meter with the tokenizer of a recipe's base model.

    Raises:
        EnvironmentProblem: the packages that read tokenizers are not installed.
        MissingError, ModelError: the model cannot be had, or has no usable tokenizer.
    """
    try:
        from tunesmith.models.chat import ChatRenderer
        from tunesmith.models.load import load_tokenizer, resolve_base, tokenizer_on_disk

        found = tokenizer_on_disk(model)
        if found is None:
            base = resolve_base(model)
            found = load_tokenizer(base), base.name
        tokenizer, name = found
        return TokenMeter(ChatRenderer(tokenizer), name)
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"checks in tokens need the package {error.name!r}, which is not installed",
            fix="pip install 'tunesmith[train]', or leave them out with --no-model",
        ) from error


def offline_meter(model: ModelConfig) -> TokenMeter | str:
    """A meter with the tokenizer of a recipe's base model if nothing must be fetched for it; else
    why there is none."""
    try:
        from tunesmith.models.chat import ChatRenderer
        from tunesmith.models.load import tokenizer_on_disk

        found = tokenizer_on_disk(model)
        if found is None:
            return f"{model.base} is not on this disk yet: training downloads it"
        tokenizer, name = found
        return TokenMeter(ChatRenderer(tokenizer), name)
    except ModuleNotFoundError as error:
        return f"the package {error.name!r} is not installed"
    except (ArtifactError, EnvironmentProblem, MissingError, ModelError, StorageError) as error:
        return error.what


@dataclass
class Masks:
    """Sums over the rows that were measured; parts of a dataset add up by `merge`."""

    n_rows: int = 0
    n_tokens: int = 0
    n_trained: int = 0
    n_unstopped: int = 0

    def merge(self, other: Masks) -> None:
        """Add another part's sums."""
        self.n_rows += other.n_rows
        self.n_tokens += other.n_tokens
        self.n_trained += other.n_trained
        self.n_unstopped += other.n_unstopped

    def findings(self, options: CheckOptions) -> Iterator[Finding]:
        """What share of the tokens is learned, and whether answers learn to stop."""
        if not self.n_tokens:
            return
        share = self.n_trained / self.n_tokens
        what = f"{share:.1%} of {counted(self.n_tokens, 'token')} are learned, the rest is prompt"
        found = finding(options.name, "trained-tokens", what)
        low = share < _LOW_TRAINED_SHARE
        yield found if low else replace(found, severity="note", fix="")
        if self.n_unstopped > (1 - _MIN_STOPPED_SHARE) * self.n_rows:
            what = f"{self.n_unstopped:,} of {counted(self.n_rows, 'row')} without a stop token to learn"
            yield finding(options.name, "stop-token", what)


class TokenMeter:
    """Measures rows with one model's renderer.

    Attributes:
        name: of the model.
    """

    def __init__(self, renderer: ChatRenderer, name: str) -> None:
        self._renderer = renderer
        self.name = name

    def measure(
        self, rows: Sequence[Row], masks: Masks, options: CheckOptions
    ) -> list[tuple[int, list[Finding]]]:
        """Each row's length in tokens, prompt and answer together, and findings about it.

        All rows are of one kind. Of a pair the longer of its two conversations counts. Sums go to
        `masks`. The length is 0 where the model's template refuses the row, which is a finding.
        """
        rendered = [turns for row in rows for turns in _conversations(row) if _is_plain(turns, row)]
        for_answer = any(row.kind == "problem" for row in rows)
        sizes = iter(self._renderer.measure(rendered, for_answer=for_answer))
        return [self._of_row(row, sizes, masks, options) for row in rows]

    def _of_row(
        self, row: Row, sizes: Iterator[Size | ModelError], masks: Masks, options: CheckOptions
    ) -> tuple[int, list[Finding]]:
        parts = _conversations(row)
        known = [next(sizes) if _is_plain(turns, row) else None for turns in parts]
        try:
            lengths = [
                self._one(turns, row, masks, size) for turns, size in zip(parts, known, strict=True)
            ]
        except ModelError as error:
            what = f"{self.name}: {error.what}"
            return 0, [finding(row.where, "template", what[:300], fix=error.fix)]
        n_tokens = max(lengths)
        return n_tokens, list(self._too_long(row, n_tokens, options))

    def _one(
        self, turns: Sequence[Turn], row: Row, masks: Masks, size: Size | ModelError | None
    ) -> int:
        masks.n_rows += 1
        if isinstance(size, ModelError):
            raise size
        if size is not None:
            n_tokens = size.n_tokens
            masks.n_trained += size.n_trained
            masks.n_unstopped += not size.stops and row.kind != "problem"
        elif not turns:
            n_tokens = len(self._plain(str(row.value["text"])))
            masks.n_trained += n_tokens
        else:
            n_tokens = self._with_tools(turns, row)
            masks.n_trained += len(self._plain(said(turns[-1])))
        if row.kind != "problem":  # whose answer is compared with, not learned
            masks.n_tokens += n_tokens
        return n_tokens

    def _plain(self, text: str) -> Sequence[int]:
        ids: Sequence[int] = self._renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _with_tools(self, turns: Sequence[Turn], row: Row) -> int:
        """Length of a conversation with calls of tools, by the model's own template."""
        from jinja2.exceptions import TemplateError

        try:
            text = self._renderer.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns], tools=list(row.tools) or None, tokenize=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ModelError(
                f"the model's chat template refuses the conversation: {error}",
                fix="use a model whose template knows tools",
            ) from error
        return len(self._plain(str(text)))

    def _too_long(self, row: Row, n_tokens: int, options: CheckOptions) -> Iterator[Finding]:
        if n_tokens <= options.max_row_tokens:
            return
        then = {
            "refuse": "training refuses it",
            "drop": "training drops it",
            "cut_prompt": "training cuts its prompt from the left",
        }[options.on_long_row]
        found = finding(
            row.where,
            "truncation",
            f"{counted(n_tokens, 'token')}, more than train.max_row_tokens={options.max_row_tokens}: {then}",
            value=shortened(row.question or row.answer),
            fix=f"shorten the row, or --set train.max_row_tokens={n_tokens}",
        )
        yield found if options.on_long_row == "refuse" else replace(found, severity="warning")


def _is_plain(turns: Sequence[Turn], row: Row) -> bool:
    """Whether the renderer knows all of a conversation: turns of text, and no tools."""
    if not turns or row.tools:
        return False
    return all(isinstance(turn.get("content"), str) for turn in turns)


def _conversations(row: Row) -> list[Sequence[Turn]]:
    if row.kind == "pair":
        prompt = tuple(row.value["prompt"])
        return [(*prompt, *row.value["chosen"]), (*prompt, *row.value["rejected"])]
    return [row.messages]
