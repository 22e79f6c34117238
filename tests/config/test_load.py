"""Recipes: layers, origins, all problems at once, paths, and keys that nothing reads."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tunesmith.config import Recipe, explain, load_recipe, recipe_from, refuse_unread
from tunesmith.config.base import Settings
from tunesmith.errors import ConfigError, MissingError

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKED_IN = sorted(
    path
    for folder in ("src/tunesmith/recipes", "examples", "benchmarks")
    for path in (REPOSITORY / folder).rglob("*.yaml")
    if "peers" not in path.parts  # configurations of other tools
)


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems_of(files=(), sets=(), **options) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(files, sets, **options)
    return caught.value.what


def test_later_files_and_set_win_and_every_value_knows_its_origin(tmp_path):
    first = write(tmp_path, "a.yaml", "name: one\nseed: 1\ntrain:\n  epochs: 2\n")
    second = write(tmp_path, "b.yaml", "seed: 2\ntrain:\n  epochs: 3\n")
    recipe = load_recipe([first, second], ["train.epochs=4"])
    assert (recipe.name, recipe.seed, recipe.train.epochs) == ("one", 2, 4.0)
    assert recipe.origin("name") == f"{first}:1"
    assert recipe.origin("seed") == f"{second}:1"
    assert recipe.origin("train.epochs") == "--set train.epochs"
    assert recipe.origin("train.max_steps") == "default"


@pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002", "2E-4"])
def test_a_learning_rate_in_any_usual_notation_is_a_number(tmp_path, text):
    file = write(tmp_path, "r.yaml", f"train:\n  optimizer: {{learning_rate: {text}}}\n")
    assert load_recipe([file]).train.optimizer.learning_rate == 2e-4
    assert load_recipe([], [f"train.optimizer.learning_rate={text}"]) is not None


def test_all_problems_of_all_files_are_reported_together_with_file_and_line(tmp_path):
    first = write(
        tmp_path,
        "a.yaml",
        "name: x\ntrain:\n  method:\n    kind: lora\n    rnk: 8\n  epochs: -1\nbogus: 1\n",
    )
    second = write(tmp_path, "b.yaml", "evaluate:\n  task: {kind: sqlexec}\n")
    text = problems_of([first, second], ["train.batch_tokens=many"])
    assert text.startswith("5 problems")
    assert f"{first}:5: unknown key 'train.method.rnk' (did you mean 'rank'?)" in text
    assert f"{first}:6: train.epochs = -1" in text
    assert f"{first}:7: unknown key 'bogus'" in text
    assert f"{second}:2: evaluate.task.kind: 'sqlexec' is not one of" in text
    assert "--set train.batch_tokens: train.batch_tokens = 'many'" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name: \xff\xfe", "not UTF-8 at byte 6"),
        (b"name: [a\n", "not valid YAML"),
        (b"- a\n- b\n", ":1: a recipe is a mapping"),
        (b"name: a\nname: b\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_says_why(tmp_path, content, expected):
    file = write(tmp_path, "r.yaml", content)
    text = problems_of([file])
    assert str(file) in text
    assert expected in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.method.rank", "true"),
        ("train.epochs", "true"),
        ("train.epochs", '"2"'),
        ("train.epochs", ".inf"),
        ("data.max_train_rows", "5.0"),
        ("seed", "2.0"),
        ("train.fast", "1"),
        ("train.fast", '"yes"'),
        ("export.forms", "merged"),
        ("data.source", "{kind: files, train: [3]}"),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_converted(key, value):
    assert f"--set {key}" in problems_of([], [f"{key}={value}"])


def test_yaml_lists_are_taken_for_tuples_and_whole_numbers_for_floats():
    sets = ["train.epochs=2", "export.forms=[merged]", "train.method.targets=[q_proj]"]
    recipe = load_recipe([], [*sets, "data.source={kind: files, train: [a, b], test: c}"])
    assert recipe.train.epochs == 2.0
    assert recipe.export.forms == ("merged",)
    assert recipe.train.method.targets == ("q_proj",)
    assert [Path(p).name for p in recipe.data.source.train] == ["a", "b"]
    assert [Path(p).name for p in recipe.data.source.test] == ["c"]


def test_an_empty_file_changes_nothing(tmp_path):
    recipe = load_recipe([write(tmp_path, "r.yaml", "# nothing\n")])
    assert recipe.model_dump() == Recipe().model_dump()


def test_a_missing_file_names_the_nearest_shipped_recipe():
    with pytest.raises(MissingError, match=r"did you mean 'demo'") as caught:
        load_recipe(["dmo"])
    assert "demo" in caught.value.fix


def test_a_list_with_a_refused_item_is_not_called_too_short():
    told = problems_of(sets=["export.forms=[gguf-q3]"])
    assert "1 problem in the recipe" in told
    assert "export.forms.0 = 'gguf-q3'" in told
    assert "export.forms = []: should have at least 1 item" in problems_of(sets=["export.forms=[]"])


@pytest.mark.parametrize("assignment", ["train.epochs", "=3", "train..epochs=3", "a=[1"])
def test_a_malformed_set_is_quoted(assignment):
    assert assignment in problems_of([], [assignment])


def test_set_may_leave_the_section_out_in_a_stage_command():
    recipe = load_recipe([], ["method.rank=8", "train.epochs=1"], section="train")
    assert (recipe.train.method.rank, recipe.train.epochs) == (8, 1.0)


def test_settings_of_a_variant_alone_are_those_of_the_default_variant(tmp_path):
    file = write(tmp_path, "r.yaml", "train:\n  method: {rank: 4}\n")
    method = load_recipe([file]).train.method
    assert (method.kind, method.rank) == ("lora", 4)
    assert "kind" in problems_of([], ["evaluate.task.timeout_seconds=1"])


def test_another_kind_replaces_a_variant_and_the_same_kind_merges(tmp_path):
    file = write(tmp_path, "r.yaml", "train:\n  method: {kind: lora, rank: 4, alpha: 8}\n")
    assert load_recipe([file], ["train.method={kind: full}"]).train.method.kind == "full"
    merged = load_recipe([file], ["train.method.rank=2"]).train.method
    assert (merged.rank, merged.alpha) == (2, 8.0)


def test_paths_are_relative_to_the_file_that_holds_them(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    file = write(
        tmp_path / "sub",
        "r.yaml",
        "model: {base: ./m}\n"
        "data: {source: {kind: files, train: a.jsonl}, databases: {d: x.sqlite}}\n",
    )
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe([file], ["data.source.test=b.jsonl"])
    assert recipe.data.source.train == (str(tmp_path / "sub/a.jsonl"),)
    assert recipe.data.databases == {"d": str(tmp_path / "sub/x.sqlite")}
    assert recipe.model.base == str(tmp_path / "sub/m")
    assert recipe.data.source.test == (str(tmp_path / "b.jsonl"),)
    assert load_recipe([], ["model.base=owner/name"]).model.base == "owner/name"


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3


def test_a_key_that_nothing_read_is_refused_with_its_origin(tmp_path):
    file = write(tmp_path, "r.yaml", "train:\n  epochs: 2\n  method: {kind: lora, rank: 4}\n")
    recipe = load_recipe([file])
    assert recipe.train.epochs == 2
    with pytest.raises(ConfigError) as caught:
        refuse_unread(recipe, "train")
    assert f"train.method.rank ({file}:3)" in caught.value.what
    assert "epochs" not in caught.value.what
    assert "kind" not in caught.value.what
    assert recipe.train.method.rank == 4
    refuse_unread(recipe, "train")


def test_defaults_and_other_sections_are_never_unread():
    recipe = load_recipe([], ["evaluate.max_rows=3"])
    refuse_unread(recipe, "train")
    with pytest.raises(ConfigError, match=r"  evaluate\.max_rows \(--set\)"):
        refuse_unread(recipe, "evaluate")


def test_a_dump_does_not_count_as_reading():
    recipe = load_recipe([], ["train.epochs=2"])
    recipe.model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        refuse_unread(recipe, "train")


def all_settings(model: type[Settings] = Settings):
    for child in model.__subclasses__():
        yield child
        yield from all_settings(child)


@pytest.mark.parametrize("model", sorted(set(all_settings()), key=lambda m: m.__name__))
def test_every_field_documents_itself(model):
    undocumented = [
        name
        for name, info in model.model_fields.items()
        if name != "kind" and not (info.description or "").strip()
    ]
    assert undocumented == []


def test_explain_names_every_value_once():
    values = explain(Recipe())
    keys = [value.key for value in values]
    assert len(keys) == len(set(keys))
    assert {"name", "train.method.rank", "train.optimizer.learning_rate", "serve.port"} <= set(keys)


@pytest.mark.parametrize("path", CHECKED_IN, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_every_checked_in_recipe_loads(path):
    assert load_recipe([path]).name


values = st.fixed_dictionaries(
    {},
    optional={
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "seed": st.integers(0, 2**32 - 1),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "epochs": st.floats(0.01, 50),
                "max_steps": st.none() | st.integers(1, 10**6),
                "optimizer": st.fixed_dictionaries({"learning_rate": st.floats(1e-7, 1)}),
                "method": st.sampled_from([{"kind": "full"}, {"kind": "lora", "rank": 3}]),
            },
        ),
        "serve": st.fixed_dictionaries(
            {"host": st.text(min_size=1), "port": st.integers(0, 65535)}
        ),
    },
)


@given(values)
def test_a_recipe_survives_yaml_and_back(tmp_path_factory, chosen):
    recipe = recipe_from(chosen)
    file = tmp_path_factory.mktemp("r") / "r.yaml"
    writer = YAML(typ="safe", pure=True)
    writer.width = 100_000  # it folds long lines where reading adds a space
    writer.allow_unicode = False  # else it writes U+0085 as it is, which YAML reads as a line's end
    with file.open("w", encoding="utf-8") as stream:
        writer.dump(recipe.model_dump(mode="json"), stream)
    assert load_recipe([file]).model_dump() == recipe.model_dump()


@given(
    st.from_regex(r"[a-z_]{1,12}", fullmatch=True).filter(lambda k: k not in Recipe.model_fields)
)
def test_an_unknown_key_is_always_named(key):
    with pytest.raises(ConfigError) as caught:
        recipe_from({key: 1})
    assert repr(key) in caught.value.what


@given(st.text(max_size=60))
def test_no_set_text_breaks_the_loader(text):
    with suppress(ConfigError):
        load_recipe([], [text])


@given(st.binary(max_size=80))
def test_no_bytes_break_the_loader(tmp_path_factory, content):
    file = write(tmp_path_factory.mktemp("r"), "r.yaml", content)
    with suppress(ConfigError):
        load_recipe([file])
