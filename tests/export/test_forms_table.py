"""The table of forms: stopped or killed it goes on, and a form that fails does not hold up the others."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import forked
import pytest
from click.testing import CliRunner

from tunesmith import pipeline
from tunesmith.cli.forms import forms as command
from tunesmith.config import ModelConfig
from tunesmith.engine import Sampling
from tunesmith.engine.backends.llama_cpp import LlamaBackend
from tunesmith.errors import InterruptedRun, ModelError
from tunesmith.export import table
from tunesmith.export.gguf_lora import write_lora
from tunesmith.export.quality_plot import draw_terminal, figure_of
from tunesmith.pipeline.forms import measure_made
from tunesmith.store import MANIFEST, Artifact, Run

pytestmark = pytest.mark.slow

CHILD = """
import sys
from pathlib import Path
from tunesmith.config import recipe_from
from tunesmith.errors import InterruptedRun
from tunesmith.pipeline.forms import measure_made
from tunesmith.store import Artifact
base, folder, *places = sys.argv[1:]
stages = ("data", "train", "evaluate", "export")
made = {stage: Artifact.open(place) for stage, place in zip(stages, places)}
recipe = recipe_from({"name": "tiny", "model": {"base": base}, "evaluate": {"max_answer_tokens": 8}})
try:
    measure_made(recipe, made, Path(folder), ["adapter", "merged"])
except InterruptedRun as error:
    print(error)
    sys.exit(error.exit_code)
"""
PARITY = {"greedy_agreement": 1.0, "mean_kl": 0.0, "perplexity_ratio": 1.0}


@pytest.fixture(scope="module")
def made(bench, tmp_path_factory):
    """Sealed stages of the tiny model, with the forms adapter, merged, a GGUF adapter, and a GGUF that is none."""
    folder = tmp_path_factory.mktemp("made")
    train = Path(shutil.copytree(bench.trained.dir, folder / "train"))
    manifest = json.loads((train / MANIFEST).read_text())
    manifest["facts"]["precision"] = "fp32"
    (train / MANIFEST).write_text(json.dumps(manifest))
    exported = bench.export(folder / "made", forms=["adapter", "merged"]).artifact
    with Run.open(folder / "export", "export", inputs={}) as at:
        for name in ("adapter", "merged", "tokenizer"):
            shutil.copytree(exported.dir / name, at.dir / name)
        at.write_text("model-f16.gguf", "no model")
        adapter = bench.trained.folder("adapter")
        write_lora(adapter, bench.base.dir, at.path("lora.gguf"), name="tiny")
        paths = {"gguf-f16": "model-f16.gguf", "adapter": "adapter", "merged": "merged"}
        paths["gguf-lora"] = "lora.gguf"
        facts = {"forms": paths, "parity": dict.fromkeys(paths, PARITY)}
        export = at.finish(facts | {"base": exported.facts["base"]})
    with Run.open(folder / "evaluate", "evaluate", inputs={}) as at:
        rows = [{"line": line, "outcome": "won"} for line in (1, 2, 3, 4)]
        at.write_text("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        report = at.finish({})
    return {
        "data": bench.dataset,
        "train": Artifact.open(train),
        "evaluate": report,
        "export": export,
    }


@pytest.fixture
def recipe(bench):
    found = bench.recipe()
    return found.model_copy(
        update={"evaluate": found.evaluate.model_copy(update={"max_answer_tokens": 8})}
    )


def test_a_form_that_fails_is_one_error_and_the_others_are_sealed(
    made, recipe, tmp_path, monkeypatch
):
    found = measure_made(recipe, made, tmp_path)
    rows = {row.form: row for row in found.rows}
    assert list(rows) == ["gguf-f16", "adapter", "merged", "gguf-lora"]
    for form in ("adapter", "merged", "gguf-lora"):
        assert rows[form].n == 4
        assert rows[form].tokens_per_second > 0
    assert rows["gguf-f16"].not_timed == "its process failed"
    assert rows["gguf-lora"].on_base == "base in F32"
    assert rows["gguf-lora"].computed_in == "as stored, base in F32"
    assert rows["merged"].computed_in == "float32"
    assert list(found.failed) == ["gguf-f16"]
    assert "gguf" in found.failed["gguf-f16"].why.lower()
    assert "Traceback" not in found.failed["gguf-f16"].why
    assert (found.artifact.dir / "quality.png").is_file()

    monkeypatch.setattr(pipeline, "measure_forms", lambda *_args, **_more: found)
    (tmp_path / "recipe.yaml").write_text("name: tiny\n")
    plain = CliRunner().invoke(command, [str(tmp_path / "recipe.yaml")])
    assert "its process failed" in plain.stdout
    assert "gguf-lora on F32 base" in plain.stdout
    assert "gguf-lora was put on base in F32" in plain.stderr
    assert "computed in float32: adapter, merged; as stored, base in F32: gguf-lora" in plain.stderr
    assert "llama.cpp (gguf-lora) does not read again what a prompt shares" in plain.stderr
    assert "speed and memory of adapter, merged are those of these numbers" in plain.stderr
    with pytest.raises(ModelError, match="1 of 4 forms could not be measured"):
        raise plain.exception
    shown = CliRunner().invoke(command, [str(tmp_path / "recipe.yaml"), "--json"])
    assert shown.exit_code == ModelError.exit_code
    told = json.loads(shown.stdout)
    assert list(told["failed"]) == ["gguf-f16"]
    assert [row["form"] for row in told["forms"]] == list(rows)
    assert {row["form"]: row["computed_in"] for row in told["forms"]}["adapter"] == "float32"
    assert [note for note in told["notes"] if note.startswith("computed in float32")]


def test_when_no_form_can_be_measured_nothing_is_sealed(made, recipe, tmp_path):
    with pytest.raises(ModelError, match="gguf-f16 could not be measured"):
        measure_made(recipe, made, tmp_path, ["gguf-f16"])
    assert not list(tmp_path.rglob(MANIFEST))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_or_killed_it_goes_on_with_the_forms_that_it_has(
    made, recipe, bench, tmp_path, number
):
    words = [str(place) for place in (bench.base.dir, tmp_path, *(a.dir for a in made.values()))]
    child = forked.script(CHILD, *words)
    while not (kept := list(tmp_path.glob("forms-*/scratch/timing/adapter.json"))):
        assert child.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    child.send_signal(number)
    told, _ = child.communicate()
    if number == signal.SIGINT:
        assert child.returncode == InterruptedRun.exit_code
        assert "give the same command again" in told
    assert not list(tmp_path.rglob(MANIFEST))
    changed = json.loads(kept[0].read_text()) | {"load_seconds": 123.0}
    kept[0].write_text(json.dumps(changed))
    found = measure_made(recipe, made, tmp_path, ["adapter", "merged"])
    assert {row.form: row for row in found.rows}["adapter"].load_seconds == 123.0
    assert len(list(tmp_path.glob("forms-*"))) == 1


class Bar:
    """A progress bar that nobody sees."""

    def advance(self, *_args):
        pass


def _prompts(bench):
    rows = bench.dataset.path("test.jsonl").read_text().splitlines()
    return [bench.renderer.prompt_ids(json.loads(row)["messages"][:-1]) for row in rows]


def test_an_adapter_as_gguf_is_timed_on_its_base_and_answers_as_the_adapter(
    made, recipe, bench, tmp_path
):
    prompts = {n: list(ids) for n, ids in enumerate(_prompts(bench))}

    def timed(form, model=recipe.model):
        return table.time_form(made["export"], form, model, prompts, 4, tmp_path, Bar())

    found = timed("gguf-lora")
    assert found.answers == timed("adapter").answers
    assert "xllamacpp" in found.engine
    with LlamaBackend(tmp_path / "base-f32.gguf") as backend:
        alone = backend.generate(list(prompts.values()), Sampling(max_tokens=4))
    assert [answer.text for answer in alone] != list(found.answers.values())
    # What was measured is used again; the base of another folder is not looked for.
    assert timed("gguf-lora", ModelConfig(base="nowhere")) == found


def test_an_adapter_is_not_timed_on_another_base(made, make, tmp_path):
    other = make.tiny(tmp_path / "other", spread=0.4)
    model = ModelConfig(base=str(other.dir))
    with pytest.raises(ModelError, match="was trained on another base model than other"):
        table.time_form(made["export"], "gguf-lora", model, {1: [1, 2]}, 4, tmp_path, Bar())


def test_figures_of_other_versions_are_not_used_again(made, recipe, tmp_path, monkeypatch):
    def timed():
        base, prompts = recipe.model, {1: [1, 2, 3]}
        return table.time_form(made["export"], "merged", base, prompts, 4, tmp_path, Bar())

    timed()
    kept = tmp_path / "merged.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"load_seconds": 123.0}))
    assert timed().load_seconds == 123.0
    monkeypatch.setattr(table, "made_with", lambda: {"torch": "1.0"})
    assert timed().load_seconds < 123.0


def test_the_plot_in_the_terminal_places_and_names_every_form():
    points = [("merged", 9_000_000, 0.5, (0.4, 0.6)), ("gguf-q4_0", 2_000_000, 0.9, (0.8, 1.0))]
    picture, _, told = draw_terminal(points).rpartition("\n")
    assert told == "a gguf-q4_0 · b merged"
    rows = [line.split("┤" if "┤" in line else "│", 1)[1] for line in picture.splitlines()[1:13]]
    assert rows[0].startswith("a")
    assert rows[-2].rstrip("│").endswith("b") or rows[-1].rstrip("│").endswith("b")


@pytest.mark.parametrize("accuracy", [0.0, 0.5, 1.0])
def test_the_axis_of_the_plot_is_of_per_cents_where_all_are_equal(accuracy):
    interval = (accuracy, accuracy)
    points = [("merged", 9_000_000, accuracy, interval), ("gguf-q4_0", 2_000, accuracy, interval)]
    low, high = figure_of(points, 0.95).axes[0].get_ylim()
    assert -1 <= low < 100 * accuracy < high <= 101
    assert 10 <= high - low <= 12


def test_the_axis_of_the_plot_shows_every_interval_and_not_much_more():
    points = [("a", 9, 0.5, (0.4, 0.6)), ("b", 2, 0.9, (0.8, 1.0)), ("c", 3, 0.2, (0.1, 0.3))]
    low, high = figure_of(points, 0.95).axes[0].get_ylim()
    assert -5 < low <= 10
    assert 100 <= high < 106


@pytest.mark.parametrize(("accuracy", "least", "most"), [(0.0, -0.5, 10.5), (0.7, 64.5, 75.5)])
def test_the_axis_in_the_terminal_is_of_per_cents_where_all_are_equal(accuracy, least, most):
    points = [(name, size, accuracy, (0.0, 1.0)) for name, size in (("a", 10**6), ("b", 10**7))]
    lines = draw_terminal(points).splitlines()
    ticks = [float(line.split("┤")[0]) for line in lines if "┤" in line]
    assert (ticks[0], ticks[-1]) == (most, least)
    # The next picture has axes of its own.
    other = [("a", 10**6, 0.2, (0.0, 1.0)), ("b", 10**7, 0.9, (0.0, 1.0))]
    ticks = [float(line.split("┤")[0]) for line in draw_terminal(other).splitlines() if "┤" in line]
    assert (ticks[0], ticks[-1]) == (90.0, 20.0)
