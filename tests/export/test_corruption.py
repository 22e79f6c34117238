"""One tensor, one scale, one template character, the stop token, a setting, a swapped file: each is caught.

Before the seal by the certificate, on a tiny model that was tuned until it is sure of its answers: tensors and scales
under the shipped limits, all else to the last digit. After it by the hashes when a file is opened, by the signature,
and by `tunesmith check`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import struct
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("xllamacpp")
pytest.importorskip("conversion")
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tunesmith.errors import ArtifactError, ModelError, ParityError
from tunesmith.export.certify import Expected, measure
from tunesmith.export.check import CheckOptions, check_model
from tunesmith.export.forms import KINDS, PATHS, Limits, Sources
from tunesmith.export.parity import refuse_below
from tunesmith.export.quantise.forms import float32_gguf
from tunesmith.export.reference import given_rows, record_reference
from tunesmith.export.same_weights import check_weights
from tunesmith.export.settings import check_settings
from tunesmith.export.weights import merge, save_merged
from tunesmith.models.adapters import load_trained
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.files.gguf import look_at_gguf
from tunesmith.models.load import load_model, load_tokenizer, resolve_base, save_model
from tunesmith.store import Artifact, Run, signatures

pytestmark = pytest.mark.slow

PAIRS = {
    "How many states?": "select count(*) from state",
    "Which river is longest?": "select name from river order by length desc limit 1",
    "Name a city in Kansas.": "select city from cities where state = 'kansas'",
    "How high is the highest mountain?": "select max(height) from mountain",
    "Who borders Texas?": "select border from border_info where state = 'texas'",
    "Which lakes are there?": "select distinct lake_name from lake",
}
FORMS = [
    form for form in KINDS if all(importlib.util.find_spec(name) for name in KINDS[form].needs)
]
GGUFS = [form for form in FORMS if KINDS[form].template == "gguf"]
FOLDERS = [form for form in FORMS if KINDS[form].template == "folder"]
TENSORS = [form for form in FORMS if form not in ("onnx", "pruned")]
ASKED = 3
"""Prompts of the certificate."""
PRUNED = {"pruned": {"greedy_agreement": 0.0, "mean_kl": 99.0, "perplexity_ratio": 1e9}}
"""Without one of its two layers the model is another: no figure of that form says anything here."""


# -- a model that is sure of its answers ---------------------------------------------------------------


def rows_of(renderer):
    return [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in PAIRS.items()
    ]


def tuned_adapter(base, renderer, seed=0):
    """An adapter trained until the model knows all answers by heart: some 30 steps."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_model(base, torch.float32), lora).train()
    rows = [renderer.render(row) for row in rows_of(renderer)]
    longest = max(len(row.token_ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for place, row in enumerate(rows):
        tokens = torch.tensor(row.token_ids)
        ids[place, : len(tokens)] = tokens
        trained = torch.tensor(row.trained)
        labels[place, : len(tokens)][trained] = tokens[trained]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(100):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.02:
            return model.eval()
    raise AssertionError(f"the loss is still {loss.item()}")


def save_base(tokenizer, folder):
    """Rows of 256, so that the K-quants are what they are called."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunesmith.config import ModelConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,  # Not the stop token: what pads has an embedding of zeros.
    )
    save_model(LlamaForCausalLM(config).half(), tokenizer, folder)
    return resolve_base(ModelConfig(base=str(folder)))


@pytest.fixture(scope="module")
def room(tmp_path_factory, make, short_tokenizer):
    """The tuned model, its bundle in all forms, signed, and what each form must equal."""
    folder = tmp_path_factory.mktemp("room")
    base, renderer = save_base(short_tokenizer, folder / "base"), ChatRenderer(short_tokenizer)
    text = "".join(json.dumps({"messages": row, "meta": {}}) + "\n" for row in rows_of(renderer))
    with Run.open(folder / "data", "data", inputs={}) as at:
        for split in ("train", "test"):
            at.write_text(f"{split}.jsonl", text)
        dataset = at.finish({"rows": {"train": 6, "test": 6}, "databases": []})
    model = tuned_adapter(base, renderer)
    trained = make.run(folder / "train", base, dataset, model, renderer.fingerprint)
    bench = make.Workbench(folder, base, renderer, dataset, trained)
    done = bench.export(
        folder / "export", forms=FORMS, parity_prompts=ASKED, parity_tokens=24, limits=PRUNED
    )
    signatures.new_key(folder / "key.pem")
    signatures.sign(done.artifact.dir, folder / "key.pem")
    return SimpleNamespace(
        folder=folder,
        bundle=done.artifact,
        base=base,
        renderer=renderer,
        public=folder / "key.pem.pub",
        parity=done.parity,
        expected=expectation(folder, bench),
    )


def expectation(folder, bench):
    (folder / "shared").mkdir()
    model = load_trained(bench.trained, bench.base, torch.float32)
    rows = rows_of(bench.renderer)[:ASKED]
    given = given_rows(bench.renderer, rows, 24)
    prompts = [bench.renderer.prompt_ids(row[:-1]) for row in rows]
    with Run.open(folder / "reference", "export", inputs={}) as at:
        reference = record_reference(model, bench.renderer, prompts, given, 24, at, lambda: None)
    save_merged(merge(model), bench.renderer, folder / "float32")
    sources = Sources(
        merged=folder / "float32",
        base=bench.base,
        trained=bench.trained,
        renderer=bench.renderer,
        name=f"{bench.base.name} tiny",
        scratch=folder / "shared",
        calibration=(),
        config=bench.recipe().export,
    )
    float32_gguf(sources)
    return Expected(sources, reference)


@pytest.fixture
def taken(room, tmp_path):
    """Takes a form and the tokenizer out of the bundle, unsealed, to be damaged."""

    def take(form):
        target = tmp_path / "taken"
        shutil.copytree(room.bundle.dir / "tokenizer", target / "tokenizer")
        place = room.bundle.dir / PATHS[form]
        copy = shutil.copytree if place.is_dir() else shutil.copyfile
        copy(place, target / PATHS[form])
        return target, target / PATHS[form]

    return take


def prove(form, folder, room):
    """As the stage does, under the limits that are shipped."""
    found = measure(form, folder, room.expected, KINDS[form].limits)
    refuse_below({form: found}, {})


@pytest.mark.parametrize("form", ["merged", "gguf-q8_0"])
def test_an_undamaged_copy_passes(room, taken, form):
    folder, _ = taken(form)
    prove(form, folder, room)


@pytest.mark.parametrize("form", FORMS)
def test_what_the_export_wrote_has_the_settings_that_it_was_made_from(room, form):
    """The export itself proved the figures of all of them."""
    found = check_settings(form, room.bundle.dir / PATHS[form], room.expected.sources)
    assert found == room.parity[form].settings
    assert not found.startswith("not compared")


# -- damages -----------------------------------------------------------------------------------------------


def weights_of(place):
    (file,) = place.glob("*.safetensors")
    with safe_open(file, "pt") as stream:
        return file, load_file(file), stream.metadata()


def overwrite(path, offset, content):
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(content)


def tensor(place):
    """One matrix is that of the layer above: of the same shape, size and spread."""
    if place.suffix == ".gguf":
        tensors = look_at_gguf(place).tensors
        name = next(n for n in tensors if n.startswith("blk.0.ffn_up.weight"))
        above = tensors[name.replace("blk.0", "blk.1")]
        assert tensors[name].bytes == above.bytes
        content = place.read_bytes()[above.offset : above.offset + above.bytes]
        overwrite(place, tensors[name].offset, content)
        return
    file, tensors, metadata = weights_of(place)
    names = [name for name in tensors if "layers.0.mlp.up_proj" in name]
    name = next(n for n in names if n.endswith((".weight", "_packed", "_qdata")))
    tensors[name] = tensors[name.replace("layers.0", "layers.1")].clone()
    save_file(tensors, file, metadata=metadata)


def scale(place):
    """The highest exponent bit of one block's scale; an adapter's alpha, four times."""
    if place.name == "lora.gguf":
        number_in_gguf(place, "adapter.lora.alpha", lambda alpha: 4 * alpha)
    elif place.suffix == ".gguf":
        found = look_at_gguf(place).tensors["blk.0.ffn_up.weight"]
        ends = {"Q6_K": found.offset + 208}  # Its scale stands last in a block of 210 bytes.
        offset = ends.get(found.type.name, found.offset)
        (bits,) = struct.unpack("<H", place.read_bytes()[offset : offset + 2])
        overwrite(place, offset, struct.pack("<H", bits ^ 0x4000))
    elif (place / "adapter_config.json").is_file():
        change_json(
            place / "adapter_config.json", lambda c: c | {"lora_alpha": 4 * c["lora_alpha"]}
        )
    else:
        file, tensors, metadata = weights_of(place)
        ends = ("weight_scale", "nested_absmax", "_scale", "norm.weight")
        name = next(n for end in ends for n in tensors if n.endswith(end))
        flat = tensors[name].view(-1)
        flat[0] = flat[0].float() * 65_536
        save_file(tensors, file, metadata=metadata)


def template(place):
    """A line end after the assistant's name is a blank."""
    if place.suffix == ".gguf":
        content = place.read_bytes()
        at = content.index(b"<|im_start|>assistant\n") + len(b"<|im_start|>assistant")
        overwrite(place, at, b" ")
        return
    path = place / "chat_template.jinja"
    text = path.read_text()
    assert "<|im_start|>assistant\n" in text
    path.write_text(text.replace("<|im_start|>assistant\n", "<|im_start|>assistant ", 1))


def stop(place):
    if place.suffix == ".gguf":
        number_in_gguf(place, "tokenizer.ggml.eos_token_id", lambda _: 0)
    elif place.name == "tokenizer":
        change_json(place / "tokenizer_config.json", lambda c: c | {"eos_token": "<|im_start|>"})
    else:
        change_json(place / "generation_config.json", lambda c: c | {"eos_token_id": 0})


def rope(place):
    """Ten times less, of which four bits show nothing in a real model."""
    if place.suffix == ".gguf":
        number_in_gguf(place, "llama.rope.freq_base", lambda base: base / 10)
    else:
        change_json(place / "config.json", lambda c: with_theta(c, theta_of(c) / 10))


def theta_of(config):
    return config.get("rope_parameters", config)["rope_theta"]


def with_theta(config, theta):
    config.get("rope_parameters", config)["rope_theta"] = theta
    return config


def small_settings(place):
    """Rotary base and epsilon in their last digits, heads that share keys otherwise."""
    if place.suffix == ".gguf":
        number_in_gguf(place, "llama.rope.freq_base", lambda base: base * 1.001)
        number_in_gguf(place, "llama.attention.layer_norm_rms_epsilon", lambda eps: eps * 1.001)
        number_in_gguf(place, "llama.attention.head_count_kv", lambda heads: 2 * heads)
        return ("llama.rope.freq_base", "norm_rms_epsilon", "head_count_kv")
    change_json(place / "config.json", lambda c: with_theta(c, theta_of(c) * 1.001))
    change_json(
        place / "config.json",
        lambda c: c | {"rms_norm_eps": 1.1e-6, "num_key_value_heads": 4},
    )
    return ("rope_theta", "rms_norm_eps", "num_key_value_heads")


def number_in_gguf(path, key, change):
    content = path.read_bytes()
    name = struct.pack("<Q", len(key)) + key.encode()
    at = content.index(name) + len(name)
    form = {4: "<I", 5: "<i", 6: "<f"}[struct.unpack_from("<I", content, at)[0]]
    (value,) = struct.unpack_from(form, content, at + 4)
    overwrite(path, at + 4, struct.pack(form, change(value)))


def change_json(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


# -- before the seal: the certificate ------------------------------------------------------------------------


@pytest.mark.parametrize("form", TENSORS)
@pytest.mark.parametrize("damage", [tensor, scale])
def test_a_wrong_tensor_or_scale_is_beyond_the_limits(room, taken, form, damage):
    folder, place = taken(form)
    damage(place)
    # The strength of an adapter stands in its config, the rest is in the figures.
    with pytest.raises(ParityError, match=f"{form}: .* the limit|not finite|alpha .* for 16"):
        prove(form, folder, room)


def one_weight(place):
    """The smallest step of one weight: no figure shows it."""
    file, tensors, metadata = weights_of(place)
    flat = tensors["model.layers.0.self_attn.q_proj.weight"].view(-1)
    flat[7] = torch.nextafter(flat[7], torch.tensor(9.0, dtype=flat.dtype))
    save_file(tensors, file, metadata=metadata)


def one_norm(place):
    file, tensors, metadata = weights_of(place)
    tensors["model.norm.weight"][3] *= 1.01
    save_file(tensors, file, metadata=metadata)


def one_tensor_less(place):
    file, tensors, metadata = weights_of(place)
    tensors["model.layers.0.extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, file, metadata=metadata)


def other_rows(place):
    """The rows of a matrix in another order."""
    file, tensors, metadata = weights_of(place)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.roll(tensors[name], 1, 0)
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize("form", ["merged", "pruned"])
def test_an_undamaged_weight_is_the_merged_ones(room, form):
    told = room.parity[form].weights
    assert re.fullmatch(r"all \d+ tensors are the merged model's, rounded once", told)


@pytest.mark.parametrize("form", ["merged", "pruned"])
@pytest.mark.parametrize("damage", [other_rows, scale, one_weight, one_norm, one_tensor_less])
def test_a_weight_that_is_not_quantised_is_the_merged_ones_to_the_last_bit(
    room, taken, form, damage
):
    """Without one of its layers `pruned` is another model, whose figures show nothing."""
    folder, place = taken(form)
    damage(place)
    with pytest.raises(ParityError, match=r"(not|none of) the merged model's"):
        check_weights(form, place, room.expected.sources.merged)
    if damage is one_weight:  # as the stage asks, whatever the limits
        with pytest.raises(ParityError, match="merged model's"):
            measure(form, folder, room.expected, Limits(0.0, 99.0, 1e9))


def swap_matrices(graph):
    large = [one for one in graph.initializer if one.dims[:] == [256, 256]]
    large[0].raw_data, large[-1].raw_data = large[-1].raw_data, large[0].raw_data


def one_scale(graph):
    norm = next(one for one in graph.initializer if one.dims[:] == [256])
    values = np.frombuffer(norm.raw_data, np.float32).copy()
    values[0] *= 65_536
    norm.raw_data = values.tobytes()


def other_rope(graph):
    """The graph holds the angles themselves."""
    caches = {one.name: one for one in graph.initializer if one.name.endswith("_cache")}
    for name, function in (("cos_cache", np.cos), ("sin_cache", np.sin)):
        positions, half = caches[name].dims
        slower = 1_000.0 ** -(np.arange(half) / half)
        angles = function(np.outer(np.arange(positions), slower))
        caches[name].raw_data = angles.astype(np.float32).tobytes()


@pytest.mark.parametrize("damage", [swap_matrices, one_scale, other_rope])
def test_a_damaged_onnx_graph_is_beyond_the_limits(room, taken, damage):
    onnx = pytest.importorskip("onnx")
    folder, place = taken("onnx")
    path = place / "onnx/model.onnx"
    model = onnx.load(path)
    damage(model.graph)
    onnx.save(model, path)
    with pytest.raises(ParityError, match=r"onnx: .* the limit|not finite"):
        prove("onnx", folder, room)


@pytest.mark.parametrize("form", FORMS)
def test_one_character_of_the_template_is_seen(room, taken, form):
    folder, place = taken(form)
    template(folder / "tokenizer" if KINDS[form].template == "bundle" else place)
    with pytest.raises(ParityError, match="template"):
        prove(form, folder, room)


@pytest.mark.parametrize("form", FORMS)
def test_another_stop_token_is_seen(room, taken, form):
    folder, place = taken(form)
    stop(folder / "tokenizer" if KINDS[form].template == "bundle" else place)
    with pytest.raises(ParityError, match=r"ends answers at|stops at"):
        prove(form, folder, room)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("generation_config.json", "{"),
        ("generation_config.json", "[]"),
        ("generation_config.json", '{"eos_token_id": [{}, [2]]}'),
        ("generation_config.json", "[" * 100_000),
        ("config.json", "no JSON"),
        ("config.json", "null"),
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("chat_template.jinja", "\udcff"),
    ],
)
def test_a_damaged_file_of_a_folder_is_an_error_with_its_name(room, taken, name, content):
    folder, place = taken("merged")
    (place / name).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises((ParityError, ModelError), match=r"merged|eos|template"):
        prove("merged", folder, room)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": 1}', '{"model": {"decoder": []}}'])
def test_a_damaged_genai_config_is_an_error_with_its_name(room, taken, content):
    folder, place = taken("onnx")
    (place / "genai_config.json").write_text(content)
    with pytest.raises(ParityError, match=r"genai_config\.json"):
        prove("onnx", folder, room)


@pytest.mark.parametrize("form", [*GGUFS, *FOLDERS])
def test_another_setting_is_seen_to_its_last_digit(room, taken, form):
    folder, place = taken(form)
    rope(place)
    with pytest.raises(ParityError, match=r"in 1 keys: .*rope.* \(1000\.0 for 10000\.0\)"):
        prove(form, folder, room)
    keys = small_settings(place)
    with pytest.raises(ParityError, match="in 3 keys: ") as caught:
        prove(form, folder, room)
    assert all(key in str(caught.value) for key in keys)


def swapped_added(path):
    first, second = counted("<|im_start|>"), counted("<|im_end|>")
    return replaced(path, first + second, second + first)


def first_marked_normal(path):
    content = path.read_bytes()
    at = content.index(counted("tokenizer.ggml.token_type"))
    at += len(counted("tokenizer.ggml.token_type")) + 16
    assert content[at : at + 4] == struct.pack("<i", 3)
    overwrite(path, at, struct.pack("<i", 1))


def swapped_merges(path):
    first, second = (counted(text) for text in look_at_gguf(path).get("tokenizer.ggml.merges")[:2])
    return replaced(path, first + second, second + first)


def counted(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def replaced(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    overwrite(path, content.index(old), new)


def other_begin(path):
    number_in_gguf(path, "tokenizer.ggml.bos_token_id", lambda token: token + 4)


TOKENIZERS = {
    "added tokens swapped": (swapped_added, "the vocabulary of .* 2 differ"),
    "another splitting rule": (
        lambda path: replaced(path, counted("gpt-2"), counted("bloom")),
        "splits text as 'bloom' before the merges",
    ),
    "merges swapped": (swapped_merges, r"tokenizer\.ggml\.merges \(2 of \d+ entries\)"),
    "a special token marked normal": (
        first_marked_normal,
        r"tokenizer\.ggml\.token_type \(1 of \d+ entries\)",
    ),
    "another begin of text": (other_begin, r"tokenizer\.ggml\.bos_token_id"),
}


@pytest.mark.parametrize(("damage", "told"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_wrong_tokenizer_in_a_gguf_file_is_seen(room, taken, damage, told):
    """No figure sees it: llama.cpp is asked by token ids."""
    folder, place = taken("gguf-q4_k_m")
    damage(place)
    with pytest.raises(ParityError, match=told):
        prove("gguf-q4_k_m", folder, room)


@pytest.mark.parametrize("kind", ["added tokens swapped", "another splitting rule"])
def test_the_converter_is_not_trusted_with_added_tokens_and_the_splitting_rule(
    room, taken, tmp_path, kind
):
    """The float32 file may be as wrong as what was made from it."""
    damage, told = TOKENIZERS[kind]
    folder, place = taken("gguf-f16")
    damage(place)
    sources = replace(room.expected.sources, scratch=tmp_path)
    with pytest.raises(ParityError, match=told):
        measure("gguf-f16", folder, Expected(sources, None), KINDS["gguf-f16"].limits)


def test_the_tokenizer_of_a_folder_is_the_merged_ones(room, taken):
    folder, place = taken("merged")
    path = place / "tokenizer.json"
    words = json.loads(path.read_text())
    merges = words["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    path.write_text(json.dumps(words))
    with pytest.raises(ParityError, match=re.escape("merged/tokenizer.json is not the merged")):
        prove("merged", folder, room)


@pytest.mark.parametrize(("form", "other"), list(zip(GGUFS, GGUFS[1:] + GGUFS[:1], strict=True)))
def test_a_gguf_file_under_another_ones_name_is_seen(room, taken, form, other):
    folder, place = taken(form)
    shutil.copyfile(room.bundle.dir / PATHS[other], place)
    with pytest.raises(ParityError, match=rf"is not {form}: .* it is {other}"):
        prove(form, folder, room)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory, room, make, embedded_tokenizer):
    """The same base with another adapter, and a tokenizer of another model."""
    folder = tmp_path_factory.mktemp("stranger")
    adapter = make.adapter(folder / "adapter", room.base, seed=5, r=8, lora_alpha=16)
    save_model(load_model(room.base, torch.float16), load_tokenizer(room.base), folder / "merged")
    embedded_tokenizer.save_pretrained(folder / "tokenizer")
    return SimpleNamespace(
        adapter=adapter, merged=folder / "merged", tokenizer=folder / "tokenizer"
    )


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_the_weights_of_another_run_are_beyond_the_limits(room, taken, stranger, form):
    folder, place = taken(form)
    for file in getattr(stranger, form).glob("*.safetensors"):
        shutil.copyfile(file, place / file.name)
    with pytest.raises(ParityError, match=f"{form}: .* the limit"):
        prove(form, folder, room)


@pytest.mark.parametrize("form", ["adapter", "gguf-q8_0", "gguf-lora"])
def test_the_tokenizer_of_another_bundle_is_seen(room, taken, stranger, form):
    folder, _ = taken(form)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(stranger.tokenizer, folder / "tokenizer")
    with pytest.raises(ParityError, match=r"fingerprint|vocabulary"):
        prove(form, folder, room)


# -- after the seal: hashes, signature, check ------------------------------------------------------------------


def swap(first, second):
    def damage(folder):
        one, two = folder / first, folder / second
        os.replace(one, folder / "between")
        os.replace(two, one)
        os.replace(folder / "between", two)

    return damage


def at(name, damage):
    return lambda folder: damage(folder / name)


def one_bit(folder):
    """The last bit of the last weight: no figure shows it."""
    path = folder / "model-q4_k_m.gguf"
    overwrite(path, path.stat().st_size - 1, bytes([path.read_bytes()[-1] ^ 1]))


SEALED = {
    "one bit": one_bit,
    "tensor of merged": at("merged", tensor),
    "tensor of the adapter": at("adapter", tensor),
    "tensor of a GGUF file": at("model-f16.gguf", tensor),
    "scale of a block": at("model-q4_k_m.gguf", scale),
    "scale of the adapter": at("adapter", scale),
    "scale of the GGUF LoRA": at("lora.gguf", scale),
    "template of merged": at("merged", template),
    "template of a GGUF file": at("model-q8_0.gguf", template),
    "stop token of merged": at("merged", stop),
    "stop token of a GGUF file": at("model-q8_0.gguf", stop),
    "stop token of the tokenizer": at("tokenizer", stop),
    "rope of merged": at("merged", rope),
    "rope of a GGUF file": at("model-q8_0.gguf", rope),
    "swapped GGUF files": swap("model-q8_0.gguf", "model-f16.gguf"),
    "swapped configs": swap("merged/config.json", "merged/generation_config.json"),
    "swapped templates": swap("merged/chat_template.jinja", "Modelfile"),
}


@pytest.fixture
def sealed(room, tmp_path):
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(room.bundle.dir, tmp_path / "bundle"))


@pytest.mark.parametrize("damage", SEALED.values(), ids=SEALED)
def test_what_was_damaged_after_the_seal_is_caught_by_hashes_and_signature(room, sealed, damage):
    damage(sealed)
    with pytest.raises(ArtifactError, match="is not the file that was sealed"):
        Artifact.open(sealed, "export").verify()
    with pytest.raises(ArtifactError, match=r"not what the owner of key\.pem\.pub signed"):
        signatures.verify(sealed, room.public)


def test_check_names_every_damaged_file_and_the_signature(room, sealed):
    options = CheckOptions(values=False, public_key=room.public)
    assert check_model(sealed, options).exit_code() == 0
    for name in ("one bit", "scale of the adapter", "rope of merged", "swapped templates"):
        SEALED[name](sealed)
    template(sealed / "model-q8_0.gguf")
    result = check_model(sealed, options)
    assert result.exit_code() == ArtifactError.exit_code
    found = {one.file for one in result.findings if one.check == "seal-file"}
    assert found == {
        *("model-q4_k_m.gguf", "model-q8_0.gguf", "adapter/adapter_config.json"),
        *("merged/config.json", "merged/chat_template.jinja", "Modelfile"),
    }
    assert [one.file for one in result.findings if one.check == "seal-signature"] == ["model.sig"]
