"""`data convert`: files from one schema and form to another, and what cannot be kept."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rows_of_text import rows_in

from tunesmith import data
from tunesmith.cli.data.convert import convert as command
from tunesmith.data.conversion import Target, convert
from tunesmith.data.schemas import SCHEMAS, Options
from tunesmith.errors import ConfigError, DataError, MissingError, StorageError

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
PAIR = {"prompt": [Q], "chosen": [A], "rejected": [{"role": "assistant", "content": "b"}]}


def test_files_of_several_schemas_become_one_file_of_one(lines, tmp_path):
    files = [
        lines("a.jsonl", [{"instruction": "q", "output": "a", "n": 1}]),
        lines(
            "b.jsonl",
            [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}],
        ),
        lines("c.jsonl", [{"prompt": "q", "completion": "a"}]),
    ]
    made = convert(files, Target("chat", str(tmp_path / "out.jsonl")))
    assert (made.read, made.written, made.lost) == (3, 3, {})
    assert [file["schema"] for file in made.files] == [
        "instruction",
        "sharegpt",
        "prompt-completion",
    ]
    assert (
        rows_in(tmp_path / "out.jsonl")
        == [{"messages": [Q, A], "n": 1}] + [{"messages": [Q, A]}] * 2
    )


def test_the_same_is_there_for_python(lines, tmp_path):
    made = data.convert(
        [lines("a.jsonl", [PAIR])], data.Target("chat", out=str(tmp_path / "o.json"))
    )
    assert (made.form, made.lost["rejected"].rows) == ("json", 1)


def test_each_loss_is_counted_with_its_first_row(lines, tmp_path):
    rows = [{"prompt": "q", "completion": "a"}, PAIR, PAIR]
    made = convert(
        [lines("a.jsonl", rows[:1]), lines("b.jsonl", rows[1:])],
        Target("chat", str(tmp_path / "o.jsonl")),
    )
    (what,) = made.lost
    assert what == "rejected"
    assert (made.lost[what].rows, made.lost[what].first) == (2, f"{tmp_path / 'b.jsonl'}:1")
    assert json.loads(made.lost[what].example) == PAIR
    assert made.written == 3


def test_an_instruction_and_its_input_stay_two_fields(lines, tmp_path):
    rows = [
        {
            "instruction": "Sort.\n\nNow!",
            "input": "b \u00e9",
            "output": "x",
            "history": [["a", "b"]],
        },
        {"instruction": "Sort.", "input": "", "output": "x"},
        {"task": "Sort.", "input": "b", "output": "x"},
    ]
    out = tmp_path / "o.jsonl"
    convert([lines("a.jsonl", rows[:2])], Target("instruction", str(out)))
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows[:2]
    mapped = Options(mapping={"instruction": "task"})
    convert([lines("b.jsonl", rows[2:])], Target("instruction", str(out)), options=mapped)
    assert json.loads(out.read_text()) == {"instruction": "Sort.", "input": "b", "output": "x"}


def test_strict_refuses_a_loss_and_writes_nothing(lines, tmp_path):
    with pytest.raises(DataError, match=r"rejected: 1 row, first .*a.jsonl:1"):
        convert([lines("a.jsonl", [PAIR])], Target("chat", str(tmp_path / "o.jsonl"), strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl"]


def test_rows_that_a_schema_cannot_hold_are_all_named_and_nothing_is_written(lines, tmp_path):
    good, bad = {"prompt": "q", "completion": "a"}, {"messages": [Q, A, Q, A]}
    files = [lines("a.jsonl", [good]), lines("b.jsonl", [bad] * 3)]
    with pytest.raises(DataError) as caught:
        convert(files, Target("prompt-completion", str(tmp_path / "o.jsonl")))
    assert [f"b.jsonl:{n}: its prompt has 3 turns" in caught.value.what for n in (1, 2, 3)] == [
        True
    ] * 3
    assert not (tmp_path / "o.jsonl").exists()


def test_rows_that_cannot_be_held_go_to_a_file_of_their_own_on_request(lines, tmp_path):
    good, bad = {"prompt": "q", "completion": "a"}, {"messages": [Q, A, Q, A], "x": 1.50}
    files = [lines("a.jsonl", [good]), lines("b.jsonl", [bad])]
    target = Target(
        "prompt-completion", str(tmp_path / "o.jsonl"), rest=str(tmp_path / "rest.jsonl")
    )
    made = convert(files, target)
    assert (made.read, made.written, made.rest) == (2, 1, 1)
    (left,) = rows_in(tmp_path / "rest.jsonl")
    assert left["row"] == bad
    assert left["where"].endswith("b.jsonl:1")
    assert "3 turns" in left["reason"]


def test_wrong_rows_are_all_named_and_the_old_file_stays(lines, tmp_path):
    (tmp_path / "o.jsonl").write_text("old")
    with pytest.raises(DataError) as caught:
        convert(
            [lines("a.jsonl", [{"messages": [Q]}, "{", {"messages": []}])],
            Target("chat", str(tmp_path / "o.jsonl")),
        )
    assert caught.value.what.startswith("3 problems")
    assert (tmp_path / "o.jsonl").read_text() == "old"


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (Target("chta", "o.jsonl"), "did you mean 'chat'"),
        (Target("chat", "o.xyz"), "does not say which form"),
        (Target("chat", "o.jsonl", form="jsnol"), "did you mean 'jsonl'"),
        (Target("chat", "o.jsonl", rest="o.jsonl"), "is where the converted rows go"),
        (Target("chat", "o.jsonl", rest="./x/../o.jsonl"), "is where the converted rows go"),
    ],
)
def test_a_target_that_is_no_target_is_refused_before_anything_is_read(target, error):
    with pytest.raises(ConfigError, match=error):
        convert(["not there"], target)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingError, match=r"nowhere\.jsonl"):
        convert([tmp_path / "nowhere.jsonl"], Target("chat", str(tmp_path / "o.jsonl")))


def test_a_folder_that_cannot_be_written_leaves_nothing(lines, tmp_path):
    (tmp_path / "file").write_text("")
    target = Target("chat", str(tmp_path / "file" / "o.jsonl"), rest=str(tmp_path / "rest"))
    with pytest.raises(StorageError):
        convert([lines("a.jsonl", [PAIR])], target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "file"]


def test_a_full_disk_is_said_and_leaves_nothing(lines, tmp_path):
    given = lines("a.jsonl", [{"prompt": "q" * 1000, "completion": "a"}] * 300)
    full = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from tunesmith.cli.main import main; main(sys.argv[1:])"
    )
    words = [given, "--to", "chat", "--out", tmp_path / "o.jsonl"]
    found = subprocess.run(
        [sys.executable, "-c", full, "data", "convert", *words], capture_output=True, text=True
    )
    assert found.returncode == StorageError.exit_code, found.stderr
    assert "cannot write" in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_table_says_what_its_cells_cannot_keep(lines, tmp_path):
    rows = [
        {"prompt": "q", "completion": "a", "n": 1.50, "k": 7, "ok": True, "none": None},
        {"prompt": "q", "completion": "a", "k": 8, "ok": False, "more": "x", "none": None},
    ]
    given = lines("a.jsonl", rows)
    in_cells = convert([given], Target("prompt-completion", str(tmp_path / "o.csv"))).lost
    in_parquet = convert([given], Target("prompt-completion", str(tmp_path / "o.parquet"))).lost
    assert set(in_cells) == {
        "type of n (becomes text)",
        "type of k (becomes text)",
        "type of ok (becomes text)",
        "type of none (becomes text)",
        "absence of n (becomes an empty cell)",
        "absence of more (becomes an empty cell)",
    }
    assert set(in_parquet) == {
        "type of n (becomes text)",
        "absence of n (becomes null)",
        "absence of more (becomes null)",
    }
    assert in_cells["absence of n (becomes an empty cell)"].first.endswith("a.jsonl:2")
    assert in_cells["absence of more (becomes an empty cell)"].first.endswith("a.jsonl:1")
    assert (tmp_path / "o.csv").read_text() == (
        "prompt,completion,n,k,ok,none,more\nq,a,1.5,7,true,,\nq,a,,8,false,,x\n"
    )


def test_a_compressed_file_has_equal_bytes_for_equal_rows(lines, tmp_path):
    given = lines("a.jsonl", [PAIR])
    for name in ("one.jsonl.gz", "two.jsonl.gz"):
        convert([given], Target("preference", str(tmp_path / name)))
    one, two = ((tmp_path / name).read_bytes() for name in ("one.jsonl.gz", "two.jsonl.gz"))
    assert one == two
    assert json.loads(gzip.decompress(one)) == PAIR


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1
).filter(str.strip)


@pytest.mark.parametrize("form", ["jsonl", "json", "csv", "tsv", "parquet"])
@given(said=st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_no_form_loses_invents_or_changes_a_row(tmp_path_factory, form, said):
    folder = tmp_path_factory.mktemp("forms")
    rows = [{"prompt": question, "completion": answer} for question, answer in said]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "a.jsonl").write_text(text, encoding="utf-8")
    there = convert([folder / "a.jsonl"], Target("prompt-completion", str(folder / f"b.{form}")))
    convert([folder / f"b.{form}"], Target("prompt-completion", str(folder / "c.jsonl")))
    assert (there.read, there.written, there.lost) == (len(rows), len(rows), {})
    assert [json.loads(line) for line in (folder / "c.jsonl").read_bytes().splitlines()] == rows


def run(*args, given=None):
    return CliRunner().invoke(command, list(map(str, args)), input=given, catch_exceptions=False)


def test_the_command_reads_stdin_and_writes_stdout(monkeypatch):
    row = json.dumps({"prompt": "qé", "completion": "a"}, ensure_ascii=False)
    found = run("-", "--to", "chat", given=f"{row}\n")
    assert (
        found.stdout
        == '{"messages": [{"role": "user", "content": "qé"}, {"role": "assistant", "content": "a"}]}\n'
    )
    assert "written: 1 of 1 row as chat (jsonl) to stdout" in found.stderr


def test_the_command_maps_fields_and_tells_what_was_lost(lines, tmp_path):
    given = lines("a.jsonl", [{"question": "q", "sql": "s", "bad": "t"}])
    fields = [f"--field={pair}" for pair in ("prompt=question", "chosen=sql", "rejected=bad")]
    found = run(given, "--to", "instruction", "--out", tmp_path / "o.json", *fields)
    assert "lost: rejected, in 1 row, first" in found.stderr
    assert json.loads((tmp_path / "o.json").read_text()) == [
        {"instruction": "q", "input": "", "output": "s"}
    ]


def test_the_command_prints_one_json_document(lines, tmp_path):
    given = lines("a.jsonl", [{"text": "<|im_start|> said he", "completion": "a", "prompt": "q"}])
    found = run(given, "--to", "text", "--from", "text", "--out", tmp_path / "o.jsonl", "--json")
    report = json.loads(found.stdout)
    assert (report["schema"], report["written"], report["files"][0]["schema"]) == (
        "text",
        1,
        "text",
    )
    refused = CliRunner().invoke(command, [str(given), "--to", "text", "--json"])
    assert refused.exit_code == 2
    assert "both go to stdout" in refused.stderr


@pytest.mark.parametrize(
    ("pair", "expected"), [("prompt", "is not USE=NAME"), ("promt=x", "did you mean 'prompt'")]
)
def test_a_field_that_is_none_is_refused(pair, expected):
    found = CliRunner().invoke(command, ["x.jsonl", "--to", "chat", "--field", pair])
    assert found.exit_code == 2
    assert expected in found.stderr


def test_the_help_names_every_schema_and_what_it_holds():
    text = run("--help").stdout
    for name, schema in SCHEMAS.items():
        assert f"{name} " in text
        assert schema.what in text


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("odd", [{"note": "\ud800"}, {"\udfff": 1}, {"note": "a\0b"}])
def test_what_has_no_form_in_a_table_is_refused_or_goes_beside(lines, tmp_path, form, odd):
    row = {"prompt": "q", "completion": "a"}
    path, out, rest = lines("a.jsonl", [row, {**row, **odd}]), tmp_path / "o", tmp_path / "r"
    with pytest.raises(DataError, match=r"a\.jsonl:2: .* which a table cannot hold"):
        convert([path], Target("prompt-completion", str(out), form))
    made = convert([path], Target("prompt-completion", str(out), form, rest=str(rest)))
    assert (made.written, made.rest) == (1, 1)
    assert rows_in(rest)[0]["row"] == {**row, **odd}
    assert convert([out], Target("chat", str(tmp_path / "b.jsonl")), form=form).read == 1
