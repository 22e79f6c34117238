"""What a run is: data, base and every setting that its weights depend on, as flat JSON values."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tunesmith.errors import ConfigError, listed
from tunesmith.train.filling import FILLING
from tunesmith.train.plan import TrainPlan
from tunesmith.train.rows import TokenRow

__all__ = ["changes_of", "conditions", "identity", "refuse_another"]


def identity(plan: TrainPlan) -> dict[str, Any]:
    """Name -> value of all that decides a run's weights; two runs with equal ones are the same run.

    The data counts by its tokens and masks, so a dataset that was built again identically is the
    same one, and another tokenizer or chat template is another.
    """
    return {
        "rows": _hash_of(plan.rows.rows),
        "validation rows": _hash_of(plan.validation.rows),
        "model.base": plan.base.sha256,
        "seed": plan.seed,
        **_under("train.objective", plan.objective.model_dump(mode="json")),
        **_under("train.method", plan.method.model_dump(mode="json")),
        **_under("train.optimizer", plan.optimizer.model_dump(mode="json")),
        "train.batch_tokens": plan.batch_tokens,
        "train.micro_batch_tokens": plan.micro_batch_tokens,
        "steps": plan.total_steps,
        "precision": plan.precision,
        "train.fast": plan.fast,
        "packing": FILLING,
    }


def refuse_another(saved: Mapping[str, Any], now: Mapping[str, Any], place: str) -> None:
    """Refuse to go on from the checkpoint of another run.

    Args:
        saved: identity in the checkpoint.
        now: identity of this run.
        place: the checkpoint, for the message.

    Raises:
        ConfigError: something differs; the message names all of it.
    """
    names = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if names:
        lines = [
            f"{name}: {_shown(saved.get(name))} then, {_shown(now.get(name))} now" for name in names
        ]
        raise ConfigError(
            f"{place} is the checkpoint of another run:\n{listed(lines)}",
            why="going on from it with other data or settings would mix two runs",
            fix="restore what differs, or train into another folder",
        )


def conditions(plan: TrainPlan, kernels: str) -> dict[str, Any]:
    """Name -> value of what decides the last bits of a result and nothing else: no part of the identity.

    Args:
        plan: what is trained.
        kernels: why the C++ kernels do not run; empty when they do.
    """
    import torch

    from tunesmith import __version__

    return {
        "device": plan.device,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": plan.threads,
        "C++ kernels": f"off ({kernels})" if kernels else "on",
        "torch": torch.__version__,
        "tunesmith": __version__,
    }


def changes_of(saved: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """What a resumed run has otherwise than the attempt that saved, a line each.

    Args:
        saved: conditions in the checkpoint; empty in one of a version that did not write them.
        now: conditions of this attempt.
        step: of the checkpoint.
    """
    names = [name for name in saved if name in now and saved[name] != now[name]]
    return [f"after step {step}: {name}: {saved[name]} then, {now[name]} now" for name in names]


def _shown(value: Any) -> str:
    is_hash = isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2
    return value[:12] if is_hash else repr(value)


def _under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


def _hash_of(rows: Iterable[TokenRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row.tokens).to_bytes(8, "little"))
        digest.update(np.asarray(row.tokens, dtype="<i8").tobytes())
        digest.update(np.asarray(row.trained, dtype="?").tobytes())
    return digest.hexdigest()
