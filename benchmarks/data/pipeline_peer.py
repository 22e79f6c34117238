"""One contestant of pipeline.py, run in its own environment: rows in, what it makes of them out.

python benchmarks/data/pipeline_peer.py NAME FOLDER MODEL

FOLDER has rows.jsonl ({"prompt", "completion", "row"}) and alpaca.jsonl (the same rows as {"instruction", "output"}).
After each stage FOLDER/stages.json has the seconds since the start, so that a run that is ended leaves what it did.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
PROCESSES = 2
HELD_OUT = 10  # percent for validation, and for test where the tool has one
STAGES: dict[str, float] = {}


def done(stage: str, folder: Path) -> None:
    STAGES[stage] = round(time.perf_counter() - BEGAN, 2)
    (folder / "stages.json").write_text(json.dumps(STAGES))


def n_lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for _ in stream)


def tunesmith(folder: Path, model: str) -> dict[str, int]:
    from tunesmith import data
    from tunesmith.config import recipe_from

    section = {
        "source": {"kind": "files", "train": str(folder / "rows.jsonl")},
        "clean": {"exact": "drop", "near": "drop"},
    }
    result = data.build(recipe_from({"data": section}), folder / "sealed", processes=PROCESSES)
    done("read, check, near-duplicates, split, leak check, seal", folder)
    return dict(result.rows)


def llamafactory(folder: Path, model: str) -> dict[str, int]:
    """What `llamafactory-cli train` does with `tokenized_path` before it loads the model."""
    from faults_peer import llamafactory_settings
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    done("start", folder)
    columns = {"prompt": "instruction", "response": "output"}
    info = {"rows": {"file_name": "alpaca.jsonl", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    found = get_train_args(
        {
            **llamafactory_settings(model, folder),
            "val_size": HELD_OUT / 100,
            "preprocessing_num_workers": PROCESSES,
            "tokenized_path": str(folder / "tokenized"),
        }
    )
    tokenizer = load_tokenizer(found[0])
    template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], found[1])
    made = get_dataset(template, found[0], found[1], found[2], stage="sft", **tokenizer)
    done("read, split, tokens, written", folder)
    return {"train": len(made["train_dataset"]), "validation": len(made["eval_dataset"])}


def axolotl(folder: Path, model: str) -> dict[str, int]:
    """What `axolotl preprocess` does."""
    os.environ["AXOLOTL_IS_PREPROCESS"] = "1"
    import yaml
    from axolotl.cli.args import PreprocessCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.preprocess import do_preprocess
    from datasets import load_from_disk
    from faults_peer import axolotl_settings

    done("start", folder)
    place = folder / "prepared"
    config: dict[str, Any] = {
        **axolotl_settings(model, str(folder / "alpaca.jsonl"), place, type="alpaca"),
        "dataset_exact_deduplication": True,
        "val_set_size": HELD_OUT / 100,
        "dataset_num_proc": PROCESSES,
    }
    path = folder / "axolotl.yaml"
    path.write_text(yaml.safe_dump(config))
    cfg = load_cfg(str(path), is_preprocess=True)
    cfg.is_preprocess = True
    do_preprocess(cfg, PreprocessCliArgs())
    done("read, tokens, exact duplicates, split, written", folder)
    saved = [found.parent for found in place.rglob("dataset_info.json")]
    return {"all": sum(len(load_from_disk(str(one))) for one in saved)}


def soup(folder: Path, model: str) -> dict[str, int]:
    os.chdir(folder)
    program = str(Path(sys.executable).parent / "soup")
    held = str(HELD_OUT)
    for stage, words in (
        ("read and validate", ("validate", "alpaca.jsonl", "--format", "alpaca")),
        ("near-duplicates", ("dedup", "alpaca.jsonl", "-o", "kept.jsonl")),
        ("split", ("split", "kept.jsonl", "--val", held, "--test", held)),
    ):
        subprocess.run([program, "data", *words], check=True, stdout=subprocess.DEVNULL)
        done(stage, folder)
    return {part.stem.removeprefix("kept_"): n_lines(part) for part in folder.glob("kept_*.jsonl")}


def datatrove(folder: Path, model: str) -> dict[str, int]:
    import dedup_peer

    out = folder / "out"
    out.mkdir()
    kept = dedup_peer.datatrove(folder / "rows.jsonl", out, workers=PROCESSES)
    done("read, near-duplicates, written", folder)
    return {"all": len(kept)}


def textdedup(folder: Path, model: str) -> dict[str, int]:
    import dedup_peer

    out = folder / "out"
    out.mkdir()
    kept = dedup_peer.textdedup(folder / "rows.jsonl", out)
    done("read, near-duplicates, written", folder)
    return {"all": len(kept)}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    rows = globals()[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
    print(json.dumps({"rows_out": rows}))
