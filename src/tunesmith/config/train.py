"""How the model is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from tunesmith.config.base import Settings

__all__ = ["FullMethod", "LoraMethod", "OptimizerConfig", "SftObjective", "TrainConfig"]


class SftObjective(Settings):
    """Supervised fine-tuning: cross-entropy on the assistant's tokens and the stop token."""

    kind: Literal["sft"] = "sft"


class LoraMethod(Settings):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on frozen weights."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, le=1024)
    """Rank of each adapter: more learns more and costs more memory."""
    alpha: float = Field(32.0, gt=0)
    """Scale: an adapter's output is multiplied by alpha / rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Strict(False)] = "all-linear"
    """Linear layers that get an adapter, by the last part of their names; `all-linear` is all but the head."""


class FullMethod(Settings):
    """All weights are trained."""

    kind: Literal["full"]


class OptimizerConfig(Settings):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) and its schedule."""

    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate. About 1e-3 for LoRA on a small model, 2e-5 for full fine-tuning."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear end at zero."""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm when they exceed it."""


class TrainConfig(Settings):
    """Dataset and base model to a sealed run."""

    objective: SftObjective = SftObjective()
    """What is minimised."""
    method: Annotated[LoraMethod | FullMethod, Field(discriminator="kind")] = LoraMethod()
    """Which weights are trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW's settings."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows. A part of an epoch is allowed."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, even if `epochs` asks for more."""
    batch_tokens: int = Field(2_048, ge=16)
    """Tokens per optimizer step, over all micro batches. A whole number of `micro_batch_tokens`."""
    micro_batch_tokens: int = Field(1_024, ge=16)
    """Tokens per forward pass on one device. Lower it first when memory runs out."""
    max_row_tokens: int = Field(2_048, ge=8)
    """Longest row in tokens, prompt and answer together."""
    on_long_row: Literal["refuse", "drop", "cut_prompt"] = "refuse"
    """What happens to longer rows. `cut_prompt` shortens the user's messages from the left; an answer is never cut."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the forward and backward pass; `auto` takes the faster by a short measurement."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; the number of physical cores when not set."""
    fast: bool = True
    """Use the fused paths. Off: the plain path, slower, the same result within rounding."""
    validate_every_steps: int | None = Field(None, ge=1)
    """Steps between two measurements of the validation loss; about eight in a run when not set."""
    sample_every_steps: int | None = Field(None, ge=1)
    """Steps between two prints of sample answers; about three in a run when not set."""
    sample_rows: int = Field(2, ge=0, le=20)
    """Validation prompts that are answered at each print; 0 prints none."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints; about ten in a run when not set."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept."""
