"""In which forms the model leaves, and how close each must be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, Strict

from tunesmith.config.base import Settings

__all__ = ["DEFAULT_FORMS", "FORMS", "ExportConfig", "Form", "LimitConfig"]

Form = Literal[
    "adapter",
    "merged",
    "gguf-f16",
    "gguf-bf16",
    "gguf-q8_0",
    "gguf-q6_k",
    "gguf-q5_k_m",
    "gguf-q4_k_m",
    "gguf-q4_0",
    "gguf-lora",
    "onnx",
    "torchao-int8",
    "torchao-int4",
    "bnb-int8",
    "bnb-nf4",
    "awq",
    "gptq",
    "pruned",
]
FORMS: tuple[Form, ...] = get_args(Form)
DEFAULT_FORMS: tuple[Form, ...] = ("adapter", "merged", "gguf-f16", "gguf-q8_0")
"""What is written when a recipe does not say."""


class LimitConfig(Settings):
    """How far one form may be from the trained model; what is not set has the form's own default."""

    greedy_agreement: float | None = Field(None, ge=0, le=1)
    """Least share of positions with the same most likely token."""
    mean_kl: float | None = Field(None, ge=0)
    """Largest mean KL(trained model || form), in nats."""
    perplexity_ratio: float | None = Field(None, ge=1)
    """Largest factor, either way, between the perplexity of your rows' answers and the trained model's."""
    max_abs_dlogit: float | None = Field(None, ge=0)
    """Largest difference of one logit; for forms whose engine gives all logits."""


class ExportConfig(Settings):
    """Run to a sealed bundle."""

    forms: Annotated[tuple[Form, ...], Strict(False)] | None = Field(None, min_length=1)
    """What to write; when not set: `merged`, `gguf-f16`, `gguf-q8_0`, and `adapter` after an adapter method."""
    parity_prompts: int = Field(24, ge=1)
    """Test prompts on which every form is compared with base + adapter."""
    parity_tokens: int = Field(32, ge=1)
    """Tokens of each reference answer, and of each of your answers, that are compared."""
    limits: Mapping[Form, LimitConfig] = Field(default_factory=dict)
    """Form -> the limits that replace its defaults; beyond one the export fails and seals nothing."""
    signing_key: str | None = Field(None, json_schema_extra={"path": "always"})
    """Private key (PEM, elliptic) that the sealed bundle is signed with; see `tunesmith sign --new-key`."""
    calibration_rows: int = Field(64, ge=1)
    """Training rows that forms with a calibration are made with."""
    prune_layers: int | None = Field(None, ge=1)
    """Layers that the form `pruned` leaves out; when not set: one in eight."""
    importance: bool = True
    """Weigh the columns of Q6_K, Q5_K_M, Q4_K_M and Q4_0 by what your rows send there: usually closer, slower."""
