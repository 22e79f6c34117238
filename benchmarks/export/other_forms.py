"""What the forms that are not GGUF cost and keep, on the embedded model and the first geoquery questions.

    python benchmarks/export/other_forms.py GEOQUERY [--forms onnx,awq,...] [--work FOLDER] [--out other_forms]

GEOQUERY holds train.jsonl, dev.jsonl, test.jsonl (question, sql). Each form is written and asked in a
process of its own with one thread. Writes OUT.json and OUT.md. CPU seconds, not wall clock: they hold on
a busy machine. The model is the untuned base: its answers are less certain than a tuned model's, which
makes agreement look worse.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

PROMPTS, TOKENS, CALIBRATION, VALIDATION = 24, 32, 64, 40
SYSTEM = "Answer with one SQLite query for the US geography database."
FORMS = ["onnx", "torchao-int8", "torchao-int4", "bnb-int8", "bnb-nf4", "awq", "gptq", "pruned"]
HERE = Path(__file__).resolve().parent


def conversations(folder: Path, split: str, count: int) -> list:
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [
        [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["sql"]},
        ]
        for row in map(json.loads, lines)
    ]


def prepare(geoquery: Path, work: Path) -> None:
    """The merged folder, and the reference's answers and logits."""
    import numpy as np
    import torch

    from tunesmith.config import ModelConfig
    from tunesmith.engine import Sampling
    from tunesmith.engine.backends.transformers import TransformersBackend
    from tunesmith.export.reference import answer_logits
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_model, load_tokenizer, resolve_base, save_model

    base = resolve_base(ModelConfig())
    model, tokenizer = load_model(base, torch.float32), load_tokenizer(base)
    save_model(model, tokenizer, work / "merged")
    renderer = ChatRenderer(tokenizer)
    prompts = [renderer.prompt_ids(c[:-1]) for c in conversations(geoquery, "test", PROMPTS)]
    backend = TransformersBackend(model, tokenizer, stop_ids=renderer.stop_ids)
    found = backend.generate(prompts, Sampling(max_tokens=TOKENS))
    rows = [[*p, *a.token_ids] for p, a in zip(prompts, found, strict=True)]
    starts = [len(prompt) for prompt in prompts]
    np.save(work / "reference.npy", np.concatenate(list(answer_logits(model, rows, starts))))
    (work / "reference.json").write_text(json.dumps({"rows": rows, "starts": starts}))


def child(geoquery: Path, work: Path, form: str) -> dict:
    """Write one form, ask it, measure both."""
    import numpy as np

    from tunesmith.config import ExportConfig, ModelConfig
    from tunesmith.export.forms import KINDS, Sources
    from tunesmith.export.parity import Tally
    from tunesmith.export.reference import given_rows
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_tokenizer, resolve_base

    renderer = ChatRenderer(load_tokenizer(work / "merged"))
    (work / "scratch").mkdir(exist_ok=True)
    train = conversations(geoquery, "train", CALIBRATION)
    sources = Sources(
        merged=work / "merged",
        base=resolve_base(ModelConfig()),
        trained=SimpleNamespace(),
        renderer=renderer,
        name="SmolLM2",
        scratch=work / "scratch",
        calibration=tuple(renderer.render(turns).token_ids for turns in train),
        config=ExportConfig(),
        validation=given_rows(renderer, conversations(geoquery, "dev", VALIDATION), 512),
    )
    kind, place = KINDS[form], work / form
    shutil.rmtree(place, ignore_errors=True)
    began, facts = cpu_seconds(), dict(kind.writer()(sources, place))
    written = cpu_seconds() - began
    # Bytes that the process itself and what it started held at most.
    peak = max(resource.getrusage(who).ru_maxrss for who in (0, resource.RUSAGE_CHILDREN)) * 1024
    reference = json.loads((work / "reference.json").read_text())
    logits, tally, position = np.load(work / "reference.npy", mmap_mode="r"), Tally(), 0
    for found in kind.asker()(place, sources, reference["rows"], reference["starts"]):
        tally.add_logits(logits[position : position + len(found)], found)
        position += len(found)
    facts.pop("seconds")
    return {
        "form": form,
        "megabytes": round(sum(f.stat().st_size for f in place.rglob("*") if f.is_file()) / 1e6, 1),
        "write_cpu_seconds": round(written, 1),
        "write_peak_gb": round(peak / 1e9, 2),
        "max_abs_dlogit": tally.largest_dlogit,
        **tally.figures(),
        "facts": facts,
    }


def cpu_seconds() -> float:
    own, others = (resource.getrusage(who) for who in (0, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def table(found: list[dict]) -> str:
    head = "| form | MB | CPU seconds | peak GB | greedy agreement | mean KL (nats) |\n|---|--:|--:|--:|--:|--:|\n"
    head = f"Made by `python benchmarks/export/other_forms.py GEOQUERY`.\n\n{head}"
    return head + "".join(
        f"| `{f['form']}` | {f['megabytes']:.0f} | {f['write_cpu_seconds']:.0f} | {f['write_peak_gb']:.1f} "
        f"| {f['greedy_agreement']:.3f} | {f['mean_kl']:.2g} |\n"
        for f in found
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("geoquery", type=Path)
    options.add_argument("--forms", default=",".join(FORMS))
    options.add_argument("--work", type=Path, default=Path("other-forms"))
    options.add_argument("--out", type=Path, default=HERE / "other_forms")
    options.add_argument("--child", default="")
    asked = options.parse_args()
    if asked.child:
        result = child(asked.geoquery, asked.work, asked.child)
        (asked.work / f"{asked.child}.json").write_text(json.dumps(result))
        return
    asked.work.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if not (asked.work / "reference.json").is_file():
        prepare(asked.geoquery, asked.work)
    for form in asked.forms.split(","):
        began = time.monotonic()
        command = [sys.executable, __file__, str(asked.geoquery), "--work", str(asked.work)]
        done = subprocess.run([*command, "--child", form], env=environment, check=False)
        print(f"{form}: code {done.returncode}, {time.monotonic() - began:.0f} s", flush=True)
    # What an earlier run with the same --work measured stays in the table.
    files = [asked.work / f"{form}.json" for form in FORMS]
    found = [json.loads(file.read_text()) for file in files if file.is_file()]
    result = {"command": " ".join(["python", "benchmarks/export/other_forms.py", "GEOQUERY"])}
    asked.out.with_suffix(".json").write_text(
        json.dumps(result | {"forms": found}, indent=1) + "\n"
    )
    asked.out.with_suffix(".md").write_text(table(found))
    print(table(found))


if __name__ == "__main__":
    main()
