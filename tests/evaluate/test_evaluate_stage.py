"""The stage from sealed dataset and sealed run to sealed report, on a tiny real model."""

import json
import os
import signal
import sqlite3
import threading

import pytest

from tunesmith.errors import (
    ArtifactError,
    DataError,
    InterruptedRun,
    ModelError,
)
from tunesmith.evaluate import EvaluateResult, open_result, run
from tunesmith.models.load import load_model, save_model
from tunesmith.store import Artifact, Run

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

QUESTIONS = [f"what is {a} plus {a + 1}?" for a in range(12)]


def chat(question, answer, **meta):
    turns = [("user", question), ("assistant", answer)]
    return {"messages": [{"role": r, "content": c} for r, c in turns], "meta": meta}


@pytest.fixture(scope="module")
def said(bench):
    """What base and tuned model answer to the questions, asked one by one."""
    return bench.answers(QUESTIONS, tuned=False), bench.answers(QUESTIONS, tuned=True)


@pytest.fixture
def rows(said):
    """Six rows that only the tuned model gets right, two only the base, four neither."""
    base, tuned = said
    assert all(b.split() != t.split() for b, t in zip(base, tuned, strict=True))
    return [
        chat(question, t if i < 6 else b if i < 8 else "neither says this")
        for i, (question, b, t) in enumerate(zip(QUESTIONS, base, tuned, strict=True))
    ]


def evaluate(folder, recipe, dataset, trained, *, resume=False):
    with Run.open(folder, "evaluate", inputs={}, resume=resume) as at:
        return run(recipe, at, dataset, trained)


def test_won_and_lost_rows_are_those_that_adapter_and_base_answer(
    bench, trained, rows, said, seal_dataset, tmp_path
):
    dataset = seal_dataset(rows)
    result = evaluate(tmp_path / "report", bench.recipe(batch_rows=5), dataset, trained)
    assert isinstance(result, EvaluateResult)
    pairs = result.comparison.pairs
    assert (pairs.won, pairs.lost, pairs.both_right, pairs.both_wrong) == (6, 2, 0, 4)

    artifact = Artifact.open(result.artifact.dir, "evaluate")
    artifact.verify()
    assert set(artifact.files) == {"report.html", "report.json", "rows.jsonl"}
    lines = [json.loads(x) for x in artifact.path("rows.jsonl").read_text().splitlines()]
    assert [line["base"]["answer"] for line in lines] == said[0]
    assert [line["tuned"]["answer"] for line in lines] == said[1]
    outcomes = [line["outcome"] for line in lines]
    assert outcomes == ["won"] * 6 + ["lost"] * 2 + ["still wrong"] * 4
    assert [line["line"] for line in lines] == list(range(1, 13))
    assert open_result(artifact) == result


def test_facts_and_report_say_with_what_it_was_measured(
    bench, trained, rows, seal_dataset, tmp_path
):
    dataset = seal_dataset(rows)
    result = evaluate(tmp_path / "report", bench.recipe(), dataset, trained)
    facts = result.artifact.facts
    assert facts["task"] == "exact_match"
    assert facts["n"] == 12
    assert facts["base"]["correct"] == 2
    assert facts["tuned"]["accuracy"] == pytest.approx(0.5)
    assert facts["gain"]["points"] == pytest.approx(100 / 3)
    low, high = facts["gain"]["interval_points"]
    assert low < 100 / 3 < high
    assert facts["gain"]["method"] == "paired bootstrap, 200 resamples, seed 0"
    assert facts["mcnemar"] == {"won": 6, "lost": 2, "p_value": pytest.approx(0.2890625)}
    assert facts["verdict"] == "cannot tell"
    assert facts["renderer_fingerprint"] == bench.renderer.fingerprint
    report = result.report
    assert report["dataset"]["sha256"] == dataset.sha256
    assert report["trained"] == {"method": "lora, rank 4", "sha256": trained.sha256}
    assert report["precision"] == "fp32"
    assert report["versions"]["torch"]
    assert report["hardware"]["cores"] >= 1
    assert report["command"]
    assert "only 12 test rows" in " ".join(result.warnings)
    assert "Cannot tell (+33.3 points)" in result.report_path.read_text()


@pytest.mark.slow
def test_full_weights_are_compared_with_the_base_loaded_apart(
    bench, rows, said, seal_dataset, tmp_path
):
    from peft import PeftModel

    merged = PeftModel.from_pretrained(_float_model(bench), bench.adapter_dir).merge_and_unload()
    with Run.open(tmp_path / "train", "train", inputs={}) as at:
        save_model(merged, bench.renderer.tokenizer, at.path("model/config.json").parent)
        trained = at.finish(bench.facts(method={"kind": "full"}))
    result = evaluate(tmp_path / "report", bench.recipe(), seal_dataset(rows), trained)
    assert (result.comparison.pairs.won, result.comparison.pairs.lost) == (6, 2)
    assert result.report["trained"]["method"] == "full"


def _float_model(bench):
    import torch

    return load_model(bench.base, torch.float32)


def test_queries_are_executed_when_the_dataset_has_databases(
    bench, trained, seal_dataset, tmp_path
):
    sql = [chat(q, "SELECT count(*) FROM item", database="shop") for q in QUESTIONS[:6]]
    dataset = seal_dataset(sql, "shop", "other")
    result = evaluate(tmp_path / "report", bench.recipe(), dataset, trained)
    assert result.artifact.facts["task"] == "sql_execution"
    assert result.report["valid"] == {"base": 0, "tuned": 0}
    line = json.loads(result.artifact.path("rows.jsonl").read_text().splitlines()[0])
    assert line["reference_result"] == "2"
    assert line["tuned"]["valid"] is False
    assert line["tuned"]["note"]
    assert "only 0 of 6 answers of the base model are queries that run" in " ".join(result.warnings)


@pytest.mark.slow
def test_a_few_references_that_fail_are_left_out_and_named(bench, trained, seal_dataset, tmp_path):
    sql = [chat(q, "SELECT count(*) FROM item") for q in QUESTIONS[:11]]
    sql[3]["messages"][-1]["content"] = "SELECT absent FROM item"
    result = evaluate(tmp_path / "report", bench.recipe(), seal_dataset(sql, "shop"), trained)
    assert result.comparison.pairs.n == 10
    assert result.artifact.facts["left_out"] == 1
    assert "test.jsonl:4: no such column: absent" in " ".join(result.warnings)
    assert result.report["left_out"] == [{"line": 4, "why": "no such column: absent"}]


def test_many_references_that_fail_are_refused_before_anything_is_generated(
    bench, trained, seal_dataset, tmp_path
):
    sql = [
        chat(q, "SELECT absent FROM item" if i % 2 else "SELECT 1") for i, q in enumerate(QUESTIONS)
    ]
    with pytest.raises(DataError, match="6 of 12 references") as caught:
        evaluate(tmp_path / "report", bench.recipe(), seal_dataset(sql, "shop"), trained)
    assert "test.jsonl:2:" in str(caught.value)
    assert not list((tmp_path / "report").rglob("answers-*"))


def test_an_empty_test_set_is_refused(bench, trained, seal_dataset, tmp_path):
    with pytest.raises(DataError, match="has no rows") as caught:
        evaluate(tmp_path / "report", bench.recipe(), seal_dataset([]), trained)
    assert "test_ratio" in caught.value.fix


def test_rows_without_a_reference_are_named(bench, trained, seal_dataset, tmp_path):
    bad = {"messages": [{"role": "user", "content": "and?"}], "meta": {}}
    with pytest.raises(DataError, match=r"test.jsonl:2: ends with 'user'"):
        evaluate(tmp_path / "report", bench.recipe(), seal_dataset([chat("a", "b"), bad]), trained)


def test_prompts_that_leave_no_room_for_an_answer_are_all_named(
    bench, trained, seal_dataset, tmp_path
):
    long = [chat("word " * 300, "a"), chat("short", "b"), chat("other " * 400, "c")]
    with pytest.raises(DataError, match="2 test rows leave no room") as caught:
        evaluate(tmp_path / "report", bench.recipe(), seal_dataset(long), trained)
    assert "test.jsonl:1:" in str(caught.value)
    assert "test.jsonl:3:" in str(caught.value)


def test_references_longer_than_the_answer_may_be_are_pointed_out(
    bench, trained, seal_dataset, tmp_path
):
    found = seal_dataset(
        [chat("a", "one two three four five six seven eight nine ten eleven twelve")]
    )
    result = evaluate(tmp_path / "report", bench.recipe(), found, trained)
    assert "1 of 1 references are longer than evaluate.max_answer_tokens (12)" in " ".join(
        result.warnings
    )


@pytest.mark.slow
def test_drawn_rows_are_the_same_with_the_same_seed(bench, trained, rows, seal_dataset, tmp_path):
    dataset = seal_dataset(rows)
    lines = []
    for name in ("one", "two"):
        result = evaluate(tmp_path / name, bench.recipe(max_rows=5), dataset, trained)
        assert result.comparison.pairs.n == 5
        assert result.report["test_rows"] == 12
        lines.append(result.artifact.path("rows.jsonl").read_text())
    assert lines[0] == lines[1]


def test_another_base_is_refused(bench, seal_dataset, tmp_path):
    trained = bench.seal_trained(tmp_path / "train", base={"name": "other", "sha256": "0" * 64})
    with pytest.raises(ModelError, match="another base model"):
        evaluate(tmp_path / "report", bench.recipe(), seal_dataset([chat("a", "b")]), trained)


def test_another_renderer_is_refused(bench, seal_dataset, tmp_path):
    trained = bench.seal_trained(tmp_path / "train", renderer_fingerprint="0" * 64)
    with pytest.raises(ModelError, match="made with other prompts") as caught:
        evaluate(tmp_path / "report", bench.recipe(), seal_dataset([chat("a", "b")]), trained)
    assert "fingerprint 000000000000 then" in caught.value.why
    assert bench.renderer.fingerprint[:12] in caught.value.why


def test_a_damaged_dataset_is_refused(bench, trained, rows, seal_dataset, tmp_path):
    dataset = seal_dataset(rows)
    test_file = dataset.dir / "test.jsonl"
    test_file.write_text(test_file.read_text().replace("plus", "PLUS"))
    with pytest.raises(ArtifactError, match=r"test.jsonl is not the file"):
        evaluate(tmp_path / "report", bench.recipe(), dataset, trained)


@pytest.fixture
def interrupted(bench, trained, rows, seal_dataset, tmp_path):
    """An evaluation that Ctrl-C ended after the first answers were written."""
    dataset = seal_dataset(rows)
    folder, recipe = tmp_path / "report", bench.recipe(batch_rows=1)
    answers = folder / "scratch" / "answers-base.jsonl"

    ended = threading.Event()

    def press_ctrl_c():
        while not (answers.is_file() and answers.stat().st_size):
            if ended.wait(0.001):
                return
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press_ctrl_c)
    presser.start()
    try:
        with pytest.raises(InterruptedRun) as caught:
            evaluate(folder, recipe, dataset, trained)
    finally:
        ended.set()
        presser.join()
    assert caught.value.fix
    return folder, recipe, dataset, answers


# The signal comes anywhere, also while psutil has a file open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_evaluation_goes_on_with_the_answers_it_has(
    interrupted, trained, said, tmp_path
):
    folder, recipe, dataset, answers = interrupted
    kept = [json.loads(line) for line in answers.read_text().splitlines()]
    assert 0 < len(kept) < 12
    kept[0]["text"] = "kept from the first attempt\u2028\x85, on one line"
    half = '{"line": 12, "text": "cut off by a cra'
    answers.write_text("".join(json.dumps(k) + "\n" for k in kept) + half)

    result = evaluate(folder, recipe, dataset, trained, resume=True)
    lines = [json.loads(x) for x in result.artifact.path("rows.jsonl").read_text().splitlines()]
    expected = list(said[0])
    expected[kept[0]["line"] - 1] = kept[0]["text"]
    assert [line["base"]["answer"] for line in lines] == expected
    assert [line["tuned"]["answer"] for line in lines] == said[1]
    assert "scratch/answers-base.jsonl" not in result.artifact.files


def test_an_evaluation_whose_answers_are_all_there_loads_no_model(
    bench, trained, rows, said, seal_dataset, tmp_path
):
    dataset, folder = seal_dataset(rows), tmp_path / "report"
    with Run.open(folder, "evaluate", inputs={}) as at:
        for side, texts in zip(("base", "tuned"), said, strict=True):
            lines = [
                {"line": i, "text": text, "tokens": 1, "cut": False, "seconds": 0.0}
                for i, text in enumerate(texts, 1)
            ]
            at.write_text(
                f"scratch/answers-{side}.jsonl", "".join(json.dumps(x) + "\n" for x in lines)
            )
    adapter = trained.dir / "adapter" / "adapter_model.safetensors"
    aside = adapter.with_name("aside")
    adapter.rename(aside)
    try:
        result = evaluate(folder, bench.recipe(), dataset, trained, resume=True)
    finally:
        aside.rename(adapter)
    assert (result.comparison.pairs.won, result.comparison.pairs.lost) == (6, 2)


@pytest.mark.slow
def test_the_database_of_the_dataset_is_not_changed(bench, trained, seal_dataset, tmp_path):
    sql = [chat(q, "SELECT name FROM item") for q in QUESTIONS[:2]]
    dataset = seal_dataset(sql, "shop")
    evaluate(tmp_path / "report", bench.recipe(), dataset, trained)
    Artifact.open(dataset.dir).verify()
    with sqlite3.connect(dataset.dir / "databases" / "shop.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM item").fetchone() == (2,)
    connection.close()
    assert [p.name for p in (dataset.dir / "databases").iterdir()] == ["shop.sqlite"]
