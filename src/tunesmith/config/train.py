"""How the model is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from tunesmith.config.base import Settings

__all__ = [
    "DpoObjective",
    "FullMethod",
    "LoraMethod",
    "OptimizerConfig",
    "QloraMethod",
    "SftObjective",
    "TrainConfig",
]


class SftObjective(Settings):
    """Supervised fine-tuning: cross-entropy on the assistant's tokens and the stop token."""

    kind: Literal["sft"] = "sft"


class DpoObjective(Settings):
    """Direct preference optimisation on pairs of answers (Rafailov et al. 2023, arXiv 2305.18290)."""

    kind: Literal["dpo"]
    beta: float = Field(0.1, gt=0)
    """How closely the model stays to where it started: a larger beta lets it move less for the same margin."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs taken to be the wrong way round (Mitchell 2023); for data with mistakes."""


class AdapterMethod(Settings):
    """What the methods that train low-rank adapters have in common."""

    kind: Literal["lora", "qlora"]
    rank: int = Field(16, ge=1, le=1024)
    """Rank of each adapter: more learns more and costs more memory."""
    alpha: float = Field(32.0, gt=0)
    """Scale: an adapter's output is multiplied by alpha / rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Strict(False)] = "all-linear"
    """Linear layers that get an adapter, by the last part of their names; `all-linear` is all but the head."""
    layers: int | None = Field(None, ge=1)
    """Adapters only in this many decoder layers from the top; all when not set. Fewer train faster and learn less."""


class LoraMethod(AdapterMethod):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on frozen weights."""

    kind: Literal["lora"] = "lora"


class QloraMethod(AdapterMethod):
    """Low-rank adapters on frozen weights in 4 bits (Dettmers et al. 2023, arXiv 2305.14314)."""

    kind: Literal["qlora"]
    double_quant: bool = True
    """Keep the blocks' scales in 8 bits too: 4.13 instead of 4.5 bits a weight, at a block size of 64."""
    block_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64
    """Neighbouring weights that share one scale: fewer are closer to the original and take more memory."""


class FullMethod(Settings):
    """All weights are trained."""

    kind: Literal["full"]


class OptimizerConfig(Settings):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) and its schedule."""

    kind: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit` keeps both moments in 8 bits (Dettmers et al. 2022, arXiv 2110.02861): a quarter of the memory."""
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
    max_grad_norm: float | None = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm when they exceed it; null never scales."""
    in_backward: Literal["auto", "on", "off"] = "auto"
    """Use and drop each gradient inside the backward pass. `auto`: for `full`, one micro batch a step, no clipping."""


class TrainConfig(Settings):
    """Dataset and base model to a sealed run."""

    objective: Annotated[SftObjective | DpoObjective, Field(discriminator="kind")] = SftObjective()
    """What is minimised."""
    method: Annotated[LoraMethod | QloraMethod | FullMethod, Field(discriminator="kind")] = (
        LoraMethod()
    )
    """Which weights are trained."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """AdamW's settings."""
    epochs: float = Field(3.0, gt=0)
    """Passes over the training rows. A part of an epoch is allowed."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps, even if `epochs` asks for more."""
    batch_tokens: int = Field(2_048, ge=16)
    """Positions per optimizer step, a whole number of `micro_batch_tokens`; what rows share in one counts once."""
    micro_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=16)] = "auto"
    """Tokens a forward pass. `auto`: the smallest within 5 % (QLoRA: 25 %) of the fastest here that fits in memory."""
    memory_gib: float | None = Field(None, gt=0)
    """Memory of the process. Not set: nine tenths of what is free (or left of a container's limit), and what it has."""
    activation_checkpointing: Literal["auto", "off"] | Annotated[int, Field(ge=1)] = "auto"
    """Trained layers that the backward pass computes again: as few as fit in memory (`auto`), none, or a number."""
    fit: bool = False
    """Lower settings one by one, printing each, until a step fits by the memory formula and as measured."""
    max_row_tokens: int = Field(2_048, ge=8)
    """Longest row in tokens, prompt and answer together."""
    on_long_row: Literal["refuse", "drop", "cut_prompt"] = "refuse"
    """What happens to longer rows. `cut_prompt` shortens the user's messages from the left; an answer is never cut."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of forward and backward pass; `auto` takes bf16 where it is at least 1.2 times as fast."""
    threads: int | None = Field(None, ge=1)
    """CPU threads. Not set: the fewest of 1, physical, logical cores within 5 % of the fastest; else physical."""
    fast: bool = True
    """Use the fused paths. Off: the plain path, slower, the same result within rounding."""
    trunk_cache: Literal["auto", "ram", "disk", "off"] = "auto"
    """Where the output of the frozen lower layers is kept once computed; `auto`: memory, else disk, if it fits."""
    token_cache_gib: float = Field(2.0, ge=0)
    """Space in the user's cache folder for tokens of rows; those not used for longest go. 0: no cache is used."""
    validate_every_steps: int | None = Field(None, ge=1)
    """Steps between two measurements of the validation loss; about eight in a run when not set."""
    sample_every_steps: int | None = Field(None, ge=1)
    """Steps between two prints of sample answers; about three in a run when not set."""
    sample_rows: int = Field(2, ge=0, le=20)
    """Validation prompts that are answered at each print; 0 prints none."""
    checkpoint_every_steps: int | None = Field(None, ge=1)
    """Steps between two checkpoints; about ten in a run when not set."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept while training, beside the one of the best validation loss."""
    keep: Literal["last", "best"] = "last"
    """Weights that are sealed: after the last step, or of the best validation loss (against too many epochs)."""
