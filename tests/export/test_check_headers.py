"""The header readers: equal to the formats' own readers, and safe on whatever bytes they are given."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import ModelError
from tunesmith.export.metadata import read_facts
from tunesmith.models.files import (
    GGML_TYPES,
    look_at_gguf,
    look_at_safetensors,
    pickle_in,
    refuse_damaged_gguf,
    stored_tensors,
)

CODES = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def item(value):
    """Kind and bytes of a value of the metadata."""
    if isinstance(value, str | bytes):
        return 8, text(value)
    if isinstance(value, list):
        kind = item(value[0])[0] if value else 8
        return 9, struct.pack("<IQ", kind, len(value)) + b"".join(item(v)[1] for v in value)
    kind, code = CODES[type(value)]
    return kind, struct.pack(f"<{code}", value)


def build(keys=(), tensors=(), *, data=None, counts=None, version=3, magic=b"GGUF", tail=b""):
    """A GGUF file's bytes. `tensors`: (name, shape, type, offset or None for the next free one)."""
    body, position = b"", 0
    for name, shape, kind, offset in tensors:
        block = GGML_TYPES.get(kind, (None, 1, 4))
        place = position if offset is None else offset
        body += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place)
        n_bytes = int(np.prod([float(s) for s in shape])) // block[1] * block[2]
        position = min(-(-(place + n_bytes) // 32) * 32, 1 << 20)
    pairs = b"".join(
        text(key) + struct.pack("<I", item(value)[0]) + item(value)[1] for key, value in keys
    )
    n_tensors, n_keys = counts or (len(tensors), len(keys))
    head = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + pairs + body
    padding = bytes(-len(head) % 32)
    return head + padding + (bytes(position) if data is None else data) + tail


ONE = ("a.weight", (32, 4), 0, None)
TWO = ("b.weight", (32, 2), 8, None)
KEYS = (
    ("general.architecture", "llama"),
    ("llama.block_count", 2),
    ("some.float", 0.5),
    ("some.flag", True),
    ("tokenizer.ggml.tokens", ["a", "ĠÜ", ""]),
    ("some.numbers", [1, 2, 3]),
)


def of(tmp_path_factory, content, name="m.gguf"):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    return path


def checks(file):
    return {one.check for one in file.findings}


def test_the_number_formats_are_those_of_the_gguf_package():
    theirs = {
        kind.value: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGMLQuantizationType
    }
    assert {number: tuple(kind) for number, kind in GGML_TYPES.items()} == theirs


def test_a_file_is_read_as_the_gguf_package_reads_it(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(build(KEYS, [ONE, TWO]))
    file, theirs = look_at_gguf(path), gguf.GGUFReader(path)
    assert file.findings == []
    assert {key: file.get(key) for key in file.keys} == dict(KEYS)
    assert [(t.name, t.offset, t.bytes) for t in file.tensors.values()] == [
        (t.name, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]


FAULTS_OF_GGUF = {
    "an empty file": (b"", "gguf-magic"),
    "another magic": (build(magic=b"GGML"), "gguf-magic"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "gguf-version"),
    "an unknown version": (build(version=9), "gguf-version"),
    "2^60 tensors": (build(counts=(1 << 60, 0)), "gguf-count"),
    "2^60 keys": (build(counts=(0, 1 << 60)), "gguf-count"),
    "keys too many": (build([*KEYS, ("a", "b" * 2_000)], counts=(0, 150)), "gguf-truncated"),
    "a text beyond the file": (
        build([("a", "b")]).replace(text("b"), struct.pack("<Q", 1 << 62) + b"b"),
        "gguf-truncated",
    ),
    "an array beyond the file": (
        build([("a", [1])]).replace(struct.pack("<IQ", 4, 1), struct.pack("<IQ", 4, 1 << 61)),
        "gguf-truncated",
    ),
    "an array of arrays": (
        build([("a", [1])]).replace(struct.pack("<IQ", 4, 1), struct.pack("<IQ", 9, 1)),
        "gguf-kind",
    ),
    "a kind of value that is none": (
        build([("a", 7)]).replace(struct.pack("<II", 4, 7), struct.pack("<II", 99, 7)),
        "gguf-kind",
    ),
    "a key twice": (build([("a", 1), ("a", 2)]), "gguf-duplicate"),
    "a key that is no ASCII": (build([("ä", 1)]), "gguf-key"),
    "a text that is no UTF-8": (build([("a", b"\xff\xfe")]), "gguf-text"),
    "an alignment of 3": (build([("general.alignment", 3)], [ONE]), "gguf-alignment"),
    "a tensor twice": (build((), [ONE, ONE]), "gguf-duplicate"),
    "a tensor beyond the end": (build((), [("a", (32, 4), 0, 1 << 40)]), "gguf-bounds"),
    "weights cut off": (build((), [ONE, TWO])[:-40], "gguf-bounds"),
    "a shape that overflows": (build((), [("a", (1 << 40, 1 << 40), 0, None)]), "gguf-shape"),
    "nine dimensions": (build((), [("a", (1,) * 9, 0, None)]), "gguf-shape"),
    "rows of broken blocks": (build((), [("a", (33, 2), 8, None)]), "gguf-shape"),
    "an unknown number format": (build((), [("a", (32,), 77, None)]), "gguf-type"),
    "a name of 300 bytes": (build((), [("a" * 300, (32,), 0, None)]), "gguf-name"),
    "a tensor inside another": (build((), [ONE, ("b", (32, 4), 0, 64)]), "gguf-order"),
    "a hole": (build((), [ONE, ("b", (32, 4), 0, 4_096)], data=bytes(8_192)), "gguf-order"),
    "2^31 layers": (build([*KEYS[:1], ("llama.block_count", 1 << 31)], [ONE]), "gguf-number"),
    "more layers than tensors": (build(KEYS, [ONE]), "gguf-number"),
    "a width of 0": (
        build([*KEYS[:1], ("llama.embedding_length", 0)], [ONE]),
        "gguf-number",
    ),
    "kinds of fewer tokens": (
        build([("tokenizer.ggml.tokens", ["a", "b"]), ("tokenizer.ggml.scores", [0.5])]),
        "tokenizer-vocabulary",
    ),
    "scores that are integers": (
        build([("tokenizer.ggml.tokens", ["a"]), ("tokenizer.ggml.scores", [1])]),
        "gguf-kind",
    ),
    "merges that are numbers": (build([("tokenizer.ggml.merges", [1])]), "gguf-kind"),
    "a place that is not aligned": (build((), [("a", (4,), 0, 3)], data=bytes(64)), "gguf-order"),
}


@pytest.mark.parametrize("fault", FAULTS_OF_GGUF)
def test_a_planted_fault_of_a_gguf_header_is_named_and_refused(tmp_path, fault):
    content, check = FAULTS_OF_GGUF[fault]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    file = look_at_gguf(path)
    assert check in checks(file)
    assert not file.is_sound
    assert all(one.fix and one.what for one in file.findings)
    with pytest.raises(ModelError, match=r"m\.gguf"):
        refuse_damaged_gguf(path)


def test_bytes_after_the_last_tensor_are_a_warning(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(build((), [ONE], tail=b"x" * 4_096))
    file = look_at_gguf(path)
    assert file.is_sound
    assert checks(file) == {"gguf-trailing"}


def test_every_part_that_llama_cpp_would_open_is_looked_at(tmp_path):
    keys = [("split.count", 2), ("split.no", 0)]
    first = tmp_path / "m-00001-of-00002.gguf"
    first.write_bytes(build(keys, [ONE]))
    refuse_damaged_gguf(first)
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(build(keys, [TWO])[:-60])
    with pytest.raises(ModelError, match="00002-of-00002"):
        refuse_damaged_gguf(first)


def test_a_fact_of_the_wrong_kind_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(build([("tokenizer.chat_template", 7)]))
    with pytest.raises(ModelError, match="no readable GGUF") as error:
        read_facts(path)
    assert "tokenizer.chat_template is '7'" in error.value.why


@given(st.data())
def test_a_changed_gguf_header_gives_findings_or_is_what_the_reference_reads(
    tmp_path_factory, data
):
    path = of(tmp_path_factory, mutated(data, build(KEYS, [ONE, TWO]), 450))
    file = look_at_gguf(path)
    if file.is_sound:
        for key in file.keys:
            file.get(key)
        if all(t.bytes for t in file.tensors.values()) and enough_for_reference(file):
            theirs = {t.name: t.data_offset for t in gguf.GGUFReader(path).tensors}
            assert theirs == {t.name: t.offset for t in file.tensors.values()}


def enough_for_reference(file):
    """The package wants a few keys to be of its own kinds."""
    return isinstance(file.get("general.alignment", 32), int)


def mutated(data, content, head):
    """A few bytes changed, inserted or cut, most of them in the header."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(head, max(len(content) - 1, 0))))
        how = data.draw(st.sampled_from(("set", "flip", "insert", "delete", "long", "cut")))
        if how == "set":
            content[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif how == "flip" and content:
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif how == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        elif how == "delete":
            del content[at : at + data.draw(st.integers(1, 9))]
        elif how == "long":
            value = data.draw(st.sampled_from((1 << 63, 1 << 40, 1 << 32, 0, (1 << 64) - 1)))
            content[at : at + 8] = struct.pack("<Q", value)
        else:
            del content[data.draw(st.integers(0, len(content))) :]
    return bytes(content)


TENSORS = {
    "b.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a": np.ones(5, np.float16),
    "c.empty": np.zeros((0, 4), np.int64),
}


@given(st.data())
def test_a_changed_safetensors_header_gives_findings_or_opens(tmp_path_factory, data):
    whole = safetensors.numpy.save(TENSORS, metadata={"format": "pt"})
    path = of(tmp_path_factory, mutated(data, whole, 260), "m.safetensors")
    file = look_at_safetensors(path)
    if file.is_sound:
        with safetensors.safe_open(path, "numpy") as opened:
            assert set(opened.keys()) == set(file.tensors)


def header(entries, n_bytes=0, **others):
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", others.get("length", len(raw))) + raw + bytes(n_bytes)


def entry(dtype, shape, *offsets):
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


FAULTS_OF_SAFETENSORS = {
    "an empty file": (b"", "safetensors-header"),
    "a header beyond the file": (header({}, length=1 << 62), "safetensors-header"),
    "a header of 64 MiB": (header({}, 1 << 26, length=1 << 26), "safetensors-header"),
    "a pickle": (pickle.dumps({"a": [1] * 99}), "safetensors-header"),
    "no JSON": (header(b"{bad}"), "safetensors-header"),
    "deep JSON": (header(b'{"a":' * 9_000 + b"1" + b"}" * 9_000), "safetensors-header"),
    "a million lists": (header(b'{"a":[' + b"[]," * 99_999 + b"[]]}"), "safetensors-header"),
    "metadata that is no text": (header({"__metadata__": {"a": 1}}), "safetensors-header"),
    "a name twice": (
        header(b'{"a":%s,"a":%s}' % ((json.dumps(entry("U8", [4], 0, 4)).encode(),) * 2), 4),
        "safetensors-duplicate",
    ),
    "an entry that is none": (header({"a": [1]}), "safetensors-entry"),
    "an unknown format": (header({"a": entry("F99", [1], 0, 4)}, 4), "safetensors-entry"),
    "a negative size": (header({"a": entry("F32", [-1], 0, 4)}, 4), "safetensors-entry"),
    "a size that is no whole number": (
        header({"a": entry("F32", [1.0], 0, 4)}, 4),
        "safetensors-entry",
    ),
    "a shape that overflows": (
        header({"a": entry("F32", [1 << 40, 1 << 40], 0, 4)}, 4),
        "safetensors-entry",
    ),
    "another size than its shape": (
        header({"a": entry("F32", [2], 0, 4)}, 4),
        "safetensors-bounds",
    ),
    "an end beyond the file": (header({"a": entry("F32", [2], 0, 8)}, 4), "safetensors-bounds"),
    "an end before its start": (header({"a": entry("F32", [0], 4, 0)}, 4), "safetensors-bounds"),
    "two over each other": (
        header({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, 6),
        "safetensors-overlap",
    ),
    "a hole": (
        header({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 8, 12)}, 12),
        "safetensors-hole",
    ),
    "bytes behind": (header({"a": entry("U8", [4], 0, 4)}, 99), "safetensors-trailing"),
}


@pytest.mark.parametrize("fault", FAULTS_OF_SAFETENSORS)
def test_a_planted_fault_of_a_safetensors_header_is_named_and_refused(tmp_path, fault):
    content, check = FAULTS_OF_SAFETENSORS[fault]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    file = look_at_safetensors(path)
    assert checks(file) == {check}
    assert all(one.fix and one.why is not None for one in file.findings)
    with pytest.raises(ModelError, match=r"m\.safetensors is damaged"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E4M3", "BOOL", "C64", "U16"])
def test_formats_of_few_bits_have_the_size_that_the_reference_gives_them(tmp_path, dtype):
    bits = {"F4": 4, "F6_E2M3": 6, "C64": 64, "U16": 16}.get(dtype, 8)
    path = tmp_path / "m.safetensors"
    path.write_bytes(header({"a": entry(dtype, [8], 0, bits)}, bits))
    assert look_at_safetensors(path).findings == []
    with safetensors.safe_open(path, "numpy") as opened:
        assert list(opened.keys()) == ["a"]


def test_a_hostile_header_takes_little_memory(tmp_path):
    """Tensors of no name, all one over the other: the findings about them are few."""
    path = tmp_path / "m.gguf"
    path.write_bytes(build(counts=(1 << 12, 0), tail=bytes(24 << 12)))
    tracemalloc.start()
    try:
        file = look_at_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not file.is_sound
    assert len(file.findings) < 50
    assert peak < 8_000_000


class Call:
    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_told_by_its_content(tmp_path, protocol, capsys):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Call(), protocol))
    assert "a pickle" in pickle_in(path)
    assert capsys.readouterr().out == ""


def test_arrays_of_objects_are_pickles_and_plain_arrays_are_not(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros(3))
    np.save(tmp_path / "objects.npy", np.array([Call()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "packed.npz", a=np.array([{}], dtype=object))
    assert pickle_in(tmp_path / "plain.npy") == ""
    assert "pickled objects" in pickle_in(tmp_path / "objects.npy")
    assert "pickled objects" in pickle_in(tmp_path / "packed.npz")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("first", [b"x" * 70_000, "x" * 5_000])
def test_a_pickle_whose_first_value_is_long_is_one(tmp_path, protocol, first):
    path = tmp_path / "weights.dat"
    path.write_bytes(pickle.dumps((first, os.getcwd), protocol))
    assert pickle_in(path) == f"a pickle of protocol {protocol}"
    # What only begins like one, and claims more than the file holds, is none.
    path.write_bytes(b"\x80\x04B" + (9_000).to_bytes(4, "little") + b"x" * 5_000)
    assert pickle_in(path) == ""


def test_texts_and_headers_are_no_pickles(tmp_path):
    texts = (b"cimport numpy as np\nfrom x import y\n", b'{"a": 1}', b"", b"(a)\n", b"class A\nb\n")
    for content in (*texts, header({}, length=0x650480)[:8] + b"{" + b" " * 99):
        (tmp_path / "file").write_bytes(content)
        assert pickle_in(tmp_path / "file") == "", content
