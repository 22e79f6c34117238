"""`--field`, `--from` and `--form` are the same for every command that reads rows, and have an effect in each."""

from __future__ import annotations

import json

import click
import pytest

from tunesmith.cli.data import data
from tunesmith.cli.main import main

ODD = ("--field", "prompt=My Text", "--field", "completion=Klasse")
READERS = (
    "inspect",
    "check",
    "clean",
    "convert",
    "split",
    "show",
    "stats",
    "diff",
    "augment",
    "review",
    "annotate export",
    "annotate import",
    "synthesize instruct",
    "synthesize best",
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nouns = ("apple", "boat", "cloud", "engine", "guitar", "island", "lantern", "river")
    verbs = ("sink", "burn", "turn", "vanish", "boil", "hum", "grow", "freeze")
    lines = [f"Why does the {nouns[n % 8]} {verbs[n // 8]}?;reason {n}" for n in range(64)]
    (tmp_path / "odd.csv").write_text("\n".join(["My Text;Klasse", *lines, ""]))
    (tmp_path / "plain.csv").write_text("prompt,completion\nhow many?,seven\nwhich?,these\n")
    return tmp_path


def tunesmith(*words):
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code or 0


def command(words):
    found = data
    for word in words.split():
        found = found.get_command(click.Context(found), word)
    return found


@pytest.mark.parametrize("words", READERS)
def test_every_command_that_reads_rows_takes_the_same_options(words):
    options = {option for one in command(words).params for option in one.opts}
    form = "--from-form" if words == "convert" else "--form"
    assert {"--field", "--from", form} <= options


@pytest.mark.parametrize(
    "words",
    [
        ("check", "odd.csv", "--no-model", *ODD, "--json"),
        ("clean", "odd.csv", *ODD, "--out", "c", "--json"),
        ("convert", "odd.csv", *ODD, "--to", "chat", "--out", "c.jsonl", "--json"),
        ("inspect", "odd.csv", *ODD, "--json"),
        ("split", "odd.csv", *ODD, "--out", "s", "--json"),
        ("stats", "odd.csv", *ODD, "--json"),
        ("augment", "odd.csv", *ODD, "--rule", "noise", "--out", "a.jsonl", "--json"),
        ("diff", "odd.csv", "odd.csv", *ODD, "--json"),
        ("annotate", "export", "odd.csv", *ODD, "--out", "t.json", "--config", "c.xml", "--json"),
    ],
    ids=lambda words: words[0],
)
def test_a_table_with_names_of_its_own_needs_no_recipe(here, capsys, words):
    assert tunesmith("data", *words) == 0
    said = capsys.readouterr().out
    json.loads(said)
    assert " 64" in said


@pytest.mark.parametrize(
    "words",
    [
        ("check", "plain.csv", "--no-model"),
        ("stats", "plain.csv"),
        ("inspect", "plain.csv"),
        ("clean", "plain.csv", "--dry-run"),
    ],
    ids=lambda words: words[0],
)
def test_the_named_form_is_read_and_no_other(here, capsys, words):
    assert tunesmith("data", *words, "--form", "txt") == 0
    shown = capsys.readouterr()
    assert "text" in shown.out + shown.err
    assert "prompt-completion" not in shown.out + shown.err


def test_a_recipes_form_is_checked_as_it_is_built(here, capsys):
    (here / "r.yaml").write_text("data: {form: txt, source: {kind: files, train: plain.csv}}\n")
    assert tunesmith("data", "check", "r.yaml", "--no-model", "--json") == 0
    assert set(json.loads(capsys.readouterr().out)["schemas"].values()) == {"text"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--field", "prompt"), "'prompt' is not USE=NAME"),
        (("--field", "promt=a"), "'promt' (did you mean 'prompt'?)"),
        (("--field", "prompt=a", "--field", "prompt=b"), "prompt is given two names, 'a' and 'b'"),
        (("--from", "sharegtp"), "'sharegtp' (did you mean 'sharegpt'?)"),
        (("--form", "jsonll"), "'jsonll' (did you mean 'jsonl'?)"),
    ],
)
@pytest.mark.parametrize("name", ["check", "stats", "clean", "inspect"])
def test_a_value_that_is_none_is_refused_with_the_nearest(here, capsys, name, words, said):
    assert tunesmith("data", name, "plain.csv", *words) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["check", "stats", "show"])
def test_a_sealed_dataset_is_read_as_it_is(here, capsys, name):
    assert tunesmith("data", "split", "odd.csv", *ODD, "--out", "s") == 0
    capsys.readouterr()
    assert tunesmith("data", name, "s", *ODD) == 2
    assert "is a sealed dataset" in capsys.readouterr().err


def test_a_build_says_how_each_file_was_read_and_why(here, capsys):
    assert tunesmith("data", "split", "odd.csv", *ODD, "--out", "s") == 0
    said = capsys.readouterr().out
    assert (
        "odd.csv: 64 prompt-completion rows (data.fields names them: prompt = My Text, "
        "completion = Klasse)" in said
    )
    assert "fields: prompt = My Text, completion = Klasse" in said


def test_a_field_name_that_steers_a_terminal_is_spelled_out(here, capsys):
    (here / "evil.jsonl").write_text('{"text": "x", "\\u001b[31m\\u202e": "y"}\n')
    assert tunesmith("data", "inspect", "evil.jsonl") == 0
    assert tunesmith("data", "convert", "evil.jsonl", "--to", "chat") == 3
    assert tunesmith("data", "convert", "evil.jsonl", "--to", "text", "--out", "t.csv") == 0
    shown = capsys.readouterr()
    assert not {"\x1b", "\u202e"} & set(shown.out + shown.err)


def test_near_overlap_is_not_asked_for_where_it_cannot_be(here, capsys):
    asked = ("--on-near-overlap", "refuse")
    assert tunesmith("data", "split", "odd.csv", *ODD, "--out", "s", *asked) == 2
    assert "goes with --time, --no-near-duplicates or --overlap-words" in capsys.readouterr().err


def test_a_long_conversion_shows_how_far_it_is(here, capsys, monkeypatch):
    monkeypatch.setattr("tunesmith.data.conversion._LONG_BYTES", 100)
    assert tunesmith("data", "convert", "odd.csv", *ODD, "--to", "chat", "--out", "c.jsonl") == 0
    assert "converting: 2 kB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tunesmith data che", {"plain,check"}),
        ("tunesmith data check pl", {"file,pl"}),
        ("tunesmith data clean pl", {"file,pl"}),
        ("tunesmith data convert --to share", {"plain,sharegpt"}),
        ("tunesmith data stats --from feed", {"plain,feedback", "plain,feedback-text"}),
        ("tunesmith data check --form json", {"plain,jsonl", "plain,json"}),
        ("tunesmith data check x --strict-w", {"plain,--strict-warnings"}),
    ],
)
def test_a_shell_is_offered_files_and_names(here, capsys, monkeypatch, words, offered):
    monkeypatch.setenv("_TUNESMITH_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert tunesmith() == 0
    assert set(capsys.readouterr().out.split()) == offered


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "plain.csv", "--to", "chat", "--out", "./plain.csv"),
        ("convert", "plain.csv", "--to", "chat", "--out", "c.jsonl", "--rest", "plain.csv"),
        ("stats", "plain.csv", "--html", "plain.csv"),
    ],
    ids=" ".join,
)
def test_a_result_never_takes_the_place_of_the_file_it_is_made_of(here, capsys, words):
    before = (here / "plain.csv").read_bytes()
    assert tunesmith("data", *words) == 2
    assert "is the file that is read: name another one" in capsys.readouterr().err
    assert (here / "plain.csv").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ("convert", "odd.csv", *ODD, "--to", "chat", "--out", "plain.csv/x.jsonl"),
        (
            "convert",
            "odd.csv",
            *ODD,
            "--to",
            "chat",
            "--rest",
            "r.jsonl",
            "--out",
            "plain.csv/x.jsonl",
        ),
        ("stats", "odd.csv", *ODD, "--no-tokens", "--html", "plain.csv/x.html"),
    ],
    ids=lambda words: words[-1],
)
def test_a_place_below_a_file_is_named_and_nothing_is_left(here, capsys, words):
    before = sorted(path.name for path in here.iterdir())
    assert tunesmith("data", *words) == 8
    said = capsys.readouterr().err
    assert f"cannot write {words[-1]}" in said
    assert "name another place" in said
    assert sorted(path.name for path in here.iterdir()) == before
