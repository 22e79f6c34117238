"""Measure what a contestant saved, with the same code for all: plain Hugging Face, fp32, row by row.

python benchmarks/throughput/losses.py JOB.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BETA = 0.1
LENGTH_MULTIPLE = 64


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model, tokenizer = trained(Path(job["out"]) / "adapter")
    lines = Path(job["validation"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    measure = preference_loss if "chosen" in rows[0] else answer_loss
    print(json.dumps({"validation_loss": measure(model, tokenizer, rows)}))


def trained(folder: Path) -> tuple[Any, Any]:
    """The base model with the adapter of `folder`, or the whole model that lies there."""
    import torch
    from peft import PeftModel

    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_model, load_tokenizer, resolve_base

    base = resolve_base(ModelConfig())
    if not (folder / "adapter_config.json").is_file():
        return load_model(folder, torch.float32), load_tokenizer(base)
    model = PeftModel.from_pretrained(load_model(base, torch.float32), folder)
    return model.float().eval(), load_tokenizer(base)


def answer_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Nats a trained token over all rows."""
    from tunesmith.models.chat import ChatRenderer

    renderer, total, count = ChatRenderer(tokenizer), 0.0, 0
    for row in rows:
        rendered = renderer.render(row["messages"])
        logps = _logps(model, list(rendered.token_ids))
        trained = [place for place, flag in enumerate(rendered.trained) if flag]
        total -= sum(float(logps[place - 1]) for place in trained)
        count += len(trained)
    return total / count


def preference_loss(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Mean DPO loss (Rafailov et al. 2023, equation 7) against the base without its adapter."""
    import torch

    from tunesmith.models.chat import ChatRenderer

    renderer, losses = ChatRenderer(tokenizer), []
    for row in rows:
        margins = []
        for answer in ("chosen", "rejected"):
            rendered = renderer.render(row["prompt"] + row[answer])
            places = [place for place, flag in enumerate(rendered.trained) if flag]
            ids = list(rendered.token_ids)
            policy = _logps(model, ids)
            with model.disable_adapter():
                reference = _logps(model, ids)
            margins.append(sum(float(policy[p - 1] - reference[p - 1]) for p in places))
        margin = torch.tensor(BETA * (margins[0] - margins[1]))
        losses.append(-float(torch.nn.functional.logsigmoid(margin)))
    return sum(losses) / len(losses)


def _logps(model: Any, ids: list[int]) -> Any:
    """(tokens - 1,): log-probability of each token after the first."""
    import torch

    # What stands behind a token cannot reach it: filling up to a few lengths only saves new kernels.
    filled = ids + [ids[-1]] * (-len(ids) % LENGTH_MULTIPLE)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([filled])).logits[0, : len(ids) - 1].float()
    wanted = torch.tensor(ids[1:])
    return logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]


if __name__ == "__main__":
    main()
