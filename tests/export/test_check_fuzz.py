"""Odd values in a model's JSON files: findings or an error of ours, and never a traceback."""

from __future__ import annotations

import json
import math
import random
import shutil

import pytest

from tunesmith.errors import ModelError, TunesmithError
from tunesmith.export.check import CheckOptions, check_model
from tunesmith.export.merge import Asked, run
from tunesmith.export.merge.plan import head_names
from tunesmith.models.frozen import load_frozen
from tunesmith.models.load import BaseModel, load_model

ODD = [None, True, -1, 0, 1.5, math.nan, 10**12, "x", "", [], [1], [None], {}, {"a": 1}, [["a"]]]
MORE_KEYS = {
    "config.json": [
        "quantization_config",
        "rope_scaling",
        "layer_types",
        "text_config",
        "auto_map",
    ],
    "tokenizer_config.json": [
        *("extra_special_tokens", "chat_template", "added_tokens_decoder", "auto_map"),
        *("additional_special_tokens", "model_specific_special_tokens"),
    ],
}
KNOWN = {
    "config.json": [("quantization_config", 0), ("layer_types", [["a"]]), ("hidden_act", 0)],
    "tokenizer_config.json": [("bos_token", 1.5), ("model_max_length", ""), ("tokenizer_class", 1)],
    "tokenizer.json": [("added_tokens", [{"id": 0, "content": "a"}]), ("version", [])],
}
"""Once ended with a traceback."""


@pytest.fixture(scope="module")
def model(make, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "model"
    make.short(folder)
    return folder


def places(value, path=()):
    """The ways to all values in nested objects, but those of a vocabulary."""
    if path and path[-1] in ("vocab", "merges"):
        return
    for key, inside in value.items() if isinstance(value, dict) else enumerate(value[:2]):
        yield (*path, key)
        if isinstance(inside, dict | list):
            yield from places(inside, (*path, key))


def changed(text, path, odd):
    value = json.loads(text)
    *way, last = path
    owner = value
    for key in way:
        owner = owner[key]
    owner[last] = odd
    return json.dumps(value)


def odd_files(name, text, n):
    chance = random.Random(f"odd {name}")
    ways = [*places(json.loads(text)), *((key,) for key in MORE_KEYS.get(name, ()))]
    for key, odd in KNOWN[name]:
        yield (key,), odd
    for _ in range(n):
        yield chance.choice(ways), chance.choice(ODD)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "n"), [("config.json", 4), ("tokenizer_config.json", 4), ("tokenizer.json", 4)]
)
def test_odd_values_end_no_check(model, tmp_path, name, n):
    folder = shutil.copytree(model, tmp_path / "model")
    text = (folder / name).read_text(encoding="utf-8")
    n_told = 0
    for path, odd in odd_files(name, text, n):
        (folder / name).write_text(changed(text, path, odd), encoding="utf-8")
        try:
            n_told += check_model(folder, CheckOptions(values=False)).count("error") > 0
        except TunesmithError:
            n_told += 1
        except Exception as error:
            error.add_note(f"{name}: {path} is {odd!r}")
            raise
    assert n_told > len(KNOWN[name])


ODD_CONFIGS = [
    {"quantization_config": 0},
    {"layer_types": [["a"]]},
    {"hidden_size": "x"},
    {"rope_parameters": []},
    {"num_attention_heads": 0},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ODD_CONFIGS, ids=str)
def test_odd_values_of_a_config_are_told_and_refused_wherever_it_is_loaded(model, tmp_path, odd):
    import torch

    folder = shutil.copytree(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | odd))
    found = check_model(folder, CheckOptions(values=False)).findings
    assert [one.check for one in found if one.severity == "error"]
    for load in (
        lambda: load_model(folder, torch.float32),
        lambda: load_frozen(BaseModel("odd", folder, ""), torch.float32),
        lambda: head_names(folder),
        lambda: run(Asked(models=(str(model), str(folder)), out=tmp_path / "out")),
    ):
        with pytest.raises(ModelError) as caught:
            load()
        assert caught.value.what
        assert caught.value.fix


def test_a_tokenizer_that_makes_no_tokens_is_told(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    path = folder / "tokenizer.json"
    nothing = {"SpecialToken": {"id": "[X]", "type_id": 0}}
    processor = {"type": "TemplateProcessing", "single": [nothing], "pair": []}
    words = json.loads(path.read_text(encoding="utf-8"))
    words["post_processor"] = processor | {"special_tokens": {}}
    path.write_text(json.dumps(words))
    found = check_model(folder, CheckOptions(values=False)).findings
    assert ("error", "tokenizer-vocabulary", "tokenizer.json") in {
        (one.severity, one.check, one.file) for one in found
    }


@pytest.mark.parametrize("chatting", [True, False])
def test_a_tokenizer_that_cannot_be_loaded_is_told_of_a_model_without_a_template_too(
    model, tmp_path, chatting
):
    folder = shutil.copytree(model, tmp_path / "model")
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words["model"]["type"] = "Nope"
    (folder / "tokenizer.json").write_text(json.dumps(words))
    if not chatting:
        (folder / "chat_template.jinja").unlink()
    found = check_model(folder, CheckOptions(values=False)).findings
    told = [one for one in found if one.check == "tokenizer-load"]
    assert [(one.severity, one.file) for one in told] == [("error", "tokenizer.json")]
    assert told[0].fix
