"""Full fp32 fine-tuning with the Hugging Face Trainer, the traditional way, to a validation loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from contestant import Clock, figures

IGNORED = -100


def reach(job: dict[str, Any]) -> dict[str, Any]:
    """Train all weights in fp32 until the validation loss is at most `target_loss`.

    Padded batches of 8 rows, labels on the answers only, AdamW, constant learning rate: the Trainer's own
    defaults beside that. The clock stops while the loss is measured, every `every_steps`.
    """
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from tunesmith.config import ModelConfig
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_model, load_tokenizer, resolve_base

    settings = job["settings"]
    base = resolve_base(ModelConfig())
    tokenizer = load_tokenizer(base)
    renderer = ChatRenderer(tokenizer)
    model = load_model(base, torch.float32)
    train, validation = (encoded(job[name], renderer) for name in ("rows", "validation"))
    clock = Clock()
    curve: list[list[float]] = []

    class Timed(TrainerCallback):
        """Times each step, and stops when the loss is reached."""

        def on_step_begin(self, *_args: Any, **_more: Any) -> None:
            clock.start()

        def on_step_end(self, _args: Any, _state: Any, control: Any, **_more: Any) -> None:
            clock.stop()
            if len(clock.seconds) % settings["every_steps"] == 0:
                curve.append([len(clock.seconds), loss_of(model, validation)])
                control.should_training_stop = curve[-1][1] <= settings["target_loss"]

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=f"{job['out']}/hf",
            max_steps=settings["most_steps"],
            per_device_train_batch_size=settings.get("batch_rows", 8),
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            remove_unused_columns=False,
        ),
        train_dataset=train,
        data_collator=lambda batch: padded(batch, tokenizer.pad_token_id or 0),
        callbacks=[Timed()],
    )
    trainer.train()
    rows = settings.get("batch_rows", 8)
    mean = sum(len(row["input_ids"]) for row in train) / len(train)
    found = figures(
        clock, [mean * rows] * len(clock.seconds), [float(rows)] * len(clock.seconds), 0
    )
    reached = bool(curve) and curve[-1][1] <= settings["target_loss"]
    model.save_pretrained(Path(job["out"]) / "adapter", safe_serialization=True)
    return found | {
        "curve": curve,
        "reached": reached,
        "target_loss": settings["target_loss"],
        "adapter": True,
    }


def encoded(path: str, renderer: Any) -> list[dict[str, list[int]]]:
    """Token ids, and labels on the answers only."""
    made = []
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            rendered = renderer.render(json.loads(line)["messages"])
            ids = list(rendered.token_ids)
            flags = zip(ids, rendered.trained, strict=True)
            made.append({"input_ids": ids, "labels": [i if on else IGNORED for i, on in flags]})
    return made


def padded(batch: list[dict[str, list[int]]], pad: int) -> dict[str, Any]:
    import torch

    longest = max(len(row["input_ids"]) for row in batch)
    fill = {"input_ids": pad, "labels": IGNORED}
    made = {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])
        for name, value in fill.items()
    }
    sizes = [len(row["input_ids"]) for row in batch]
    mask = [[1] * size + [0] * (longest - size) for size in sizes]
    return made | {"attention_mask": torch.tensor(mask)}


def loss_of(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Nats a trained token, row by row."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = row["input_ids"] + [row["input_ids"][-1]] * (-len(row["input_ids"]) % 64)
            logits = model(input_ids=torch.tensor([ids])).logits[0, : len(row["labels"]) - 1]
            labels = torch.tensor(row["labels"][1:])
            total += float(
                torch.nn.functional.cross_entropy(
                    logits, labels, ignore_index=IGNORED, reduction="sum"
                )
            )
            count += int((labels != IGNORED).sum())
    model.train()
    return total / count
