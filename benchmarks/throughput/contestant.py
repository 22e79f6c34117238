"""Train one contestant in this process and print its figures as one JSON line.

    python benchmarks/throughput/contestant.py NAME --rows FILE --validation FILE --steps N --out FOLDER

NAME is `tunesmith` or one of `VARIANTS`. FILE holds JSON lines with
`messages`. All start from the same weights and use LoRA r=16 alpha=32 on all linear layers, AdamW at
1e-3 constant, and 8 rows a step (tunesmith: a 1,024-token budget, which holds about as many).
The adapter lands in FOLDER; `run.py` measures every adapter's validation loss with the same code.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

LEARNING_RATE = 1e-3
ROWS_A_STEP = 8
WARM_STEPS = 2

VARIANTS: dict[str, dict] = {
    "trl-defaults": {},
    "trl-fp32": {"bf16": False, "gradient_checkpointing": False},
    "trl-bf16": {"bf16": True, "gradient_checkpointing": False},
    "trl-fp32-packed": {
        "bf16": False,
        "gradient_checkpointing": False,
        "packing": True,
        "packing_strategy": "wrapped",
        "max_length": 1024,
        "per_device_train_batch_size": 1,
    },
}
"""Settings of TRL's SFTConfig beside its defaults. `wrapped` packing lets rows see their neighbours."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figures = tunesmith(args) if args.name == "tunesmith" else trl(args, VARIANTS[args.name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"name": args.name, "peak_rss_bytes": peak, **figures}))


def tunesmith(args: argparse.Namespace) -> dict:
    from tunesmith.config import recipe_from
    from tunesmith.models.load import load_tokenizer, resolve_base
    from tunesmith.store import Run
    from tunesmith.train.methods import save_trained
    from tunesmith.train.plan import plan_training
    from tunesmith.train.session import build

    recipe = recipe_from(
        {
            "train": {
                "optimizer": {
                    "learning_rate": LEARNING_RATE,
                    "schedule": "constant",
                    "warmup_ratio": 0,
                },
                "batch_tokens": 1024,
                "micro_batch_tokens": 1024,
                "epochs": 20,
                "max_steps": args.steps,
                "sample_rows": 0,
            }
        }
    )
    with Run.open(args.out / "dataset", "data", inputs={}) as at:
        at.write_text("train.jsonl", args.rows.read_text(encoding="utf-8"))
        at.write_text("validation.jsonl", args.validation.read_text(encoding="utf-8"))
        dataset = at.finish({"name": "benchmark"})
    session = build(plan_training(recipe, dataset))
    times, tokens, rows = [], [], 0
    for index in range(args.steps):
        rows += sum(len(b.row_indices) for b in session.plan.step_at(index).micro_batches)
        before, began = session.tokens, time.perf_counter()
        session.train_step()
        times.append(time.perf_counter() - began)
        tokens.append(session.tokens - before)
    base = resolve_base(recipe.model)
    save_trained(session.model, load_tokenizer(base), args.out / "adapter", base_name=base.name)
    return figures(times, tokens, rows) | {
        "settings": f"{session.plan.precision}, packed, fast path"
    }


def trl(args: argparse.Namespace, settings: dict) -> dict:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_model, load_tokenizer, resolve_base

    class Clock(TrainerCallback):
        """Times each optimizer step."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_args, **_more) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *_args, **_more) -> None:
            self.times.append(time.perf_counter() - self.began)

    base = resolve_base(ModelConfig())
    tokenizer = load_tokenizer(base)
    rows = [json.loads(line)["messages"] for line in args.rows.open(encoding="utf-8")]
    table = Dataset.from_list([{"prompt": m[:-1], "completion": m[-1:]} for m in rows])
    clock = Clock()
    options = {"per_device_train_batch_size": ROWS_A_STEP, **settings}
    trainer = SFTTrainer(
        model=load_model(base, torch.float32),
        args=SFTConfig(
            output_dir=str(args.out / "trl"),
            max_steps=args.steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **options,
        ),
        train_dataset=table,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
        callbacks=[clock],
    )
    trainer.train()
    trainer.model.save_pretrained(args.out / "adapter", save_embedding_layers=False)
    seen = int(trainer._total_train_tokens)  # its count of tokens that are not padding
    tokens = [seen / args.steps] * args.steps
    shown = ", ".join(f"{key}={value}" for key, value in settings.items()) or "defaults, batch 8"
    return figures(clock.times, tokens, ROWS_A_STEP * args.steps) | {"settings": shown}


def figures(times: list[float], tokens: list[float], rows: int) -> dict:
    """Speed after the warm-up steps, in which kernels are built."""
    warm = slice(WARM_STEPS, None)
    return {
        "steps": len(times),
        "rows": rows,
        "tokens": sum(tokens),
        "seconds": sum(times),
        "tokens_per_second": sum(tokens[warm]) / sum(times[warm]),
    }


if __name__ == "__main__":
    main()
