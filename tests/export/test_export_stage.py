"""The whole stage on a tiny real model: every form equal, every damage caught, nothing half-made."""

from __future__ import annotations

import json
import shutil
import struct
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.engine import Generation
from tunesmith.errors import (
    MissingError,
    ParityError,
    StorageError,
    UsedDirectoryError,
)
from tunesmith.export import certify
from tunesmith.export.certify import Expected, measure
from tunesmith.export.forms import Limits, Sources
from tunesmith.export.metadata import read_metadata
from tunesmith.export.parity import refuse_below
from tunesmith.export.reference import Reference, answer_logits
from tunesmith.export.stage import sign_sealed
from tunesmith.models.adapters import load_trained
from tunesmith.models.chat import ChatRenderer
from tunesmith.store import MANIFEST, Artifact, Run, failpoints, signatures
from tunesmith.telemetry import progress

slow = pytest.mark.slow
LOOSE = {"greedy_agreement": 0.5, "mean_kl": 9.0, "perplexity_ratio": 9.0}


# -- what is sealed ------------------------------------------------------------------------------


@slow
def test_every_form_is_sealed_and_equal_to_the_trained_model(bundle):
    artifact = Artifact.open(bundle.artifact.dir, "export")
    artifact.verify()
    assert artifact.facts["forms"] == {
        "adapter": "adapter",
        "merged": "merged",
        "gguf-f16": "model-f16.gguf",
        "gguf-q8_0": "model-q8_0.gguf",
    }
    parity = artifact.facts["parity"]
    for form in ("adapter", "merged", "gguf-f16"):
        assert parity[form]["greedy_agreement"] == 1.0
        assert parity[form]["same_answers"] == 1.0
        assert parity[form]["mean_kl"] < 1e-3
        assert (parity[form]["prompts"], parity[form]["positions"]) == (4, 24)
        assert (parity[form]["ended"], artifact.facts["answer_tokens"]) == (0, 6)
    assert parity["adapter"]["max_abs_dlogit"] == 0.0
    assert 0 < parity["merged"]["max_abs_dlogit"] < 0.5
    assert parity["gguf-q8_0"]["mean_kl"] > parity["gguf-f16"]["mean_kl"] > 0
    assert {"tokenizer/tokenizer.json", "Modelfile", "README.md"} <= set(artifact.files)
    assert not any(name.startswith("scratch") for name in artifact.files)
    for name in [*artifact.files, MANIFEST, "run.json"]:
        # No folder of this machine goes out with it.
        assert str(artifact.dir.parent.parent).encode() not in (artifact.dir / name).read_bytes()
    certificate = artifact.read_json("parity.json")
    for form, figures in certificate["forms"].items():
        assert {**parity[form], "facts": figures["facts"]} == figures
        for name, digest in figures["sha256"].items():
            assert artifact.files[name].sha256 == digest


@slow
def test_the_bar_weighs_parts_by_what_they_cost_and_ends_at_its_total(bench, tmp_path, monkeypatch):
    bars, steps = [], []

    @contextmanager
    def kept(title, total, **more):
        with progress(title, total, **more) as bar:
            bars.append(bar)
            plain = bar.advance

            def advance(count=1, note=None):
                steps.append(count)
                plain(count, note)

            monkeypatch.setattr(bar, "advance", advance)
            yield bar

    monkeypatch.setattr("tunesmith.export.stage.progress", kept)
    bench.export(tmp_path / "export", forms=["merged"], limits={"merged": LOOSE})
    assert bars[0].done == bars[0].total == sum(steps)
    assert steps.count(1) == 8  # of each prompt its answer, and its logits
    exact = {"greedy_agreement": 1.0, "mean_kl": 0.0, "perplexity_ratio": 1.0}
    with pytest.raises(ParityError):
        bench.export(tmp_path / "again", forms=["merged"], limits={"merged": exact})
    bench.export(tmp_path / "again", forms=["merged"], limits={"merged": LOOSE}, resume=True)
    assert bars[-1].done == bars[-1].total


@slow
def test_the_exported_files_load_with_plain_peft_and_plain_transformers(bench, bundle):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = bundle.artifact.dir
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = AutoModelForCausalLM.from_pretrained(bench.base.dir, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(plain, folder / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    assert merged.dtype == torch.float16
    rows = [[*bench.renderer.prompt_ids([{"role": "user", "content": "Hi"}]), 5, 6]]
    wanted = next(
        answer_logits(
            load_trained(bench.trained, bench.base, torch.float32), rows, [len(rows[0]) - 2]
        )
    )
    assert (next(answer_logits(adapted, rows, [len(rows[0]) - 2])) == wanted).all()
    close = next(answer_logits(merged.float().eval(), rows, [len(rows[0]) - 2]))
    assert abs(close - wanted).max() < 0.5
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    assert ChatRenderer(tokenizer).fingerprint == bench.renderer.fingerprint
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == bench.base.name


@slow
def test_the_gguf_files_carry_template_stop_token_and_splitting_rule(bench, bundle):
    for name in ("model-f16.gguf", "model-q8_0.gguf"):
        values = read_metadata(bundle.artifact.dir / name)
        assert values["tokenizer.chat_template"] == bench.renderer.template
        assert values["tokenizer.ggml.eos_token_id"] in bench.renderer.stop_ids
        assert values["tokenizer.ggml.pre"] == "smollm"


@slow
def test_the_card_shows_the_runs_facts_and_the_measured_figures(bench, bundle):
    card = (bundle.artifact.dir / "README.md").read_text(encoding="utf-8")
    figures = bundle.parity["gguf-q8_0"]
    assert f"{100 * figures.greedy_agreement:.2f} %" in card
    assert "| optimizer steps | 3 |" in card
    assert "Not evaluated" in card
    assert card.startswith('---\nbase_model: "base"\n')


# -- damage is caught ----------------------------------------------------------------------------


@pytest.fixture
def expected(bench):
    model = load_trained(bench.trained, bench.base, torch.float32)
    prompts = [
        bench.renderer.prompt_ids([{"role": "user", "content": text}]) for text in ("Hi", "2 + 2?")
    ]
    rows, starts, logits = [], [], []
    for prompt in prompts:
        row = list(prompt)
        for _ in range(6):
            row.append(int(next(answer_logits(model, [[*row, 0]], [len(row)]))[0].argmax()))
        rows.append(tuple(row))
        starts.append(len(prompt))
    logits = list(answer_logits(model, rows, starts))
    reference = Reference(tuple(rows), tuple(starts), np.concatenate(logits))
    sources = Sources(
        bench.folder / "merged",
        bench.base,
        bench.trained,
        bench.renderer,
        "tiny",
        bench.folder,
        (),
        bench.recipe().export,
    )
    return Expected(sources, reference)


def prove(form, folder, expected, limit=0.99):
    refuse_below({form: measure(form, folder, expected, Limits(limit, 9.0, 9.0))}, {})


@slow
def test_undamaged_copies_pass(copied, expected):
    for form in ("adapter", "merged", "gguf-f16"):
        prove(form, copied, expected)


def damage_tensor(folder):
    path = folder / "merged/model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"] *= -1
    save_file(tensors, path, metadata={"format": "pt"})


def damage_scale(folder):
    path = folder / "adapter/adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": 16 * config["lora_alpha"]}))


def damage_template(folder):
    path = folder / "merged/chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>' + '\n'", "<|im_end|>' + ' '"))


def damage_stop(folder):
    path = folder / "merged/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 0}))


def damage_gguf_template(folder):
    path = folder / "model-f16.gguf"
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b"'assistant\n", b"'assistant ").replace(
            b"<|im_start|>assistant\n", b"<|im_start|>assistant ", 1
        )
    )


def damage_gguf_stop(folder):
    path = folder / "model-f16.gguf"
    content = bytearray(path.read_bytes())
    key = b"tokenizer.ggml.eos_token_id"
    place = content.index(key) + len(key) + 4
    content[place : place + 4] = struct.pack("<I", 0)
    path.write_bytes(content)


def damage_gguf_scale(folder):
    """The scale of one block of 32 weights in a Q8_0 matrix: a half float before its bytes."""
    import gguf

    path = folder / "model-q8_0.gguf"
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_down.weight")
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
    content = bytearray(path.read_bytes())
    content[tensor.data_offset : tensor.data_offset + 2] = struct.pack("<e", 60000.0)
    path.write_bytes(content)


DAMAGES = [
    ("merged", damage_tensor, "merged: greedy agreement .* below the limit 0.9"),
    ("adapter", damage_scale, r"lora_alpha \(128 for 8\)"),
    ("merged", damage_template, "chat template of merged is not the one"),
    ("merged", damage_stop, "stops at the tokens"),
    ("gguf-f16", damage_gguf_template, "chat template"),
    ("gguf-f16", damage_gguf_stop, "ends answers at token 0"),
    (
        "gguf-q8_0",
        damage_gguf_scale,
        "gguf-q8_0: greedy agreement .* below the limit 0.9|not finite",
    ),
]


@slow
@pytest.mark.parametrize(
    ("form", "damage", "message"), DAMAGES, ids=[d[1].__name__ for d in DAMAGES]
)
def test_damage_is_caught(copied, expected, form, damage, message):
    before = certify.files_of(form, copied)
    damage(copied)
    assert certify.files_of(form, copied) != before
    with pytest.raises(ParityError, match=message):
        prove(form, copied, expected, limit=0.9)


class Endless:
    """An engine that answers as scripted and then does not stop."""

    def __init__(self, extra):
        self.extra = extra

    def generate(self, prompts, sampling, *, on_done=None):
        return [Generation((7, 2, *self.extra), "", "stop", len(p)) for p in prompts]


@pytest.mark.parametrize(("extra", "fails"), [((), False), ((9, 9), True)])
def test_an_answer_that_goes_on_after_the_stop_token_is_caught(extra, fails):
    reference = Reference(((1, 7, 2), (1, 3, 4, 5)), (1, 1), None, answer_tokens=3)
    if fails:
        with pytest.raises(
            ParityError, match=r"does not stop at the stop token \(id 2\).*2 tokens"
        ):
            certify._check_stops(Endless(extra), reference, [True, True])
    else:
        assert certify._check_stops(Endless(extra), reference, [True, True]) == 1


def test_answers_that_all_end_at_the_same_length_are_generated_freely_too():
    reference = Reference(((1, 7, 2), (1, 8, 2)), (1, 1), None, answer_tokens=32)
    assert reference.ended == (True, True)
    with pytest.raises(ParityError, match="does not stop"):
        certify._check_stops(Endless((9,)), reference, [True, True])


# -- nothing half-made ---------------------------------------------------------------------------


@slow
def test_a_form_below_its_limit_seals_nothing_and_is_made_again_on_resume(bench, copied, tmp_path):
    damage_tensor(copied)
    place, forms = tmp_path / "out", ["adapter", "merged"]
    with Run.open(place, "export", inputs={}):
        shutil.copytree(copied / "merged", place / "merged")
        (place / "scratch/facts").mkdir(parents=True)
        (place / "scratch/facts/merged.json").write_text("{}")
    with pytest.raises(
        ParityError, match=r"merged: greedy agreement 0(\.\d+)? is below the limit 0\.99"
    ):
        bench.export(place, resume=True, forms=forms)
    assert not (place / MANIFEST).exists()
    with pytest.raises(MissingError):
        Artifact.open(place)
    assert not (place / "merged").exists()
    figures = json.loads((place / "scratch/parity.json").read_text())["forms"]
    assert figures["merged"]["greedy_agreement"] < 0.99
    assert figures["adapter"]["greedy_agreement"] == 1.0
    with pytest.raises(UsedDirectoryError):
        bench.export(place, forms=forms)
    done = bench.export(place, resume=True, forms=forms)
    assert done.parity["merged"].greedy_agreement == 1.0


@slow
def test_what_other_versions_made_is_made_again(bench, tmp_path):
    place = tmp_path / "out"
    failpoints.arm("seal-begin=enospc")
    try:
        with pytest.raises(StorageError):
            bench.export(place, forms=["adapter"])
    finally:
        failpoints.arm("")
    kept = place / "scratch/parity/adapter.json"
    marked = json.loads(kept.read_text()) | {"seconds": 12345.0}
    kept.write_text(json.dumps(marked))
    versions = place / "scratch/versions.json"
    old = json.loads(versions.read_text())
    copy = Path(shutil.copytree(place, tmp_path / "same"))
    same = bench.export(copy, resume=True, forms=["adapter"])
    assert same.parity["adapter"].seconds == 12345.0
    odd = Path(shutil.copytree(place, tmp_path / "odd"))
    (odd / "scratch/parity/adapter.json").write_text(json.dumps(marked | {"another": 1}))
    assert bench.export(odd, resume=True, forms=["adapter"]).parity["adapter"].seconds < 12345.0
    versions.write_text(json.dumps(old | {"torch": "1.0"}))
    (place / "adapter/left.txt").write_text("by another version")
    done = bench.export(place, resume=True, forms=["adapter"])
    assert done.parity["adapter"].seconds < 12345.0
    assert "adapter/left.txt" not in done.artifact.files


@slow
def test_another_signing_key_signs_a_sealed_bundle_anew(bench, copied, tmp_path):
    for name in ("old.pem", "new.pem"):
        signatures.new_key(tmp_path / name)
        recipe = bench.recipe(signing_key=str(tmp_path / name))
        sign_sealed(recipe.export, Artifact.open(copied))
        signatures.verify(copied, tmp_path / f"{name}.pub")


KILLED = """
import sys
from tunesmith import export
from tunesmith.config import recipe_from
from tunesmith.store import Artifact, Run
base, data, train, out = sys.argv[1:]
recipe = recipe_from({"name": "tiny", "model": {"base": base}, "export":
    {"parity_prompts": 4, "parity_tokens": 6, "forms": ["adapter", "merged", "gguf-f16"]}})
with Run.open(out, "export", inputs={}, resume=True) as at:
    export.run(recipe, at, Artifact.open(data), Artifact.open(train))
"""


@slow
@pytest.mark.parametrize("until", ["scratch/float32", "scratch/parity/merged.json"])
def test_an_export_killed_at_any_time_seals_nothing_and_goes_on(bench, tmp_path, until):
    place = tmp_path / "out"
    words = [str(p) for p in (bench.base.dir, bench.dataset.dir, bench.trained.dir, place)]
    child = forked.script(KILLED, *words)
    try:
        while not (place / until).exists():
            assert child.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    assert not (place / MANIFEST).exists()
    done = bench.export(place, resume=True, forms=["adapter", "merged", "gguf-f16"])
    Artifact.open(place).verify()
    assert not [name for name in done.artifact.files if ".part" in name or "scratch" in name]
