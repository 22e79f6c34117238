"""The runs whose loss curves are kept, each as small as it can be and still mean something."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from small_base import save_small_base, sealed_sums

HERE = Path(__file__).parent

TINY = {
    "epochs": 2,
    "batch_tokens": 512,
    "micro_batch_tokens": 256,
    "precision": "fp32",
    "threads": 1,
    "sample_rows": 0,
    "fast": False,
    "trunk_cache": "off",
    "activation_checkpointing": "off",
    "optimizer": {"learning_rate": 0.01},
    "method": {"kind": "lora", "rank": 4},
}
SMOLLM2 = {**TINY, "batch_tokens": 512, "max_steps": 3, "optimizer": {"learning_rate": 1e-3}}

GOLDEN: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tiny-lora": ("tiny", TINY),
    "tiny-full": ("tiny", {**TINY, "method": {"kind": "full"}}),
    "smollm2-lora": ("embedded", SMOLLM2),
}
"""Name -> base model and settings of `train`."""


def versions() -> dict[str, str]:
    """What the last bit of a curve depends on besides the settings."""
    import torch

    packages = {name: version(name) for name in ("torch", "transformers", "peft", "numpy")}
    return {
        "python": platform.python_version(),
        **packages,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "model": _cpu_model(),
    }


def _cpu_model() -> str:
    """Name, family, model and stepping: the libraries choose their code by these."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.is_file() else []
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    wanted = ("model name", "cpu family", "model", "stepping")
    return " ".join(facts[name] for name in wanted if name in facts) or platform.processor()


def session_for(name: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """A session of a golden run, with another seed or some settings of `train` changed."""
    from tunesmith.config import recipe_from
    from tunesmith.store import Artifact
    from tunesmith.train.plan import plan_training
    from tunesmith.train.session import build

    kind, settings = GOLDEN[name]
    base = "embedded" if kind == "embedded" else str(folder / "base")
    if kind == "tiny" and not (folder / "base").exists():
        save_small_base(folder / "base")
    if not (folder / "data").exists():
        sealed_sums(folder / "data")
    values = {"seed": seed, "model": {"base": base}, "train": {**settings, **changes}}
    return build(plan_training(recipe_from(values), Artifact.open(folder / "data")))


def curve(session: Any) -> list[list[float]]:
    """Loss and gradient norm of each step, then the validation loss."""
    steps = []
    while session.step < session.plan.total_steps:
        loss, norm, _ = session.train_step()
        steps.append([loss, norm])
    return [*steps, [session.validation_loss()]]


def split(session: Any, tokens: int) -> Any:
    """The same steps, each step's rows packed anew in micro batches of `tokens` positions."""
    from tunesmith.train.packing import Step, pack

    plan = session.plan
    rows = [(row.tokens, row.trained) for row in plan.rows.rows]
    made: dict[int, list[Step]] = {}
    for epoch, count in enumerate(plan.steps_by_epoch):
        first = sum(plan.steps_by_epoch[:epoch])
        steps = []
        for index in range(first, first + count):
            members = [int(i) for batch in plan.step_at(index).micro_batches for i in batch.members]
            steps.append(Step(tuple(pack(rows, tokens, order=members))))
        made[epoch] = steps
    session.plan = replace(plan)
    session.plan._epochs.update(made)
    return session


def read(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
