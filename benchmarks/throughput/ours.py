"""tunesmith on the scenarios' rows."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from contestant import Clock, figures

LEARNING_RATE = {"sft": 1e-3, "dpo": 1e-4}


def train(job: dict[str, Any]) -> dict[str, Any]:
    """One epoch over the rows; settings are the `train` part of a recipe, but `warm_steps`."""
    settings = dict(job["settings"])
    warm = settings.pop("warm_steps", 2)
    began = time.perf_counter()
    session = open_session(job, settings)
    opened = time.perf_counter() - began
    clock = Clock()
    tokens, rows = run_steps(session, session.plan.total_steps, clock)
    whole = time.perf_counter() - began
    save(session, Path(job["out"]))
    return figures(clock, tokens, rows, warm) | {
        "opened_seconds": opened,
        "whole_seconds": whole,
        "precision": session.plan.precision,
        "micro_batch_tokens": session.plan.micro_batch_tokens,
        "fast": list(session.fast_lines),
        "adapter": True,
    }


def reach(job: dict[str, Any]) -> dict[str, Any]:
    """Train until the validation loss is at most `target_loss`; what measuring takes is not counted."""
    settings = dict(job["settings"])
    target, every = settings.pop("target_loss"), settings.pop("every_steps")
    most = settings.pop("most_steps")
    session = open_session(job, {"epochs": 20, **settings})
    clock, curve = Clock(), []
    tokens: list[float] = []
    rows: list[float] = []
    while len(tokens) < most:
        more = run_steps(session, every, clock)
        tokens, rows = tokens + more[0], rows + more[1]
        curve.append([len(tokens), session.validation_loss()])
        if curve[-1][1] <= target:
            break
    save(session, Path(job["out"]))
    found = figures(clock, tokens, rows, 0)
    reached = curve[-1][1] <= target
    return found | {"curve": curve, "reached": reached, "target_loss": target, "adapter": True}


def open_session(job: dict[str, Any], settings: dict[str, Any], **model: Any) -> Any:
    """Plan and session as the train stage builds them, over a sealed dataset of the job's rows."""
    from tunesmith.config import recipe_from
    from tunesmith.store import Run
    from tunesmith.train.plan import plan_training
    from tunesmith.train.session import build

    kind = settings.get("objective", {}).get("kind", "sft")
    optimizer = {"learning_rate": LEARNING_RATE[kind], "schedule": "constant", "warmup_ratio": 0}
    train = {"optimizer": optimizer, "epochs": 1, "sample_rows": 0, **settings}
    recipe = recipe_from({"train": train} | ({"model": model} if model else {}))
    with Run.open(Path(job["out"]) / "dataset", "data", inputs={}) as at:
        for name, source in (("train", job["rows"]), ("validation", job["validation"])):
            at.write_text(f"{name}.jsonl", _rows(source, kind))
        dataset = at.finish({"name": "benchmark"})
    return build(plan_training(recipe, dataset))


def _rows(source: str, kind: str) -> str:
    """The file as it is; pairs in the form that a sealed dataset holds them in."""
    text = Path(source).read_text(encoding="utf-8")
    if kind != "dpo":
        return text
    made = []
    for line in text.splitlines():
        row = json.loads(line)
        made.append({**row, "meta": {}})
    return "".join(json.dumps(row) + "\n" for row in made)


def run_steps(session: Any, count: int, clock: Clock) -> tuple[list[float], list[float]]:
    """Row tokens and examples (rows, or pairs) of each of the next `count` steps, which the clock times."""
    answers = 2 if session.objective.needs_pairs else 1
    tokens: list[float] = []
    rows: list[float] = []
    for _ in range(count):
        step = session.plan.step_at(session.step)
        rows.append(sum((b.row_indices >= 0).sum() for b in step.micro_batches) / answers)
        before = session.tokens
        clock.start()
        session.train_step()
        clock.stop()
        tokens.append(float(session.tokens - before))
    return tokens, rows


def save(session: Any, out: Path) -> None:
    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_tokenizer, resolve_base
    from tunesmith.train.methods import save_trained

    base = resolve_base(ModelConfig())
    save_trained(session.model, load_tokenizer(base), out / "adapter", base_name=base.name)
