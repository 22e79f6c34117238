"""The forms for other programs through the whole stage: written, proved, sealed."""

from __future__ import annotations

import json

import pytest

from tunesmith.errors import EnvironmentProblem, ModelError, ParityError
from tunesmith.export.folders.parts import write_quantised
from tunesmith.export.forms import KINDS

FORMS = ("onnx", "bnb-int8", "bnb-nf4", "awq", "gptq", "pruned")
WIDE = {"greedy_agreement": 0.0, "mean_kl": 100.0, "perplexity_ratio": 1e9}


@pytest.mark.slow
def test_all_of_them_are_written_proved_and_sealed(bench, tmp_path):
    for package in ("onnxruntime_genai", "bitsandbytes", "compressed_tensors"):
        pytest.importorskip(package)
    limits = {form: WIDE for form in FORMS if form != "onnx"}
    bundle = bench.export(tmp_path / "export", forms=list(FORMS), limits=limits)
    assert set(bundle.forms) == set(FORMS)
    assert bundle.parity["onnx"].max_abs_dlogit < 0.01
    assert bundle.parity["onnx"].greedy_agreement == 1.0
    for form in FORMS:
        assert all(name.startswith(f"{form}/") for name in bundle.parity[form].sha256)
        assert bundle.parity[form].mean_kl >= 0
    names = set(bundle.artifact.files)
    assert {"onnx/onnx/model.onnx", "awq/model.safetensors", "pruned/tokenizer.json"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    certificate = json.loads((bundle.artifact.dir / "parity.json").read_text())
    assert certificate["forms"]["gptq"]["greedy_agreement"] >= 0


@pytest.mark.slow
def test_pruned_random_layers_are_not_sealed_where_little_loss_is_allowed(bench, tmp_path):
    strict = {"pruned": {"greedy_agreement": 1.0, "mean_kl": 1e-9, "perplexity_ratio": 1.0}}
    with pytest.raises(ParityError, match="pruned"):
        bench.export(tmp_path / "export", forms=["pruned"], limits=strict)
    assert not (tmp_path / "export/manifest.json").exists()


def test_missing_package_is_said_before_any_work(bench, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(EnvironmentProblem) as caught:
        bench.export(tmp_path / "export", forms=["torchao-int8"])
    assert "pip install 'tunesmith[torchao]'" in caught.value.fix
    assert not (tmp_path / "export/scratch").exists()


@pytest.mark.parametrize("form", ["gguf-f16", "gguf-lora"])
def test_llama_cpp_is_looked_for_before_any_work(bench, tmp_path, monkeypatch, form):
    import sys

    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(EnvironmentProblem) as caught:
        bench.export(tmp_path / "export", forms=[form])
    assert "pip install 'tunesmith[serve]'" in caught.value.fix
    assert not (tmp_path / "export/scratch").exists()


def test_layers_to_prune_are_refused_where_nothing_is_pruned(bench, tmp_path):
    from tunesmith.errors import ConfigError

    with pytest.raises(ConfigError, match="prune_layers"):
        bench.export(tmp_path / "export", forms=["merged"], prune_layers=1)


def test_a_quantiser_that_refuses_without_a_word_is_one_clear_error(sources, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM

    def refuse(*_args, **_settings):
        raise AssertionError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(ModelError) as caught:
        write_quantised("torchao-int4", sources, tmp_path / "out", None)
    assert caught.value.why == "AssertionError"


def test_every_form_of_the_config_has_a_row():
    from tunesmith.config import FORMS as KNOWN

    assert set(KINDS) == set(KNOWN)
