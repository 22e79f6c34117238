"""Cleaning: what is changed, what is dropped, and that every row is accounted for."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rows_of_text import rows_in

from tunesmith.config import CleanConfig
from tunesmith.data.clean import Cleaner, clean_files, plan_clean
from tunesmith.data.clean.edit import edited, strings
from tunesmith.data.clean.normalise import normalised, without_html
from tunesmith.data.rows import Row
from tunesmith.errors import ConfigError, DataError, UsedDirectoryError


def chat(question, answer, **meta):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "meta": meta}


def row_of(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return Row("f.jsonl:1", "chat", text, json.loads(text))


def cleaned(value, **rules):
    return Cleaner(plan_clean(CleanConfig(**rules))).row(row_of(value))


@pytest.mark.parametrize(
    ("text", "mended", "names"),
    [
        ("plain", "plain", ()),
        ("a\r\nb\rc", "a\nb\nc", ("line ends",)),
        ("cafe\u0301", "caf\u00e9", ("Unicode NFC",)),
        ("the dog\u00e2\u20ac\u2122s bowl", "the dog\u2019s bowl", ("mojibake",)),
        ("Ã¼ber allem schÃ¶n", "über allem schön", ("mojibake",)),
        ("a\x00b\x1b[31mred\x1b[0m", "abred", ("control characters",)),
        ("zero\u200bwidth\ufeff", "zerowidth", ("invisible characters",)),
        ("end  \nnext\t\n\n", "end\nnext", ("white space",)),
        ("ﬁ ² ｘ", "ﬁ ² ｘ", ()),  # NFKC would change these
        ("👩\u200d🔬 and نمی\u200cخواهم", "👩\u200d🔬 and نمی\u200cخواهم", ()),
        ("x = 1  \ny = 2", "x = 1  \ny = 2", ()),  # code keeps its spaces
        ("```\na  \n```", "```\na  \n```", ()),
    ],
)
def test_texts_are_mended_and_what_was_mended_is_named(text, mended, names):
    assert normalised(text) == (mended, names)


@given(st.text())
@example("Â\x1f\x91")  # mojibake only once the control character is out
def test_a_mended_text_is_not_mended_again(text):
    mended, _ = normalised(text)

    assert normalised(mended) == (mended, ())


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>Hello <b>you</b></p><p>Bye &amp; thanks</p>", "Hello you\nBye & thanks"),
        ("one<br/>two", "one\ntwo"),
        ("<script>alert(1)</script>text<!-- note -->", "text"),
        ("if a < b and c > d then", "if a < b and c > d then"),
        ("write to <your name>", "write to <your name>"),
        ("the tag <b> makes HTML bold", "the tag <b> makes HTML bold"),
        ("R&D at AT&T", "R&D at AT&T"),
    ],
)
def test_html_is_taken_out_where_it_is_a_remain(text, plain):
    assert without_html(text) == plain


def test_a_changed_row_keeps_every_other_character():
    text = (
        '{"messages":  [{"role": "user","content": "caf\\u0065\\u0301" }, {"role":"assistant", '
        '"content": "Gr\\u00fc\\u00dfe", "tool_calls": [{"arguments": "{\\"x\\": 1.0}"}] }], '
        '"meta": {"b": 1.50, "a": "e\\u0301", "n": null}}'
    )

    row = cleaned(text, normalize=True).row

    assert row.text == text.replace('"caf\\u0065\\u0301"', '"caf\\u00e9"')
    assert row.value["messages"][0]["content"] == "café"
    assert row.meta == {"b": 1.5, "a": "e\u0301", "n": None}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


def _leaves(value, place=()):
    if isinstance(value, str):
        yield place, value
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in pairs:
        yield from _leaves(inner, (*place, key))


@given(_json, st.sampled_from([None, 1, (", ", " : ")]), st.booleans())
def test_every_string_of_a_row_is_found_where_it_stands(value, style, ascii_only):
    if isinstance(style, tuple):
        text = json.dumps(value, separators=style, ensure_ascii=ascii_only)
    else:
        text = json.dumps(value, indent=style, ensure_ascii=ascii_only)

    found = list(strings(text))

    assert [(place, string) for place, _, _, string in found] == list(_leaves(value))
    assert all(json.loads(text[start:end]) == string for _, start, end, string in found)


@given(_json)
def test_editing_changes_the_chosen_strings_and_no_other_byte(value):
    text = json.dumps({"messages": value})
    row = Row("f:1", "chat", text, {"messages": value})

    same = edited(row, lambda found: found, lambda kind, place: True)
    marked = edited(row, lambda found: f"{found}!", lambda kind, place: True)

    assert same is row
    assert [string for _, string in _leaves(marked.value)] == [
        f"{s}!" for _, s in _leaves(row.value)
    ]


@pytest.mark.parametrize(
    ("rules", "row", "rule"),
    [
        ({"empty": "drop"}, chat("Who?", "N/A"), "empty"),
        ({"empty": "drop"}, chat("Who?", "  "), "empty"),
        ({"refusals": "drop"}, chat("Who?", "I'm sorry, but I cannot help with that."), "refusal"),
        ({"languages": ["en"]}, chat("Was ist das und wie ist es?", "Das ist nicht der Tag."), "language"),
        ({"min_answer_characters": 3}, chat("Who?", "ab"), "length"),
        ({"max_answer_characters": 30}, chat("Who?", "abcd" * 9), "length"),
        ({"max_question_characters": 30}, chat("Who?" * 9, "ab"), "length"),
        ({"min_question_characters": 5}, chat("Who?", "ab"), "length"),
        ({"drop_where": {"source": "forum"}}, chat("Who?", "ab", source="forum"), "field"),
        ({"drop_where": {"ok": False}}, chat("Who?", "ab", ok=False), "field"),
        ({"pii": {"action": "drop"}}, chat("Mail ann@example.com please", "ok"), "private"),
    ],
)  # fmt: skip
def test_a_rule_drops_its_row_and_says_why(rules, row, rule):
    found = cleaned(row, **rules)

    assert found.row is None
    assert found.decisions[-1].action == "drop"
    assert found.decisions[-1].rule == rule
    assert found.decisions[-1].reason
    assert (
        cleaned(chat("Where is the town hall?", "In the market square."), **rules).row is not None
    )


def test_true_is_not_one_in_a_field():
    assert cleaned(chat("Who?", "ab", ok=0), drop_where={"ok": False}).row is not None


def test_masked_values_do_not_come_back_in_the_reason():
    found = cleaned(chat("Mail ann@example.com please", "ok"), pii={"action": "mask"})

    assert found.row.value["messages"][0]["content"] == "Mail [EMAIL_1] please"
    assert "example.com" not in found.decisions[0].reason
    assert found.decisions[0].action == "change"


def test_contradicting_rules_are_named_together():
    config = CleanConfig(min_answer_characters=9, max_answer_characters=3, languages=["en", "xx"])

    with pytest.raises(ConfigError) as caught:
        plan_clean(config)
    assert "min_answer_characters=9" in caught.value.what
    assert "'xx'" in caught.value.what


ROWS = [
    chat("What is the capital of Texas?", "Austin", n=1),
    chat("What is the capital of Texas?", "Austin", n=2),  # the same
    chat("what is the capitol of texas", "Austin", n=3),  # nearly
    chat("What is the capital of Ohio?", "Columbus", n=4),
    chat("Say cafe\u0301", "ok", n=5),  # mended
    chat("Who?", "N/A", n=6),  # empty
]


def test_every_row_is_kept_or_in_a_side_file_with_its_reason(lines, tmp_path):
    path = lines("rows.jsonl", ROWS)
    out = tmp_path / "out"

    result = clean_files(
        [path], CleanConfig(exact="drop", near="drop", empty="drop", normalize=True), out=out
    )

    assert [row["meta"]["n"] for row in rows_in(out / "rows.jsonl")] == [1, 4, 5]
    dropped = rows_in(out / "dropped.jsonl")
    assert [(d["where"], d["rule"], d["row"]) for d in dropped] == [
        (f"{path}:2", "exact", ROWS[1]),
        (f"{path}:3", "near", ROWS[2]),
        (f"{path}:6", "empty", ROWS[5]),
    ]
    assert f"{path}:1" in dropped[0]["reason"]
    (changed,) = rows_in(out / "changed.jsonl")
    assert changed["row"] == ROWS[4]
    assert changed["to"]["messages"][0]["content"] == "Say café"
    assert changed["rule"] == "normalize"
    report = json.loads((out / "report.json").read_text())
    assert (report["rows_in"], report["rows_out"]) == (6, 3)
    assert report["dropped"] == {"exact": 1, "near": 1, "empty": 1} == result.dropped


def test_near_alone_says_of_an_exact_copy_that_it_is_one(lines, tmp_path):
    path = lines("rows.jsonl", ROWS)
    clean_files([path], CleanConfig(near="drop"), out=tmp_path / "out")
    dropped = rows_in(tmp_path / "out" / "dropped.jsonl")
    assert [(d["where"], d["rule"], d["reason"]) for d in dropped] == [
        (f"{path}:2", "near", f"exactly the same as {path}:1"),
        (f"{path}:3", "near", f"nearly the same as {path}:1"),
    ]


def test_a_text_with_another_class_is_no_duplicate(tmp_path):
    path = tmp_path / "texts.csv"
    texts = ["Where is my card?,arrival", "where is my card,lost", "Where is my card?,lost"]
    path.write_text("\n".join(["text,category", *texts, "Where is my card?,arrival", ""]))

    clean_files([path], CleanConfig(exact="drop", near="drop"), out=tmp_path / "out")

    assert len(rows_in(tmp_path / "out" / "rows.jsonl")) == 2
    dropped = rows_in(tmp_path / "out" / "dropped.jsonl")
    assert [(line["where"], line["rule"]) for line in dropped] == [
        (f"{path}:4", "near"),
        (f"{path}:5", "exact"),
    ]


def test_rows_that_are_not_changed_keep_their_bytes(tmp_path):
    line = '{"messages":  [{"role":"user","content":"a  b \\u00e9"},{"role":"assistant","content":"1.50"}],"meta":{}}'
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")

    clean_files([path], CleanConfig(exact="drop", normalize=True), out=tmp_path / "out")

    text = (tmp_path / "out" / "rows.jsonl").read_text()
    for raw in ('"a  b \\u00e9"', '"1.50"', '"meta":'):
        assert raw in text


def test_cleaning_again_changes_nothing(lines, tmp_path):
    path = lines("rows.jsonl", ROWS)
    config = CleanConfig(exact="drop", near="drop", empty="drop", normalize=True, html="strip")
    clean_files([path], config, out=tmp_path / "once")

    result = clean_files([tmp_path / "once" / "rows.jsonl"], config, out=tmp_path / "twice")

    assert result.rows_in == result.rows_out == 3
    assert not result.rows_changed
    first, second = (tmp_path / name / "rows.jsonl" for name in ("once", "twice"))
    assert first.read_bytes() == second.read_bytes()


_texts = st.sampled_from(
    ["What is it?", "what is it", "Who is Ann?", "cafe\u0301", "N/A", "<p>x</p>", "I'm sorry, I cannot do that.",
     "a\r\nb", "mail a@example.com", "3 apples", "4 apples", "Was ist das und wie ist es?"]
)  # fmt: skip
_keep = st.sampled_from(["keep", "drop"])


@given(
    rows=st.lists(st.tuples(_texts, _texts, st.sampled_from(["a", "b"])), min_size=1, max_size=25),
    rules=st.fixed_dictionaries(
        {},
        optional={
            "exact": _keep,
            "near": _keep,
            "empty": _keep,
            "refusals": _keep,
            "normalize": st.booleans(),
            "html": st.sampled_from(["keep", "strip"]),
            "languages": st.just(["en"]),
            "drop_where": st.just({"source": "a"}),
            "min_answer_characters": st.integers(0, 9),
            "pii": st.sampled_from(["keep", "mask", "drop"]).map(lambda a: {"action": a}),
        },
    ),
)
def test_rows_in_are_rows_out_and_rows_dropped_whatever_the_rules(tmp_path_factory, rows, rules):
    folder = tmp_path_factory.mktemp("clean")
    values = [chat(q, a, source=s, n=n) for n, (q, a, s) in enumerate(rows)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")

    clean_files([path], CleanConfig(**rules), out=folder / "out", processes=1)

    kept = [row["meta"]["n"] for row in rows_in(folder / "out" / "rows.jsonl")]
    dropped = rows_in(folder / "out" / "dropped.jsonl")
    changed = rows_in(folder / "out" / "changed.jsonl")
    assert kept == sorted(kept)
    assert sorted([*kept, *(line["row"]["meta"]["n"] for line in dropped)]) == list(
        range(len(rows))
    )
    assert all(line["row"] == values[line["row"]["meta"]["n"]] for line in [*dropped, *changed])
    by_n = {row["meta"]["n"]: row for row in rows_in(folder / "out" / "rows.jsonl")}
    touched = {line["row"]["meta"]["n"] for line in changed}
    assert touched == {n for n, row in by_n.items() if row != values[n]}


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes(lines, tmp_path):
    rows = [
        chat(f"Question {n % 700} about lake {n % 700}?", f"answer {n % 700}", n=n)
        for n in range(1500)
    ]
    path = lines("rows.jsonl", rows)
    config = CleanConfig(exact="drop", near="drop", normalize=True)
    for processes in (1, 2):
        clean_files([path], config, out=tmp_path / str(processes), processes=processes)

    for name in ("rows.jsonl", "dropped.jsonl", "changed.jsonl", "report.json"):
        one, two = (tmp_path / n / name for n in ("1", "2"))
        assert one.read_bytes() == two.read_bytes()


def test_a_folder_with_other_files_is_not_replaced(lines, tmp_path):
    path = lines("rows.jsonl", ROWS)

    with pytest.raises(UsedDirectoryError) as caught:
        clean_files([path], CleanConfig(), out=tmp_path)
    assert "rows.jsonl" in caught.value.what
    assert path.exists()


def test_an_earlier_cleaning_is_replaced_whole(lines, tmp_path):
    path, out = lines("in.jsonl", ROWS), tmp_path / "out"
    clean_files([path], CleanConfig(exact="drop"), out=out)
    clean_files([path], CleanConfig(), out=out)

    assert len(rows_in(out / "rows.jsonl")) == len(ROWS)
    assert rows_in(out / "dropped.jsonl") == []


def test_what_cannot_be_read_is_named_and_nothing_is_written(lines, tmp_path):
    path = lines("rows.jsonl", [*ROWS, '{"messages": [', chat("", "x")])

    with pytest.raises(DataError) as caught:
        clean_files([path], CleanConfig(exact="drop"), out=tmp_path / "out")
    assert f"{path}:7" in caught.value.what
    assert not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(lines, tmp_path):
    path = lines("rows.jsonl", ROWS)
    before = sorted(tmp_path.iterdir())

    assert clean_files([path], CleanConfig(exact="drop")).dropped == {"exact": 1}
    assert sorted(tmp_path.iterdir()) == before
