"""Fine-tune on GeoQuery and measure execution accuracy of base and tuned model on its 279 test questions.

    python benchmarks/quality/geoquery.py --data FOLDER [--set key=value ...]

FOLDER holds train.jsonl, dev.jsonl, test.jsonl (question, sql, executes) and geography.sqlite. The gold
SQL of train and dev is rewritten before training: keywords in lower case, and table aliases left out
where a query does not need them. A rewritten query is used only when it returns the same multiset of
rows as the original; the others stay as they are. Test queries stay as they are: an answer counts when
its rows equal those of the original query; test rows whose query does not run on SQLite (`executes`)
cannot be judged and are left out. `--original-sql` trains on the SQL as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import sqlglot
from sqlglot import exp

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("geoquery"))
    parser.add_argument("--prepared", type=Path, default=Path("runs/geoquery-data"))
    parser.add_argument("--original-sql", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if not (args.data / "train.jsonl").is_file():
        sys.exit(f"{args.data} holds no train.jsonl; name GeoQuery's folder with --data")
    prepare(args.data, args.prepared, rewrite=not args.original_sql)
    sets = [
        f"data.source.train={args.prepared / 'train.jsonl'}",
        f"data.source.validation={args.prepared / 'dev.jsonl'}",
        f"data.source.test={args.prepared / 'test.jsonl'}",
        f"data.databases.geography={args.prepared / 'geography.sqlite'}",
        *args.set,
    ]
    command = [sys.executable, "-m", "tunesmith", "run", str(HERE / "geoquery.yaml"), "--json"]
    command += ["--until", "evaluate", *(part for s in sets for part in ("--set", s))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    questions = sum(1 for _ in (args.data / "test.jsonl").open(encoding="utf-8"))
    text = results(stages["train"]["facts"], stages["evaluate"]["facts"], questions, sys.argv[1:])
    (HERE / "results.md").write_text(text, encoding="utf-8")
    print(text)


def results(train: dict, found: dict, questions: int, options: list[str]) -> str:
    """The figures as a page; a question whose gold query does not run counts as wrong for both."""
    base, tuned, gain = found["base"], found["tuned"], found["gain"]
    low, high = gain["interval_points"]
    spelled = " ".join(o for o in options if not o.startswith(("/", "workspace=")))
    return f"""# GeoQuery: execution accuracy

`python benchmarks/quality/geoquery.py` with the settings of `benchmarks/quality/geoquery.yaml`{f" (options: {spelled})" if "original" in spelled else ""}.
SmolLM2-135M-Instruct (from the 4-bit wheel), {train["method"]["kind"]} rank {train["method"].get("rank")}, {train["rows"]} training rows,
{train["epochs"]:.0f} epochs, {train["train_tokens"]} tokens, {train["precision"]} on the CPU, seed {train["seed"]}. Greedy decoding; an answer is right when its
query returns the same multiset of rows as the gold query. Training used shortened gold SQL (see the script); the test did not.

| | right | of {found["n"]} whose gold query runs | of all {questions} |
|---|---:|---:|---:|
| base | {base["correct"]} | {base["accuracy"]:.1%} | {base["correct"] / questions:.1%} |
| tuned | {tuned["correct"]} | {tuned["accuracy"]:.1%} | {tuned["correct"] / questions:.1%} |

Tuned: 95 % interval {tuned["interval"][0]:.1%} to {tuned["interval"][1]:.1%} (n = {found["n"]}). Gain {gain["points"]:+.1f} points, {low:+.1f} to {high:+.1f} ({gain["method"]}); won {found["mcnemar"]["won"]},
lost {found["mcnemar"]["lost"]}, exact McNemar p = {found["mcnemar"]["p_value"]:.2g}. Validation loss {train["first_validation_loss"]:.3f} before, {train["validation_loss"]:.3f} after.
"""


def prepare(source: Path, target: Path, *, rewrite: bool) -> None:
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "geography.sqlite", target / "geography.sqlite")
    shutil.copy(source / "test.jsonl", target / "test.jsonl")
    database = sqlite3.connect(f"file:{source / 'geography.sqlite'}?mode=ro", uri=True)
    for name in ("train", "dev"):
        rows = [json.loads(line) for line in (source / f"{name}.jsonl").open(encoding="utf-8")]
        kept = 0
        for row in rows:
            short = shorten(row["sql"])
            wanted = result(database, row["sql"])
            if rewrite and wanted is not None and result(database, short) == wanted:
                row["sql"] = short
            else:
                kept += 1
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (target / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(rows)} rows, SQL of {kept} left as it was")
    database.close()


def result(database: sqlite3.Connection, sql: str) -> Counter | None:
    try:
        return Counter(database.execute(sql).fetchall())
    except sqlite3.Error:
        return None


def shorten(sql: str) -> str:
    """The query without aliases where a SELECT has one table, with short ones elsewhere."""
    tree = sqlglot.parse_one(sql, read="sqlite")
    for name in tree.find_all(exp.Identifier):
        name.set("quoted", False)
    for column in list(tree.find_all(exp.Column)):
        # In this data a double-quoted word is a string, which SQLite accepts.
        if not column.table and f'"{column.name}"' in sql:
            column.replace(exp.Literal.string(column.name))
    renamed: dict[str, str] = {}
    for select in tree.find_all(exp.Select):
        sources = [select.args.get("from_") or select.args.get("from")]
        sources += select.args.get("joins") or []
        alone = len(sources) == 1
        for source in sources:
            alias = source.this.args.get("alias")
            if alias is None:
                continue
            old = alias.name
            renamed[old] = "" if alone else f"t{len(renamed) + 1}"
            source.this.set(
                "alias",
                exp.TableAlias(this=exp.to_identifier(renamed[old])) if renamed[old] else None,
            )
    for column in tree.find_all(exp.Column):
        if column.table in renamed:
            new = renamed[column.table]
            column.set("table", exp.to_identifier(new) if new else None)
    text = tree.sql(dialect="sqlite")
    parts = text.split("'")
    return "'".join(part if odd % 2 else part.lower() for odd, part in enumerate(parts))


if __name__ == "__main__":
    main()
