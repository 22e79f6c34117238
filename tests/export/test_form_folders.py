"""The forms `onnx` and `bnb-*`: written, read again by their own packages, compared."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from tunesmith.config import ModelConfig
from tunesmith.engine import Sampling
from tunesmith.engine.backends.transformers import TransformersBackend
from tunesmith.errors import EngineError, EnvironmentProblem, ModelError
from tunesmith.export.folders import bnb, onnx, parts, torchao
from tunesmith.export.folders.prune import drop_layers
from tunesmith.models.files import stored_tensors
from tunesmith.models.load import load_model, load_tokenizer, resolve_base, save_model

HARMLESS = {".json", ".safetensors", ".jinja", ".onnx", ".txt", ".model"}
ROWS = (tuple(range(5, 60)), tuple(range(700, 730)))
STARTS = (20, 29)


def suffixes(folder):
    return {file.suffix for file in folder.rglob("*") if file.is_file()}


def reference(sources, rows=ROWS, starts=STARTS):
    """Logits of the float32 model, by transformers."""
    model = load_model(sources.merged, torch.float32)
    with torch.inference_mode():
        return [
            model(torch.tensor([row[:-1]])).logits[0, start - 1 :].numpy()
            for row, start in zip(rows, starts, strict=True)
        ]


def divergence(wanted, found):
    """Mean KL(wanted || found), nats."""
    p, q = (torch.tensor(np.concatenate(part)).log_softmax(-1) for part in (wanted, found))
    return float((p.exp() * (p - q)).sum(-1).mean())


def test_a_forms_logits_are_made_row_by_row(sources):
    """All rows' logits at once are tokens times vocabulary numbers each."""
    asked = []

    class Rows(tuple):
        def __iter__(self):
            for row in super().__iter__():
                asked.append(row)
                yield row

    found = parts.answers(sources.merged, sources, Rows(ROWS), STARTS)
    first = next(found)
    # The loop's own look at the row, and the model's.
    assert set(asked) == {ROWS[0]}
    np.testing.assert_array_equal(first, reference(sources)[0])
    assert len(list(found)) == len(ROWS) - 1


@pytest.mark.parametrize(
    ("write", "package", "extra"),
    [
        (onnx.write_onnx, "onnxruntime_genai", "onnx"),
        (bnb.write_bnb_int8, "bitsandbytes", "8bit"),
        (bnb.write_bnb_nf4, "bitsandbytes", "8bit"),
        (torchao.write_torchao_int8, "torchao", "torchao"),
        (torchao.write_torchao_int4, "torchao", "torchao"),
    ],
)
def test_missing_package_names_the_extra(write, package, extra, sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblem, match=package) as caught:
        write(sources, tmp_path / "form")
    assert f"pip install 'tunesmith[{extra}]'" in caught.value.fix
    assert not (tmp_path / "form").exists()


@pytest.fixture(scope="module")
def written_onnx(sources, tmp_path_factory):
    pytest.importorskip("onnxruntime_genai")
    place = tmp_path_factory.mktemp("onnx") / "onnx"
    return place, onnx.write_onnx(sources, place)


@pytest.mark.slow
def test_onnx_computes_what_transformers_computes_with_and_without_its_cache(sources, written_onnx):
    place, facts = written_onnx
    wanted = reference(sources)
    for one, other in zip(wanted, onnx.answers(place, sources, ROWS, STARTS), strict=True):
        assert one.shape == other.shape
        assert abs(one - other).max() < 1e-3
    assert facts["opset"]["com.microsoft"] == 1
    assert facts["external_data"] is False
    assert suffixes(place) <= HARMLESS
    assert sorted(p.name for p in place.iterdir() if p.is_dir()) == ["onnx"]


@pytest.mark.slow
def test_onnx_answers_greedily_as_transformers_does(sources, written_onnx):
    place, _ = written_onnx
    plain = TransformersBackend(
        load_model(sources.merged, torch.float32),
        sources.renderer.tokenizer,
        stop_ids=sources.renderer.stop_ids,
    )
    prompts = [row[:start] for row, start in zip(ROWS, STARTS, strict=True)]
    asked = Sampling(max_tokens=16)
    with onnx.open_form(place, ModelConfig(), sources.renderer, 100) as backend:
        found = backend.generate(prompts, asked)
        chunks = list(backend.stream(prompts[0], asked))
        best = backend.next_token_logprobs(ROWS, STARTS, top=3)
    assert [a.token_ids for a in found] == [a.token_ids for a in plain.generate(prompts, asked)]
    assert "".join(chunk.text for chunk in chunks) == found[0].text
    assert chunks[-1].finish_reason == found[0].finish_reason
    for one, other in zip(plain.next_token_logprobs(ROWS, STARTS, top=3), best, strict=True):
        assert (one.token_ids == other.token_ids).all()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-3)


@pytest.mark.slow
def test_onnx_names_inputs_and_outputs_as_its_readers_expect(sources, written_onnx):
    import onnx as package

    place, _ = written_onnx
    graph = package.load(place / "onnx/model.onnx").graph
    caches = [f"{n}.{part}" for n in range(2) for part in ("key", "value")]
    assert {i.name for i in graph.input} == {
        "input_ids",
        "attention_mask",
        *(f"past_key_values.{name}" for name in caches),
    }
    assert {o.name for o in graph.output} == {"logits", *(f"present.{name}" for name in caches)}
    # transformers.js makes its first cache from these: batch, heads, none yet, size.
    shape = next(i for i in graph.input if i.name == "past_key_values.0.key").type.tensor_type.shape
    assert [dim.dim_value or dim.dim_param for dim in shape.dim][1::2] == [2, 16]
    genai = json.loads((place / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == list(sources.renderer.stop_ids)
    assert (place / genai["model"]["decoder"]["filename"]).is_file()


@pytest.mark.slow
def test_onnxruntime_genai_itself_answers_the_same(sources, written_onnx):
    """The folder as its users run it, by another program than ours."""
    genai = pytest.importorskip("onnxruntime_genai")
    place, _ = written_onnx
    with onnx.open_form(place, ModelConfig(), sources.renderer, 100) as backend:
        wanted = backend.generate([ROWS[0][:20]], Sampling(max_tokens=8))[0].token_ids
    model = genai.Model(str(place))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(max_length=28, do_sample=False)
    generator = genai.Generator(model, settings)
    generator.append_tokens(list(ROWS[0][:20]))
    found = []
    while not generator.is_done() and len(found) < len(wanted):
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert tuple(found) == wanted


@pytest.mark.slow
def test_damaged_onnx_file_is_one_clear_error(sources, written_onnx, tmp_path):
    place = shutil.copytree(written_onnx[0], tmp_path / "damaged")
    path = place / "onnx/model.onnx"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(EngineError, match="onnxruntime cannot run"):
        list(onnx.answers(place, sources, ROWS, STARTS))


@pytest.mark.slow
def test_architecture_that_the_builder_does_not_know_is_refused(sources, make, tmp_path):
    pytest.importorskip("onnxruntime_genai")
    import dataclasses

    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2,
        )
    )  # fmt: skip
    save_model(model, sources.renderer.tokenizer, tmp_path / "merged")
    other = dataclasses.replace(sources, merged=tmp_path / "merged")
    with pytest.raises(ModelError, match="cannot be written as ONNX") as caught:
        onnx.write_onnx(other, tmp_path / "onnx")
    assert "onnxruntime-genai's builder says" in caught.value.why


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "dtype", "most"), [("bnb-int8", "I8", 0.05), ("bnb-nf4", "U8", 1.0)]
)
def test_quantised_folder_is_read_again_and_near(form, dtype, most, sources, tmp_path):
    pytest.importorskip("bitsandbytes")
    place = tmp_path / form
    facts = getattr(bnb, f"write_{form.replace('-', '_')}")(sources, place)
    assert suffixes(place) <= HARMLESS
    tensors = stored_tensors(place)
    stored = {tensor.dtype for name, tensor in tensors.items() if "up_proj" in name}
    assert dtype in stored
    assert tensors["model.embed_tokens.weight"].dtype == "float16" == facts["rest"]
    assert not any(name.startswith("lm_head") for name in tensors)
    found = list(bnb.answers(place, sources, ROWS, STARTS))
    again = list(bnb.answers(place, sources, ROWS, STARTS))
    assert all((one == other).all() for one, other in zip(found, again, strict=True))
    assert 0 < divergence(reference(sources), found) < most
    backend = bnb.open_form(place, ModelConfig(), sources.renderer, 100)
    assert backend.generate([ROWS[0][:9]], Sampling(max_tokens=3))[0].token_ids


@pytest.fixture(scope="module")
def real(embedded_base, make, tmp_path_factory):
    """SmolLM2's first three layers: its real shapes (576 inputs) and weights."""
    folder = tmp_path_factory.mktemp("real")
    model = load_model(embedded_base, torch.float32)
    drop_layers(model, range(3, 30))
    save_model(model.half(), load_tokenizer(embedded_base), folder / "base")
    renderer_rows = tuple(tuple(range(100 + n, 140 + n)) for n in range(3))
    base = resolve_base(ModelConfig(base=str(folder / "base")))
    return make.sources(folder, base, rows=renderer_rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "most"),
    [
        ("bnb", "bnb-nf4", 0.6),
        ("gptq", "gptq", 0.6),
        ("awq", "awq", 0.6),
    ],
)
def test_real_shapes_are_written_and_read(name, form, most, real, tmp_path):
    import importlib

    module = importlib.import_module(f"tunesmith.export.folders.{name}")
    facts = getattr(module, f"write_{form.replace('-', '_')}")(real, tmp_path / form)
    found = list(module.answers(tmp_path / form, real, ROWS, STARTS))
    assert divergence(reference(real), found) < most
    assert facts.get("group_size", 64) == 64  # 128 does not divide 576.
