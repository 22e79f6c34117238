"""One GGUF file to another: llama.cpp's bytes, or one clear refusal."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from sample_gguf import SAMPLES, importance, matrices, write_sample

from tunesmith.errors import ModelError, StorageError
from tunesmith.export.quantise import file as module
from tunesmith.export.quantise import kernels
from tunesmith.export.quantise.file import Options, quantise
from tunesmith.export.quantise.importance import read_importance, write_importance
from tunesmith.models.files.gguf import look_at_gguf
from tunesmith.store import writing

RECORDED = json.loads((Path(__file__).parent / "quantised_by_llama_cpp.json").read_text())["sha256"]
KINDS = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def tied(place):
    return write_sample(place / "tied.gguf")


def matrix_of(sample, place):
    path = place / "importance.gguf"
    write_importance(path, importance(sample), "rows", 4, 16)
    return read_importance(path)


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the hashes were recorded on x86-64"
)
@pytest.mark.parametrize("sample", SAMPLES)
def test_every_byte_is_that_of_llama_cpp(sample, place):
    source = write_sample(place / "source.gguf", sample)
    matrix = matrix_of(sample, place)
    found = {}
    for kind in KINDS:
        for name, given in ((f"{sample} {kind}", None), (f"{sample} {kind} weighted", matrix)):
            quantise(source, place / "out.gguf", kind, Options(given, force=sample == "forced"))
            found[name] = hashlib.sha256((place / "out.gguf").read_bytes()).hexdigest()
    assert found == {k: v for k, v in RECORDED.items() if k.split()[0] == sample}


def test_threads_and_slabs_change_no_byte(tied, place, monkeypatch):
    matrix = matrix_of("tied", place)
    quantise(tied, place / "whole.gguf", "q4_k_m", Options(matrix, threads=1))
    monkeypatch.setattr(module, "_SLAB_BYTES", 3 * 4 * 256)
    monkeypatch.setattr(kernels, "_CHUNK_WEIGHTS", 256)
    quantise(tied, place / "parts.gguf", "q4_k_m", Options(matrix, threads=3))
    assert (place / "whole.gguf").read_bytes() == (place / "parts.gguf").read_bytes()


def test_the_result_says_types_bits_and_fallbacks(tied, place):
    seen = []
    made = quantise(tied, place / "q.gguf", "q4_k_m", Options(on_bytes=seen.append))
    header = look_at_gguf(place / "q.gguf")
    assert header.findings == []
    assert made.types == {"Q5_0": 12, "F32": 25, "Q4_K": 36, "Q6_K": 5, "Q8_0": 4}
    assert sum(made.types.values()) == len(header.tensors)
    n_bits = 8 * sum(tensor.bytes for tensor in header.tensors.values())
    weights = sum(weight.size for weight in matrices("tied").values())
    assert made.bits_per_weight == pytest.approx(n_bits / weights, abs=1e-3)
    assert made.bytes == (place / "q.gguf").stat().st_size
    assert sum(seen) == sum(tensor.bytes for tensor in look_at_gguf(tied).tensors.values())
    assert made.fallbacks == (
        "rows of 96 weights cannot be Q4_K (blocks of 256): 8 of 57 matrices became Q5_0",
        "rows of 288 weights cannot be Q4_K (blocks of 256): 4 of 57 matrices became Q5_0",
        "rows of 288 weights cannot be Q6_K (blocks of 256): 4 of 57 matrices became Q8_0",
    )


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_a_format_keeps_what_its_bits_can_hold(kind):
    rows = np.random.default_rng(0).normal(size=(16, 512)).astype(np.float32)
    back = kernels.to_float(kernels.quantised(rows, kind), kind, 512)
    bits = int(kind[1])
    assert np.abs(back - rows).max() < 2 * np.abs(rows).max() / 2 ** (bits - 1)


def planted(source, target, name, value):
    """A copy of a file with one weight of a tensor changed."""
    data = bytearray(source.read_bytes())
    tensor = look_at_gguf(source).tensors[name]
    data[tensor.offset + 4 * 300 : tensor.offset + 4 * 301] = struct.pack("<f", value)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_finite_number_is_refused_by_name(value, tied, place):
    source = planted(tied, place / "bad.gguf", "blk.3.attn_q.weight", value)
    with pytest.raises(ModelError, match=r"blk\.3\.attn_q\.weight holds weights") as error:
        quantise(source, place / "q.gguf", "q8_0")
    assert "row 1, column 44" in error.value.why


@pytest.mark.parametrize(
    ("kind", "value"), [("f16", 7e4), ("q8_0", 1e7), ("q4_0", 1e6), ("q4_k_m", 3e38)]
)
def test_a_weight_beyond_the_range_of_a_format_is_refused_by_name(kind, value, tied, place):
    source = planted(tied, place / "large.gguf", "blk.3.attn_q.weight", value)
    with pytest.raises(ModelError, match=r"blk\.3\.attn_q\.weight does not fit into"):
        quantise(source, place / "q.gguf", kind)
    quantise(source, place / "q.gguf", "bf16")


def test_a_quantised_source_is_refused_unless_it_is_forced(place):
    source = write_sample(place / "forced.gguf", "forced")
    with pytest.raises(ModelError, match=r"quantised already \(22 Q8_0\).*Q4_0") as error:
        quantise(source, place / "q.gguf", "q4_0")
    assert "--force" in error.value.fix
    quantise(source, place / "q.gguf", "q4_0", Options(force=True))
    assert look_at_gguf(place / "q.gguf").findings == []


def test_a_damaged_source_is_refused_before_anything_is_written(tied, place):
    data = tied.read_bytes()
    (place / "cut.gguf").write_bytes(data[:-200])
    (place / "text.gguf").write_bytes(b"not a model" * 10)
    for name, told in (("cut", "no readable GGUF file"), ("text", "is not a GGUF file")):
        with pytest.raises(ModelError, match=told):
            quantise(place / f"{name}.gguf", place / "never.gguf", "q8_0")
    with pytest.raises(ModelError, match="cannot be read"):
        quantise(place / "absent.gguf", place / "never.gguf", "q8_0")
    assert not (place / "never.gguf").exists()


def test_a_part_of_a_model_is_refused(place):
    import gguf

    writer = gguf.GGUFWriter(place / "a-00001-of-00002.gguf", "llama")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="one part of a model in 2 files"):
        quantise(place / "a-00001-of-00002.gguf", place / "never.gguf", "q8_0")


def test_a_file_of_another_kind_is_no_model(place):
    path = place / "matrix.gguf"
    write_importance(path, importance("tied"), "rows", 4, 16)
    with pytest.raises(ModelError, match="no model that can be quantised") as error:
        quantise(path, place / "never.gguf", "q8_0")
    assert error.value.why == "it holds imatrix"


def test_whole_numbers_are_not_quantised(place):
    import gguf

    writer = gguf.GGUFWriter(place / "whole.gguf", "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, 32), np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q\.weight of .* is I32"):
        quantise(place / "whole.gguf", place / "never.gguf", "q8_0", Options(force=True))


def test_a_matrix_of_another_model_is_refused(tied, place):
    matrix = matrix_of("untied", place)
    with pytest.raises(ModelError, match="that of another model") as error:
        quantise(tied, place / "q.gguf", "q4_0", Options(matrix))
    assert "288 columns, the matrix 512" in error.value.why


def test_a_full_disk_is_one_error_and_leaves_no_file(tied, place):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError), writing(place / "full.gguf") as temporary:
            quantise(tied, temporary, "q8_0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list(place.glob("*full.gguf*")) == []


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_nothing_under_the_name(tied, place):
    code = (
        "import os, sys; from pathlib import Path; from tunesmith.store import writing;"
        "from tunesmith.export.quantise.file import Options, quantise;"
        "seen = [];"
        "die = lambda n: (seen.append(n), len(seen) == 9 and os.kill(os.getpid(), 9));"
        "place = Path(sys.argv[2]);"
        "w = writing(place); t = w.__enter__(); quantise(Path(sys.argv[1]), t, 'q4_0', Options(on_bytes=die))"
    )
    target = place / "killed" / "model.gguf"
    done = subprocess.run([sys.executable, "-c", code, str(tied), str(target)], check=False)
    assert done.returncode == -9
    assert not target.exists()
    assert [p.name.endswith(".part") for p in target.parent.iterdir()] == [True]


def test_missing_kernels_are_told_with_the_extra(monkeypatch, tied, place):
    from tunesmith.errors import EnvironmentProblem

    monkeypatch.setitem(sys.modules, "libgguf", None)
    with pytest.raises(EnvironmentProblem, match="kernels are not installed") as error:
        quantise(tied, place / "q.gguf", "q8_0")
    assert "tunesmith[export]" in error.value.fix
