"""Train one contestant in this process and print its figures as one JSON line.

    python benchmarks/throughput/contestant.py JOB.json

`run.py` writes the job: kind (a function below), settings, files of rows, size, output folder. All contestants
of a scenario start from the same weights, read the same rows once and use the same adapter and optimizer;
`losses.py` measures what they saved with the same code.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = {
    "tunesmith": "ours:train",
    "tunesmith-reach": "ours:reach",
    "tunesmith-growth": "growth:measure",
    "tunesmith-share": "share:measure",
    "trl-sft": "trl_peers:sft",
    "trl-dpo": "trl_peers:dpo",
    "trl-qlora": "trl_peers:qlora",
    "full-reach": "full_peer:reach",
}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    module, _, name = KINDS[job["kind"]].partition(":")
    figures = getattr(importlib.import_module(module), name)(job)
    print(json.dumps(figures | {"peak_rss_bytes": peak_rss_bytes(), "threads": threads()}))


def peak_rss_bytes() -> int:
    """This process's own high-water mark. (ru_maxrss would carry over that of the process that started it.)"""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def threads() -> int:
    import torch

    return int(torch.get_num_threads())


@dataclass
class Clock:
    """Wall and processor seconds of each step."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0

    def start(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.seconds.append(time.perf_counter() - self.began[0])
        self.cpu_seconds += time.process_time() - self.began[1]


def figures(clock: Clock, tokens: list[float], rows: list[float], warm: int) -> dict[str, Any]:
    """Speed after the first `warm` steps, in which kernels are built."""
    seconds = clock.seconds
    warm = min(warm, max(len(seconds) - 1, 0))
    timed = sum(seconds[warm:])
    return {
        "steps": len(seconds),
        "warm_steps": warm,
        "rows_seen": round(sum(rows)),
        "tokens_seen": round(sum(tokens)),
        "step_seconds": [round(one, 4) for one in seconds],
        "train_seconds": sum(seconds),
        "cpu_seconds": clock.cpu_seconds,
        "tokens_per_second": sum(tokens[warm:]) / timed,
        "rows_per_second": sum(rows[warm:]) / timed,
    }


if __name__ == "__main__":
    main()
