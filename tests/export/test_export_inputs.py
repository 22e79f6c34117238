"""What an export refuses, and that it does so before it writes anything."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tunesmith.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    EnvironmentProblem,
    InterruptedRun,
    ModelError,
    StorageError,
)
from tunesmith.export.convert import check_convertible
from tunesmith.export.forms import KINDS, FormKind
from tunesmith.export.packages import check_packages
from tunesmith.export.plan import check_space, plan_export
from tunesmith.models.adapters import put_adapter
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.store import MANIFEST, Artifact

slow = pytest.mark.slow


def test_a_disk_with_too_little_room_is_refused_before_anything_is_written(
    bench, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: usage._replace(free=1_000_000))
    with pytest.raises(StorageError, match=r"needs [\d,]+ bytes in .*, 1,000,000 are free"):
        bench.export(tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"run.json", ".lock"}


def needed(bench, place, monkeypatch, forms):
    """Bytes that the check of room asks for."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _place: SimpleNamespace(free=0))
    plan = plan_export(bench.recipe(forms=forms), bench.dataset, bench.trained, None)
    with pytest.raises(StorageError) as caught:
        check_space(plan, SimpleNamespace(dir=place), 1)
    return plan, int(re.search(r"needs ([\d,]+) bytes", caught.value.what)[1].replace(",", ""))


def test_what_an_interrupted_export_has_is_not_asked_for_again(bench, tmp_path, monkeypatch):
    forms = ["merged", "gguf-f16", "gguf-lora"]
    plan, whole = needed(bench, tmp_path, monkeypatch, forms)
    for name in ("float32/x", "shared/model-f32.gguf", "shared/base-f32.gguf"):
        (tmp_path / "scratch" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "scratch" / name).touch()
        _, rest = needed(bench, tmp_path, monkeypatch, forms)
        assert whole - rest == pytest.approx(1.05 * 4 * plan.parameters, abs=2)
        whole = rest


@pytest.mark.parametrize("form", ["merged", "awq", "bnb-nf4", "onnx", "pruned", "torchao-int4"])
def test_room_for_a_folder_is_at_least_the_bases_own_size(bench, tmp_path, monkeypatch, form):
    monkeypatch.setattr(FormKind, "writer", lambda _kind: None)
    monkeypatch.setattr(
        FormKind, "missing", lambda _kind: {}
    )  # Some are in no environment of tests.
    plan, asked = needed(bench, tmp_path, monkeypatch, [form])
    _, nothing = needed(bench, tmp_path, monkeypatch, ["adapter"])
    assert asked - nothing > 4 * plan.parameters + plan.stored_bytes


def test_a_limit_of_logits_is_refused_where_the_engine_gives_none(bench):
    limits = {"gguf-f16": {"max_abs_dlogit": 0.1}}
    with pytest.raises(ConfigError, match=r"export\.limits\.gguf-f16\.max_abs_dlogit"):
        plan_export(
            bench.recipe(forms=["gguf-f16"], limits=limits), bench.dataset, bench.trained, None
        )


def test_an_adapter_of_another_base_is_refused(make, bench, tmp_path):
    other = make.tiny(tmp_path / "other", spread=0.4)
    wrong = make.Workbench(tmp_path, other, bench.renderer, bench.dataset, bench.trained)
    with pytest.raises(ModelError, match="was trained on another base model than other"):
        wrong.export(tmp_path / "out")


def test_a_run_of_another_chat_template_is_refused(make, bench, tmp_path):
    trained = make.run(
        tmp_path / "train", bench.base, bench.dataset, make.adapted(bench.base), "0" * 64
    )
    wrong = make.Workbench(tmp_path, bench.base, bench.renderer, bench.dataset, trained)
    with pytest.raises(ModelError, match="was made with other prompts"):
        wrong.export(tmp_path / "out")


def test_a_damaged_adapter_is_refused(bench, make, tmp_path):
    folder = shutil.copytree(bench.trained.dir, tmp_path / "train")
    weights = folder / "adapter/adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-8:] = b"damaged!"
    weights.write_bytes(content)
    trained = Artifact.open(folder)
    wrong = make.Workbench(tmp_path, bench.base, bench.renderer, bench.dataset, trained)
    with pytest.raises(ArtifactError, match="is not the file that was sealed"):
        wrong.export(tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()


@slow
def test_all_weights_trained_export_without_an_adapter_and_refuse_one(make, bench, tmp_path):
    model = load_model(bench.base, torch.float32)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    trained = make.run(
        tmp_path / "train", bench.base, bench.dataset, model, bench.renderer.fingerprint
    )
    full = make.Workbench(tmp_path, bench.base, bench.renderer, bench.dataset, trained)
    with pytest.raises(ConfigError, match=r"holds `adapter`, but .* holds no adapter") as caught:
        full.export(tmp_path / "refused", forms=["adapter", "merged"])
    assert caught.value.fix == "--set 'export.forms=[merged]'"
    done = full.export(tmp_path / "out", forms=["merged"])
    assert done.parity["merged"].greedy_agreement == 1.0
    assert "Modelfile" not in done.artifact.files
    every = full.export(
        tmp_path / "every",
        limits={"gguf-q8_0": {"greedy_agreement": 0.5, "mean_kl": 9.0, "perplexity_ratio": 9.0}},
    )
    assert set(every.parity) == {"merged", "gguf-f16", "gguf-q8_0"}


def test_a_dataset_without_held_out_rows_is_refused(make, bench, tmp_path):
    folder = shutil.copytree(bench.dataset.dir, tmp_path / "data")
    manifest = json.loads((folder / MANIFEST).read_text())
    for split in ("test", "validation"):
        (folder / f"{split}.jsonl").unlink()
        del manifest["files"][f"{split}.jsonl"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    empty = make.Workbench(
        tmp_path, bench.base, bench.renderer, Artifact.open(folder), bench.trained
    )
    with pytest.raises(DataError, match="neither test nor validation rows"):
        empty.export(tmp_path / "out")


def test_an_architecture_that_the_converter_does_not_know_is_refused_at_once(bench, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["OddForCausalLM"]}))
    with pytest.raises(ModelError, match=r"cannot be converted to GGUF[\s\S]*OddForCausalLM"):
        check_convertible(tmp_path)


def test_a_limit_that_no_form_uses_is_refused(bench, tmp_path):
    with pytest.raises(ConfigError, match=r"export\.limits\.gguf-q8_0\.greedy_agreement"):
        bench.export(
            tmp_path / "out", forms=["merged"], limits={"gguf-q8_0": {"greedy_agreement": 0.9}}
        )


def test_a_form_named_twice_is_written_once(bench):
    recipe = bench.recipe(forms=["merged", "merged"])
    assert list(plan_export(recipe, bench.dataset, bench.trained, None).limits) == ["merged"]


def test_a_system_text_counts_only_when_all_rows_have_it(make, bench, tmp_path):
    without = make.dataset(tmp_path / "data", system=None)
    recipe = bench.recipe(forms=["merged"])
    assert plan_export(recipe, without, bench.trained, None).system is None
    found = plan_export(recipe, bench.dataset, bench.trained, None).system
    assert found == "Answer with one SQLite query."


@pytest.mark.parametrize("content", [b"", b"damaged", b"\xff" * 64])
def test_an_exported_adapter_that_was_damaged_later_is_named(bench, tmp_path, content):
    folder = shutil.copytree(bench.trained.dir / "adapter", tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"the adapter in .* cannot be put on its base"):
        put_adapter(load_model(bench.base, torch.float32), folder)


@slow
def test_ctrl_c_keeps_what_is_whole_and_says_how_to_go_on(bench, tmp_path, monkeypatch):
    def stopped(*_args):
        raise KeyboardInterrupt

    writer = FormKind.writer
    monkeypatch.setattr(
        FormKind, "writer", lambda kind: stopped if kind.template == "gguf" else writer(kind)
    )
    with pytest.raises(InterruptedRun) as caught:
        bench.export(tmp_path / "out", forms=["merged", "gguf-f16"])
    assert "--resume" in caught.value.fix
    assert (tmp_path / "out/merged/model.safetensors").is_file()
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert not list((tmp_path / "out").glob("*.gguf"))


@slow
def test_what_a_quantised_training_base_changes_is_measured_and_told(bench, make, tmp_path):
    folder = Path(shutil.copytree(bench.trained.dir, tmp_path / "train"))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["facts"]["quantised_base"] = {
        "kind": "nf4",
        "block": 64,
        "double_quant": True,
        "layers": 14,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    trained = Artifact.open(folder)
    other = make.Workbench(tmp_path, bench.base, bench.renderer, bench.dataset, trained)
    done = other.export(tmp_path / "out", forms=["adapter"])
    told = done.artifact.read_json("parity.json")["quantised_base"]
    assert told["kind"] == "nf4"
    assert told["positions"] == 24
    assert told["mean_kl_nats"] > 1e-4
    card = (tmp_path / "out/README.md").read_text()
    assert "Measured on the prompts below: trained on a base in nf4" in card
    plain = bench.export(tmp_path / "plain", forms=["adapter"])
    assert "quantised_base" not in plain.artifact.read_json("parity.json")


def test_leaving_out_all_layers_is_refused_before_anything_is_written(bench, tmp_path):
    with pytest.raises(ModelError, match="prune_layers is 2, and the model has 2 layers"):
        bench.export(tmp_path / "out", forms=["pruned"], prune_layers=2)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"run.json", ".lock"}


@slow
def test_of_several_templates_the_one_that_was_trained_with_is_exported(
    make, short_tokenizer, tmp_path
):
    several = copy.copy(short_tokenizer)
    several.chat_template = {"default": short_tokenizer.chat_template, "tool_use": "{{ tools }}"}
    base = make.save(several, tmp_path / "base")
    assert (base.dir / "additional_chat_templates").is_dir()
    renderer, dataset = ChatRenderer(several), make.dataset(tmp_path / "data")
    trained = make.run(tmp_path / "train", base, dataset, make.adapted(base), renderer.fingerprint)
    bench = make.Workbench(tmp_path, base, renderer, dataset, trained)
    done = bench.export(tmp_path / "out", forms=["adapter", "merged"]).artifact
    assert not [name for name in done.files if "additional" in name]
    for folder in ("tokenizer", "merged"):
        assert load_tokenizer(done.dir / folder).chat_template == short_tokenizer.chat_template
    assert "further chat templates (tool" in done.path("README.md").read_text()


def test_all_forms_whose_packages_are_missing_are_named_with_one_command(monkeypatch):
    kinds = {
        form: FormKind(form, "x:y", KINDS["merged"].limits, 1.0, "folder", needs=needs, extra=extra)
        for form, needs, extra in (
            ("onnx", ("no_such_one", "json"), "onnx"),
            ("awq", ("no_such_two",), "export"),
            ("merged", ("json",), "export"),
        )
    }
    monkeypatch.setattr("tunesmith.export.packages.KINDS", kinds)
    with pytest.raises(EnvironmentProblem) as caught:
        check_packages(kinds)
    assert "onnx needs no_such_one\n" in caught.value.what
    assert "awq needs no_such_two" in caught.value.what
    assert "merged" not in caught.value.what
    assert caught.value.fix.startswith("pip install 'tunesmith[export,onnx]'")
    check_packages(["merged"])
