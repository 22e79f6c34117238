"""Near-duplicates side by side: the same planted file, each tool in an environment of its own.

    python benchmarks/data/dedup.py run --banking banking77/train.csv --geoquery geoquery/train.jsonl --peers .peers
    python benchmarks/data/dedup.py run --quick ...            a few hundred rows of each set
    python benchmarks/data/dedup.py report                     the table again, from the journal

Every run appends one line to the journal; a run that is there already is not done again. A contestant reads rows.jsonl
({"prompt", "completion"} or {"text"}, with the row's number) and writes the numbers of the rows that it keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "throughput")]

import harness  # noqa: E402
import planted  # noqa: E402

JOURNAL = HERE / "dedup.jsonl"
REPORT = HERE / "dedup.md"
ABSENT = {
    "llamafactory": "LLaMA-Factory has no step that removes duplicates",
}


@dataclass(frozen=True)
class Contestant:
    """One tool.

    Attributes:
        environment: its folder under --peers; empty for this one.
        note: what it was set to.
    """

    environment: str
    note: str


CONTESTANTS = {
    "tunesmith": Contestant("", "tunesmith data clean --near drop, defaults"),
    "datatrove": Contestant(
        "datatrove", "MinHash on words, 5-grams, 14 buckets of 8, its defaults"
    ),
    "datatrove-3": Contestant("datatrove", "the same with 3-grams, for short rows"),
    "textdedup": Contestant("textdedup", "text_dedup.minhash, 5-grams of words, threshold 0.7"),
    "textdedup-2": Contestant("textdedup", "the same with 2-grams, for short rows"),
    "soup": Contestant("soup", "soup data dedup, its defaults (MinHash of words, threshold 0.8)"),
    "axolotl": Contestant("axolotl", "dataset_exact_deduplication: its function on the rows"),
}


def main() -> None:
    args = parse()
    journal = harness.Journal(args.journal)
    if args.command == "run":
        with tempfile.TemporaryDirectory(prefix="bench-dedup-") as folder:
            for name, items in sets(args).items():
                planted.write(items, Path(folder) / name)
                for contestant in args.only or CONTESTANTS:
                    run(name, contestant, Path(folder) / name, items, args, journal)
    args.out.write_text(report(journal.records()), encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--banking", type=Path)
    parser.add_argument("--geoquery", type=Path)
    parser.add_argument("--long", type=int, default=2_000, help="made-up long texts")
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--out", type=Path, default=REPORT)
    parser.add_argument("--only", nargs="*", choices=list(CONTESTANTS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few hundred rows of each set")
    parser.add_argument("--allow-load", action="store_true", help="measure on a busy machine")
    return parser.parse_args()


def sets(args: argparse.Namespace) -> dict[str, list[planted.Item]]:
    """Planted sets by name. Real rows are thinned first, so that what is near is known."""
    rows = {"long": planted.long_texts(args.long, args.seed)}
    if args.banking:
        rows["banking77"] = planted.banking(args.banking)
    if args.geoquery:
        rows["geoquery"] = planted.geoquery(args.geoquery)
    most = 300 if args.quick else 10_000
    return {
        name: planted.planted(
            planted.apart(found[:most]) if name != "long" else found[:most], name, args.seed
        )
        for name, found in rows.items()
    }


def run(
    name: str,
    contestant: str,
    folder: Path,
    items: list[planted.Item],
    args: argparse.Namespace,
    journal: harness.Journal,
) -> None:
    done = {(r["set"], r["contestant"], r["repetition"], r["rows"]) for r in journal.records()}
    for repetition in range(1, args.repetitions + 1):
        if (name, contestant, repetition, len(items)) in done:
            continue
        record: dict[str, Any] = {
            "set": name,
            "contestant": contestant,
            "repetition": repetition,
            "rows": len(items),
            "busy_cores": round(harness.check_quiet(args.allow_load), 2),
            "loaded": args.allow_load,
            "note": CONTESTANTS[contestant].note,
            "machine": harness.machine(),
        }
        record |= measured(contestant, folder, args.peers)
        if "kept" in record:
            record |= scored(items, set(record.pop("kept")))
        journal.append(record)
        print({k: v for k, v in record.items() if k not in ("machine", "note")}, flush=True)


def measured(contestant: str, folder: Path, peers: Path) -> dict[str, Any]:
    """Time, processor time and memory of one run, and the rows kept; or why there is none."""
    environment = CONTESTANTS[contestant].environment
    python = Path(sys.executable) if not environment else peers / environment / "bin" / "python"
    if not python.exists():
        return {"error": f"no environment at {python}"}
    with tempfile.TemporaryDirectory(prefix="bench-dedup-run-") as out:
        command = [str(python.absolute()), str(HERE / "dedup_peer.py"), contestant]
        command += [str(folder / "rows.jsonl"), out]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        env = harness.environment({"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"})
        found = harness.launch(command, env, 900)
        wall = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        kept = Path(out) / "kept.json"
        if "error" not in found and kept.is_file():
            found["kept"] = json.loads(kept.read_text())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**found, "wall_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}


def scored(items: list[planted.Item], kept: set[int]) -> dict[str, Any]:
    """Recall by kind, and precision.

    A planted copy is found when it and its row are not both kept. A drop is right when the row's source, or a
    copy of it, is kept; every other drop is counted as wrong, natural near-duplicates included, except among
    rows of equal SQL, which ask the same. To drop a decoy is always wrong.
    """
    found: Counter[str] = Counter()
    n: Counter[str] = Counter()
    for at, item in enumerate(items):
        if item.change in planted.CHANGES:
            n[item.change] += 1
            found[item.change] += at not in kept or item.origin not in kept
    kept_origins = {items[at].origin for at in kept}
    kept_queries = {items[at].answer for at in kept if " " in items[at].answer}
    n_copies = Counter(item.origin for item in items)
    wrong = sum(
        # A decoy asks something else, though it has its row's query.
        item.change in {f"decoy-{name}" for name in planted.DECOYS}
        or (
            not (n_copies[item.origin] > 1 and item.origin in kept_origins)
            and item.answer not in kept_queries
        )
        for at, item in enumerate(items)
        if at not in kept
    )
    n_dropped = len(items) - len(kept)
    return {
        "dropped": n_dropped,
        "recall": round(sum(found.values()) / max(1, sum(n.values())), 4),
        "precision": round(1 - wrong / n_dropped, 4) if n_dropped else None,
        "recall_by_kind": {kind: round(found[kind] / n[kind], 3) for kind in n},
    }


def report(records: list[dict[str, Any]]) -> str:
    """The table, from the journal alone."""
    lines = ["# Near-duplicates: what each tool finds of what was planted", ""]
    lines += ["Made by `make bench-data` (`benchmarks/data/dedup.py`) from `dedup.jsonl`.", ""]
    lines += [f"Not in the table: {why}." for why in ABSENT.values()]
    loaded = any(record["loaded"] for record in records)
    if loaded:
        lines += ["", "Measured on a busy machine: the times say nothing."]
    for name in dict.fromkeys(record["set"] for record in records):
        mine = [record for record in records if record["set"] == name]
        lines += ["", f"## {name}, {mine[-1]['rows']} rows", ""]
        lines += ["| tool | recall | precision | seconds | processor seconds | peak memory |"]
        lines += ["|---|---|---|---|---|---|"]
        for contestant in dict.fromkeys(record["contestant"] for record in mine):
            lines.append(row([r for r in mine if r["contestant"] == contestant]))
        for contestant in dict.fromkeys(record["contestant"] for record in mine):
            good = [r for r in mine if r["contestant"] == contestant and "recall" in r]
            if good:
                kinds = ", ".join(f"{k} {v:.0%}" for k, v in good[-1]["recall_by_kind"].items())
                lines += ["", f"{contestant}: {kinds}"]
    notes = {record["contestant"]: record["note"] for record in records}
    lines += ["", *(f"- {name}: {note}" for name, note in notes.items()), ""]
    return "\n".join(lines)


def row(records: list[dict[str, Any]]) -> str:
    name = records[-1]["contestant"]
    good = [record for record in records if "recall" in record]
    if not good:
        error = records[-1].get("error", "no result").strip().splitlines()[-1][:120]
        return f"| {name} | {error} | | | | |"
    last = good[-1]
    wall, cpu = (
        statistics.median(record[key] for record in good) for key in ("wall_seconds", "cpu_seconds")
    )
    peak = statistics.median(record["peak_tree_bytes"] for record in good) / 2**20
    precision = "-" if last["precision"] is None else f"{last['precision']:.1%}"
    return (
        f"| {name} | {last['recall']:.1%} | {precision} | {wall:.1f} | {cpu:.1f} | {peak:.0f} MiB |"
    )


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
