"""Training speed and memory side by side with TRL's SFTTrainer, in one run, on GeoQuery's rows.

    make bench-throughput          (or: python benchmarks/throughput/run.py --data FOLDER)

Every contestant gets a process of its own, one after the other, on the same machine, rows and base
weights. Every adapter's loss on the dev rows is then measured by the same code in fp32. Writes
results.md and results.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
CONTESTANTS = ("trl-defaults", "trl-bf16", "trl-fp32", "trl-fp32-packed", "tunesmith")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/geoquery"))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS), choices=CONTESTANTS)
    args = parser.parse_args()
    if not (args.data / "train.jsonl").is_file():
        sys.exit(f"{args.data} holds no train.jsonl; name GeoQuery's folder with --data")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = {name: chat_rows(args.data, place, name) for name in ("train", "dev")}
        results = []
        for name in args.only:
            result = contest(name, rows, args.steps, place / name)
            result["validation_loss"] = validation_loss(place / name / "adapter", rows["dev"])
            results.append(result)
            print(json.dumps(result), flush=True)
        write(results, args.steps)


def chat_rows(data: Path, place: Path, name: str) -> Path:
    """GeoQuery's rows as chats: the question as the user's message, the SQL as it is as the answer."""
    target = place / f"{name}.jsonl"
    with target.open("w", encoding="utf-8") as out:
        for line in (data / f"{name}.jsonl").open(encoding="utf-8"):
            row = json.loads(line)
            turns = [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["sql"]},
            ]
            out.write(json.dumps({"messages": turns, "meta": {}}) + "\n")
    return target


def contest(name: str, rows: dict[str, Path], steps: int, out: Path) -> dict:
    out.mkdir()
    command = [sys.executable, str(HERE / "contestant.py"), name, "--steps", str(steps)]
    command += ["--rows", str(rows["train"]), "--validation", str(rows["dev"]), "--out", str(out)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def validation_loss(adapter: Path, dev: Path) -> float:
    """Nats a trained token over all dev rows, in fp32, by the plain path."""
    import torch
    from peft import PeftModel

    from tunesmith.config import ModelConfig
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_model, load_tokenizer, resolve_base
    from tunesmith.train import fast
    from tunesmith.train.packing import pack
    from tunesmith.train.rows import encode_rows

    base = resolve_base(ModelConfig())
    model = PeftModel.from_pretrained(load_model(base, torch.float32), adapter).eval()
    renderer = ChatRenderer(load_tokenizer(base))
    rows = encode_rows(dev, renderer, max_row_tokens=2048, on_long_row="refuse").rows
    loss, tokens = 0.0, 0
    for batch in pack([(row.tokens, row.trained) for row in rows], 1024):
        one, count = fast.evaluate_microbatch(model, batch)
        loss, tokens = loss + one, tokens + count
    return loss / tokens


def write(results: list[dict], steps: int) -> None:
    ours = next((r for r in results if r["name"] == "tunesmith"), None)
    lines = [
        "# Training speed, side by side",
        "",
        f"`python benchmarks/throughput/run.py --steps {steps}`: LoRA r=16 on all linear layers of",
        "SmolLM2-135M-Instruct, GeoQuery's rows, AdamW at a constant 1e-3, 8 rows a step (tunesmith: a budget of",
        "1,024 positions a step, which holds more rows because the 24 tokens that all rows begin with are computed",
        "once for each micro batch; they count in every row). tokens/s counts the tokens of rows, without padding, after",
        "two warm-up steps; the loss is that of the 49 dev rows after the run, measured for every adapter by the same",
        "code in fp32: after as many steps, so after more rows for tunesmith. `wrapped` packing lets rows see their",
        "neighbours. One run each, not medians.",
        "",
        f"{cpu()}, {os.cpu_count()} cores; torch {version('torch')}, transformers {version('transformers')}, "
        f"peft {version('peft')}, trl {version('trl')}.",
        "",
        "| contestant | settings | rows seen | tokens/s | peak RSS | dev loss | tunesmith's speed |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        ratio = f"{ours['tokens_per_second'] / r['tokens_per_second']:.2f}x" if ours else ""
        lines.append(
            f"| {r['name']} | {r['settings']} | {r['rows']} | {r['tokens_per_second']:.0f} "
            f"| {r['peak_rss_bytes'] / 2**30:.2f} GiB | {r['validation_loss']:.4f} | {ratio} |"
        )
    (HERE / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (HERE / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
