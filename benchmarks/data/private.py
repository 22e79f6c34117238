"""What the finder of personal data and secrets finds: planted values, false alarms on real questions, CPU.

    python benchmarks/data/private.py --banking77 FOLDER [--seeds 5] [--json FILE]

FOLDER holds banking77's train.csv and test.csv (13,083 questions of customers of a bank, PolyAI 2020), which are not
part of this repository. The planted texts are made by tests/data/planted_private.py, which shares nothing with the
finder. With detect-secrets installed, its answers stand beside ours.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tunesmith.data.clean.private import find

ROOT = Path(__file__).resolve().parents[2]


def planted_texts():
    path = ROOT / "tests" / "data" / "planted_private.py"
    spec = importlib.util.spec_from_file_location("planted_private", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def recall(cases) -> dict[str, tuple[int, int]]:
    """Kind -> (found whole and as that kind, planted)."""
    planted, found = Counter(), Counter()
    for case in cases:
        planted[case.kind] += 1
        end = case.start + len(case.value)
        spans = [s for s in find(case.text) if s.kind == case.kind]
        found[case.kind] += any(s.start <= case.start and s.end >= end for s in spans)
    return {kind: (found[kind], n) for kind, n in sorted(planted.items())}


def questions(folder: Path) -> list[str]:
    rows = []
    for name in ("train.csv", "test.csv"):
        with (folder / name).open(encoding="utf-8", newline="") as stream:
            rows += [row["text"] for row in csv.DictReader(stream)]
    return rows


def false_alarms(rows: list[str]) -> dict[str, object]:
    hits = [(row, find(row)) for row in rows]
    alarmed = [(row, spans) for row, spans in hits if spans]
    return {
        "rows": len(rows),
        "rows_with_findings": len(alarmed),
        "percent": round(100 * len(alarmed) / len(rows), 3),
        "by_kind": dict(Counter(span.kind for _, spans in alarmed for span in spans)),
        "first": [[row, [span.text for span in spans]] for row, spans in alarmed[:5]],
    }


def microseconds(rows: list[str]) -> float:
    """CPU of this process for 500 characters of clean text: the least of five passes."""
    texts, text = [], ""
    for row in rows:
        text = f"{text} {row}" if text else row
        if len(text) >= 500:
            texts.append(text[:500])
            text = ""
    best = float("inf")
    for _ in range(5):
        begin = time.process_time()
        for text in texts:
            find(text)
        best = min(best, time.process_time() - begin)
    return round(1e6 * best / len(texts), 1)


def detect_secrets(cases, rows) -> dict[str, object] | None:
    """The same by detect-secrets with its default plugins, on files: a value counts when a line of it is reported."""
    try:
        from detect_secrets import SecretsCollection
        from detect_secrets.settings import default_settings
    except ModuleNotFoundError:
        return None
    with tempfile.TemporaryDirectory() as folder, default_settings():
        planted, plain = Path(folder, "planted.txt"), Path(folder, "plain.txt")
        owner, lines = {}, []
        for number, case in enumerate(cases):
            lines += case.text.split("\n")
            owner.update(dict.fromkeys(range(len(owner) + 1, len(lines) + 1), number))
        planted.write_text("\n".join(lines), "utf-8")
        plain.write_text("\n".join(rows), "utf-8")
        found, alarms = SecretsCollection(), SecretsCollection()
        found.scan_file(str(planted))
        begin = time.process_time()
        alarms.scan_file(str(plain))
        seconds = time.process_time() - begin
        return {
            "found": len({owner[secret.line_number] for _, secret in found}),
            "planted": len(cases),
            "lines_with_findings": len({secret.line_number for _, secret in alarms}),
            "microseconds_per_row": round(1e6 * seconds / len(rows), 1),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--banking77", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    planted = planted_texts()
    cases = [
        case
        for seed in range(asked.seeds)
        for case in (*planted.personal_data(100 + seed), *planted.secret_texts(200 + seed))
    ]
    report = {"recall": recall(cases)}
    for kind, (found, n) in report["recall"].items():
        print(f"{kind:12} {found:5} of {n:5}  {100 * found / n:.2f} %")
    rows = questions(asked.banking77) if asked.banking77 else []
    if rows:
        report["banking77"] = false_alarms(rows)
        report["microseconds_per_500_characters"] = microseconds(rows)
        print("banking77:", json.dumps(report["banking77"], ensure_ascii=False))
        print("CPU microseconds for 500 characters:", report["microseconds_per_500_characters"])
    secrets = [case for case in cases if case.kind == "secret"]
    report["detect_secrets"] = detect_secrets(secrets, rows or ["none"])
    print("detect-secrets:", report["detect_secrets"] or "not installed")
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
