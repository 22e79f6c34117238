"""Planted faults: what each tool says of a file with one of them, each tool in an environment of its own.

    python benchmarks/data/faults.py run --peers .peers
    python benchmarks/data/faults.py run --only tunesmith soup       some of the tools
    python benchmarks/data/faults.py report                          the table again, from the journal

The faults are those of tests/data/test_data_planted_faults.py. For each there is a file: the good rows of its dataset
and this one fault among them. A tool has found a fault when it refuses the file, or says something of it that it does
not say of the good rows alone. Every run appends one line to the journal; what is there already is not done again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "throughput")]

import harness  # noqa: E402

JOURNAL = HERE / "faults.jsonl"
REPORT = HERE / "faults.md"
TABLE = ROOT / "tests" / "data" / "test_data_planted_faults.py"
GROUPS = {
    "bytes": "bytes and JSON: what is no row at all",
    "schema": "fields, roles, turns and tool calls",
    "content": "what one row's texts say",
    "domain": "SQL, Python, JSON, and pairs with nothing to prefer",
    "set": "what shows only beside other rows",
}
DOMAIN = {"sql", "python", "json", "json-schema", "json-keys", "equal-answers"}
SCHEMA = {"schema", "roles", "empty", "tool-calls"}
SET = {
    "language", "mixed-formats", "white-space", "duplicate", "contradiction", "rare-label",
    "label-spelling", "too-few-rows", "too-few-of-a-class", "class-balance",
}  # fmt: skip
FORMS = {"support": "chat", "few": "chat", "wide": "chat", "nothing": "chat", "tools": "tools"}
# LLaMA-Factory reads the properties of each tool, which the good rows' own description leaves out.
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a city today",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
WHOLE = {"chat": "support", "instruction": "labels"}
ALARM = re.compile(r"\b(warning|error|critical|failed)\b", re.IGNORECASE)
SOUP_END = re.compile(r"^soup data \w+ ended with")
NEEDS_JSON_SCHEMA = "json-schema"


@dataclass(frozen=True)
class Contestant:
    """One tool.

    Attributes:
        environment: its folder under --peers; empty for this one.
        note: what was run.
    """

    environment: str
    note: str


CONTESTANTS = {
    "tunesmith": Contestant("", "`tunesmith data check FILE --no-model --all --strict`"),
    "soup": Contestant(
        "soup",
        "`soup data validate`, then `doctor` (`lint` for pairs), both over all rows, then `clean --dry-run` with all "
        "its repairs; what any of them says counts",
    ),
    "llamafactory": Contestant(
        "llamafactory", "what `llamafactory-cli train` does before it loads the model"
    ),
    "axolotl": Contestant("axolotl", "what `axolotl preprocess` does"),
}


def main() -> None:
    args = parse()
    journal = harness.Journal(args.journal)
    if args.command == "run":
        for name in args.only or CONTESTANTS:
            if args.again or name not in {record["contestant"] for record in journal.records()}:
                record = run(name, args)
                journal.append(record)
                print(name, {k: record[k] for k in ("error", "cpu_seconds") if k in record})
    args.out.write_text(report(journal.records()), encoding="utf-8")
    print(args.out.read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--journal", type=Path, default=JOURNAL)
    parser.add_argument("--out", type=Path, default=REPORT)
    parser.add_argument("--only", nargs="*", choices=list(CONTESTANTS))
    parser.add_argument("--again", action="store_true", help="also what the journal holds already")
    parser.add_argument("--keep", type=Path, help="keep the files and what was said in this folder")
    parser.add_argument("--allow-load", action="store_true", help="measure on a busy machine")
    return parser.parse_args()


def table() -> Any:
    """The module with the faults and the good rows."""
    spec = importlib.util.spec_from_file_location("planted_faults", TABLE)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def group(fault: Any) -> str:
    if fault.check == "unreadable" or fault.name == "half a surrogate pair":
        return "bytes"
    for name, checks in (("schema", SCHEMA), ("domain", DOMAIN), ("set", SET)):
        if fault.check in checks:
            return name
    return "content"


def form(dataset: str) -> str:
    return FORMS.get(dataset, "pair" if dataset == "pairs" else "instruction")


def cases(name: str, faults: Any, folder: Path) -> list[dict[str, Any]]:
    """One file for each fault that the tool can be given, and one for the good rows of each dataset."""
    made = []
    for dataset in faults.GOOD:
        if faults.GOOD[dataset]:
            lines = [as_line(row, name, faults) for row in faults.GOOD[dataset]]
            made.append(case(f"good {dataset}", dataset, b"\n".join(lines) + b"\n", folder))
    for fault in faults.FAULTS:
        if name == "tunesmith" or fault.check != NEEDS_JSON_SCHEMA:
            content, line = with_fault(fault, name, faults)
            made.append(case(fault.name, fault.dataset, content, folder) | {"line": line})
    if name == "tunesmith":
        schema = folder / "schema.json"
        schema.write_text(json.dumps(faults.SCHEMA), encoding="utf-8")
        for one in made:
            if one["dataset"] == "json":
                one["settings"] = [f"check.json_schema={schema}"]
    return made


def case(name: str, dataset: str, content: bytes, folder: Path) -> dict[str, Any]:
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', f'{dataset} {name}'.lower())}.jsonl"
    path.write_bytes(content)
    return {
        "id": name,
        "dataset": dataset,
        "form": form(dataset),
        "file": str(path),
        "line": None,
        "settings": ["fields.prompt=question", "fields.completion=sql"] if dataset == "sql" else [],
    }


def as_line(row: Any, name: str, faults: Any) -> bytes:
    """A row in the fields that the tool reads: for the others instruction and output, which all of them know."""
    if name != "tunesmith" and isinstance(row, dict):
        if "tools" in row:
            row = row | {"tools": TOOLS}
        for fields in (("question", "sql"), ("prompt", "completion")):
            if set(row) == set(fields):
                row = {"instruction": row[fields[0]], "output": row[fields[1]]}
    return bytes(faults.as_bytes(row))


def with_fault(fault: Any, name: str, faults: Any) -> tuple[bytes, int | None]:
    """A file's bytes, and the line of the fault in it: in the middle, if it need not be first or last."""
    lines = [as_line(row, name, faults) for row in faults.GOOD[fault.dataset]]
    if fault.line is None:
        wide = faults.GOOD_TEXT.encode("utf-16") if fault.dataset == "wide" else b""
        return wide or b"".join(line + b"\n" for line in lines), None
    row = as_line(fault.line, name, faults)
    at = len(lines) // 2
    end = b"\n"
    if fault.name == faults.FIRST_LINE:
        at, row = 0, b"\xef\xbb\xbf" + row
    if fault.name == faults.LAST:
        at, end = len(lines), b""
    lines.insert(at, row)
    return b"\n".join(lines) + end, at + 1


def run(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One process of one tool over all files, and what came of each."""
    faults = table()
    record: dict[str, Any] = {
        "contestant": name,
        "busy_cores": round(harness.check_quiet(args.allow_load), 2),
        "loaded": args.allow_load,
        "note": CONTESTANTS[name].note,
        "machine": harness.machine(),
        "planted": len(faults.FAULTS),
    }
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as made:
        folder = args.keep / name if args.keep else Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        given = cases(name, faults, folder.resolve())
        (folder / "cases.json").write_text(json.dumps(given), encoding="utf-8")
        record |= measured(name, folder.resolve(), args.peers)
        if "error" not in record:
            said = json.loads((folder / "said.json").read_text(encoding="utf-8"))
            record["faults"] = judged(name, faults, given, said, folder.resolve())
    return record


def measured(name: str, folder: Path, peers: Path) -> dict[str, Any]:
    """Time, processor time and memory of one run; or why there is none."""
    environment = CONTESTANTS[name].environment
    python = Path(sys.executable) if not environment else peers / environment / "bin" / "python"
    if not python.exists():
        return {"error": f"no environment at {python}"}
    from tunesmith.config import ModelConfig
    from tunesmith.models.load import resolve_base

    command = [str(python.absolute()), str(HERE / "faults_peer.py"), name, str(folder)]
    extra = {
        "HF_HOME": str(folder / "hf"),
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "400",
        "NO_COLOR": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "WANDB_DISABLED": "true",
        "AXOLOTL_DO_NOT_TRACK": "1",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    env = harness.environment(extra)
    found = harness.launch([*command, str(resolve_base(ModelConfig()).dir)], env, 1800)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**found, "wall_seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}


def judged(
    name: str, faults: Any, given: list[dict[str, Any]], said: list[dict[str, Any]], folder: Path
) -> list[dict[str, Any]]:
    """For each fault: refuses, traceback, says or silent; whether its row is named; and the words."""
    heard = {one["id"]: one for one in said}
    usual = {one["dataset"]: one["id"] for one in given if one["id"].startswith("good ")}
    results = []
    for one in given[len(usual) :]:
        fault = next(f for f in faults.FAULTS if f.name == one["id"])
        # Where the whole file is the fault, it is held against a file of the same form that has enough rows.
        dataset = fault.dataset if fault.line is not None else WHOLE[one["form"]]
        if heard[usual[dataset]]["traceback"]:
            continue  # The tool does not take even the good rows, so this fault cannot be put to it.
        known = {shape(line) for line in lines_of(name, heard[usual[dataset]])}
        here = heard[one["id"]]
        new = [line for line in lines_of(name, here) if shape(line) not in known]
        # pyarrow names a field with a slash before it, which reads as a place on this machine.
        new = [line.replace(str(folder), "FOLDER").replace("(/", "(") for line in new]
        results.append(
            {
                "fault": fault.name,
                "group": group(fault),
                "line": one["line"] if fault.where == "line" else None,
                "outcome": outcome(name, here, heard[usual[dataset]], new),
                "rows": here["rows"],
                "said": " / ".join(dict.fromkeys(new))[:400],
            }
        )
        results[-1]["named"] = names(new, results[-1]["line"], fault)
    return results


def outcome(name: str, here: dict[str, Any], good: dict[str, Any], new: list[str]) -> str:
    """What came of a file, beside the good rows alone."""
    if here["traceback"]:
        return "traceback"
    if (here["exit"] and not good["exit"]) or any(SOUP_END.search(line) for line in new):
        return "refuses"
    return "says" if new else "silent"


def lines_of(name: str, heard: dict[str, Any]) -> list[str]:
    """What a tool said that is about the rows."""
    if name == "tunesmith" and heard["out"].startswith("{"):
        found = json.loads(heard["out"])["findings"]
        return [f"{one['where']} {one['check']}: {one['what']}" for one in found]
    # The last line of each traceback in a chain is an exception.
    raised = [line for line in heard["traceback"].splitlines() if re.match(r"^[\w.]+: ", line)]
    text = re.sub(r"\x1b\[[0-9;]*m", "", heard["out"] + "\n" + heard["err"]).replace("\r", "\n")
    # Boxes and the padding of tables change with the width of what stands in them.
    said = [re.sub(r"[\s\u2500-\u257f]+", " ", line).strip() for line in text.splitlines()]
    said = [line for line in said if re.search(r"\w", line)]
    if name != "soup":
        said = [line for line in said if ALARM.search(line)]
    # That the template knows system messages is no finding.
    said = [line for line in said if not re.search(r"system_role OK\b", line)]
    return [*raised, *said]


def shape(line: str) -> str:
    """A line without what differs from run to run: numbers, hashes, file names. None of N differs from some of N."""
    line = re.sub(r"\b0/\d+ rows", "none of the rows", line)
    line = re.sub(r"\b\d+/\d+ rows", "some of the rows", line)
    line = re.sub(r"\S*/\S+|\S+\.jsonl\b", "PATH", line)
    return re.sub(r"\b[0-9a-f]{12,}\b|[0-9]+", "#", line)


def names(new: Iterable[str], line: int | None, fault: Any) -> bool:
    """Whether the row's number, counted from 0 or 1, or a text of the row itself is in what was said."""
    if line is None:
        return False
    said = "\n".join(new)
    number = (
        rf"(?:\.jsonl:|(?:line|row|rows|record|example|index|idx)\W{{0,3}})(?:{line}|{line - 1})\b"
    )
    return bool(re.search(number, said, re.IGNORECASE)) or any(t in said for t in texts(fault.line))


def texts(value: Any) -> list[str]:
    """The longer texts of a row."""
    if isinstance(value, dict):
        return [text for one in value.values() for text in texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in texts(one)]
    return [value] if isinstance(value, str) and len(value) >= 12 else []


def report(records: list[dict[str, Any]]) -> str:
    """The tables, from the journal alone; the last run of each tool counts."""
    last = {record["contestant"]: record for record in records}
    good = {name: record for name, record in last.items() if "faults" in record}
    lines = ["# Planted faults: what each tool says of them", ""]
    lines += ["Made by `make bench-data` (`benchmarks/data/faults.py`) from `faults.jsonl`.", ""]
    lines += ["Each cell: found of those put to the tool, and how many of them with their row. "]
    lines[-1] += "Found is what is refused, or what the tool says something of that it does not "
    lines[-1] += "say of the good rows alone; a row is named by its number or by its text."
    lines += ["", "| group | " + " | ".join(good) + " |", "|---" * (len(good) + 1) + "|"]
    for name in (*GROUPS, "all"):
        lines.append(f"| {name} | " + " | ".join(cell(r["faults"], name) for r in good.values()))
        lines[-1] += " |"
    lines += ["", *(f"- {name}: {what}" for name, what in GROUPS.items()), ""]
    lines += ["| tool | put to it | refuses | stops with a traceback | says something | silent "]
    lines[-1] += "| processor seconds | peak memory |"
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [row(name, record) for name, record in last.items()]
    if any(record["loaded"] for record in last.values()):
        lines += ["", "Measured beside other work: processor seconds are a guide only."]
    lines += ["", "Not put to a tool: what only a JSON schema shows, where it takes none; "]
    lines[-1] += "and those of tool calls, where it does not take the good rows either. "
    lines[-1] += "The trainers read the file as for training; that one stops is counted as found. "
    lines[-1] += "The faults are those of tunesmith's own test, so that it finds all of them says "
    lines[-1] += "little; the figures are for what the others leave to find."
    lines += ["", *(f"- {name}: {record['note']}" for name, record in last.items()), ""]
    lines += ["## Silent", ""]
    for name, record in good.items():
        silent = [one["fault"] for one in record["faults"] if one["outcome"] == "silent"]
        lines += [f"- {name}: {'; '.join(silent) or 'none'}"]
    return "\n".join([*lines, ""])


def cell(faults: list[dict[str, Any]], name: str) -> str:
    mine = [one for one in faults if name in ("all", one["group"])]
    found = sum(one["outcome"] != "silent" for one in mine)
    n_lines = sum(one["line"] is not None for one in mine)
    return f"{found} of {len(mine)}, {sum(one['named'] for one in mine)} of {n_lines} with row"


def row(name: str, record: dict[str, Any]) -> str:
    if "faults" not in record:
        error = record.get("error", "no result").strip().splitlines()[-1][:120]
        return f"| {name} | {error} | | | | | | |"
    ends = [one["outcome"] for one in record["faults"]]
    counts = [ends.count(end) for end in ("refuses", "traceback", "says", "silent")]
    peak = f"{record['peak_tree_bytes'] / 2**20:.0f} MiB"
    cells = [name, len(ends), *counts, f"{record['cpu_seconds']:.0f}", peak]
    return "| " + " | ".join(str(value) for value in cells) + " |"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
