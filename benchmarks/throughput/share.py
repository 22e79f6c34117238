"""How much of the machine a training step uses: its floating-point operations over its time."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SECONDS_A_SHAPE = 0.12
FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
Shape = tuple[int, int, int, int]  # batch, rows, inner, columns


class Products(TorchDispatchMode):
    """Counts the matrix products that torch runs, by shape; other operations pass."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[Shape] = Counter()
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        made = func(*args, **(kwargs or {}))
        if name in ("mm", "mv"):
            self._add(args[0], args[1])
        elif name in ("addmm", "addmm_", "addmv"):
            self._add(args[1], args[2])
        elif name == "bmm":
            self._add(args[0], args[1])
        elif name in ("baddbmm", "baddbmm_", "_addmm_activation"):
            self._add(args[1], args[2])
        elif (
            "attention" in name
            or "linear" in name
            or func.namespace not in ("aten", "prim", "profiler")
        ):
            self.uncounted[f"{func.namespace}.{name}"] += 1
        return made

    def _add(self, a: torch.Tensor, b: torch.Tensor) -> None:
        batch = a.shape[0] if a.ndim == 3 else 1
        columns = b.shape[-1] if b.ndim > 1 else 1
        self.shapes[(batch, a.shape[-2], a.shape[-1], columns)] += 1

    def flops(self) -> int:
        return sum(flops(shape) * count for shape, count in self.shapes.items())


def flops(shape: Shape) -> int:
    batch, rows, inner, columns = shape
    return 2 * batch * rows * inner * columns


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Time steps of a LoRA run, count one, and time every product shape of it in bf16 and fp32."""
    import ours
    from contestant import Clock

    settings = dict(job["settings"])
    steps, warm = settings.pop("steps"), settings.pop("warm_steps", 2)
    session = ours.open_session(job, {"epochs": 50, **settings})
    ours.run_steps(session, warm, Clock())
    clock = Clock()
    tokens, _ = ours.run_steps(session, steps, clock)
    seconds = clock.seconds
    step = session.plan.step_at(session.step)
    with Products() as products:
        session.train_step()
    wanted = needed(session.model, step.micro_batches)
    attention = wanted.pop("attention")
    counted = products.flops()
    seen_attention = any(shape[0] > 1 for shape in products.shapes)
    executed = counted + (0 if seen_attention else attention)
    total = sum(wanted.values()) + attention
    wall = statistics.median(seconds)
    found: dict[str, Any] = {
        "precision": session.plan.precision,
        "steps": steps,
        "step_seconds": seconds,
        "train_seconds": sum(seconds),
        "median_step_seconds": wall,
        "tokens_per_second": sum(tokens) / sum(seconds),
        "executed_flops": executed,
        "executed_counts": "all products"
        if seen_attention
        else "products that torch runs, and attention (by a kernel of our own) as the formula gives it",
        "needed_flops": total,
        "needed_parts": {**wanted, "attention": attention},
        "uncounted_operations": dict(products.uncounted),
        "product_shapes": len(products.shapes),
    }
    for name, dtype in FORMATS.items():
        found |= _against(name, dtype, products, (executed, total, wall))
    return found


def _against(
    name: str, dtype: torch.dtype, products: Products, step: tuple[int, int, float]
) -> dict[str, float]:
    """Ratios to the best speed among the shapes, and to each shape at its own best speed."""
    executed, total, wall = step
    times = {shape: best_seconds(shape, dtype) for shape in products.shapes}
    peak = max(flops(shape) / seconds for shape, seconds in times.items())
    own = sum(times[shape] * count for shape, count in products.shapes.items())
    return {
        f"{name}_best_gflops": peak / 1e9,
        f"{name}_share_executed": executed / wall / peak,
        f"{name}_share_needed": total / wall / peak,
        f"{name}_products_alone_seconds": own,
        f"{name}_share_shape_by_shape": own / wall,
    }


def best_seconds(shape: Shape, dtype: torch.dtype) -> float:
    """The fastest of several runs of one product, in the faster of two layouts."""
    batch, rows, inner, columns = shape
    a = torch.randn((batch, rows, inner)).to(dtype)
    b = torch.randn((batch, inner, columns)).to(dtype)
    turned = b.transpose(1, 2).contiguous().transpose(1, 2)
    best = float("inf")
    for right in (b, turned):
        left, other = (a[0], right[0]) if batch == 1 else (a, right)
        deadline, runs = time.perf_counter() + SECONDS_A_SHAPE / 2, 0
        while runs < 3 or time.perf_counter() < deadline:
            began = time.perf_counter()
            torch.matmul(left, other)
            best = min(best, time.perf_counter() - began)
            runs += 1
    return best


def needed(model: Any, batches: Any) -> dict[str, float]:
    """Operations that the mathematics of the step asks for, from the shapes alone.

    A multiplication and an addition count as two. Padding counts nothing, a prefix that rows share counts
    once, the head counts at trained tokens only; nothing is computed twice. The first layer's q, k and v
    need no gradient of their input, because the embeddings are frozen. Norms, rotations and activations
    are not products and are left out.
    """
    positions = float(sum(_lengths(batch).sum() for batch in batches))
    trained = float(sum(batch.trained_tokens for batch in batches))
    pairs = sum(_pairs(batch) for batch in batches)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    parts = dict.fromkeys(("forward", "input_gradients", "adapters", "head"), 0.0)
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        layer = module.base_layer
        size = layer.in_features * layer.out_features
        rank = module.r[module.active_adapters[0]]
        first = ".layers.0.self_attn." in name and not name.endswith("o_proj")
        parts["forward"] += 2 * positions * size
        parts["input_gradients"] += 0 if first else 2 * positions * size
        ends = layer.in_features + layer.out_features
        parts["adapters"] += 6 * positions * rank * ends
        parts["adapters"] -= 2 * positions * rank * layer.in_features if first else 0
    parts["head"] = 4 * trained * config.vocab_size * config.hidden_size
    attention = 12 * pairs * heads * head_dim * config.num_hidden_layers
    return parts | {"attention": float(attention)}


def _lengths(batch: Any) -> Any:
    """Positions of each segment; a shared prefix is a segment that others continue."""
    return batch.segment_lengths


def _pairs(batch: Any) -> float:
    """Pairs of a position and one that it sees: causal in its own segment, all of its ancestors."""
    above: list[int] = []
    total = 0.0
    for length, parent in zip(batch.segment_lengths, batch.segment_parents, strict=True):
        before = 0 if parent < 0 else above[parent]
        total += length * (length + 1) / 2 + length * before
        above.append(before + int(length))
    return total
