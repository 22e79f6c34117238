"""TRL's trainers (and PEFT with bitsandbytes) on the scenarios' rows."""

from __future__ import annotations

import json
import time
from typing import Any

from contestant import Clock, figures

LEARNING_RATE = {"sft": 1e-3, "dpo": 1e-4}
BATCH_ROWS = 8


def sft(job: dict[str, Any]) -> dict[str, Any]:
    """SFTTrainer; settings are SFTConfig's, but `weights`, `attention` and `warm_steps`."""
    return _sft(job, _dense)


def qlora(job: dict[str, Any]) -> dict[str, Any]:
    """The same over a base model that bitsandbytes holds in NF4 with double quantisation."""
    return _sft(job, _nf4)


def _sft(job: dict[str, Any], load: Any) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    settings, own = _split(job["settings"])
    with open(job["rows"], encoding="utf-8") as stream:
        chats = [json.loads(line)["messages"] for line in stream]
    if own.get("repeat"):
        chats = chats * own["repeat"]
    table = Dataset.from_list([{"prompt": m[:-1], "completion": m[-1:]} for m in chats])
    base, tokenizer = _base()
    clock = Clock()
    began = time.perf_counter()
    trainer = SFTTrainer(
        model=load(base, own),
        args=SFTConfig(**_common(job, "sft"), **settings),
        train_dataset=table,
        processing_class=tokenizer,
        peft_config=_adapter(),
        callbacks=[_timed(clock)],
    )
    trainer.train()
    whole = time.perf_counter() - began
    seen = _tokens(tokenizer, chats)
    trainer.model.save_pretrained(f"{job['out']}/adapter", save_embedding_layers=False)
    return _result(clock, seen, len(chats), own) | {"whole_seconds": whole, "adapter": True}


def dpo(job: dict[str, Any]) -> dict[str, Any]:
    """DPOTrainer; rows are pairs. `reference_seconds` is what it spends before the first step."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    settings, own = _split(job["settings"])
    with open(job["rows"], encoding="utf-8") as stream:
        table = Dataset.from_list([json.loads(line) for line in stream])
    base, tokenizer = _base()
    clock = Clock()
    model = _dense(base, own)
    began = time.perf_counter()
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(**_common(job, "dpo"), beta=0.1, **settings),
        train_dataset=table,
        processing_class=tokenizer,
        peft_config=_adapter(),
        callbacks=[_timed(clock)],
    )
    trainer.train()
    whole = time.perf_counter() - began
    trainer.model.save_pretrained(f"{job['out']}/adapter", save_embedding_layers=False)
    tokens = _pair_tokens(tokenizer, job["rows"])
    found = _result(clock, tokens, len(table), own)
    return found | {
        "whole_seconds": whole,
        "outside_steps_seconds": whole - sum(clock.seconds),
        "adapter": True,
    }


def _split(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What goes to TRL's config, and what this file reads."""
    mine = ("weights", "attention", "warm_steps", "repeat")
    return (
        {name: value for name, value in settings.items() if name not in mine},
        {name: settings[name] for name in mine if name in settings},
    )


def _common(job: dict[str, Any], kind: str) -> dict[str, Any]:
    import torch

    common = {
        "output_dir": f"{job['out']}/trl",
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE[kind],
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    if "per_device_train_batch_size" not in job["settings"]:
        common["per_device_train_batch_size"] = BATCH_ROWS
    return common


def _base() -> tuple[Any, Any]:
    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_tokenizer, resolve_base

    base = resolve_base(ModelConfig())
    return base, load_tokenizer(base)


def _dense(base: Any, own: dict[str, Any]) -> Any:
    import torch

    from tunesmith.models.load import load_model

    model = load_model(base, getattr(torch, own.get("weights", "float32")))
    if "attention" in own:
        model.set_attn_implementation(own["attention"])
    return model


def _nf4(base: Any, own: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    return AutoModelForCausalLM.from_pretrained(
        base.dir,
        dtype=getattr(torch, own.get("weights", "float32")),
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )


def _adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def _timed(clock: Clock) -> Any:
    """A callback that times each optimizer step."""
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        """Passes the trainer's events on to the clock."""

        def on_step_begin(self, *_args: Any, **_more: Any) -> None:
            clock.start()

        def on_step_end(self, *_args: Any, **_more: Any) -> None:
            clock.stop()

    return Timed()


def _tokens(tokenizer: Any, chats: list[list[dict[str, str]]]) -> int:
    """Tokens of the rows in the model's own template. (The trainer's count has a packed batch's padding in it.)"""
    return sum(len(tokenizer.apply_chat_template(chat)["input_ids"]) for chat in chats)


def _pair_tokens(tokenizer: Any, path: str) -> int:
    """Tokens of both sequences of each pair, prompt and answer, as the trainer feeds them."""
    with open(path, encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return _tokens(
        tokenizer, [r["prompt"] + r[side] for r in rows for side in ("chosen", "rejected")]
    )


def _result(clock: Clock, tokens: int, rows: int, own: dict[str, Any]) -> dict[str, Any]:
    """Steps hold the same share of tokens and rows: the trainer does not say more."""
    steps = len(clock.seconds)
    each = ([tokens / steps] * steps, [rows / steps] * steps)
    return figures(clock, *each, warm=own.get("warm_steps", 2))
