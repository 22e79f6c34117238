"""The whole step from rows to a dataset, each tool in an environment of its own: time, memory, and what it finds.

    python benchmarks/data/pipeline.py run --peers .peers                 10,000 and 100,000 rows
    python benchmarks/data/pipeline.py run --rows 1000 --only soup ...    other sizes, some of the tools
    python benchmarks/data/pipeline.py report                             the table again, from the journals

Rows are those of scale.py: 20 to 60 words on each side, about a twentieth nearly equal to an earlier row, a hundredth
equal. Each tool does what comes nearest to read, check, near-duplicates, split and seal; the second table says what it
has of these. A run that takes longer than --limit seconds is ended; one that must take --skip times as long, told from
a run of fewer rows without its start, is not tried, nor one that could not have its time within --minutes. Found
faults and near-duplicates are taken from faults.jsonl and dedup.jsonl. Every run appends one line to the journal; what
is there already, other than an error, is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "throughput")]

import faults as planted_faults  # noqa: E402
import harness  # noqa: E402
import scale  # noqa: E402

JOURNAL = HERE / "pipeline.jsonl"
REPORT = HERE / "pipeline.md"
STEPS = (
    "checks rows", "exact duplicates", "near-duplicates", "split", "leaks between splits",
    "side file of what went", "hashes", "tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Contestant:
    """One tool.

    Attributes:
        environment: its folder under --peers; empty for this one.
        note: what is run.
        steps: which of `STEPS` that does.
    """

    environment: str
    note: str
    steps: tuple[str, ...]


CONTESTANTS = {
    "tunesmith": Contestant(
        "",
        "`tunesmith data build` with `clean: {exact: drop, near: drop}`, 2 processes",
        STEPS[:-1],
    ),
    "llamafactory": Contestant(
        "llamafactory",
        "what `llamafactory-cli train` does before it loads the model: `tokenized_path`, `val_size: 0.1`, "
        "`preprocessing_num_workers: 2`",
        ("split", "tokens"),
    ),
    "axolotl": Contestant(
        "axolotl",
        "`axolotl preprocess`: `dataset_exact_deduplication`, `val_set_size: 0.1`, `dataset_num_proc: 2`; "
        "what it writes is not split yet",
        ("exact duplicates", "split", "tokens"),
    ),
    "textdedup": Contestant(
        "textdedup",
        "`text_dedup.minhash`, 5-grams, threshold 0.7, its processes",
        ("exact duplicates", "near-duplicates"),
    ),
    "soup": Contestant(
        "soup",
        "`soup data validate`, `dedup`, `split --val 10 --test 10`",
        ("checks rows", "exact duplicates", "near-duplicates", "split"),
    ),
    "datatrove": Contestant(
        "datatrove",
        "JsonlReader, the four steps of MinHash with its defaults, JsonlWriter; 2 workers",
        ("exact duplicates", "near-duplicates"),
    ),
}


def main() -> None:
    args = parse()
    journal = harness.Journal(args.journal)
    if args.command == "run":
        for n_rows in args.rows:
            with tempfile.TemporaryDirectory(prefix="bench-pipeline-") as place:
                write(Path(place), n_rows, args.seed)
                until = time.monotonic() + args.minutes * 60
                for name in args.only or CONTESTANTS:
                    if time.monotonic() + args.limit > until:
                        print(f"{name}: no time left of --minutes {args.minutes:g}")
                        continue
                    run(name, n_rows, Path(place), args, journal)
    text = report(journal.records(), found_faults(), found_duplicates())
    args.out.write_text(text, encoding="utf-8")
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--limit", type=float, default=120, help="seconds for one tool and size")
    parser.add_argument(
        "--skip", type=float, default=1.5, help="not tried where this times --limit is foreseen"
    )
    parser.add_argument("--minutes", type=float, default=8, help="for all tools of one size")
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--out", type=Path, default=REPORT)
    parser.add_argument("--only", nargs="*", choices=list(CONTESTANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allow-load", action="store_true", help="measure on a busy machine")
    return parser.parse_args()


def write(folder: Path, n_rows: int, seed: int) -> None:
    """The same rows twice: in the fields that this tool and those of documents are given, and in those of trainers."""
    made = folder / "made.jsonl"
    scale.write_rows(made, n_rows, seed)
    with (
        made.open(encoding="utf-8") as lines,
        (folder / "rows.jsonl").open("w", encoding="utf-8") as rows,
        (folder / "alpaca.jsonl").open("w", encoding="utf-8") as alpaca,
    ):
        for number, line in enumerate(lines):
            row = json.loads(line)
            asked, said = row["prompt"], row["completion"]
            rows.write(json.dumps({"prompt": asked, "completion": said, "row": number}) + "\n")
            alpaca.write(json.dumps({"instruction": asked, "output": said}) + "\n")
    made.unlink()


def run(
    name: str, n_rows: int, place: Path, args: argparse.Namespace, journal: harness.Journal
) -> None:
    mine = [record for record in journal.records() if record["contestant"] == name]
    if any(record["rows_in"] == n_rows and "error" not in record for record in mine):
        return
    record: dict[str, Any] = {
        "contestant": name,
        "rows_in": n_rows,
        "limit_seconds": args.limit,
        "note": CONTESTANTS[name].note,
        "loaded": args.allow_load,
        "machine": harness.machine(),
    }
    if least := least_seconds(mine, n_rows, args):
        record |= {"not_tried": least}
    else:
        record["busy_cores"] = round(harness.check_quiet(args.allow_load), 2)
        record |= measured(name, place, args)
    journal.append(record)
    print({key: value for key, value in record.items() if key not in ("machine", "note")})


def least_seconds(
    mine: list[dict[str, Any]], n_rows: int, args: argparse.Namespace
) -> dict[str, float] | None:
    """The run of fewer rows, if it says that this one would be far over the limit."""
    for record in mine:
        seconds = args.limit if record.get("over") else record.get("wall_seconds", 0)
        rest = seconds - record.get("stages", {}).get("start", 0)
        grown = n_rows / record["rows_in"]
        if grown > 1 and rest * grown >= args.limit * args.skip:
            return {"rows": record["rows_in"], "seconds": seconds}
    return None


def measured(name: str, place: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Time, memory and stages of one run, and the rows that it leaves; or why there is none."""
    environment = CONTESTANTS[name].environment
    own = Path(sys.executable)
    python = own if not environment else args.peers / environment / "bin" / "python"
    if not python.exists():
        return {"error": f"no environment called {environment}"}
    from tunesmith.config import ModelConfig
    from tunesmith.models.load import resolve_base

    with tempfile.TemporaryDirectory(prefix="bench-pipeline-run-") as made:
        folder = Path(made)
        for file in ("rows.jsonl", "alpaca.jsonl"):
            (folder / file).hardlink_to(place / file)
        extra = {
            "HF_HOME": str(folder / "hf"),
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "PYTHONHASHSEED": "0",
            "CUDA_VISIBLE_DEVICES": "",
            "WANDB_DISABLED": "true",
            "AXOLOTL_DO_NOT_TRACK": "1",
        }
        command = [str(python.absolute()), str(HERE / "pipeline_peer.py"), name, made]
        command.append(str(resolve_base(ModelConfig()).dir))
        began = time.perf_counter()
        found = harness.launch(command, harness.environment(extra), args.limit)
        wall = time.perf_counter() - began
        stages = folder / "stages.json"
        found["stages"] = json.loads(stages.read_text()) if stages.is_file() else {}
    if "error" in found and wall >= args.limit:
        del found["error"]
        found["over"] = True
    elif "error" in found:
        found["error"] = found["error"].replace(made, "FOLDER")
    return {**found, "wall_seconds": round(wall, 1)}


def found_faults() -> dict[str, str]:
    """Contestant -> planted faults found, and how many with their row; of the last run of each."""
    last = {one["contestant"]: one for one in harness.Journal(planted_faults.JOURNAL).records()}
    return {
        name: planted_faults.cell(record["faults"], "all")
        for name, record in last.items()
        if "faults" in record
    }


def found_duplicates() -> dict[str, dict[str, float]]:
    """Contestant -> set -> recall of the planted near-duplicates."""
    found: dict[str, dict[str, float]] = {}
    for record in harness.Journal(HERE / "dedup.jsonl").records():
        if "recall" in record:
            found.setdefault(record["contestant"], {})[record["set"]] = record["recall"]
    return found


def report(
    records: list[dict[str, Any]], faults: dict[str, str], recall: dict[str, dict[str, float]]
) -> str:
    """The tables, from the journals alone; the last run of each tool and size counts."""
    last = {(record["rows_in"], record["contestant"]): record for record in records}
    lines = ["# From rows to a dataset: each tool's nearest to read, check, split and seal", ""]
    lines += [
        "Made by `make bench-data` (`benchmarks/data/pipeline.py`) from `pipeline.jsonl`.",
        "",
    ]
    lines += ["Generated rows (`pipeline.py` says which); memory is the sum over all processes at "]
    lines[-1] += "its highest. A tool's row says nothing of the steps that it does not have: the "
    lines[-1] += "second table names them. Seconds after a stage count from the start."
    if any(record["loaded"] for record in last.values()):
        lines += ["", "Measured beside other work: the times say nothing."]
    for size in sorted({size for size, _ in last}):
        lines += ["", f"## {size:,} rows", ""]
        lines += ["| tool | seconds | peak memory | rows left | stages |"]
        lines += ["|---|---|---|---|---|"]
        lines += [row(last[size, name]) for name in CONTESTANTS if (size, name) in last]
    lines += ["", "## What each does", ""]
    sets = sorted({name for found in recall.values() for name in found})
    recalls = [f"near-duplicates found in {name}" for name in sets]
    lines += [f"| tool | {' | '.join((*STEPS, 'planted faults', *recalls))} |"]
    lines += ["|---" * (1 + len(STEPS) + 1 + len(recalls)) + "|"]
    for name, contestant in CONTESTANTS.items():
        cells = ["yes" if step in contestant.steps else "-" for step in STEPS]
        cells.append(faults.get(name, "no checks"))
        mine = recall.get(name, {})
        cells += [f"{mine[one]:.1%}" if one in mine else "-" for one in sets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Faults are those of `faults.md` and near-duplicates those of `dedup.md`, planted ",
    ]
    lines[-1] += "there; each says how its figures are made."
    lines += ["", *(f"- {name}: {one.note}" for name, one in CONTESTANTS.items()), ""]
    return "\n".join(lines)


def row(record: dict[str, Any]) -> str:
    name = record["contestant"]
    if "not_tried" in record:
        tried = record["not_tried"]
        said = f"{tried['rows']:,} rows took {tried['seconds']:.0f}"
        return f"| {name} | not tried: {said} | | | |"
    if "error" in record:
        error = record["error"].strip().splitlines()[-1][:120]
        return f"| {name} | {error} | | | |"
    over = record.get("over")
    wall = f"over {record['limit_seconds']:.0f}" if over else f"{record['wall_seconds']:.1f}"
    left = "; ".join(f"{part} {n:,}" for part, n in record.get("rows_out", {}).items())
    stages = "; ".join(f"{stage} {seconds:.1f}" for stage, seconds in record["stages"].items())
    peak = f"{record['peak_tree_bytes'] / 2**20:.0f} MiB"
    return f"| {name} | {wall} | {peak} | {left} | {stages} |"


if __name__ == "__main__":
    main()
