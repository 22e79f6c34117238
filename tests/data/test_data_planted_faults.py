"""Every fault of the table below is named with its line by one `data check` run, and good rows are not.

Each dataset is a file of good rows with the faults of its table strewn in, a few good rows apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tunesmith.cli.data.check import check


@dataclass(frozen=True)
class Planted:
    """A fault: its dataset, its line (a row or raw bytes), and what must be said of it.

    `where` is "line" for the line itself, "dataset" or "file" for findings without a line.
    """

    dataset: str
    name: str
    line: Any
    check: str
    says: str = ""
    field: str = ""
    severity: str = ""
    where: str = "line"


def chat(question: str, answer: str, **others: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, **others}


def turns(*said: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in said]}


ASK, TELL = "When does the shop in Graz open on Sundays?", "It opens at ten and closes at four."
GOOD_TEXT = json.dumps(chat(ASK, TELL))
THING_LIST = (
    "kettle lamp radio clock mixer heater fan toaster iron drill scale printer router speaker "
    "camera vacuum blender charger monitor keyboard"
)
THINGS = THING_LIST.split()
TROUBLES = (
    ("does not switch on", "hold the button for five seconds and try again"),
    ("makes a loud noise", "tighten the two screws below the cover"),
    ("smells of burning", "unplug it at once and send it back to us"),
    ("has lost its manual", "the manual can be downloaded from our page"),
    ("leaks some water", "the seal has to be replaced by a workshop"),
    ("stops after a minute", "clean the filter and let it cool down"),
    ("shows a red light", "the red light means that the battery is low"),
)
PLACES = ["kitchen", "office", "garage", "cellar", "attic", "hall", "garden", "studio"]


def support_rows() -> list[dict[str, Any]]:
    return [
        chat(
            f"My {thing} in the {place} {trouble}. What should I do?",
            f"For the {thing} in your {place}: {remedy}.",
        )
        for thing, (trouble, remedy), place in product(THINGS, TROUBLES, PLACES)
    ]


DDL = "CREATE TABLE bike (id INTEGER, model TEXT, weight REAL, year INTEGER);"


def sql_row(question: str, query: str) -> dict[str, Any]:
    return {"question": f"{DDL}\n{question}", "sql": query}


def sql_rows() -> list[dict[str, Any]]:
    return [
        sql_row(
            f"How many bikes of {1960 + i} weigh more than {i % 7 + 5} kilos?",
            f"SELECT count(*) FROM bike WHERE year = {1960 + i} AND weight > {i % 7 + 5}",
        )
        for i in range(130)
    ]


def python_rows() -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"Write a function that adds {i} to each number of a list.",
            "output": f"def add_{i}(numbers):\n    return [number + {i} for number in numbers]\n\n"
            f"print(add_{i}([1, 2]))",
        }
        for i in range(120)
    ]


SCHEMA = {
    "type": "object",
    "required": ["city", "days"],
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
}


def json_row(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


def json_rows() -> list[dict[str, Any]]:
    return [
        json_row(
            f"We stay in {place.title()} Town for {i + 2} nights with {thing}s.",
            json.dumps({"city": f"{place.title()} Town", "days": i + 2}),
        )
        for i, (place, thing) in enumerate(product(PLACES, THINGS))
    ]


def label_row(text: str, label: str) -> dict[str, Any]:
    return {"prompt": text, "completion": label}


def label_rows() -> list[dict[str, Any]]:
    rows = []
    for thing, (trouble, _), place in product(THINGS, TROUBLES, PLACES):
        label = "danger" if "burning" in trouble else "repair" if "noise" in trouble else "question"
        rows.append(label_row(f"The {thing} in my {place} {trouble}.", label))
    return rows


def pair_row(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def pair_rows() -> list[dict[str, Any]]:
    return [
        pair_row(
            f"What is a {thing} in the {place} good for?",
            f"A {thing} makes life in the {place} easier.",
            f"I have never seen one in any {place}, ask others about {thing}s.",
        )
        for thing, place in product(THINGS, PLACES)
    ]


TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


def tool_row(city: str, call: dict[str, Any], answers: str = "c1") -> dict[str, Any]:
    said = [
        {"role": "user", "content": f"What is the weather in {city} today?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": answers, "content": f"rain over {city}"},
        {"role": "assistant", "content": f"Today it rains in the city of {city}."},
    ]
    return {"messages": said, "tools": TOOLS}


def call(name: str = "weather", arguments: Any = '{"city": "Graz"}') -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_rows() -> list[dict[str, Any]]:
    return [
        tool_row(f"{place.title()}-{thing.title()}", call())
        for place, thing in product(PLACES, THINGS)
    ]


GOOD = {
    "support": support_rows(),
    "sql": sql_rows(),
    "python": python_rows(),
    "json": json_rows(),
    "labels": label_rows(),
    "pairs": pair_rows(),
    "tools": tool_rows(),
    "few": support_rows()[:40],
    "wide": [],
    "nothing": [],
}
FIRST, SECOND = GOOD["support"][0]["messages"], GOOD["support"][1]["messages"]
DEEP = '{"messages": ' + "[" * 5000 + "]" * 5000 + "}"

FAULTS = [
    # Bytes and JSON.
    Planted("support", "a comma too many", GOOD_TEXT[:-1] + ",}", "unreadable", "not valid JSON"),
    Planted("support", "single quotes", str(chat(ASK, TELL)), "unreadable", "not valid JSON"),
    Planted("support", "a NUL byte", GOOD_TEXT.replace("opens", "op\0ens"), "unreadable", "NUL"),
    Planted(
        "support", "a byte of Latin-1", GOOD_TEXT.replace("shop", "café").encode("latin-1"),
        "unreadable", "UTF-8",
    ),
    Planted("support", "a second byte order mark", b"\xef\xbb\xbf" + GOOD_TEXT.encode(), "unreadable"),
    Planted("support", "a list as a row", f"[{GOOD_TEXT}]", "unreadable", "JSON object"),
    Planted("support", "a text as a row", '"hello"', "unreadable", "JSON object"),
    Planted("support", "a key twice", GOOD_TEXT[:-1] + ', "a": 1, "a": 2}', "unreadable", "twice"),
    Planted("support", "NaN as a number", GOOD_TEXT[:-1] + ', "score": NaN}', "unreadable", "NaN"),
    Planted("support", "nested five thousand deep", DEEP, "unreadable", "deep"),
    Planted("support", "the last line cut off", GOOD_TEXT[:60], "unreadable", "cut off"),
    Planted(
        "support", "half a surrogate pair", GOOD_TEXT.replace("shop", "sh\\ud83dop"), "schema",
        "surrogate", "messages[0].content",
    ),
    # Fields and roles.
    Planted("support", "another schema", {"instruction": "Add.", "output": "2"}, "schema", "mixed"),
    Planted("support", "turns that are a text", {"messages": "hi"}, "schema", "not a list", "messages"),
    Planted("support", "no turns", {"messages": []}, "schema", "not a list", "messages"),
    Planted(
        "support", "content null", turns(("user", ASK), ("assistant", None)), "schema", "not a string",
        "messages[1].content",
    ),
    Planted(
        "support", "content a number", turns(("user", ASK), ("assistant", 4)), "schema", "4",
        "messages[1].content",
    ),
    Planted(
        "support", "a role of its own", turns(("customer", ASK), ("assistant", TELL)), "roles",
        "'customer'", "messages[0].role",
    ),
    Planted(
        "support", "a role missing",
        {"messages": [{"content": ASK}, {"role": "assistant", "content": TELL}]}, "roles", "None",
        "messages[0].role",
    ),
    Planted(
        "support", "the user twice in a row", turns(("user", ASK), ("user", "Hello?"), ("assistant", TELL)),
        "roles", "after 'user'", "messages[1].role",
    ),
    Planted(
        "support", "no answer at the end",
        turns(("user", ASK), ("assistant", TELL), ("user", "Thanks.")), "roles", "last turn",
    ),
    Planted(
        "support", "the assistant begins", turns(("assistant", "Hi."), ("user", ASK), ("assistant", TELL)),
        "roles", "first turn", "messages[0].role",
    ),
    Planted(
        "support", "a system message in the middle",
        turns(("user", ASK), ("system", "Be brief."), ("assistant", TELL)), "roles", "'system'",
        "messages[1].role",
    ),
    Planted("support", "only a question", turns(("user", ASK)), "roles", "no assistant"),
    Planted(
        "support", "an empty answer", chat("Is the shop open on Monday?", ""), "empty", "",
        "messages[1].content",
    ),
    Planted(
        "support", "an answer of spaces", chat("Is the shop open on Tuesday?", " \n "), "empty", "",
        "messages[1].content",
    ),
    # Texts.
    Planted(
        "support", "the answer repeats the question", chat("Is it warm in Graz?", "Is it warm in Graz?"),
        "equal-turns", "same text", "messages[1].content",
    ),
    Planted(
        "support", "a turn said twice",
        turns(
            ("user", "Where do you have shops today?"), ("assistant", "In Graz and in Linz."),
            ("user", "Where do you have shops today?"), ("assistant", "And one more in Wien."),
        ),
        "repeated-turn", "messages[0]", "messages[2].content",
    ),
    Planted(
        "support", "UTF-8 read as Latin-1", chat("Where is the cafe of yours?", "The cafÃ© is in Graz."),
        "mojibake", "é", "messages[1].content",
    ),
    Planted(
        "support", "an apostrophe of cp1252", chat("Why is it closed there?", "It\u00e2\u20ac\u2122s a holiday."),
        "mojibake", "’",
    ),
    Planted(
        "support", "Cyrillic read as cp1251",
        chat("How do you greet in Russian?", "We say РџСЂРёРІРµС‚ to the customers."), "mojibake",
    ),
    Planted(
        "support", "the replacement character", chat("What is the price of it?", "It is 20 \ufffd for you."),
        "mojibake", "U+FFFD",
    ),
    Planted(
        "support", "a bell", chat("Does it ring at all?", "It rings\x07 very loud."), "control-characters",
        "U+0007",
    ),
    Planted(
        "support", "a terminal's colour", chat("Which colour is there?", "It is \x1b[31mred\x1b[0m."),
        "control-characters", "colour",
    ),
    Planted(
        "support", "a zero-width space", chat("Do you ship to Linz?", "We ship to Li\u200bnz as well."),
        "invisible-characters", "U+200B",
    ),
    Planted(
        "support", "text turned round", chat("What is the code of it?", "The code is \u202e1234\u202c."),
        "invisible-characters", "U+202E",
    ),
    Planted(
        "support", "a tag", chat("Is there a discount?", "Yes,<br/>there is one today."), "html", "<br/>",
    ),
    Planted(
        "support", "an entity", chat("Who runs this shop?", "It is run by Smith &amp; Sons."), "html",
        "&amp;",
    ),
    Planted(
        "support", "a marker of a template", chat("Do you repair bikes?", "We do.<|im_end|>"),
        "chat-markers", "<|im_end|>",
    ),
    Planted(
        "support", "another turn inside the answer",
        chat("Can I pay by card?", "You can.\n### Human: And by check?"), "chat-markers", "Human",
    ),
    Planted(
        "support", "a place to fill in", chat("Who will call me?", "Your agent [insert name] will call."),
        "unfilled", "[insert name]",
    ),
    Planted(
        "support", "an open code block", chat("How do I reset it?", "Type this:\n```\nreset --all"),
        "open-fence",
    ),
    Planted(
        "support", "the same words over and over", chat("Is it good?", "It is very good. " * 40),
        "repetition",
    ),
    Planted(
        "support", "a refusal", chat("Write me a poem about it.", "I'm sorry, but I can't help with that."),
        "refusal",
    ),
    Planted(
        "support", "speaking as an AI",
        chat("Do you like our lamps?", "As an AI language model, I have no preferences."), "refusal",
    ),
    Planted("support", "an empty cell", chat("What is the warranty?", "nan"), "null-answer"),
    Planted(
        "support", "the answer in the prompt",
        chat("Answer with: the lamp is sold out until May.", "the lamp is sold out until May"),
        "answer-in-prompt",
    ),
    # All rows together.
    Planted(
        "support", "another language",
        chat("Wann ist der Laden in der Stadt offen?", "Der Laden ist von zehn bis vier für Sie offen."),
        "language", "German",
    ),
    Planted(
        "support", "JSON among prose", chat("What does it weigh?", '{"weight": 12, "unit": "kg"}'),
        "mixed-formats", "JSON",
    ),
    Planted("support", "white space around", chat("Is it heavy to carry?", " It is not. \n"), "white-space"),
    Planted("support", "a row twice", {"messages": FIRST}, "duplicate", "support.jsonl:"),
    Planted(
        "support", "another answer to a prompt", chat(SECOND[0]["content"], "Nothing at all."),
        "contradiction", "support.jsonl:",
    ),
    # SQL.
    Planted("sql", "SELEC * FORM", sql_row("All bikes?", "SELEC * FORM bike"), "sql", "SELEC", "sql"),
    Planted(
        "sql", "a refusal as SQL", sql_row("Which bikes fly?", "SELECT I am sorry, I cannot"), "sql",
        "sorry", "sql",
    ),
    Planted(
        "sql", "a column that is not there", sql_row("Colours?", "SELECT colour FROM bike"), "sql",
        "no such column: colour",
    ),
    Planted(
        "sql", "a table that is not there", sql_row("Which cars?", "SELECT * FROM car"), "sql",
        "no such table: car",
    ),
    Planted(
        "sql", "a bracket left open", sql_row("How many?", "SELECT count(* FROM bike"), "sql", "syntax",
    ),
    Planted(
        "sql", "prose before the query",
        sql_row("The heaviest?", "Here is the query: SELECT max(weight) FROM bike"), "sql", "syntax",
    ),
    Planted(
        "sql", "a sentence that parses", sql_row("Why?", "SELECT the weight FROM bike your"), "sql",
        "the",
    ),
    # Python.
    Planted(
        "python", "no colon", {"instruction": "Name a function.", "output": "def f()\n    return 1"},
        "python", "line 1", "output",
    ),
    Planted(
        "python", "print as in Python 2", {"instruction": "Say hello.", "output": "x = 1\nprint 'hello'"},
        "python", "print",
    ),
    Planted(
        "python", "return outside of a function", {"instruction": "Return one.", "output": "x = 1\nreturn x"},
        "python", "outside function",
    ),
    Planted(
        "python", "indentation lost",
        {"instruction": "Count to three.", "output": "for i in range(3):\nprint(i)"}, "python", "indented",
    ),
    # JSON.
    Planted(
        "json", "a comma before the end", json_row("We stay two days in Wels.", '{"city": "Wels", "days": 2,}'),
        "json", "not valid JSON", "completion",
    ),
    Planted(
        "json", "Python's quotes", json_row("We stay four days in Enns.", "{'city': 'Enns', 'days': 4}"),
        "json", "not valid JSON",
    ),
    Planted(
        "json", "a key missing", json_row("We stay in Graz some time.", '{"city": "Graz"}'), "json-schema",
        "days",
    ),
    Planted(
        "json", "a number as text", json_row("We stay in Linz for two.", '{"city": "Linz", "days": "two"}'),
        "json-schema", "$.days",
    ),
    Planted(
        "json", "a key that no other has",
        json_row("We stay three days in Steyr.", '{"city": "Steyr", "days": 3, "note": "sea view"}'),
        "json-keys", "also has note",
    ),
    # Classes.
    Planted(
        "labels", "a label misspelled", label_row("The tap of my bath drips.", "questoin"), "rare-label",
        "question",
    ),
    Planted(
        "labels", "a label in capitals", label_row("The wire of my bath sparks.", "Danger"),
        "label-spelling", "danger",
    ),
    Planted(
        "labels", "one text, two labels", label_row(GOOD["labels"][0]["prompt"], "repair"), "contradiction",
        "labels.jsonl:",
    ),
    Planted(
        "labels", "a class of few rows", label_row("Tell me a joke about taps.", "smalltalk"),
        "too-few-of-a-class", "smalltalk 1", where="dataset",
    ),
    Planted(
        "labels", "classes far apart", label_row("Sing me a song about baths.", "smalltalk2"),
        "class-balance", "question", where="dataset",
    ),
    # Pairs and tools.
    Planted(
        "pairs", "nothing to prefer", pair_row("Which is best?", "The red one.", " The red one."),
        "equal-answers", "same answer",
    ),
    Planted(
        "pairs", "a preference turned round",
        pair_row(GOOD["pairs"][0]["prompt"], GOOD["pairs"][0]["rejected"], GOOD["pairs"][0]["chosen"]),
        "contradiction", "prefers",
    ),
    Planted(
        "tools", "a tool that is not described", tool_row("Wels", call("wether")), "tool-calls", "weather",
        "messages[1].tool_calls[0].function.name",
    ),
    Planted(
        "tools", "arguments that are no JSON", tool_row("Enns", call(arguments="{city: Enns}")),
        "tool-calls", "not valid JSON", "messages[1].tool_calls[0].function.arguments",
    ),
    Planted(
        "tools", "an answer to no call", tool_row("Melk", call(), answers="c9"), "tool-calls", "c9",
    ),
    # Whole files.
    Planted("few", "fewer than a hundred rows", None, "too-few-rows", "40 rows", "", "error", "dataset"),
    Planted("sql", "fewer than a thousand rows", None, "too-few-rows", "1,000", "", "warning", "dataset"),
    Planted("wide", "a file of UTF-16", None, "unreadable", "", "", "error", "file"),
    Planted("nothing", "an empty file", None, "unreadable", "empty", "", "error", "file"),
]  # fmt: skip
GOOD_BETWEEN = 7
LAST = "the last line cut off"
FIRST_LINE = "a second byte order mark"


def as_bytes(line: Any) -> bytes:
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)).encode()


def strewn(dataset: str) -> tuple[bytes, dict[str, int]]:
    """The file's bytes, and the line of each fault by its name."""
    faults = [one for one in FAULTS if one.dataset == dataset and one.line is not None]
    first = [one for one in faults if one.name == FIRST_LINE]
    last = [one for one in faults if one.name == LAST]
    rest = [one for one in faults if one not in first and one not in last]
    lines: list[bytes] = []
    places: dict[str, int] = {}
    good = [as_bytes(row) for row in GOOD[dataset]]
    for one in first:
        lines.append(b"\xef\xbb\xbf" + as_bytes(one.line))
        places[one.name] = len(lines)
    for place, row in enumerate(good):
        lines.append(row)
        if place % GOOD_BETWEEN == 3 and rest and place > 3:
            one = rest.pop(0)
            lines.append(as_bytes(one.line))
            places[one.name] = len(lines)
    assert not rest
    for one in last:
        lines.append(as_bytes(one.line))
        places[one.name] = len(lines)
    end = b"" if last else b"\n"
    return b"\n".join(lines) + (end if lines else b""), places


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """Dataset -> the findings of one run of `data check`, and the lines of its faults."""
    folder: Path = tmp_path_factory.mktemp("planted")
    schema = folder / "schema.json"
    schema.write_text(json.dumps(SCHEMA), encoding="utf-8")
    settings = {
        "sql": ["fields.prompt=question", "fields.completion=sql"],
        "json": [f"check.json_schema={schema}"],
    }
    found = {}
    for dataset in GOOD:
        path = folder / f"{dataset}.jsonl"
        content, places = strewn(dataset)
        path.write_bytes(GOOD_TEXT.encode("utf-16") if dataset == "wide" else content)
        sets = [word for value in settings.get(dataset, ()) for word in ("--set", value)]
        result = CliRunner().invoke(check, [str(path), "--no-model", "--all", "--json", *sets])
        assert result.exit_code == 0, result.output
        found[dataset] = (path, json.loads(result.stdout), places)
    return found


def test_the_table_is_long_enough_and_names_each_fault_once():
    assert len(FAULTS) >= 40
    assert len({one.name for one in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.dataset}: {fault.name}")
def test_a_planted_fault_is_named_with_its_line(checked, fault):
    path, report, places = checked[fault.dataset]
    where = f"{path}:{places[fault.name]}" if fault.where == "line" else str(path)
    here = [one for one in report["findings"] if one["where"] == where]

    named = [one for one in here if one["check"] == fault.check]

    assert named, here
    one = next((n for n in named if fault.says in f"{n['what']} {n['value']}"), None)
    assert one is not None, named
    assert one["fix"]
    assert fault.field in ("", one["field"])
    assert fault.severity in ("", one["severity"])


@pytest.mark.parametrize("dataset", GOOD)
def test_nothing_is_said_of_good_rows(checked, dataset):
    path, report, places = checked[dataset]
    faulty = {f"{path}:{line}" for line in places.values()} | {str(path)}

    assert [one for one in report["findings"] if one["where"] not in faulty] == []
