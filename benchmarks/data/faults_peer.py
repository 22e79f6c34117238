"""One contestant of faults.py, run in its own environment: cases.json in, said.json out.

python benchmarks/data/faults_peer.py NAME FOLDER MODEL

Every file is put to the tool's own entry point in this one process, so that its start counts once. What the tool
prints or logs is caught at the file descriptors; an exception that leaves it would end its command with a traceback.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Case = dict[str, Any]
Run = Callable[[Case], int | None]


@contextmanager
def captured() -> Iterator[list[str]]:
    """What is written to stdout and stderr meanwhile, by Python or not, as the list's first two items."""
    said: list[str] = []
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            yield said
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, (old, stream) in enumerate(zip(kept, (out, err), strict=True), 1):
                os.dup2(old, number)
                os.close(old)
                stream.seek(0)
                said.append(stream.read().decode(errors="replace"))


def command(entry: Callable[[], Any], *words: str) -> None:
    """A program by its console entry point; it ends with SystemExit."""
    sys.argv = list(words)
    try:
        entry()
    except SystemExit as end:
        if end.code:
            raise


def tunesmith(folder: Path, model: str) -> Run:
    from tunesmith.cli.main import main

    def run(case: Case) -> None:
        sets = [word for value in case["settings"] for word in ("--set", value)]
        words = ["data", "check", case["file"], "--no-model", "--all", "--json", "--strict", *sets]
        command(main, "tunesmith", *words)

    return run


SOUP_FORMATS = {
    "chat": "chatml",
    "tools": "tool-calling",
    "instruction": "alpaca",
    "pair": "dpo",
}
# The most that `doctor` takes; no file here has more rows.
SOUP_ROWS = "20000"
SOUP_CLEAN = ("--prune-echo", "--strip-boilerplate", "--repair-code", "--repair-json")


def soup(folder: Path, model: str) -> Run:
    """`data validate`; then `data lint` for pairs or `data doctor` for others; then `data clean --dry-run`."""
    from soup_cli.cli import run as entry

    os.chdir(folder)

    def run(case: Case) -> None:
        name, form = Path(case["file"]).name, SOUP_FORMATS[case["form"]]
        ends = []
        second = ("doctor", name, "--model", model, "--sample", SOUP_ROWS)
        if form == "dpo":
            second = ("lint", name, "--sample", SOUP_ROWS)
        third = ("clean", name, "--dry-run", "--json", *SOUP_CLEAN, "--drop-invalid-json")
        for words in (("validate", name, "--format", form), (*second, "--format", form), third):
            try:
                command(entry, "soup", "data", *words)
            except SystemExit as end:
                ends.append(end.code)
                print(f"soup data {words[0]} ended with {end.code}", flush=True)
        if ends:
            raise SystemExit(ends[0])

    return run


LLAMAFACTORY = {
    "chat": {
        "formatting": "openai",
        "columns": {"messages": "messages"},
    },
    "tools": {
        "formatting": "openai",
        "columns": {"messages": "messages", "tools": "tools"},
    },
    "instruction": {"columns": {"prompt": "instruction", "response": "output"}},
    "pair": {
        "ranking": True,
        "columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    },
}
OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}


def llamafactory_settings(model: str, folder: Path, stage: str = "sft") -> dict[str, Any]:
    """For the rows that FOLDER/dataset_info.json describes."""
    return {
        "model_name_or_path": model,
        "stage": stage,
        "do_train": True,
        "finetuning_type": "lora",
        "dataset_dir": str(folder),
        "dataset": "rows",
        "template": "smollm2",
        "cutoff_len": 1024,
        "output_dir": str(folder / "out"),
        "use_cpu": True,
        "report_to": "none",
    }


def llamafactory(folder: Path, model: str) -> Run:
    """What `llamafactory-cli train` does before it loads the model: run_sft or run_dpo up to get_dataset."""
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    def run(case: Case) -> int:
        info = {**LLAMAFACTORY[case["form"]], "file_name": Path(case["file"]).name}
        if info.get("formatting"):
            info["tags"] = OPENAI_TAGS
        (folder / "dataset_info.json").write_text(json.dumps({"rows": info}))
        stage = "rm" if case["form"] == "pair" else "sft"
        found = get_train_args(llamafactory_settings(model, folder, stage))
        tokenizer = load_tokenizer(found[0])
        template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], found[1])
        made = get_dataset(template, found[0], found[1], found[2], stage=stage, **tokenizer)
        return len(made["train_dataset"])

    return run


AXOLOTL = {
    "chat": {"type": "chat_template"},
    "tools": {"type": "chat_template"},
    "instruction": {"type": "alpaca"},
    "pair": {"type": "chatml.default"},
}


def axolotl_settings(model: str, file: str, place: Path, **form: str) -> dict[str, Any]:
    """For one file; PLACE is where the prepared rows go."""
    return {
        "base_model": model,
        "adapter": "lora",
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_linear": True,
        "datasets": [{"path": file, "ds_type": "json", **form}],
        "dataset_prepared_path": str(place),
        "chat_template": "tokenizer_default",
        "sequence_len": 1024,
        "output_dir": str(place.parent / "out"),
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_steps": 10,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "dataset_num_proc": 1,
        "bf16": False,
        "fp16": False,
        "tf32": False,
    }


def axolotl(folder: Path, model: str) -> Run:
    """What `axolotl preprocess` does: load_cfg, then load_datasets or load_preference_datasets."""
    import yaml
    from axolotl.cli.args import PreprocessCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.cli.preprocess import do_preprocess

    os.environ["AXOLOTL_IS_PREPROCESS"] = "1"

    def run(case: Case) -> int | None:
        place = folder / "prepared" / Path(case["file"]).stem
        config = axolotl_settings(model, case["file"], place, **AXOLOTL[case["form"]])
        if case["form"] == "pair":
            config["rl"] = "dpo"
        path = folder / "axolotl.yaml"
        path.write_text(yaml.safe_dump(config))
        cfg = load_cfg(str(path), is_preprocess=True)
        cfg.is_preprocess = True
        do_preprocess(cfg, PreprocessCliArgs())
        return rows_of(place)

    def rows_of(place: Path) -> int | None:
        from datasets import load_from_disk

        saved = [found.parent for found in place.rglob("dataset_info.json")]
        return len(load_from_disk(str(saved[0]))) if saved else None

    return run


def main() -> None:
    name, folder, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    with captured():
        run = globals()[name](folder, model)
    results = []
    for case in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        result: dict[str, Any] = {"id": case["id"], "exit": 0, "traceback": "", "rows": None}
        began = time.process_time()
        with captured() as said:
            try:
                result["rows"] = run(case)
            except SystemExit as end:
                result["exit"] = end.code if isinstance(end.code, int) else 1
            except BaseException:
                result |= {"exit": 1, "traceback": traceback.format_exc()[-6000:]}
        result |= {"out": said[0], "err": said[1], "cpu": round(time.process_time() - began, 3)}
        results.append(result)
    (folder / "said.json").write_text(json.dumps(results), encoding="utf-8")
    print(json.dumps({"cases": len(results)}))


if __name__ == "__main__":
    main()
