"""How much memory training takes, computed from a model's shape.

With P parameters, A adapter parameters, T tokens per forward pass (`micro_batch_tokens`),
L layers of hidden size d, feed-forward size f, query width q and key/value width k, vocabulary V,
H heads, rows of S tokens, and activations of a bytes:

    weights      = P w                       full: w = 2 in bf16, 4 in fp32; frozen under LoRA: as in
                                             the model's files, 2 in all but a few
                   V d w + (rest) 0.52       QLoRA: 4-bit linear weights (Dettmers et al. 2023,
                                             arXiv 2305.14314: 4 + 0.127 bits a weight by default),
                                             the rest as under LoRA
    trainable    = A 4            (Q)LoRA    fp32 adapters; nothing more in full fine-tuning
    gradients    = A 4            (Q)LoRA    P w            full; those of one layer, or of a larger
                                             weight, when the optimizer works in the backward pass
    optimizer    = A 8            (Q)LoRA    P 8            full: AdamW's two fp32 moments;
                                             2.03 instead of 8 with 8-bit moments
    activations  = T a (L (6 d + q + 2 k + 3 f + H S) - recomputed)
    logits       = 128 V (a + 8)  (Q)LoRA    T V (a + 12)   full
    runtime      = 0.5 GiB                   torch, transformers and their kernels

The coefficients of `activations` count the tensors that the backward pass of one layer reads: the
layer's input, both norms' outputs, q, k and v, the attention weights and output, both residuals,
gate, up and their product. A layer whose MLP is computed again keeps d + 3 f less; one that is
computed again as a whole keeps d alone, and the one layer that is at work is held in full. Only the
upper layers that have adapters keep anything. LoRA's head works on 128 answer rows at a time; full
fine-tuning keeps the logits of every token. The sum is meant to be a little high: measured runs took
0.73 to 0.84 of it;
`tests/models/test_memory_formula.py` measures again and refuses less than 0.63 or more than 1.25.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "METHODS",
    "SHAPES",
    "Method",
    "Need",
    "Recompute",
    "Shape",
    "Work",
    "largest_that_fits",
    "needs",
    "nf4_bits",
    "shape_of",
]

GIB = 2**30
RUNTIME_BYTES = int(0.5 * GIB)
HEAD_CHUNK_ROWS = 128
"""Rows of logits that LoRA's head (`train.fast.head`) has alive at once."""
UNKNOWN_BYTES = 4
MOST_HEADER_BYTES = 100_000_000
"""The most that safetensors allows."""
ROW_TOKENS = 256
"""Row length that the attention weights are counted for."""
PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Names of a layer's linear products, in the order of `Shape.products`."""
MOMENTS_BYTES = 8.0
"""Bytes a trained weight of AdamW's two fp32 moments."""
MOMENTS_8BIT_BYTES = 2 + 2 * 4 / 256
"""Two 8-bit moments with an fp32 scale each 256 (Dettmers et al. 2022, arXiv 2110.02861)."""


def nf4_bits(block_size: int = 64, double_quant: bool = True) -> float:
    """Bits a weight in NF4 with the scales of its blocks (Dettmers et al. 2023, section 3)."""
    return 4 + ((8 + 32 / 256) if double_quant else 32) / block_size


@dataclass(frozen=True)
class Method:
    """A way to train: which weights, in which number format.

    Attributes:
        element_bytes: of activations, and of weights that are trained.
        linear_bits: of a frozen linear weight of QLoRA.
    """

    name: str
    kind: Literal["lora", "qlora", "full"]
    element_bytes: int
    linear_bits: float = nf4_bits()


@dataclass(frozen=True)
class Recompute:
    """What the backward pass computes again instead of keeping it, counted in layers from the bottom.

    The bottom layers' backward passes come last, when what the others kept is gone.

    Attributes:
        mlp: layers whose MLP part is computed again; at least `whole`.
        whole: layers that are computed again from their input.
    """

    mlp: int = 0
    whole: int = 0

    def __str__(self) -> str:
        """In words."""
        if not self.mlp:
            return "nothing is computed again"
        parts = [f"{self.whole} whole layers"] if self.whole else []
        if self.mlp > self.whole:
            parts.append(f"the MLP part of {self.mlp - self.whole} layers")
        return " and ".join(parts) + " computed again in the backward pass"


@dataclass(frozen=True)
class Work:
    """What else decides the memory of a step.

    Attributes:
        micro_batch_tokens: positions per forward pass.
        rank: of the adapters.
        row_tokens: length of the longest row.
        moment_bytes: optimizer state, bytes a trained weight.
        in_backward: gradients are used and dropped one weight at a time.
        layers: decoder layers from the top that have adapters; all when None.
        targets: linear products that have adapters; all when None. A name that is not in `PRODUCTS`
            counts nothing: its size is not known.
    """

    micro_batch_tokens: int = 1_024
    rank: int = 16
    row_tokens: int = ROW_TOKENS
    recompute: Recompute = Recompute()
    moment_bytes: float = MOMENTS_BYTES
    in_backward: bool = False
    layers: int | None = None
    targets: tuple[str, ...] | None = None


METHODS = (
    Method("LoRA r=16, bf16", "lora", 2),
    Method("LoRA r=16, fp32", "lora", 4),
    Method("QLoRA r=16, bf16", "qlora", 2),
    Method("QLoRA r=16, fp32", "qlora", 4),
    Method("full, bf16", "full", 2),
    Method("full, fp32", "full", 4),
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-like decoder that decide its memory.

    Attributes:
        tied: the head shares the embedding's weights.
        qkv_bias: the query, key and value products have biases.
        stored_bytes: of a weight in the model's files, 4 when that is not known; frozen ones are kept so.
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
    stored_bytes: int = 2

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
            stored_bytes=UNKNOWN_BYTES if _stored_type(config) in (None, "float32") else 2,
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

    @property
    def largest_weight(self) -> int:
        """Entries of the largest weight."""
        layer = max(rows * columns for rows, columns in self.products)
        return max(self.vocabulary * self.hidden, layer)

    def adapter_parameters(
        self, rank: int, layers: int | None = None, targets: tuple[str, ...] | None = None
    ) -> int:
        """Weights of LoRA on all seven products of every layer, or on some; see `Work`."""
        named = zip(PRODUCTS, self.products, strict=True)
        chosen = [sizes for name, sizes in named if targets is None or name in targets]
        return self.trained_layers(layers) * rank * sum(rows + columns for rows, columns in chosen)

    def trained_layers(self, layers: int | None) -> int:
        """How many of the upper `layers` there are; all when None."""
        return self.layers if layers is None else min(layers, self.layers)


def _stored_type(config: Mapping[str, Any]) -> str | None:
    """The number format that a config.json names, under its new or its old key."""
    found = config.get("dtype") or config.get("torch_dtype")
    return None if found is None else str(found).removeprefix("torch.")


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


def needs(shape: Shape, method: Method, work: Work | None = None) -> Need:
    """Memory at the peak of a training step, by the formula at the top of this file."""
    work = Work() if work is None else work
    size, parameters = method.element_bytes, shape.parameters
    is_full = method.kind == "full"
    adapters = shape.adapter_parameters(work.rank, work.layers, work.targets)
    trained = parameters if is_full else adapters
    gradients = parameters * size if is_full else trained * 4
    if work.in_backward:
        gradients //= max(shape.trained_layers(work.layers), 1)
        gradients = max(shape.largest_weight * size, gradients) if is_full else gradients
    logits = shape.vocabulary * (
        work.micro_batch_tokens * (size + 12) if is_full else HEAD_CHUNK_ROWS * (size + 8)
    )
    return Need(
        weights=_weight_bytes(shape, method),
        trainable=0 if is_full else trained * 4,
        gradients=gradients,
        optimizer=int(trained * work.moment_bytes),
        activations=_activation_bytes(shape, size, work),
        logits=logits,
        runtime=RUNTIME_BYTES,
    )


def _weight_bytes(shape: Shape, method: Method) -> int:
    if method.kind == "full":
        return shape.parameters * method.element_bytes
    frozen = min(method.element_bytes, shape.stored_bytes)
    if method.kind == "lora":
        return shape.parameters * frozen
    linear = shape.layers * sum(rows * columns for rows, columns in shape.products)
    return int(linear * method.linear_bits / 8 + (shape.parameters - linear) * frozen)


def _activation_bytes(shape: Shape, size: int, work: Work) -> int:
    mlp = shape.hidden + 3 * shape.feed_forward
    attention = (
        4 * shape.hidden + shape.query_width + 2 * shape.key_width + shape.heads * work.row_tokens
    )
    layers = shape.trained_layers(work.layers)
    whole = min(work.recompute.whole, layers)
    part = min(work.recompute.mlp, layers) - whole
    kept = layers * (shape.hidden + attention + mlp) - part * mlp
    kept -= whole * (attention + mlp)
    if part or whole:
        # The layer that is at work is whole; with every layer kept it is counted already.
        kept += mlp + (attention if whole else 0)
    return work.micro_batch_tokens * kept * size


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

    Where its config.json names no number format, that of most weights in its first file counts.

    Raises:
        KeyError: its config.json is not that of a Llama-like decoder.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = Shape.from_config(config)
    if _stored_type(config) is not None:
        return shape
    files = sorted(folder.glob("*.safetensors"))
    return replace(shape, stored_bytes=_stored_bytes(files[0]) if files else UNKNOWN_BYTES)


def _stored_bytes(file: Path) -> int:
    """Bytes of a weight as most are stored, by a safetensors file's header alone.

    4, rather too much, for a header that cannot be read: what is wrong is said when the model is loaded.
    """
    weights: Counter[str] = Counter()
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        text = stream.read(size if size <= MOST_HEADER_BYTES else 0)
    try:
        for name, tensor in json.loads(text).items():
            if name != "__metadata__":
                weights[tensor["dtype"]] += math.prod(tensor["shape"])
    except (ValueError, AttributeError, LookupError, TypeError):
        return UNKNOWN_BYTES
    most = max(weights, key=weights.__getitem__, default="")
    return 2 if most in ("BF16", "F16") else UNKNOWN_BYTES
