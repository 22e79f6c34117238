"""`check_model` on adapters, GGUF and ONNX files, and sealed folders: each planted fault is named."""

from __future__ import annotations

import json
import shutil
import struct

import gguf
import numpy as np
import pytest
from gguf import quants
from safetensors.numpy import load_file, save_file

from tunesmith.errors import ArtifactError, ModelError
from tunesmith.export.check import CheckOptions, check_model
from tunesmith.store import Run

slow = pytest.mark.slow

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LAYER = "base_model.model.model.layers.{}.self_attn.{}_proj"
FIRST = LAYER.format(0, "q")


def save_adapter(folder, **changes):
    """LoRA of rank 4 on q and v of two layers 8 wide, and its base."""
    rng = np.random.default_rng(0)
    tensors, base = {}, {}
    for layer in range(2):
        for kind in "qv":
            module = LAYER.format(layer, kind)
            tensors[f"{module}.lora_A.weight"] = rng.normal(size=(4, 8)).astype(np.float32)
            tensors[f"{module}.lora_B.weight"] = rng.normal(size=(8, 4)).astype(np.float32)
            name = module.removeprefix("base_model.model.")
            base[f"{name}.weight"] = rng.normal(size=(8, 8)).astype(np.float32)
    place = folder / "base"
    place.mkdir(parents=True)
    save_file(base, place / "model.safetensors")
    (folder / "adapter").mkdir()
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": str(place),
    }
    (folder / "adapter" / CONFIG).write_text(json.dumps(config | changes))
    save_file(tensors, folder / "adapter" / WEIGHTS)
    return folder / "adapter"


@pytest.fixture
def adapter(tmp_path):
    return save_adapter(tmp_path)


def edit(folder, **changes):
    value = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in value.items() if v is not ...}))


def put(folder, how):
    tensors = load_file(folder / WEIGHTS)
    how(tensors)
    save_file(tensors, folder / WEIGHTS)


def wider(folder):
    base = folder.parent / "base/model.safetensors"
    save_file(
        {n: np.pad(t, ((0, 0), (0, 8)), mode="edge") for n, t in load_file(base).items()}, base
    )


def at(part, index=0, kind="q"):
    return f"{LAYER.format(index, kind)}.lora_{part}.weight"


FAULTS_OF_ADAPTERS = {
    "a rank that is not the config's": (lambda f: edit(f, r=8), "adapter-rank", WEIGHTS),
    "a pattern of ranks that is not met": (
        lambda f: edit(f, rank_pattern={"v_proj": 16}),
        "adapter-rank",
        WEIGHTS,
    ),
    "a pattern that takes for ever": (
        lambda f: edit(f, alpha_pattern={"([a-z0-9_.]+)+!": 4}),
        "adapter-pattern",
        CONFIG,
    ),
    "no rank": (lambda f: edit(f, r=0), "adapter-config", CONFIG),
    "an alpha that is no number": (
        lambda f: edit(f, lora_alpha="much"),
        "adapter-config",
        CONFIG,
    ),
    "a target without tensors": (
        lambda f: edit(f, target_modules=["q_proj", "v_proj", "k_proj"]),
        "adapter-modules",
        CONFIG,
    ),
    "tensors without a target": (
        lambda f: edit(f, target_modules=["q_proj"]),
        "adapter-modules",
        CONFIG,
    ),
    "half a product": (lambda f: put(f, lambda t: t.pop(at("B"))), "adapter-modules", WEIGHTS),
    "magnitudes that are not there": (
        lambda f: edit(f, use_dora=True),
        "adapter-config",
        CONFIG,
    ),
    "no method": (lambda f: edit(f, peft_type=...), "adapter-config", CONFIG),
    "no base": (lambda f: edit(f, base_model_name_or_path=None), "adapter-base", CONFIG),
    "a base on another disk": (
        lambda f: edit(f, base_model_name_or_path="/elsewhere/model"),
        "adapter-base",
        CONFIG,
    ),
    "a base of another width": (wider, "adapter-base", WEIGHTS),
    "a layer that the base has not": (
        lambda f: put(f, lambda t: t.update({at("A", 9): t[at("A")], at("B", 9): t[at("B")]})),
        "adapter-base",
        WEIGHTS,
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "weights-missing", WEIGHTS),
    "a number that is not finite": (
        lambda f: put(f, lambda t: t[at("B")].__setitem__((0, 0), np.inf)),
        "values-finite",
        WEIGHTS,
    ),
    "a product of zeros": (
        lambda f: put(f, lambda t: t.update({at("B"): np.zeros((8, 4), np.float32)})),
        "values-zero",
        WEIGHTS,
    ),
}


@pytest.mark.parametrize("fault", FAULTS_OF_ADAPTERS)
def test_a_planted_fault_of_an_adapter_is_named(adapter, fault):
    plant, check, file = FAULTS_OF_ADAPTERS[fault]
    plant(adapter)
    result = check_model(adapter)
    assert (check, file) in {(one.check, one.file) for one in result.findings}
    assert all(one.fix for one in result.findings if one.severity != "note")
    assert result.exit_code(strict=True) == ModelError.exit_code


def test_a_whole_adapter_gives_nothing_to_say(adapter):
    result = check_model(adapter)
    assert result.findings == ()
    assert result.facts["adapter"]["ranks"] == [4]


def test_a_base_may_be_named(tmp_path):
    adapter = save_adapter(tmp_path / "one", base_model_name_or_path="someone/model")
    (note,) = check_model(adapter).findings
    assert (note.severity, note.check) == ("note", "adapter-base")
    wider(adapter)
    named = CheckOptions(base=adapter.parent / "base")
    assert {one.check for one in check_model(adapter, named).findings} == {"adapter-base"}


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = ["<unk>", "<|im_start|>", "<|im_end|>", "<|odd|>", *map(str, range(28))]


def save_gguf(path, *, template=TEMPLATE, kind="Q8_0", change=lambda _tensors: None, **keys):
    """A Llama of one layer, 64 wide, as llama.cpp names its parts."""
    values = {"block_count": 1, "eos": 2, "tokens": TOKENS, "embedding_length": 64}
    values |= {"context_length": 128, **keys}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(values["block_count"])
    writer.add_embedding_length(values["embedding_length"])
    if values["context_length"] is not None:
        writer.add_context_length(values["context_length"])
    writer.add_head_count(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(values["tokens"])
    if values["eos"] is not None:
        writer.add_eos_token_id(values["eos"])
    if template:
        writer.add_chat_template(template)
    rng = np.random.default_rng(0)
    tensors = {"token_embd.weight": rng.normal(size=(32, 64)).astype(np.float32)}
    tensors["blk.0.attn_q.weight"] = rng.normal(size=(64, 64)).astype(np.float32)
    change(tensors)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        made = quants.quantize(tensor, quantised)
        writer.add_tensor(name, made, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


FAULTS_OF_GGUF = {
    "no template": ({"template": ""}, "template-missing"),
    "layers that are not there": ({"block_count": 2}, "gguf-missing"),
    "a billion layers": ({"block_count": 1 << 30}, "gguf-number"),
    "no context": ({"context_length": None}, "gguf-number"),
    "no layers": ({"block_count": 0}, "gguf-number"),
    "another width": ({"embedding_length": 65}, "gguf-shape"),
    "a vocabulary too long": ({"tokens": [*TOKENS, "more"]}, "tokenizer-vocabulary"),
    "an eos beyond the vocabulary": ({"eos": 99}, "stop-token"),
    "no embedding": ({"change": lambda t: t.pop("token_embd.weight")}, "gguf-missing"),
}


@pytest.mark.parametrize("fault", FAULTS_OF_GGUF)
def test_a_planted_fault_of_a_gguf_model_is_named(tmp_path, fault):
    keys, check = FAULTS_OF_GGUF[fault]
    path = save_gguf(tmp_path / "m.gguf", **({"template": ""} | keys))
    found = {one.check: one for one in check_model(path).findings}
    assert check in found
    assert found[check].fix
    assert found[check].file == "m.gguf"


@slow
@pytest.mark.parametrize(
    ("change", "check"),
    [
        (lambda t: t.replace("}}", "}", 1), "template-broken"),
        (lambda t: t.replace("<|im_end|>", "<|odd|>"), "stop-token"),
        (lambda t: t.replace("add_generation_prompt", "false"), "template-opening"),
        (lambda t: t.replace("{{ m.content }}", ""), "template-broken"),
    ],
)
def test_a_changed_template_in_a_gguf_file_is_named(tmp_path, change, check):
    path = save_gguf(tmp_path / "m.gguf", template=change(TEMPLATE))
    assert check in {one.check for one in check_model(path).findings}


@slow
def test_a_whole_gguf_file_gives_nothing_to_say(tmp_path):
    assert check_model(save_gguf(tmp_path / "m.gguf")).findings == ()
    # Phi-3's opens the answer whether it is asked to or not.
    always = TEMPLATE.replace("add_generation_prompt", "messages[-1].role == 'user'")
    assert check_model(save_gguf(tmp_path / "o.gguf", template=always)).findings == ()
    # llama.cpp ends an answer at <|im_end|> even where the file names another token.
    assert check_model(save_gguf(tmp_path / "n.gguf", eos=3)).findings == ()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16", "F32"])
def test_a_scale_that_is_no_number_is_found_where_gguf_makes_numbers_of_it(tmp_path, kind):
    path = save_gguf(tmp_path / "m.gguf", kind=kind, template="")
    reader = gguf.GGUFReader(path, "r+")
    tensor = reader.tensors[1]
    size = gguf.GGML_QUANT_SIZES[tensor.tensor_type][1]
    tensor.data.view(np.uint8).reshape(-1)[7 * size : 7 * size + 2] = 0xFF
    if kind == "F32":
        tensor.data.view(np.uint8).reshape(-1)[7 * size : 7 * size + 4] = 0xFF
    made = quants.dequantize(tensor.data, tensor.tensor_type)
    del reader
    assert not np.isfinite(made).all()
    found = {one.check: one for one in check_model(path).findings}
    assert found["values-finite"].where == f"tensor {tensor.name}"
    assert "the first" in found["values-finite"].what


def test_scales_of_zero_are_a_warning(tmp_path):
    def zero(tensors):
        tensors["blk.0.attn_q.weight"][:] = 0

    path = save_gguf(tmp_path / "m.gguf", template="", change=zero)
    found = {one.check: one.severity for one in check_model(path).findings}
    assert found["values-zero"] == "warning"


def test_a_gguf_file_under_another_name_is_checked_as_one(tmp_path):
    path = save_gguf(tmp_path / "weights.dat", template="", block_count=0)
    result = check_model(path)
    assert result.kinds == ("gguf",)
    assert "gguf-number" in {one.check for one in result.findings}


def varint(value):
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def save_onnx(folder, location="model.data", offset=0, length=64, domain=""):
    entries = {"location": location, "offset": str(offset), "length": str(length)}
    external = b"".join(
        message(13, message(1, key.encode()) + message(2, value.encode()))
        for key, value in entries.items()
    )
    weight = message(8, b"w") + external
    node = message(4, b"MatMul") + message(7, domain.encode())
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(message(7, message(1, node) + message(5, weight)))
    (folder / "model.data").write_bytes(bytes(64))
    return folder


def test_a_whole_onnx_file_gives_nothing_to_say(tmp_path):
    result = check_model(save_onnx(tmp_path / "m"))
    assert result.findings == ()
    assert result.facts["model.onnx"] == {"nodes": 1, "initializers": 1, "bytes": 75} | {
        "bytes": (tmp_path / "m/model.onnx").stat().st_size
    }


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"location": "../../../etc/passwd"}, "link-outside"),
        ({"location": "/etc/passwd"}, "link-outside"),
        ({"location": "none.data"}, "onnx-external"),
        ({"location": "x" * 4_000}, "onnx-external"),
        ({"length": 65}, "onnx-external"),
        ({"offset": 1 << 60}, "onnx-external"),
        ({"domain": "evil.ops"}, "code"),
    ],
)
def test_a_planted_fault_of_an_onnx_file_is_named(tmp_path, changes, check):
    result = check_model(save_onnx(tmp_path / "m", **changes))
    assert [one.check for one in result.findings] == [check]
    assert result.findings[0].fix


def test_a_folder_around_an_onnx_file_wants_a_tokenizer_and_no_safetensors(tmp_path):
    save_onnx(tmp_path / "onnx")
    config = {"model_type": "llama", "vocab_size": 8, "num_hidden_layers": 2, "eos_token_id": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    result = check_model(tmp_path)
    assert result.kinds == ("onnx",)
    assert {one.check for one in result.findings} == {"tokenizer-missing", "stop-token"}
    save_file({"a": np.ones((2, 2), np.float32)}, tmp_path / "model-00001-of-00002.safetensors")
    assert "weights-index" in {one.check for one in check_model(tmp_path).findings}


@pytest.mark.parametrize("n_bytes", [1, 5, 20, 70])
def test_a_cut_onnx_file_is_named(tmp_path, n_bytes):
    path = save_onnx(tmp_path / "m") / "model.onnx"
    path.write_bytes(path.read_bytes()[:-n_bytes])
    assert "onnx-structure" in {one.check for one in check_model(path.parent).findings}


@pytest.fixture
def sealed(tmp_path):
    """An adapter in a sealed run, as training leaves it."""
    made = save_adapter(tmp_path / "made")
    with Run.open(tmp_path / "run", "train", inputs={}) as at:
        shutil.copytree(made, at.path("adapter/x").parent, dirs_exist_ok=True)
        at.write_text("notes.txt", "n")
        return at.finish({"steps": 1}).dir


def rewritten(folder, change):
    value = json.loads((folder / "manifest.json").read_text())
    change(value)
    (folder / "manifest.json").write_text(json.dumps(value))


FAULTS_OF_SEALS = {
    "a changed byte": (
        lambda f: (f / "notes.txt").write_text("N"),
        "seal-file",
        "notes.txt",
    ),
    "a byte more": (lambda f: (f / "notes.txt").write_text("nn"), "seal-file", "notes.txt"),
    "a file that is gone": (lambda f: (f / "notes.txt").unlink(), "seal-file", "notes.txt"),
    "no manifest": (
        lambda f: (f / "manifest.json").unlink(),
        "seal-missing",
        "manifest.json",
    ),
    "half a manifest": (
        lambda f: (f / "manifest.json").write_text('{"kind": "train"'),
        "json-syntax",
        "manifest.json",
    ),
    "a manifest of files elsewhere": (
        lambda f: rewritten(
            f, lambda m: m["files"].update({"../x": {"bytes": 1, "sha256": "0" * 64}})
        ),
        "seal-path",
        "manifest.json",
    ),
    "a file that came later": (
        lambda f: (f / "more.txt").write_text("x"),
        "seal-extra",
        "more.txt",
    ),
}


@pytest.mark.parametrize("fault", FAULTS_OF_SEALS)
def test_a_planted_fault_of_a_sealed_folder_is_named(sealed, fault):
    plant, check, file = FAULTS_OF_SEALS[fault]
    assert check_model(sealed).findings == ()
    plant(sealed)
    result = check_model(sealed)
    assert (check, file) in {(one.check, one.file) for one in result.findings}
    ends = 0 if check == "seal-extra" else ArtifactError.exit_code
    assert result.exit_code() == ends
    assert result.exit_code(strict=True) in (ArtifactError.exit_code, ModelError.exit_code)


def test_swapped_files_of_a_sealed_folder_are_both_named(sealed):
    one, two = sealed / "adapter" / WEIGHTS, sealed / "notes.txt"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    found = {f.file for f in check_model(sealed).findings if f.check == "seal-file"}
    assert found == {f"adapter/{WEIGHTS}", "notes.txt"}


@slow
def test_a_real_bundle_is_sound_and_each_of_its_forms_is_looked_at(bundle):
    result = check_model(bundle.artifact.dir)
    assert [one for one in result.findings if one.severity != "note"] == []
    assert {"sealed export", "adapter", "folder", "gguf", "tokenizer"} <= set(result.kinds)


@slow
def test_a_template_of_another_model_in_a_bundle_is_named(copied):
    path = copied / "tokenizer/chat_template.jinja"
    path.write_text(path.read_text().replace("\n", " \n", 1))
    checks = {one.check for one in check_model(copied).findings}
    assert {"seal-file", "template-fingerprint"} <= checks


@slow
def test_a_form_that_is_not_the_measured_one_is_named(copied):
    path = copied / "parity.json"
    value = json.loads(path.read_text())
    form = next(iter(value["forms"].values()))
    form["sha256"] = dict.fromkeys(form["sha256"], "0" * 64)
    path.write_text(json.dumps(value))
    assert "seal-certificate" in {one.check for one in check_model(copied).findings}


STOP = 'PARAMETER stop "<|im_end|>"'


@pytest.mark.parametrize(
    ("text", "check"),
    [
        (f'FROM ./m.gguf\n{STOP}\nTEMPLATE """{{{{ .Content }}}}<|im_end|>"""\n', None),
        (f"FROM ./other.gguf\n{STOP}\n", "modelfile"),
        ("FROM ../../../etc/passwd\n", "link-outside"),
        ("PARAMETER temperature 0\n", "modelfile"),
        ('FROM ./m.gguf\nTEMPLATE """{{ .Content }}<|im_end|>"""\n', "stop-token"),
        ("FROM ./m.gguf\nNONE such\n", "modelfile"),
    ],
)
def test_a_planted_fault_of_a_modelfile_is_named(tmp_path, text, check):
    save_gguf(tmp_path / "m.gguf", template="")
    (tmp_path / "Modelfile").write_text(text)
    found = [one.check for one in check_model(tmp_path).findings if one.file == "Modelfile"]
    assert found == ([] if check is None else [check])


def test_a_number_is_looked_at_in_the_last_piece_too(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.export.check.values._CHUNK", 4_096)
    path = save_gguf(tmp_path / "m.gguf", kind="F32", template="")
    raw = bytearray(path.read_bytes())
    raw[-4:] = struct.pack("<f", float("nan"))
    path.write_bytes(raw)
    (found,) = [one for one in check_model(path).findings if one.check == "values-finite"]
    assert "1 of 4,096 numbers" in found.what
    assert "the first at 4,095" in found.what


ODD_ADAPTERS = {
    "a matrix without dimensions": lambda f: put(
        f, lambda t: t.update({at("A"): np.ones((), np.float32)})
    ),
    "a pattern of lists": lambda f: edit(f, rank_pattern={"q_proj": [1]}),
    "a pattern of texts": lambda f: edit(f, rank_pattern={"q_proj": "4"}),
    "a number of excluded modules": lambda f: edit(f, exclude_modules=3, target_modules=["k_proj"]),
    "a base with a name of 5,000 letters": lambda f: edit(
        f, base_model_name_or_path="/" + "x" * 5_000
    ),
}


@pytest.mark.parametrize("odd", ODD_ADAPTERS)
def test_an_odd_adapter_is_told_and_ends_no_check(adapter, odd):
    ODD_ADAPTERS[odd](adapter)
    assert check_model(adapter).exit_code(strict=True) == ModelError.exit_code


def test_tensors_without_dimensions_in_a_gguf_lora_are_told(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for part in "ab":
        writer.add_tensor(f"blk.0.attn_q.weight.lora_{part}", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {one.check: one.what for one in check_model(tmp_path / "lora.gguf").findings}
    assert found["gguf-lora"] == "its shape is [4], that of blk.0.attn_q.weight.lora_a [4]"


@pytest.mark.parametrize("entry", [{"bytes": "many", "sha256": "0"}, {"bytes": 1, "sha256": []}])
def test_an_odd_entry_of_a_manifest_is_told(tmp_path, entry):
    with Run.open(tmp_path / "run", "train", inputs={}) as run:
        run.path("a.txt").write_text("a")
        run.finish({})
    path = tmp_path / "run/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] |= {"a.txt": entry, "x" * 300: {"bytes": 1, "sha256": "0"}}
    path.write_text(json.dumps(manifest))
    found = {one.check for one in check_model(tmp_path / "run").findings}
    assert {"seal-manifest", "seal-path"} <= found


def test_odd_vocabularies_and_templates_are_told(tmp_path):
    config = {"chat_template": [{"name": ["default"], "template": "x"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    words = {"model": {"type": "Unigram", "vocab": [[["a"], 0.0]]}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    assert "tokenizer-vocabulary" in {one.check for one in check_model(tmp_path).findings}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    assert "template-missing" in {one.check for one in check_model(tmp_path).findings}


def test_a_template_of_gigabytes_is_not_read(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    with (tmp_path / "chat_template.jinja").open("wb") as stream:
        stream.truncate(1 << 36)
    found = {one.check: one.what for one in check_model(tmp_path).findings}
    assert "4,194,304 is the most" in found["template-broken"]
