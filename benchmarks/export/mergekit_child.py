"""mergekit's side of `mergekit_parity.py`: runs in mergekit's environment, without tunesmith.

mergekit 0.1.5 draws DARE's coins from torch's global generator, in the order in which it happens to
merge tensors. Here the generator is seeded before each tensor from the tensor's name, as tunesmith
does, so that both see the same coins.

Of differences that are equal in size, TIES has to choose some. mergekit takes those that torch's
unstable sort happens to put first, which depends on the processor; tunesmith takes the first ones.
With "stable" mergekit's sort is made stable, so that both take the same. Nothing else is changed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.merge_methods.api import merge_tensors
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from safetensors.torch import save_file

SHAPE = (12, 20)
CASES = {
    "linear": ("linear", {"weight": [0.5, 0.3, 0.4]}, 3),
    "linear_not_normalised": ("linear", {"weight": [0.5, 0.3, 0.4], "normalize": False}, 3),
    "slerp_flat": ("slerp", {"t": 0.3}, 2),
    "slerp_arc": ("slerp", {"t": 0.3}, 2),
    "task_arithmetic": ("task_arithmetic", {"weight": [0.5, 0.3, -0.4], "lambda": 1.5}, 3),
    "task_arithmetic_normalised": (
        "task_arithmetic",
        {"weight": [0.5, 0.3, 0.4], "normalize": True},
        3,
    ),
    "ties": ("ties", {"weight": [1.0, 1.0, 1.0], "density": [0.5, 0.3, 0.7]}, 3),
    "ties_whole": ("ties", {"weight": [0.2, 0.5, 0.3], "density": [1.0, 1.0, 1.0]}, 3),
    "ties_sum": (
        "ties",
        {"weight": [0.2, 0.5, 0.3], "density": [0.4] * 3, "normalize": False, "lambda": 0.7},
        3,
    ),
    "ties_equals": ("ties", {"weight": [1.0, 1.0, 1.0], "density": [0.5, 0.3, 0.7]}, 3),
    "dare_linear": ("dare_linear", {"weight": [0.5, 0.3, 0.4], "density": [0.5, 0.3, 0.7]}, 3),
    "dare_ties": ("dare_ties", {"weight": [0.5, 0.3, 0.4], "density": [0.5, 0.3, 0.7]}, 3),
}
SEED = 7


def seed_of(seed: int, name: str) -> int:
    """As `tunesmith.export.merge.methods.seed_of`."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def inputs() -> dict[str, torch.Tensor]:
    """A base and three models near it, and the same with differences of which many are equal in size."""
    torch.manual_seed(0)
    found = {"base": torch.round(256 * torch.randn(SHAPE)) / 256}
    for name in "abc":
        found[name] = found["base"] + torch.randn(SHAPE) / 32
        found[f"{name}_equals"] = found["base"] + torch.round(8 * torch.randn(SHAPE)) / 256
    found["far"] = torch.randn(SHAPE)
    return found


def goldens(target: str) -> None:
    """The results of mergekit on small tensors, with the inputs."""
    arrays = inputs()
    held = dict(arrays)
    for case, (method, settings, count) in CASES.items():
        grid = "_equals" if case == "ties_equals" else ""
        second = "far" if case == "slerp_arc" else f"b{grid}"
        models = [arrays[f"a{grid}"], arrays[second], arrays[f"c{grid}"]][:count]
        shared, each = dict(settings), {}
        for key in ("weight", "density"):
            if key in shared:
                each[key] = shared.pop(key)
        torch.manual_seed(seed_of(SEED, case))
        ids, base = list("abc")[:count], None
        if method == "slerp":
            base = 0
        elif method != "linear":
            models, ids, base = [*models, arrays["base"]], [*ids, "base"], count
        each = {key: dict(zip("abc", values, strict=False)) for key, values in each.items()}
        with stable_sort() if grid else nullcontext():
            held[f"out.{case}"] = merge_tensors(
                models, method, parameters=shared | each, ids=ids, base_index=base
            )
    cases = {name: [method, settings, count] for name, (method, settings, count) in CASES.items()}
    facts = {"cases": json.dumps(cases), "seed": str(SEED), "made_by": made_by()}
    save_file({k: v.contiguous() for k, v in held.items()}, target, metadata=facts)


@contextmanager
def stable_sort() -> Iterator[None]:
    """mergekit's sort keeps the order of equals."""
    plain = torch.argsort
    torch.argsort = partial(plain, stable=True)
    try:
        yield
    finally:
        torch.argsort = plain


def made_by() -> str:
    """Versions and command."""
    from importlib.metadata import version

    return (
        f"mergekit {version('mergekit')}, torch {torch.__version__}: "
        "python benchmarks/export/mergekit_child.py goldens tests/export/golden/merges.safetensors"
    )


def merge(config: str, out: str, seed: int, *, stable: bool) -> None:
    """mergekit's own run of a configuration; prints CPU seconds and memory as one JSON line."""
    plain = ExecuteMergeMethodTask.execute

    def seeded(task: ExecuteMergeMethodTask, *args: object, **named: object) -> object:
        torch.manual_seed(seed_of(seed, task.output_weight.name))
        return plain(task, *args, **named)

    ExecuteMergeMethodTask.execute = seeded
    import yaml

    with open(config, encoding="utf-8") as file:
        asked = MergeConfiguration.model_validate(yaml.safe_load(file))
    with stable_sort() if stable else nullcontext():
        run_merge(asked, out, MergeOptions(copy_tokenizer=True, quiet=True))
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    # As tunesmith's side: since the process began; ru_maxrss would carry over its parent's.
    figures = {"cpu_seconds": time.process_time(), "peak_rss_mb": int(peak.split()[1]) / 1024}
    print(json.dumps(figures))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "goldens":
        goldens(sys.argv[2])
    else:
        merge(sys.argv[2], sys.argv[3], int(sys.argv[4]), stable="stable" in sys.argv[5:])
