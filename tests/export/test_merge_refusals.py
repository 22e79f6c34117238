"""Wrong input to a merge: one clear error with everything in it, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import click
import forked
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from tunesmith.cli.main import commands
from tunesmith.errors import (
    ArtifactError,
    BusyError,
    ConfigError,
    MissingError,
    ModelError,
    StorageError,
    TunesmithError,
    UsedDirectoryError,
)
from tunesmith.export.merge import METHODS, Asked, run
from tunesmith.store.failpoints import arm


def refused(out: Path, models, kind: type[TunesmithError], **asked) -> str:
    """The error's text; nothing is left under the name or beside it."""
    given = tuple(str(getattr(model, "dir", model)) for model in models)
    with pytest.raises(kind) as found:
        run(Asked(models=given, out=out, **asked))
    assert type(found.value) is kind
    assert not out.exists() or kind is UsedDirectoryError
    assert not list(out.parent.glob(f".{out.name}*"))
    return str(found.value)


def copied(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target))


def test_all_that_is_wrong_with_the_arguments_is_said_at_once(merging, tmp_path):
    text = refused(
        tmp_path / "out",
        [merging.adapters[0].dir, tmp_path / "nowhere"],
        ConfigError,
        method="tie",
        weights=(0.5, float("nan"), 0.1),
        densities=(1.5,),
    )
    assert "no merge method is called 'tie' (did you mean 'ties'?)" in text
    assert "--weights has 3 numbers, --models 2 models" in text
    assert "--weights holds nan" in text
    assert "--density is 1.5" in text
    assert "no model at" in text
    assert "5 things are wrong" in text


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"method": "linear", "densities": (0.5,)}, "--density has no effect"),
        ({"method": "linear", "t": 0.5}, "--t has no effect"),
        ({"method": "slerp", "weights": (1.0, 1.0)}, "--weights has no effect"),
        ({"method": "ties", "seed": 3}, "--seed has no effect"),
        ({"method": "linear", "weights": (1.0, -1.0)}, "the sum of --weights is 0"),
        ({"method": "linear", "weights": (0.0, 0.0)}, "all of --weights is 0"),
        ({"method": "ties", "weights": (0.0,)}, "all of --weights is 0"),
        ({"method": "concat", "weights": (0.0, 0.0)}, "all of --weights is 0"),
        ({"method": "task_arithmetic", "scale": 0.0}, "all of --lambda is 0"),
        ({"method": "slerp", "t": 1.5}, "--t is 1.5"),
        ({"method": "dare_ties", "densities": (0.0,)}, "--density is 0"),
    ],
)
def test_a_setting_that_would_do_nothing_or_cannot_be_is_refused(merging, tmp_path, asked, said):
    models = merging.adapters[:2]
    assert said in refused(tmp_path / "out", models, ConfigError, **asked)


def test_slerp_takes_two_models(merging, tmp_path):
    text = refused(tmp_path / "out", merging.adapters, ConfigError, method="slerp")
    assert "takes 2 models, --models names 3" in text


@pytest.mark.parametrize("method", ["slerp", "concat"])
def test_one_model_is_too_few_and_one_message_says_what_why_and_how(merging, tmp_path, method):
    text = refused(tmp_path / "out", merging.adapters[:1], ConfigError, method=method)
    first, why, fix = text.splitlines()
    assert f"--method {method} takes" in first
    assert "2 models, --models names 1" in first
    assert why.startswith("why: ")
    assert "--models A,B" in fix
    assert "--method linear" in fix


def test_the_command_offers_the_methods_that_there_are():
    command = commands.get_command(click.Context(commands), "merge")
    (method,) = [option for option in command.params if option.name == "method"]
    assert tuple(method.type.choices) == tuple(METHODS)
    context = click.Context(command)
    assert [item.value for item in method.shell_complete(context, "dare")] == [
        "dare_linear",
        "dare_ties",
    ]


@pytest.mark.parametrize(
    "odd",
    [
        {"num_hidden_layers": 10**12},
        {"num_hidden_layers": 10**6},
        {"vocab_size": 10**15},
        {"hidden_size": -1},
        {"num_local_experts": 10**9},
    ],
    ids=str,
)
@pytest.mark.parametrize("role", ["model", "base"])
def test_a_config_that_would_be_built_without_end_is_refused(merging, tmp_path, odd, role):
    damaged = copied(merging.base.dir, tmp_path / "damaged")
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | odd))
    if role == "model":
        text = refused(tmp_path / "out", [merging.base.dir, damaged], ModelError)
    else:
        models = merging.adapters[:1]
        text = refused(tmp_path / "out", models, ModelError, base=str(damaged))
    assert f"no model can be built by {damaged}/config.json" in text
    assert f"key {next(iter(odd))}: it is " in text
    assert "restore the model's own config.json" in text


@pytest.mark.parametrize("content", ["{", "[1]", "null", "\udcff"])
def test_damaged_settings_of_generation_are_refused_before_the_merge(merging, tmp_path, content):
    damaged = copied(merging.base.dir, tmp_path / "damaged")
    path = damaged / "generation_config.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    text = refused(tmp_path / "out", [damaged, damaged], ModelError)
    assert f"{path} cannot be read" in text
    assert "restore it, or delete it" in text


def test_a_full_folder_is_not_overwritten(merging, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    text = refused(
        tmp_path / "out", merging.adapters[:2], UsedDirectoryError, base=str(merging.base.dir)
    )
    assert "is not empty" in text
    assert (tmp_path / "out/mine.txt").read_text() == "keep"


def test_a_result_inside_of_a_model_is_refused(merging, tmp_path):
    place = copied(merging.adapters[0].dir, tmp_path / "run")
    before = sorted(place.rglob("*"))
    for models, base in (
        ((place, merging.adapters[1]), merging.base.dir),
        (merging.adapters[:2], copied(merging.base.dir, place / "base")),
    ):
        out = (place if models[0] is place else base) / "deep/out"
        text = refused(out, models, ConfigError, base=str(base))
        assert f"--out {out} lies in {place if models[0] is place else base}" in text
        assert not out.parent.exists()
    shutil.rmtree(place / "base")
    assert sorted(place.rglob("*")) == before


def test_a_result_inside_of_a_sealed_artifact_is_refused(merging, tmp_path):
    run(
        Asked(
            models=(str(merging.models[0].dir),),
            out=tmp_path / "sealed",
            base=str(merging.base.dir),
        )
    )
    (tmp_path / "manifest.json").write_text("{}")  # of another program
    assert run(
        Asked(
            models=(str(merging.models[0].dir),), out=tmp_path / "two", base=str(merging.base.dir)
        )
    )
    out = tmp_path / "sealed/model/more"
    text = refused(out, merging.models[:2], UsedDirectoryError, base=str(merging.base.dir))
    assert f"lies in the sealed {tmp_path / 'sealed'}" in text
    assert not out.exists()


def test_a_model_that_is_named_twice_is_noted(merging, tmp_path):
    place = str(merging.adapters[0].dir)
    asked = Asked(models=(place, place), out=tmp_path / "out", base=str(merging.base.dir))
    notes = run(asked).artifact.facts["notes"]
    assert f"{place} and {place} are the same model, and count twice" in notes


def test_a_sealed_merge_is_used_again_and_never_overwritten(merging, tmp_path):
    out = tmp_path / "out"
    given = tuple(str(artifact.dir) for artifact in merging.adapters[:2])
    asked = Asked(models=given, out=out, base=str(merging.base.dir))
    first = run(asked)
    again = run(asked)
    assert again.reused
    assert not first.reused
    assert again.artifact.sha256 == first.artifact.sha256
    other = replace(asked, weights=(0.9, 0.1))
    with pytest.raises(UsedDirectoryError, match="holds a sealed merge of other inputs"):
        run(other)
    file = out / "model/config.json"
    file.write_text(file.read_text().replace("llama", "lama1"))
    with pytest.raises(ArtifactError, match="not the file that was sealed"):
        run(asked)


def test_differences_need_a_base(merging, tmp_path):
    places = [
        copied(m.dir / "model", tmp_path / n) for m, n in zip(merging.models, "xy", strict=True)
    ]
    text = refused(tmp_path / "out", places, ConfigError, method="ties")
    assert "--method ties needs a base" in text


def test_an_adapter_whose_base_is_not_here_says_how_to_name_it(merging, tmp_path):
    place = copied(merging.dir / "peft-a", tmp_path / "moved")
    config = json.loads((place / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "maker/elsewhere"
    (place / "adapter_config.json").write_text(json.dumps(config))
    text = refused(tmp_path / "out", [place, place], ConfigError)
    assert "is not known here" in text
    assert "'maker/elsewhere'" in text
    assert "--base" in text


def test_adapters_of_different_bases_are_named_with_both(merging, make, tmp_path):
    other = make.short(tmp_path / "other", spread=0.4)
    foreign = make.run(
        tmp_path / "run", other, merging.dataset, make.adapted(other), merging.renderer.fingerprint
    )
    text = refused(tmp_path / "out", [merging.adapters[0], foreign], ModelError)
    assert merging.base.sha256[:12] in text
    assert other.sha256[:12] in text
    text = refused(
        tmp_path / "out",
        [merging.adapters[0], merging.adapters[1]],
        ModelError,
        base=str(other.dir),
    )
    assert f"was trained on another base than {other.name}" in text
    # Unsealed adapters are told apart by the names that they carry.
    places = []
    for name in ("one", "two"):
        place = copied(merging.dir / "peft-a", tmp_path / name)
        config = json.loads((place / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = f"maker/{name}"
        (place / "adapter_config.json").write_text(json.dumps(config))
        places.append(place)
    text = refused(tmp_path / "out", places, ModelError)
    assert "maker/one" in text
    assert "maker/two" in text


def model_with(folder: Path, target: Path, change) -> Path:
    """A copy of a model with other tensors."""
    copied(folder, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_other_shapes_settings_and_rows_are_refused(merging, tmp_path):
    source = merging.models[0].dir / "model"

    def more_rows(tensors):
        embedding = tensors["model.embed_tokens.weight"]
        tensors["model.embed_tokens.weight"] = torch.cat([embedding, embedding[:2]])

    longer = model_with(source, tmp_path / "longer", more_rows)
    text = refused(tmp_path / "out", [source, longer], ModelError)
    assert "model.embed_tokens.weight is (2050, 64), not (2048, 64)" in text
    assert f"{longer} does not fit {source}: " in text  # as they were named: "model" tells nothing

    rope = copied(source, tmp_path / "rope")
    config = json.loads((rope / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 12345.0
    (rope / "config.json").write_text(json.dumps(config))
    assert "rope" in refused(tmp_path / "out", [source, rope], ModelError)

    def fewer(tensors):
        del tensors["model.norm.weight"]

    lacking = model_with(source, tmp_path / "lacking", fewer)
    text = refused(tmp_path / "out", [source, lacking], ModelError)
    assert "it lacks model.norm.weight" in text


def test_numbers_that_are_not_finite_are_found_by_name(merging, tmp_path):
    def broken(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")

    source = merging.models[0].dir / "model"
    place = model_with(source, tmp_path / "nan", broken)
    text = refused(tmp_path / "out", [source, place], ModelError)
    assert "model.layers.1.mlp.up_proj.weight" in text
    assert "not finite" in text


def test_a_result_too_large_for_its_format_is_refused(merging, tmp_path):
    text = refused(
        tmp_path / "out",
        merging.adapters[:2],
        ModelError,
        base=str(merging.base.dir),
        method="task_arithmetic",
        scale=1e7,
    )
    assert "does not fit into float16" in text


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors"])
def test_a_cut_file_is_refused(merging, tmp_path, name):
    is_model = name == "model.safetensors"
    source = merging.models[0].dir / "model" if is_model else merging.dir / "peft-a"
    place = copied(source, tmp_path / "cut")
    (place / name).write_bytes((place / name).read_bytes()[:-100])
    models = [source, place]
    text = refused(tmp_path / "out", models, ModelError, base=str(merging.base.dir))
    assert str(place) in text


def test_a_sealed_parent_that_was_changed_is_refused(merging, tmp_path):
    place = copied(merging.adapters[0].dir, tmp_path / "run")
    file = place / "adapter/adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    text = refused(tmp_path / "out", [place, merging.adapters[1]], ArtifactError)
    assert "SHA-256 differs" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "LOHA"}, "LOHA adapter"),
        ({"use_qalora": True}, "use_qalora is True"),
        ({"init_lora_weights": "pissa_niter_4"}, "base whose weights were changed"),
        ({"r": 8}, "the config says 8"),
    ],
)
def test_adapters_that_are_more_than_a_product_are_refused(merging, tmp_path, change, said):
    place = copied(merging.dir / "peft-a", tmp_path / "odd")
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(config | change))
    models = [place, merging.dir / "peft-b"]
    assert said in refused(tmp_path / "out", models, ModelError, base=str(merging.base.dir))


def test_pickled_adapters_are_never_opened(merging, tmp_path):
    place = copied(merging.dir / "peft-a", tmp_path / "pickled")
    (place / "adapter_model.safetensors").rename(place / "adapter_model.bin")
    text = refused(tmp_path / "out", [place, merging.dir / "peft-b"], ModelError)
    assert "pickled" in text


def test_concat_takes_plain_loras_only(merging, make, tmp_path):
    dora = make.adapter(tmp_path / "dora", merging.base, use_dora=True)
    models = [merging.adapters[0].dir, dora, merging.models[0].dir]
    text = refused(
        tmp_path / "out", models, ModelError, method="concat", base=str(merging.base.dir)
    )
    assert "is a DoRA" in text
    assert "is a whole model" in text


def test_another_chat_template_is_refused_with_the_difference(merging, tmp_path):
    place = copied(merging.models[0].dir / "model", tmp_path / "other")
    for file in (place / "chat_template.jinja", place / "tokenizer_config.json"):
        if file.is_file():
            text = file.read_text()
            file.write_text(text.replace("<|im_start|>", "<|im_end|>", 1))
    text = refused(tmp_path / "out", [merging.models[1].dir / "model", place], ModelError)
    assert "asked with different prompts" in text or "writes no stop token" in text


def test_another_vocabulary_is_refused(merging, tmp_path):
    place = copied(merging.models[0].dir / "model", tmp_path / "other")
    words = json.loads((place / "tokenizer.json").read_text())
    names = list(words["model"]["vocab"])
    vocabulary = words["model"]["vocab"]
    vocabulary[names[-1]], vocabulary[names[-2]] = vocabulary[names[-2]], vocabulary[names[-1]]
    (place / "tokenizer.json").write_text(json.dumps(words))
    text = refused(tmp_path / "out", [merging.models[1].dir / "model", place], ModelError)
    size = len(merging.renderer.tokenizer)
    assert (
        f"another vocabulary than {merging.models[1].dir / 'model'} (here): {size} tokens against {size}"
        in text
    )
    one, other = repr(names[-1]), repr(names[-2])
    assert f"{one} there and {other} here" in text
    assert f"{other} there and {one} here" in text
    assert "added to another token's" in text


def with_tokens(folder: Path, target: Path, *words: str) -> Path:
    """A copy of a model that knows more tokens, as transformers adds them."""
    from tunesmith.models.load import load_model, load_tokenizer, save_model

    tokenizer, model = load_tokenizer(folder), load_model(folder, torch.float16)
    tokenizer.add_tokens(list(words))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    save_model(model, tokenizer, target)
    return target


def test_tokens_that_only_one_model_has_are_named_with_both_sizes(merging, tmp_path):
    source = merging.models[0].dir / "model"
    longer = with_tokens(source, tmp_path / "longer", "<|one|>", "<|two|>")
    text = refused(tmp_path / "out", [source, longer], ModelError)
    size = len(merging.renderer.tokenizer)
    assert f"{longer} (there) has another vocabulary than {source} (here)" in text
    assert f"{size + 2} tokens against {size}" in text
    assert f"token {size} is '<|one|>' there and none here" in text
    assert "resize_token_embeddings" in text
    text = refused(tmp_path / "out", [longer, source], ModelError)
    assert f"token {size} is none there and '<|one|>' here" in text


def test_an_adapter_with_added_tokens_is_merged_into_the_base_that_has_them_alone(
    merging, make, tmp_path
):
    from peft import PeftModel

    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_model, resolve_base

    longer = with_tokens(merging.base.dir, tmp_path / "longer", "<|one|>", "<|two|>")
    base = resolve_base(ModelConfig(base=str(longer)))
    place = make.adapter(
        tmp_path / "adapter", base, targets=["q_proj"], modules_to_save=["embed_tokens"]
    )
    text = refused(tmp_path / "out", [place], ModelError, base=str(merging.base.dir))
    size = len(merging.renderer.tokenizer)
    assert (
        f"its model.embed_tokens.weight has shape ({size + 2}, 64), the base's ({size}, 64)" in text
    )
    assert "tokens were added" in text
    run(Asked(models=(str(place),), base=str(longer), out=tmp_path / "out"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load_model(base, torch.float32), place)
        wanted = model.merge_and_unload()
    found = load_file(tmp_path / "out/model/model.safetensors")
    for name, weight in wanted.state_dict().items():
        if name in found:
            assert torch.equal(found[name], weight.to(found[name].dtype)), name


def test_too_little_room_is_told_before_anything_is_written(merging, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage._replace(free=1_000))
    text = refused(tmp_path / "out", merging.adapters[:2], StorageError, base=str(merging.base.dir))
    assert "1,000 are free" in text


def test_a_disk_that_fills_up_leaves_nothing(merging, tmp_path):
    arm("seal-manifest=enospc")
    try:
        text = refused(
            tmp_path / "out", merging.adapters[:2], StorageError, base=str(merging.base.dir)
        )
    finally:
        arm("")
    assert "the disk is full" in text


def test_a_target_without_permission_is_told(merging, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    given = tuple(str(artifact.dir) for artifact in merging.adapters[:2])
    asked = Asked(models=given, out=file / "out", base=str(merging.base.dir))
    with pytest.raises(StorageError, match="cannot write"):
        run(asked)


def test_two_merges_into_one_folder_do_not_meet(merging, tmp_path):
    half = tmp_path / ".out.part"
    half.mkdir()
    given = tuple(str(artifact.dir) for artifact in merging.adapters[:2])
    asked = Asked(models=given, out=tmp_path / "out", base=str(merging.base.dir))
    with FileLock(half / ".lock"), pytest.raises(BusyError, match="by another process"):
        run(asked)
    assert half.is_dir()
    # What a killed merge left is no obstacle.
    run(asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing(merging, tmp_path):
    given = ",".join(str(artifact.dir) for artifact in merging.adapters[:2])
    command = [sys.executable, "-m", "tunesmith", "merge", "--models", given]
    command += ["--base", str(merging.base.dir), "--out", str(tmp_path / "out")]
    variables = {**os.environ, "TUNESMITH_FAILPOINT": "seal-file:2=stop"}
    with subprocess.Popen(command, env=variables, stderr=subprocess.PIPE, text=True) as child:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert (tmp_path / ".out.part").is_dir()
        child.send_signal(signal.SIGINT)
        child.send_signal(signal.SIGCONT)
        _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "nothing is left behind" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("point", ["seal-begin", "seal-file:2", "seal-manifest"])
def test_a_killed_merge_leaves_nothing_under_the_name_and_the_next_one_succeeds(
    merging, tmp_path, point
):
    given = ",".join(str(artifact.dir) for artifact in merging.adapters[:2])
    words = ["merge", "--models", given, "--base", str(merging.base.dir)]
    words += ["--out", str(tmp_path / "out")]
    killed = forked.complete(words, tmp_path, {**os.environ, "TUNESMITH_FAILPOINT": point})
    assert killed.returncode == -9
    assert not (tmp_path / "out").exists()
    done = forked.complete(words, tmp_path, dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_base_that_is_nowhere_is_to_be_named_with_the_commands_own_option(merging, tmp_path):
    asked = {"base": str(tmp_path / "no/such/folder")}
    assert "--base" in refused(tmp_path / "out", merging.adapters[:1], MissingError, **asked)


def edited(adapter: Path, target: Path, *, shapes=None, **config) -> Path:
    """A copy of an adapter with other tensors of a layer, or another config."""
    place = copied(adapter, target)
    name = place / "adapter_config.json"
    name.write_text(json.dumps(json.loads(name.read_text()) | config))
    tensors = load_file(place / "adapter_model.safetensors")
    for ending, shape in (shapes or {}).items():
        found = next(
            name for name in tensors if "q_proj" in name and name.endswith("lora_A.weight")
        )
        tensors[found.replace("lora_A.weight", ending)] = torch.ones(shape)
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    return place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shapes": {"lora_A.weight": (4,)}}, "lora_A and lora_B are no matrices"),
        ({"shapes": {"lora_magnitude_vector": (3,)}}, "magnitudes are not one for each of"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern is ['q_proj'], no table of patterns"),
        ({"alpha_pattern": {"(": 2}}, "holds '('"),
        ({"rank_pattern": {"([a-z0-9_.]+)+!": 4}}, "holds '([a-z0-9_.]+)+!'"),
    ],
)
def test_an_adapter_of_an_odd_form_is_an_error_and_no_crash(merging, tmp_path, change, said):
    place = edited(merging.dir / "peft-a", tmp_path / "odd", **change)
    asked = {"base": str(merging.base.dir)}
    assert said in refused(tmp_path / "out", [place], ModelError, **asked)
