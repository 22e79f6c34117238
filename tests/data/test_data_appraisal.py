"""The sealed score: what the checks say of the rows that are sealed, and of no others."""

from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith import data
from tunesmith.cli.data.split import split
from tunesmith.config import recipe_from
from tunesmith.data.check import Checker, CheckOptions
from tunesmith.data.rows import Row
from tunesmith.store import Run

LABELS = ("refund", "delivery", "Refund", "other")


def row(line, question, answer, **meta):
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    value = {"messages": turns, "meta": meta}
    return Row(f"rows.jsonl:{line}", "chat", json.dumps(value), value)


def findings_of(result):
    text = result.artifact.path("findings.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def reasons(result):
    return {found["check"]: found for found in result.report["score"]["reasons"]}


def files(**named):
    return {"source": {"kind": "files", **{k: str(v) for k, v in named.items()}}}


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(LABELS), st.booleans()), max_size=60))
def test_some_rows_of_a_checker_are_as_if_it_had_seen_no_others(made):
    rows = [row(i, f"Question {n}?", label) for i, (n, label, _) in enumerate(made, 1)]
    kept = [stays for _, _, stays in made]
    options = CheckOptions(domain="none")
    every, some = Checker(options), Checker(options)
    for one, stays in zip(rows, kept, strict=True):
        every.see(one)
        if stays:
            some.see(one)
    only = every.only(kept, rows.__getitem__)
    assert only.finish() == some.finish()
    assert only._columns.labels.n_rows == some._columns.labels.n_rows
    assert only._columns.labels.counts == some._columns.labels.counts


def test_the_sealed_score_is_of_the_rows_that_are_sealed(seal, lines):
    rows = [{"prompt": f"question {n}", "completion": f"answer number {n}"} for n in range(120)]
    rows += [dict(rows[0]) for _ in range(60)]
    kept = seal(files(train=lines("kept.jsonl", rows)), name="kept")
    dropped = seal({**files(train=lines("a.jsonl", rows)), "clean": {"exact": "drop"}}, name="a")

    assert reasons(kept)["duplicate"]["findings"] == 60
    assert "duplicate" not in reasons(dropped)
    assert kept.report["score"]["n_rows"] == 180
    assert dropped.report["score"]["n_rows"] == 120 == sum(dropped.rows.values())


def test_too_few_rows_is_said_of_what_a_limit_leaves(seal, lines):
    rows = [{"prompt": f"question {n}", "completion": f"answer number {n}"} for n in range(120)]
    section = {**files(train=lines("rows.jsonl", rows)), "check": {"min_rows": 100}}
    whole = seal(section, name="whole")
    few = seal({**section, "max_train_rows": 10, "max_test_rows": 10}, name="few")

    assert "too-few-rows" not in reasons(whole)
    (said,) = [one for one in findings_of(few) if one["check"] == "too-few-rows"]
    assert said["what"].startswith(f"{sum(few.rows.values())} rows")


def test_classes_are_balanced_or_not_as_they_are_sealed(seal, lines):
    rows = [{"text": f"wants it back, case {n}", "category": "refund"} for n in range(12)]
    rows += [{"text": f"where is parcel {n}", "category": "delivery"} for n in range(12)] * 13
    section = {
        **files(train=lines("rows.jsonl", rows)),
        "fields": {"prompt": "text", "completion": "category"},
    }
    assert "class-balance" in reasons(seal(section, name="kept"))
    assert "class-balance" not in reasons(
        seal({**section, "clean": {"exact": "drop"}}, name="dropped")
    )


def test_findings_about_rows_that_are_dropped_later_are_not_sealed(seal, lines):
    rows = [{"prompt": f"question {n}", "completion": f"answer number {n}"} for n in range(120)]
    rows[5]["completion"] = rows[6]["completion"] = "See <b>here</b>"
    rows[6]["prompt"] = rows[5]["prompt"]
    result = seal({**files(train=lines("a.jsonl", rows)), "clean": {"exact": "drop"}})
    (said,) = [one for one in findings_of(result) if one["check"] == "html"]
    assert said["where"].endswith("a.jsonl:6")
    assert reasons(result)["html"]["rows"] == 1


def test_nearly_equal_prompts_of_two_splits_cost_points(seal, lines):
    train = [{"prompt": f"question {n}", "completion": f"answer number {n}"} for n in range(120)]
    train[3]["prompt"] = "Where do I find the opening hours of the shop in Oslo?"
    test = [{"prompt": "Where do I find the opening hour of the shop in Oslo", "completion": "x 1"}]
    section = files(
        train=lines("a.jsonl", train),
        validation=lines("v.jsonl", [{"prompt": "nothing like it", "completion": "y 2"}]),
        test=lines("t.jsonl", test),
    )
    result = seal(section)
    assert reasons(result)["near-overlap"]["rows"] == 1
    assert [one["check"] for one in findings_of(result)].count("near-overlap") == 1


def test_every_sealed_finding_is_counted_once_in_the_score(seal, lines):
    draw = random.Random(1)
    rows = [
        {"prompt": f"question {draw.randrange(90)} <br>", "completion": f"number {n} &amp; more"}
        for n in range(300)
    ]
    result = seal({**files(train=lines("a.jsonl", rows)), "clean": {"near": "drop"}})
    counts = {}
    for one in findings_of(result):
        counts[one["check"]] = counts.get(one["check"], 0) + 1
    assert counts == {name: reason["findings"] for name, reason in reasons(result).items()}


def test_the_model_and_the_limit_decide_the_dataset_only_when_a_model_is_named(tmp_path):
    def inputs(**values):
        return data.token_inputs(recipe_from(values))

    base = str(tmp_path / "model")
    assert inputs(train={"max_row_tokens": 999}) == {}
    before = inputs(model={"base": base})
    assert before != inputs(model={"base": base}, train={"max_row_tokens": 999})
    hub = inputs(model={"base": "owner/name", "revision": "v1"})
    assert hub != inputs(model={"base": "owner/name", "revision": "v2"})


def test_a_model_folder_counts_by_its_tokenizer_and_not_by_its_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")

    def inputs(name):
        return data.token_inputs(recipe_from({"model": {"base": str(tmp_path / name)}}))

    assert inputs("one") == inputs("two")
    (tmp_path / "two" / "tokenizer.json").write_text("[]")
    assert inputs("one") != inputs("two")


def test_a_gguf_file_counts_by_its_content_and_not_by_its_place(tmp_path):
    def inputs(name, content):
        (tmp_path / name).write_bytes(content)
        return data.token_inputs(recipe_from({"model": {"base": str(tmp_path / name)}}))

    one = inputs("one.gguf", b"a")
    assert one == inputs("two.gguf", b"a")
    assert one != inputs("three.gguf", b"b")
    assert str(tmp_path) not in str(one)


def build(section, folder, model, processes=1, **more):
    recipe = recipe_from({"data": section, "model": {"base": str(model)}, **more})
    inputs = data.token_inputs(recipe)
    with Run.open(folder, "data", inputs=inputs, parents=data.sources(recipe)) as at:
        return data.run(recipe, at, processes=processes)


def test_a_model_that_is_not_there_leaves_the_checks_in_tokens_out_and_says_why(lines, tmp_path):
    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(120)]
    section = files(train=lines("a.jsonl", rows))
    result = build(section, tmp_path / "sealed", tmp_path / "nope")
    assert "no model at" in result.report["tokens"]["why_not"]
    card = result.artifact.path("README.md").read_text(encoding="utf-8")
    assert "Lengths in tokens and the stop token were not checked: no model at" in card
    (said,) = [one for one in findings_of(result) if one["check"] == "tokens-left-out"]
    assert "no model at" in said["what"]
    # A dataset is passed on, the names of this machine's folders are not.
    for path in (tmp_path / "sealed").rglob("*.*"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path.name


def test_a_build_tells_the_score_and_what_cost_points(lines, tmp_path):
    rows = [{"prompt": f"question {n}", "completion": f"<b>answer</b> {n}"} for n in range(40)]
    run = CliRunner().invoke(
        split, [str(lines("a.jsonl", rows)), "--out", str(tmp_path / "out")], catch_exceptions=False
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    said = " ".join(run.stdout.split())
    assert f"score {report['score']['points']} of 100, red; lost by too-few-rows 40, html" in said


@pytest.fixture(scope="module")
def model(short_tokenizer, tmp_path_factory):
    """A folder that has a tokenizer and is otherwise only what makes it a model's."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("model")
    short_tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text("{}")
    save_file({}, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_a_build_measures_the_sealed_rows_in_tokens_of_the_recipes_model(model, lines, tmp_path):
    rows = [{"prompt": f"How many is {n}?", "completion": f"It is {n}."} for n in range(150)]
    rows[7]["prompt"] = "How long is it? " * 80
    rows += [dict(rows[7]) for _ in range(3)]
    section = {**files(train=lines("a.jsonl", rows)), "clean": {"exact": "drop"}}
    limit = {"train": {"max_row_tokens": 300}}

    one = build(section, tmp_path / "one", model, **limit)
    two = build(section, tmp_path / "two", model, processes=2, **limit)

    (said,) = [one for one in findings_of(one) if one["check"] == "truncation"]
    assert said["where"].endswith("a.jsonl:8")
    assert reasons(one)["truncation"]["points"] > 0
    assert one.report["tokens"]["measured"] == 150 == one.report["score"]["n_rows"]
    card = one.artifact.path("README.md").read_text(encoding="utf-8")
    assert ": 150 conversations." in card.partition("Measured in tokens of")[2]
    assert {"trained-tokens", "length"} <= {found["check"] for found in findings_of(one)}
    assert "tokens-left-out" not in reasons(one)
    assert one.artifact.files == two.artifact.files


@pytest.mark.slow
def test_a_gguf_that_was_not_converted_is_measured_as_the_one_that_was(
    embedded_base, lines, tmp_path, monkeypatch
):
    assert embedded_base.dir.is_dir()
    spelled = ["Wie spät ist es?", "a <|im_end|> b", "  two  spaces\n", "𝔘 ﬁ 你好", "x" * 300]
    rows = [{"prompt": f"{spelled[n % 5]} {n}", "completion": f"It is {n}."} for n in range(150)]
    section = files(train=lines("a.jsonl", rows))
    converted = build(section, tmp_path / "converted", "embedded")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "empty"))
    found = build(section, tmp_path / "from-gguf", "embedded")

    assert found.report["tokens"] == {"model": "embedded", "measured": 150, "why_not": ""}
    assert found.artifact.files == converted.artifact.files
    assert not (tmp_path / "empty").exists()


@pytest.mark.slow
def test_a_build_and_a_check_of_its_rows_say_the_same_in_tokens(model, lines, tmp_path):
    from tunesmith.data.check import check_places

    rows = [{"prompt": f"How many is {n}?", "completion": f"It is {n}."} for n in range(150)]
    recipe = recipe_from({"model": {"base": str(model)}})
    built = build(files(train=lines("a.jsonl", rows)), tmp_path / "sealed", model)
    checked = check_places(tmp_path / "sealed", recipe=recipe, with_model=True)

    (said,) = [one for one in findings_of(built) if one["check"] == "trained-tokens"]
    assert said["what"] == checked.tally.first["trained-tokens", "note"][0].what


@pytest.mark.slow
def test_of_many_rows_a_build_measures_as_many_as_are_asked_for(model, lines, tmp_path):
    rows = [{"prompt": f"How many is {n}?", "completion": f"It is {n}."} for n in range(900)]
    section = {**files(train=lines("a.jsonl", rows)), "check": {"token_rows": 100}}
    measured = build(section, tmp_path / "sealed", model).report["tokens"]["measured"]
    assert 50 <= measured <= 200


@pytest.mark.slow
def test_sizes_are_those_of_what_is_rendered(short_tokenizer):
    from tunesmith.models.chat import ChatRenderer

    renderer = ChatRenderer(short_tokenizer)

    def turns(*texts):
        roles = ("user", "assistant") * len(texts)
        return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]

    spelled = turns("What does <|im_end|> mean?", "It ends <|im_end|> a turn.", "So?", "  Yes \n")
    unweighed = [*turns("a", "b"), {"role": "user", "content": "c"}]
    unweighed[1]["weight"] = 0
    cases = [turns("Hi", "Hello."), spelled, unweighed, turns("你好", "𝔘nicode ﬁ"), turns("x", "")]
    refused = [{"role": "assistant", "content": None}]

    for for_answer in (False, True):
        *sizes, last = renderer.measure([*cases, refused], for_answer=for_answer)
        for case, size in zip(cases, sizes, strict=True):
            whole = renderer.render(case, for_answer=for_answer)
            learned = [t for t, on in zip(whole.token_ids, whole.trained, strict=True) if on]
            assert size.n_tokens == len(whole.token_ids)
            assert size.n_trained == len(learned)
            assert size.stops == (bool(learned) and learned[-1] in renderer.stop_ids)
        assert "has no text" in str(last)
