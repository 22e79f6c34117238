"""One contestant of dedup.py, run in its own environment: rows.jsonl in, kept.json out.

python benchmarks/data/dedup_peer.py NAME rows.jsonl FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROWS = list[dict]


def texts(rows: ROWS) -> list[str]:
    """What a tool that reads documents is given: question and answer, or the text."""
    return [row.get("text") or f"{row['prompt']}\n{row['completion']}" for row in rows]


def numbers(path: Path) -> list[int]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [numbered(json.loads(line)) for line in lines if line]


def numbered(row: dict) -> int:
    return row["row"] if "row" in row else row["meta"]["row"]


def tunesmith(rows: Path, out: Path) -> list[int]:
    command = [sys.executable, "-m", "tunesmith", "data", "clean", str(rows), "--near", "drop"]
    subprocess.run([*command, "--out", str(out / "clean")], check=True, capture_output=True)
    return numbers(out / "clean" / "rows.jsonl")


def soup(rows: Path, out: Path) -> list[int]:
    os.chdir(out)
    (out / "rows.jsonl").write_bytes(rows.read_bytes())
    command = [str(Path(sys.executable).parent / "soup"), "data", "dedup", "rows.jsonl"]
    # The row's number would be part of the text that it compares.
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    keys: dict[str, list[int]] = {}
    with (out / "rows.jsonl").open("w", encoding="utf-8") as stream:
        for line in lines:
            number = line.pop("row")
            keys.setdefault(json.dumps(line, sort_keys=True), []).append(number)
            stream.write(json.dumps(line) + "\n")
    subprocess.run([*command, "-o", "kept.jsonl"], check=True, capture_output=True)
    kept = []
    for line in (out / "kept.jsonl").read_text(encoding="utf-8").splitlines():
        kept.append(keys[json.dumps(json.loads(line), sort_keys=True)].pop(0))
    return kept


def axolotl(rows: Path, out: Path) -> list[int]:
    from axolotl.utils.data.utils import deduplicate_and_log_datasets
    from datasets import Dataset

    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    order: dict[str, list[int]] = {}
    for line in lines:
        number = line.pop("row")
        order.setdefault(json.dumps(line, sort_keys=True), []).append(number)
    kept, _ = deduplicate_and_log_datasets(Dataset.from_list(lines))
    return [order[json.dumps(dict(row), sort_keys=True)].pop(0) for row in kept]


def textdedup(rows: Path, out: Path, ngram: int = 5) -> list[int]:
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    data = out / "data"
    data.mkdir()
    with (data / "rows.jsonl").open("w", encoding="utf-8") as stream:
        for line, text in zip(lines, texts(lines), strict=True):
            stream.write(json.dumps({"text": text, "row": line["row"]}) + "\n")
    command = [sys.executable, "-m", "text_dedup.minhash", "--path", "json"]
    command += ["--data_files", str(data / "rows.jsonl"), "--split", "train", "--column", "text"]
    command += ["--cache_dir", str(out / "cache"), "--output", str(out / "kept")]
    command += ["--ngram", str(ngram), "--min_length", "0", "--threshold", "0.7"]
    subprocess.run(command, check=True, capture_output=True, cwd=out)
    from datasets import load_from_disk

    return list(load_from_disk(str(out / "kept"))["row"])


def textdedup_2(rows: Path, out: Path) -> list[int]:
    return textdedup(rows, out, 2)


def datatrove(rows: Path, out: Path, ngram: int = 5, workers: int = 1) -> list[int]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    (out / "in").mkdir()
    documents = [
        json.dumps({"text": text, "id": str(line["row"])}) + "\n"
        for line, text in zip(lines, texts(lines), strict=True)
    ]
    for at in range(workers):  # a task reads whole files
        part = "".join(documents[at::workers])
        (out / "in" / f"rows{at}.jsonl").write_text(part, encoding="utf-8")
    config = MinhashConfig(n_grams=ngram)

    def reader() -> JsonlReader:
        return JsonlReader(str(out / "in"))

    steps = [
        ([reader(), MinhashDedupSignature(str(out / "signatures"), config=config)], workers),
        (
            [MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=config)],
            config.num_buckets,
        ),
        ([MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=config)], 1),
        (
            [
                reader(),
                MinhashDedupFilter(str(out / "remove")),
                JsonlWriter(str(out / "kept"), compression=None),
            ],
            workers,
        ),
    ]
    for at, (pipeline, tasks) in enumerate(steps):
        LocalPipelineExecutor(
            pipeline=pipeline, tasks=tasks, workers=workers, logging_dir=str(out / f"logs{at}")
        ).run()
    kept = []
    for path in sorted((out / "kept").glob("*.jsonl")):
        kept += [int(json.loads(line)["id"]) for line in path.read_text().splitlines()]
    return kept


def datatrove_3(rows: Path, out: Path) -> list[int]:
    return datatrove(rows, out, 3)


if __name__ == "__main__":
    name, source, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    found = globals()[name.replace("-", "_")](source, folder)
    (folder / "kept.json").write_text(json.dumps([int(number) for number in found]))
    print(json.dumps({"kept_rows": len(found)}))
