"""Training side by side with its peers: speed, memory and loss, each contestant in a process of its own.

    python benchmarks/throughput/run.py all --minutes 45        the whole plan, as far as the minutes reach
    python benchmarks/throughput/run.py lora dpo --quick        some scenarios, a few steps each
    python benchmarks/throughput/run.py search                  all settings of TRL that are tried, 3 steps each
    python benchmarks/throughput/run.py search --shortlist 3    the best of a search on a busy machine, once more
    python benchmarks/throughput/run.py peers                   other tools by their own command lines
    python benchmarks/throughput/run.py report                  tables and plots from the journal

Every run appends one line to the journal; a run that is there already is not done again, so an
interrupted command goes on where it stopped. Contestants take turns, repetition by repetition.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import report
import rows
import scenarios
from harness import Contestant, Journal, Task
from peers import run as peers

HERE = Path(__file__).parent
PLAN = ("search", "lora", "long", "prefix", "qlora", "dpo", "full", "share", "growth", "peers")
COMMANDS = ("all", "one", "report", "search", "full-search", "peers", *scenarios.SCENARIOS)
GUESS_SECONDS = {
    "lora": 60,
    "long": 120,
    "prefix": 90,
    "qlora": 60,
    "dpo": 90,
    "full": 240,
    "growth": 20,
}


def main() -> None:
    args = parse()
    journal = Journal(args.journal)
    if args.omp == "passive":
        harness.OMP.update({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"})
    if args.commands[0] == "report":
        report.write(journal, args.out)
        return
    if not (args.data / "train.jsonl").is_file():
        sys.exit(f"{args.data} holds no train.jsonl; name GeoQuery's folder with --data")
    if args.commands[0] == "one":
        run_one(args, journal)
        return
    deadline = time.monotonic() + 60 * args.minutes
    names = PLAN if args.commands == ["all"] else args.commands
    skipped = [line for name in names for line in run_scenario(name, args, journal, deadline)]
    for line in skipped:
        print(line, flush=True)
    report.write(journal, args.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="+", help=f"of {', '.join(COMMANDS)}")
    parser.add_argument("--data", type=Path, default=Path("geoquery"))
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--journal", type=Path, default=HERE / "results.jsonl")
    parser.add_argument("--out", type=Path, default=HERE.parent)
    parser.add_argument("--minutes", type=float, default=10_000)
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--size", type=int, help="rows that a run sees")
    parser.add_argument("--only", nargs="*", help="names of contestants")
    parser.add_argument("--shortlist", type=int, help="how many of the search's best run again")
    parser.add_argument("--quick", action="store_true", help="a few steps, one repetition")
    parser.add_argument("--allow-load", action="store_true", help="measure on a busy machine")
    parser.add_argument("--no-loss", action="store_true", help="leave the validation loss out")
    parser.add_argument("--omp", choices=("active", "passive"), default="active")
    args = parser.parse_args()
    unknown = set(args.commands) - set(COMMANDS)
    if unknown and args.commands[0] != "one":
        parser.error(f"no such command: {', '.join(sorted(unknown))}; of {', '.join(COMMANDS)}")
    return args


def run_scenario(
    name: str, args: argparse.Namespace, journal: Journal, deadline: float
) -> Iterator[str]:
    """Run what the journal does not hold yet; yields a line for each run that the time was short for."""
    if name == "peers":
        tasks = [Task("peers", c, 1, size_of(name, args)) for c in peers.contestants()]
    else:
        tasks = list(planned(name, args, journal))
    with tempfile.TemporaryDirectory(prefix="bench-rows-") as folder:
        files: dict[str, Path] = {}
        for task in tasks:
            if args.only and task.contestant.name not in args.only:
                continue
            if task.key in journal.done(args.allow_load):
                continue
            expected = journal.seconds_of(task) or GUESS_SECONDS.get(name, 60)
            if time.monotonic() + expected > deadline:
                yield f"skipped for time: {label(task)}, about {expected:.0f} s"
                continue
            files = files or make_rows(name, task.size, args.data, Path(folder))
            record = execute(task, files, args)
            journal.append(record)
            print(summary(task, record), flush=True)


def planned(name: str, args: argparse.Namespace, journal: Journal) -> Iterator[Task]:
    """Repetition by repetition, so that all contestants meet the machine's drift alike."""
    repeats = args.repetitions or (1 if args.quick else scenarios.REPETITIONS.get(name, 1))
    for repetition in range(1, repeats + 1):
        for contestant in contestants(name, args, journal):
            if repetition > contestant.most_runs:
                continue
            yield Task(
                name,
                contestant,
                repetition,
                size_of(name, args),
                measure_loss=not args.no_loss,
            )


def contestants(name: str, args: argparse.Namespace, journal: Journal) -> list[Contestant]:
    made = all_contestants(name, args, journal)
    if not args.quick:
        return made
    few = {"most_steps": 4}
    return [
        replace(c, settings=c.settings | few) if "most_steps" in c.settings else c for c in made
    ]


def all_contestants(name: str, args: argparse.Namespace, journal: Journal) -> list[Contestant]:
    if name == "full-search":
        return scenarios.full_search()
    if name == "search":
        if args.shortlist:
            return scenarios.search(scenarios.shortlist(journal, args.shortlist))
        every = args.commands != ["all"]
        return scenarios.search(list(scenarios.SEARCH) if every else scenarios.LIKELY)
    return scenarios.SCENARIOS[name](journal)


def size_of(name: str, args: argparse.Namespace) -> int:
    return int(args.size or (scenarios.QUICK if args.quick else scenarios.SIZES)[name])


def make_rows(name: str, size: int, data: Path, place: Path) -> dict[str, Path]:
    maker = rows.MAKERS.get(name.removesuffix("-search"))
    return maker(data.resolve(), place, size) if maker else {}


def execute(task: Task, files: dict[str, Path], args: argparse.Namespace) -> dict[str, Any]:
    if task.scenario == "peers":
        return peers.run(task, files, args.peers.resolve(), allow_load=args.allow_load)
    extra = None
    if task.contestant.kind == "trl-qlora":
        extra = {"PYTHONPATH": str(args.peers.resolve() / "bitsandbytes")}
    return harness.run_task(task, files, allow_load=args.allow_load, extra=extra)


def run_one(args: argparse.Namespace, journal: Journal) -> None:
    """Run one contestant once and print its record; the journal stays as it is."""
    _, name, wanted = args.commands
    found = {c.name: c for c in contestants(name, args, journal)}
    if wanted not in found:
        sys.exit(f"{name} has no contestant {wanted!r}; of {', '.join(found)}")
    with tempfile.TemporaryDirectory(prefix="bench-rows-") as folder:
        size = size_of(name, args)
        files = make_rows(name, size, args.data, Path(folder))
        record = execute(Task(name, found[wanted], 1, size), files, args)
    print(harness.json.dumps(record, indent=2))


def label(task: Task) -> str:
    return f"{task.scenario} {task.contestant.name} #{task.repetition}"


def summary(task: Task, record: dict[str, Any]) -> str:
    if "error" in record:
        return f"{label(task)}: {record['error'].splitlines()[-1][:160]}"
    parts = [f"{label(task)}: {record['wall_seconds']:.0f} s in all"]
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:.0f} tokens/s")
    if "validation_loss" in record:
        parts.append(f"loss {record['validation_loss']:.4f}")
    parts.append(f"peak {record.get('peak_tree_bytes', 0) / 2**30:.2f} GiB")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
