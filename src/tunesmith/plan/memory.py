"""How much memory training takes, computed from a model's shape.

With P parameters of w bytes, A adapter parameters, T tokens per forward pass (`micro_batch_tokens`),
L layers of hidden size d, feed-forward size f, query width q and key/value width k, vocabulary V,
H heads, rows of S tokens, and activations of a bytes:

    weights      = P w                       (LoRA: frozen, w = 2 in bf16, 4 in fp32)
    trainable    = A 4            LoRA       fp32 adapters; nothing more in full fine-tuning
    gradients    = A 4            LoRA       P w            full
    optimizer    = A 8            LoRA       P 2 w          full    (AdamW's two moments)
    activations  = T L (6 d + q + 2 k + 3 f + H S) a
    logits       = 128 V (a + 8)  LoRA       T V (a + 12)   full
    runtime      = 0.6 GiB                   torch, transformers and their kernels

The coefficients of `activations` count the tensors that the backward pass of one layer reads: the
layer's input, both norms' outputs, q, k and v, the attention weights and output, both residuals,
gate, up and their product. LoRA's head works on 128 answer rows at a time; full fine-tuning keeps
the logits of every token. The sum is meant to be a little high: measured runs took 0.77 to
0.86 of it; `tests/plan/test_memory.py` measures again and refuses less than 0.63 or more than 1.25.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

__all__ = ["METHODS", "SHAPES", "Method", "Need", "Shape", "largest_that_fits", "needs"]

GIB = 2**30
RUNTIME_BYTES = int(0.6 * GIB)
HEAD_CHUNK_ROWS = 128
ROW_TOKENS = 256
"""Row length that the attention weights are counted for."""


@dataclass(frozen=True)
class Method:
    """A way to train: which weights, in which number format.

    Attributes:
        element_bytes: of weights and activations.
    """

    name: str
    kind: Literal["lora", "full"]
    element_bytes: int


METHODS = (
    Method("LoRA r=16, bf16", "lora", 2),
    Method("LoRA r=16, fp32", "lora", 4),
    Method("full, bf16", "full", 2),
    Method("full, fp32", "full", 4),
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like decoder that decide its memory.

    Attributes:
        tied: the head shares the embedding's weights.
        qkv_bias: the query, key and value products have biases.
    """

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Shape:
        """The shape in a Hugging Face `config.json`."""
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            feed_forward=int(config["intermediate_size"]),
            heads=heads,
            key_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=config.get("model_type") == "qwen2",
        )

    @property
    def query_width(self) -> int:
        """Columns of the query product."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Columns of the key product, and of the value product."""
        return self.key_heads * self.head_dim

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of a layer's seven linear products."""
        d, q, k, f = self.hidden, self.query_width, self.key_width, self.feed_forward
        return (d, q), (d, k), (d, k), (q, d), (d, f), (d, f), (f, d)

    @property
    def parameters(self) -> int:
        """All weights."""
        layer = sum(rows * columns for rows, columns in self.products) + 2 * self.hidden
        if self.qkv_bias:
            layer += self.query_width + 2 * self.key_width
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + embeddings + self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """Weights of LoRA on all seven products of every layer."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.products)


# Sizes from the models' published config.json files.
SHAPES: Mapping[str, Shape] = {
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True),
    "SmolLM2-360M": Shape(32, 960, 2560, 15, 5, 64, 49152, tied=True),
    "Qwen2.5-0.5B": Shape(24, 896, 4864, 14, 2, 64, 151936, tied=True, qkv_bias=True),
    "Llama-3.2-1B": Shape(16, 2048, 8192, 32, 8, 64, 128256, tied=True),
    "Qwen2.5-1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151936, tied=True, qkv_bias=True),
    "SmolLM2-1.7B": Shape(24, 2048, 8192, 32, 32, 64, 49152, tied=True),
    "Llama-3.2-3B": Shape(28, 3072, 8192, 24, 8, 128, 128256, tied=True),
    "Qwen2.5-7B": Shape(28, 3584, 18944, 28, 4, 128, 152064, tied=False, qkv_bias=True),
}


@dataclass(frozen=True)
class Need:
    """Bytes that training takes, by what takes them."""

    weights: int
    trainable: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


def needs(shape: Shape, method: Method, *, micro_batch_tokens: int = 1_024, rank: int = 16) -> Need:
    """Memory at the peak of a training step, by the formula at the top of this file.

    Args:
        shape: the model.
        method: what is trained.
        micro_batch_tokens: tokens per forward pass.
        rank: of the adapters.
    """
    size, parameters = method.element_bytes, shape.parameters
    adapters = shape.adapter_parameters(rank)
    is_full = method.kind == "full"
    per_token = (
        6 * shape.hidden
        + shape.query_width
        + 2 * shape.key_width
        + 3 * shape.feed_forward
        + shape.heads * ROW_TOKENS
    )
    logits = shape.vocabulary * (
        micro_batch_tokens * (size + 12) if is_full else HEAD_CHUNK_ROWS * (size + 8)
    )
    return Need(
        weights=parameters * size,
        trainable=0 if is_full else adapters * 4,
        gradients=parameters * size if is_full else adapters * 4,
        optimizer=parameters * 2 * size if is_full else adapters * 8,
        activations=micro_batch_tokens * shape.layers * per_token * size,
        logits=logits,
        runtime=RUNTIME_BYTES,
    )


def largest_that_fits(memory_bytes: int, method: Method) -> Shape | None:
    """The largest Llama-like model that a method can train in `memory_bytes`; None if not even a tiny one.

    The family: heads of 64, hidden size 64 n, 2 n layers between 12 and 80, feed-forward 8/3 of the
    hidden size, a vocabulary of 49,152, tied.
    """
    best = None
    for n in range(4, 257):
        shape = Shape(min(max(12, 2 * n), 80), 64 * n, 64 * round(8 * n / 3), n, n, 64, 49152, True)
        if needs(shape, method).total > memory_bytes:
            break
        best = shape
    return best


def shape_of(folder: Path) -> Shape:
    """The shape of a model folder.

    Raises:
        KeyError: its config.json is not that of a Llama-like decoder.
    """
    import json

    return Shape.from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
