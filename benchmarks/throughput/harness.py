"""Contestants as processes of their own, and a journal of what each run measured.

Nothing here imports torch: a process that starts another one hands its own peak on to it, and the
harness must stay small beside what it measures.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "tunesmith")
# libgomp's own default, said aloud so that nothing in an environment can set another for one contestant.
OMP = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "300000"}
UNSET = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "KMP_BLOCKTIME")
SAMPLE_SECONDS = 0.1
MAX_LOAD = 0.5


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison.

    Attributes:
        name: its row in the tables.
        kind: which function of `contestant.py` runs it, or `command` for a program of its own.
        settings: what that function gets, as JSON.
        rows: which rows file of the scenario it reads.
        note: what a reader must know beside the settings.
        most_runs: no more repetitions than this, for a side that no target is about.
    """

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: str = "train"
    note: str = ""
    most_runs: int = 99


@dataclass(frozen=True)
class Task:
    """One run of one contestant."""

    scenario: str
    contestant: Contestant
    repetition: int
    size: int
    timeout_seconds: int = 900
    measure_loss: bool = True

    @property
    def key(self) -> tuple[str, str, int, int]:
        return (self.scenario, self.contestant.name, self.repetition, self.size)


class Journal:
    """A JSON line for each run, appended when it ends; nothing is rewritten."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def records(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]

    def done(self, allow_load: bool) -> set[tuple[str, str, int, int]]:
        """Runs that need no second try: they ended well, or the peer refused (which is a result).

        What was measured on a loaded machine counts only where load is allowed, or changes nothing.
        """
        return {
            (r["scenario"], r["contestant"], r["repetition"], r["size"])
            for r in self.records()
            if ("error" not in r or (r["scenario"] == "peers" and "versions" in r["machine"]))
            and (allow_load or not r["loaded"] or r["scenario"] == "full-search")
        }

    def append(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def seconds_of(self, task: Task) -> float | None:
        """How long the same run took last time, start and end included."""
        times = [
            r["wall_seconds"]
            for r in self.records()
            if (r["scenario"], r["contestant"], r["size"])
            == (task.scenario, task.contestant.name, task.size)
        ]
        return times[-1] if times else None


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "omp": OMP,
        "revision": _revision(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _revision() -> str:
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=7"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The same threads and wait policy for everybody; no network."""
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**kept, **OMP, **offline, **(extra or {})}


def wait_for_quiet(limit: float, patience_seconds: float = 90.0) -> float:
    """The load average of the last minute, after waiting a little for it to fall to `limit`.

    The contestant before leaves a load of its own behind, so what counts is the share of the cores that
    other processes use right now; the load average is only recorded.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        busy = psutil.cpu_percent(interval=1.0) / 100 * (os.cpu_count() or 1)
        if busy <= limit or time.monotonic() > deadline:
            return busy
        time.sleep(2)


def check_quiet(allow_load: bool) -> float:
    """Cores that other work uses.

    Raises:
        SystemExit: too many for a measurement, and `allow_load` is not set.
    """
    busy = wait_for_quiet(MAX_LOAD, 3.0 if allow_load else 90.0)
    if busy > MAX_LOAD:
        line = f"{busy:.2f} cores are busy with other work: the figures will be wrong"
        if not allow_load:
            sys.exit(f"{line}; stop that work, or measure anyway with --allow-load")
        print(f"WARNING: {line}", file=sys.stderr, flush=True)
    return busy


def opening(task: Task, allow_load: bool) -> dict[str, Any]:
    """What is known of a run before it starts."""
    busy = check_quiet(allow_load)
    return {
        "scenario": task.scenario,
        "contestant": task.contestant.name,
        "repetition": task.repetition,
        "size": task.size,
        "settings": task.contestant.settings,
        "note": task.contestant.note,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": round(os.getloadavg()[0], 2),
        "busy_cores": round(busy, 2),
        "loaded": allow_load,
        "command": f"python benchmarks/throughput/run.py one {task.scenario} "
        f"{task.contestant.name} --size {task.size}",
        "machine": machine(),
    }


def run_task(
    task: Task, rows: dict[str, Path], *, allow_load: bool, extra: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run one contestant; what it printed, or its error, as a record for the journal."""
    record = opening(task, allow_load)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="contest-") as folder:
        job = {
            "kind": task.contestant.kind,
            "settings": task.contestant.settings,
            "rows": str(rows.get(task.contestant.rows, "")),
            "validation": str(rows.get("validation", "")),
            "size": task.size,
            "out": folder,
            "measure_loss": task.measure_loss
            and task.repetition == 1
            and task.scenario != "search",
        }
        path = Path(folder) / "job.json"
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, str(HERE / "contestant.py"), str(path)]
        record |= launch(command, environment(extra), task.timeout_seconds)
        if "error" not in record and job["measure_loss"] and record.get("adapter"):
            command = [sys.executable, str(HERE / "losses.py"), str(path)]
            record |= _only(launch(command, environment(), 600), ("validation_loss", "error"))
    record.pop("adapter", None)
    record["wall_seconds"] = round(time.perf_counter() - began, 1)
    return record


def _only(found: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}


def launch(command: list[str], env: dict[str, str], timeout_seconds: float) -> dict[str, Any]:
    """Run a program; its last line of JSON with the peak memory of it and its children."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=env, start_new_session=True, text=True
        )
        peak = sample_tree(process, timeout_seconds)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read())
    if process.returncode:
        shown = (texts[1].strip() or texts[0].strip())[-3000:]
        shown = shown.replace(str(HERE.parents[1]), ".").replace(sys.prefix, "VENV")
        return {"error": f"exit {process.returncode}: {shown}", "peak_tree_bytes": peak}
    found = last_json(texts[0])
    return {**found, "peak_tree_bytes": max(peak, found.get("peak_rss_bytes", 0))}


def last_json(text: str) -> dict[str, Any]:
    for line in reversed(text.strip().splitlines()):
        if line.startswith("{"):
            return dict(json.loads(line))
    return {}


def sample_tree(process: subprocess.Popen[str], timeout_seconds: float) -> int:
    """The highest sum of resident memory over the process and its children, sampled while it runs."""
    root, peak, deadline = psutil.Process(process.pid), 0, time.monotonic() + timeout_seconds
    while process.poll() is None:
        peak = max(peak, sum(_resident(root)))
        if time.monotonic() > deadline:
            _end_tree(root)
            process.wait()
            break
        time.sleep(SAMPLE_SECONDS)
    return peak


def _resident(root: psutil.Process) -> Iterator[int]:
    try:
        for one in (root, *root.children(recursive=True)):
            try:
                yield one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return


def _end_tree(root: psutil.Process) -> None:
    for one in (*root.children(recursive=True), root):
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
