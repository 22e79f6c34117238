"""Near-duplicates planted among rows, and rows that look alike and are not: what the bars are measured on.

    python benchmarks/data/planted.py --banking banking77/train.csv --geoquery geoquery/train.jsonl --out planted

Each planted row repeats a row of the source in one way: a typing error, other case and punctuation, one word by a
synonym, a sentence added, words in another order. Each decoy differs from its row in one thing that counts: a number or
a negation. The same functions plant the rows of the tests.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Change = Callable[[random.Random, str], str | None]
"""A text changed, or None where this change cannot be made to it."""


@dataclass(frozen=True)
class Item:
    """One row.

    Attributes:
        origin: number of the source row that it says the same as; its own where nothing does.
        change: how it was made: empty for a source row.
        source: where the row's text is from.
    """

    question: str
    answer: str
    origin: int
    change: str = ""
    source: str = ""


_SYNONYMS = """
biggest largest|large big|tallest highest|smallest littlest|longest lengthiest|border adjoin|borders adjoins|
bordering adjoining|located situated|inhabitants residents|people persons|country nation|buy purchase|
cancel terminate|wrong incorrect|lost misplaced|help assist|fee charge|charged billed|extra additional|
payment transaction|change modify|verify confirm|waiting expecting|arrive come|arrived come|problem issue|
issue problem|working functioning|find locate|need require|declined rejected|receive obtain|refund reimbursement|
exchange convert|money cash|quickly fast|start begin|end finish|shows displays|choose pick|keep retain|answer reply|
ask inquire|repair fix|small little|total overall|often frequently|maybe perhaps|error mistake|allowed permitted|
happened occurred|transfer remittance|explain clarify|get obtain|send dispatch|old aged|important essential|
area region|several various|rapid swift|children kids|physician doctor|car automobile|house home|job task
"""
SYNONYMS = dict(
    pair.split() for pair in _SYNONYMS.replace("\n", "").split("|") if len(pair.split()) == 2
)
_ADDED = (
    "Please let me know.",
    "Thank you very much for your help.",
    "I would be glad about a quick reply.",
    "I have been wondering about this.",
    "It is rather urgent.",
    "Sorry for the trouble.",
)
_SENTENCES = (
    "This was reviewed once more before publication.",
    "The full notes are kept in the archive.",
    "Several readers have asked about it since.",
    "A summary can be found at the end.",
)
_WORD = re.compile(r"[A-Za-z]{5,}")


def typo(draw: random.Random, text: str) -> str | None:
    """One slip in one word of five letters or more: swapped, dropped, doubled or other letter."""
    found = [match for match in _WORD.finditer(text) if not match[0].isupper()]
    if not found:
        return None
    match = draw.choice(found)
    word = match[0]
    at = draw.randrange(1, len(word) - 1)
    match draw.randrange(4):
        case 0 if word[at] != word[at + 1]:
            made = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 1:
            made = word[:at] + word[at + 1 :]
        case 2:
            made = word[:at] + word[at] + word[at:]
        case _:
            other = draw.choice([c for c in "abcdefghijklmnopqrstuvwxyz" if c != word[at].lower()])
            made = word[:at] + other + word[at + 1 :]
    return text[: match.start()] + made + text[match.end() :]


def writing(draw: random.Random, text: str) -> str | None:
    """Other case, punctuation and spaces."""
    made = draw.choice((str.upper, str.lower, str.title, str.capitalize))(text)
    made = draw.choice((f"{made} ", made.rstrip("?.!"), f"{made}!!", made.replace(" ", "  ", 2)))
    made = made.replace(",", "") if draw.random() < 0.5 else made
    return made if made != text else f"{text.rstrip('?.!')} ?"


def synonym(draw: random.Random, text: str) -> str | None:
    """One word by a word that means the same."""
    found = [m for m in re.finditer(r"[a-z]+", text) if m[0] in SYNONYMS]
    if not found:
        return None
    match = draw.choice(found)
    return text[: match.start()] + SYNONYMS[match[0]] + text[match.end() :]


def sentence(draw: random.Random, text: str) -> str | None:
    """A sentence before or after that asks nothing; in long texts somewhere between others."""
    if len(text) > 300:
        parts = re.split(r"(?<=[.!?]) ", text)
        parts.insert(draw.randrange(len(parts) + 1), draw.choice(_SENTENCES))
        return " ".join(parts)
    closed = text if text.rstrip().endswith((".", "?", "!")) else f"{text.rstrip()}."
    added = draw.choice(_ADDED)
    return f"{closed} {added}" if draw.random() < 0.7 else f"{added} {closed}"


def order(draw: random.Random, text: str) -> str | None:
    """Words in another order: a last phrase put first, or two neighbours swapped; in long texts two sentences."""
    if len(text) > 300:
        parts = re.split(r"(?<=[.!?]) ", text)
        at = draw.randrange(len(parts) - 1) if len(parts) > 1 else 0
        parts[at : at + 2] = reversed(parts[at : at + 2])
        made = " ".join(parts)
        return made if made != text else None
    phrase = re.fullmatch(r"(.+\w) ((?:in|of|for|with|on|at) [\w ]{3,30})([?.!]*)", text)
    if phrase:
        return f"{phrase[2]} {phrase[1]}{phrase[3]}"
    words = text.split()
    if len(words) < 4:
        return None
    at = draw.randrange(len(words) - 1)
    words[at], words[at + 1] = words[at + 1], words[at]
    made = " ".join(words)
    return made if made != text else None


CHANGES: dict[str, Change] = {
    "typo": typo,
    "writing": writing,
    "synonym": synonym,
    "sentence": sentence,
    "order": order,
}


def other_number(draw: random.Random, text: str) -> str | None:
    """Another number in the place of one."""
    found = list(re.finditer(r"\d+", text))
    if not found or len(text) > 300:
        return None
    match = draw.choice(found)
    return text[: match.start()] + str(int(match[0]) + draw.randrange(1, 9)) + text[match.end() :]


def negated(draw: random.Random, text: str) -> str | None:
    """The opposite: "not" after the first auxiliary."""
    if len(text) > 300 or re.search(r"\bnot?\b|n't", text):
        return None
    made = re.sub(
        r"\b(is|are|was|were|can|could|will|would|did|does|has|have)\b", r"\1 not", text, count=1
    )
    return made if made != text else None


DECOYS: dict[str, Change] = {"number": other_number, "negation": negated}


def planted(
    rows: Sequence[tuple[str, str]],
    source: str,
    seed: int,
    *,
    share: float = 0.2,
    decoys: float = 0.1,
) -> list[Item]:
    """The rows, planted copies and decoys, in an order drawn by the seed.

    Args:
        rows: (question, answer); an empty answer for plain text.
        share: part of the rows that gets a planted copy; each way as often as rows allow.
        decoys: part of the rows that gets a decoy.
    """
    draw = random.Random(f"{source}/{seed}")
    items = [Item(q, a, at, "", source) for at, (q, a) in enumerate(rows)]
    places = list(range(len(rows)))
    draw.shuffle(places)
    n_each = max(1, int(share * len(rows)) // len(CHANGES))
    made: list[Item] = []
    for name, change in CHANGES.items():
        n = 0
        for at in list(places):
            if n == n_each:
                break
            text = change(draw, rows[at][0])
            if text is not None and text != rows[at][0]:
                made.append(Item(text, rows[at][1], at, name, source))
                places.remove(at)
                n += 1
    n_left = int(decoys * len(rows))
    for name, change in DECOYS.items():
        n = 0
        for at in list(places):
            if n == n_left // len(DECOYS):
                break
            text = change(draw, rows[at][0])
            if text is not None:
                made.append(Item(text, rows[at][1], len(rows) + len(made), f"decoy-{name}", source))
                places.remove(at)
                n += 1
    # Copies come after their rows, as they would be found in a file that grew.
    draw.shuffle(made)
    return items + made


def apart(rows: Sequence[tuple[str, str]], most: float = 0.5) -> list[tuple[str, str]]:
    """Rows of which no two share more than half of their words (Jaccard), in their order.

    What is planted among them is then all that is near: real sets hold near-duplicates of their own.
    """
    kept: list[tuple[str, str]] = []
    words: list[set[str]] = []
    for row in rows:
        own = set(re.findall(r"\w+", row[0].lower()))
        if all(len(own & seen) <= most * len(own | seen) for seen in words):
            kept.append(row)
            words.append(own)
    return kept


_SUBJECTS = [
    "engine",
    "bridge",
    "harbour",
    "library",
    "orchard",
    "museum",
    "glacier",
    "railway",
    "theatre",
    "observatory",
]
_VERBS = [
    "describes",
    "records",
    "explains",
    "summarises",
    "lists",
    "covers",
    "mentions",
    "compares",
    "reviews",
    "outlines",
]
_OBJECTS = [
    "its history",
    "the materials in use",
    "the people who built it",
    "what it cost",
    "how it is kept in order",
    "the damage of last winter",
    "plans for the coming years",
    "visitors and their questions",
    "the rules of entry",
    "tools that were found",
    "measurements over time",
    "letters from readers",
    "the weather of each month",
    "repairs to the roof",
    "maps of the surroundings",
    "a comparison with older works",
    "the sound of its bells",
    "light at different hours",
    "several small discoveries",
    "errors of earlier reports",
]
_PLACES = [
    "north",
    "south",
    "east",
    "west",
    "coast",
    "valley",
    "island",
    "border",
    "centre",
    "old-town",
]


def long_texts(n: int, seed: int, sentences: tuple[int, int] = (12, 40)) -> list[tuple[str, str]]:
    """Made-up reports of 12 to 40 sentences, each its own, without answers."""
    draw = random.Random(f"long/{seed}")
    made = []
    for at in range(n):
        subject = draw.choice(_SUBJECTS)
        parts = [f"Report {at} on the {subject} of {draw.choice(_PLACES)} {draw.randrange(1000)}."]
        for _ in range(draw.randint(*sentences)):
            parts.append(
                f"Section {draw.randrange(90)} {draw.choice(_VERBS)} {draw.choice(_OBJECTS)} near the "
                f"{draw.choice(_PLACES)} {draw.choice(_SUBJECTS)} and {draw.choice(_VERBS)} "
                f"{draw.choice(_OBJECTS)}."
            )
        made.append((" ".join(parts), ""))
    return made


def banking(path: Path) -> list[tuple[str, str]]:
    """(question, intent) of banking77's CSV, equal questions once."""
    with path.open(encoding="utf-8", newline="") as stream:
        rows = [(row["text"].strip(), row["category"]) for row in csv.DictReader(stream)]
    return list(dict.fromkeys(rows))


def geoquery(path: Path) -> list[tuple[str, str]]:
    """(question, SQL) of GeoQuery's JSONL."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys((row["question"], row["sql"]) for row in rows))


def write(items: Iterable[Item], folder: Path) -> None:
    """`rows.jsonl` for the tools, `truth.jsonl` for the judge."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "rows.jsonl").open("w", encoding="utf-8") as rows,
        (folder / "truth.jsonl").open("w", encoding="utf-8") as truth,
    ):
        for at, item in enumerate(items):
            row = (
                {"prompt": item.question, "completion": item.answer}
                if item.answer
                else {"text": item.question}
            )
            rows.write(json.dumps({**row, "row": at}) + "\n")
            truth.write(json.dumps(asdict(item)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--banking", type=Path)
    parser.add_argument("--geoquery", type=Path)
    parser.add_argument("--long", type=int, default=2_000, help="made-up long texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    sets = {"long": long_texts(args.long, args.seed)}
    if args.banking:
        sets["banking77"] = banking(args.banking)
    if args.geoquery:
        sets["geoquery"] = geoquery(args.geoquery)
    for name, rows in sets.items():
        items = planted(rows, name, args.seed)
        write(items, args.out / name)
        n = sum(item.change in CHANGES for item in items)
        print(f"{args.out / name}: {len(items)} rows, {n} planted")


if __name__ == "__main__":
    main()
