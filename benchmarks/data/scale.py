"""Time and memory of building a dataset from many rows: read, check, near-duplicates, split, seal.

    python benchmarks/data/scale.py --rows 100000
    python benchmarks/data/scale.py --rows 1000000 --processes 2

Each run appends a line to scale.jsonl beside this file, and scale.md is its table. Rows are generated from a seed: questions and answers of 20 to 120 words, a twentieth of them near-duplicates of an
earlier row, a hundredth exact ones. Memory is the sum over all processes of the build, sampled ten times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
JOURNAL, TABLE = HERE / "scale.jsonl", HERE / "scale.md"
BUILD = """
import json, resource, sys
from tunesmith import data
from tunesmith.config import recipe_from
section = {"source": {"kind": "files", "train": sys.argv[1]}, "clean": {"exact": "drop", "near": "drop"}}
result = data.build(recipe_from({"data": section}), sys.argv[2], processes=int(sys.argv[3]))
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({
    "rows": dict(result.rows), "left_out": result.report["left_out"]["by_rule"],
    "cpu_seconds": [round(one.ru_utime + one.ru_stime, 1) for one in used],
}))
"""


def words(draw: random.Random, vocabulary: list[str], low: int, high: int) -> list[str]:
    # The square makes some words common and most rare, as in text.
    n = len(vocabulary)
    return [vocabulary[int(n * draw.random() ** 2)] for _ in range(draw.randint(low, high))]


def write_rows(path: Path, n_rows: int, seed: int) -> None:
    draw = random.Random(seed)
    syllables = ["ka", "lo", "mi", "ter", "an", "su", "ver", "ing", "pro", "de", "ro", "ne"]
    vocabulary = ["".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(20_000)]
    earlier: list[tuple[list[str], str]] = []
    with path.open("w", encoding="utf-8") as out:
        for n in range(n_rows):
            roll = draw.random()
            if earlier and roll < 0.06:
                question, answer = draw.choice(earlier)
                if roll >= 0.01:
                    place = draw.randrange(len(question))
                    question = [*question[:place], question[place].upper(), *question[place + 1 :]]
                    question.insert(0, "please")
            else:
                question = words(draw, vocabulary, 20, 60)
                answer = " ".join(words(draw, vocabulary, 20, 60))
                if len(earlier) < 10_000:
                    earlier.append((question, answer))
            row = {
                "prompt": " ".join(question) + "?",
                "completion": answer,
                "id": n,
                "label": n % 7,
            }
            out.write(json.dumps(row) + "\n")


def watch(process: psutil.Process, peak: list[int]) -> None:
    while process.is_running():
        total = 0
        try:
            for one in [process, *process.children(recursive=True)]:
                try:
                    total += one.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
        except psutil.NoSuchProcess:
            return
        peak[0] = max(peak[0], total)
        time.sleep(0.1)


def measure(rows: Path, processes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        build = subprocess.Popen(
            [sys.executable, "-c", BUILD, str(rows), f"{folder}/out", str(processes)],
            stdout=subprocess.PIPE,
            text=True,
        )
        peak = [0]
        watcher = threading.Thread(
            target=watch, args=(psutil.Process(build.pid), peak), daemon=True
        )
        watcher.start()
        out, _ = build.communicate()
        seconds = time.monotonic() - began
        if build.returncode:
            raise SystemExit(f"the build failed with exit code {build.returncode}")
        return {
            **json.loads(out.splitlines()[-1]),
            "processes": processes,
            "input_mb": round(rows.stat().st_size / 1e6, 1),
            "wall_seconds": round(seconds, 1),
            "peak_gb": round(peak[0] / 1e9, 2),
        }


def machine() -> str:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}"


def report(records: list[dict[str, Any]]) -> str:
    lines = [
        "# Building a dataset from many rows",
        "",
        "Read, check, exact and near-duplicates dropped, split, sealed: `tunesmith data build`, by",
        "`benchmarks/data/scale.py` (what it generates stands there). CPU seconds are those of all processes; memory is",
        "their sum at its highest; load is the average of the minute before.",
        "",
        "| rows | file | processes | seconds | CPU s | peak memory | left out | load | machine |",
        "|---:|---:|---:|---:|---:|---:|---|---:|---|",
    ]
    for one in records:
        out = ", ".join(f"{rule} {n}" for rule, n in one["left_out"].items())
        lines.append(
            f"| {sum(one['rows'].values()):,} of {one['asked']:,} | {one['input_mb']} MB | {one['processes']} "
            f"| {one['wall_seconds']} | {sum(one['cpu_seconds']):.1f} | {one['peak_gb']} GB | {out} "
            f"| {one['load']} | {one['machine']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, help="where the generated rows are kept and found again"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = (asked.keep or Path(folder)) / f"rows-{asked.rows}-{asked.seed}.jsonl"
        if not path.is_file():
            write_rows(path, asked.rows, asked.seed)
        load = round(os.getloadavg()[0], 2)
        found = {"asked": asked.rows, "load": load, "machine": machine()}
        found |= measure(path, asked.processes)
    print(json.dumps(found, indent=2))
    with JOURNAL.open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(found) + "\n")
    records = [json.loads(line) for line in JOURNAL.read_text(encoding="utf-8").splitlines()]
    TABLE.write_text(report(records), encoding="utf-8")


if __name__ == "__main__":
    main()
