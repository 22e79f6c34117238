"""GeoQuery's rows in the shapes that the scenarios need, as JSON lines."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SEED = 7
DEV_ROWS = {"prefix": 12, "dpo": 8}

TABLES = {
    "state": "state(state_name, population, area, country_name, capital, density)",
    "city": "city(city_name, population, country_name, state_name)",
    "river": "river(river_name, length, country_name, traverse)",
    "border_info": "border_info(state_name, border)",
    "highlow": "highlow(state_name, highest_elevation, lowest_point, highest_point, lowest_elevation)",
    "lake": "lake(lake_name, area, country_name, state_name)",
    "mountain": "mountain(mountain_name, mountain_altitude, country_name, state_name)",
}
"""GeoQuery's database, one line a table."""

RULES = (
    "You write SQL for a database about the geography of the United States. Answer with one SQLite query "
    "and nothing else: no explanation, no comment, no code fence. The database has these tables:"
)
HINTS = (
    "Names of states, cities, rivers, lakes and mountains are stored in small letters, so compare them with "
    "small letters in double quotes. Give every table an alias made of its name in capitals, the word alias "
    "and a number that starts at zero, and write every column with the alias of its table. Lengths are in "
    "kilometres, areas in square miles, elevations in metres, and density is people per square mile. "
    "The column traverse of river names a state that the river runs through, with one row for each such state. "
    "The column border of border_info names a state that touches state_name, with one row for each such pair. "
    "A question about the largest, longest, highest or smallest thing needs a subquery with MAX or MIN over the "
    "same table and the same conditions, because two things may be equally large. A question about how many "
    "things there are needs COUNT. A major city has more than 150000 people, and a major river is longer than "
    "750 kilometres. End the query with a semicolon."
)


def read(data: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (data / f"{split}.jsonl").open(encoding="utf-8")]


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(row: dict[str, Any], system: str | None = None) -> dict[str, Any]:
    """The question as the user's message, the SQL as it is as the answer."""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [
        {"role": "user", "content": row["question"]},
        {"role": "assistant", "content": row["sql"]},
    ]
    return {"messages": turns, "meta": {}}


def system_prompt() -> str:
    """About 400 tokens with the template around it: rules, every table, and hints."""
    return "\n".join([RULES, *TABLES.values(), HINTS])


def shuffled_schema(draw: random.Random) -> str:
    """Rules and tables in an order of their own: long prompts that no other row shares."""
    tables = list(TABLES.values())
    draw.shuffle(tables)
    return "\n".join([draw.choice(tables), RULES, *tables])


def lora(data: Path, place: Path, size: int) -> dict[str, Path]:
    """The first `size` rows of a seeded shuffle: every contestant sees exactly these, once."""
    rows = read(data, "train")
    random.Random(SEED).shuffle(rows)
    return {
        "train": write([chat(row) for row in rows[:size]], place / "train.jsonl"),
        "validation": write([chat(row) for row in read(data, "dev")], place / "dev.jsonl"),
    }


def prefix(data: Path, place: Path, size: int) -> dict[str, Path]:
    """Rows of about 100 tokens behind one system prompt of about 400."""
    rows = [row for row in read(data, "train") if 230 <= len(row["question"] + row["sql"]) <= 420]
    random.Random(SEED).shuffle(rows)
    system, dev = system_prompt(), read(data, "dev")[: DEV_ROWS["prefix"]]
    return {
        "train": write([chat(row, system) for row in rows[:size]], place / "train.jsonl"),
        "validation": write([chat(row, system) for row in dev], place / "dev.jsonl"),
    }


def dpo(data: Path, place: Path, size: int) -> dict[str, Path]:
    """Pairs: chosen is the gold SQL, rejected the gold SQL of another question.

    `train` has prompts that only their own pair shares (the schema in a shuffled order); `schema` has the
    schema in one order for all, as a real prompt would.
    """
    rows, dev = read(data, "train"), read(data, "dev")[: DEV_ROWS["dpo"]]
    random.Random(SEED).shuffle(rows)
    return {
        "train": write(pairs(rows[:size], rows, shared=False), place / "train.jsonl"),
        "schema": write(pairs(rows[:size], rows, shared=True), place / "schema.jsonl"),
        "validation": write(pairs(dev, rows, shared=False), place / "dev.jsonl"),
    }


def pairs(
    chosen: list[dict[str, Any]], others: list[dict[str, Any]], *, shared: bool
) -> list[dict[str, Any]]:
    draw, made = random.Random(SEED), []
    plain = "\n".join([RULES, *TABLES.values()])
    for row in chosen:
        other = next(o for o in iter(lambda: draw.choice(others), None) if o["sql"] != row["sql"])
        prompt = [
            {"role": "system", "content": plain if shared else shuffled_schema(draw)},
            {"role": "user", "content": row["question"]},
        ]
        answers = [[{"role": "assistant", "content": one["sql"]}] for one in (row, other)]
        made.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    return made


MAKERS = {
    "lora": lora,
    "long": lora,
    "search": lora,
    "full": lora,
    "qlora": lora,
    "share": lora,
    "peers": lora,
}
MAKERS |= {"prefix": prefix, "dpo": dpo}
