"""In which forms the model leaves, and how close each must be."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, Strict

from tunesmith.config.base import Settings

__all__ = ["FORMS", "ExportConfig", "Form"]

Form = Literal["adapter", "merged", "gguf-f16", "gguf-q8_0"]
FORMS: tuple[Form, ...] = get_args(Form)


class ExportConfig(Settings):
    """Run to a sealed bundle."""

    forms: Annotated[tuple[Form, ...], Strict(False)] | None = Field(None, min_length=1)
    """What to write; all when not set (`adapter` only after an adapter method)."""
    parity_prompts: int = Field(24, ge=1)
    """Test prompts on which every form is compared with base + adapter."""
    parity_tokens: int = Field(32, ge=1)
    """Tokens of each reference answer that are compared."""
    min_greedy_agreement: float = Field(0.99, gt=0, le=1)
    """Least share of positions with the same most likely token, for unquantised forms; below it the export fails."""
    min_greedy_agreement_quantised: float = Field(0.97, gt=0, le=1)
    """The same for quantised forms such as `gguf-q8_0`."""
