"""Reading a GGUF file's metadata: equal to the reference reader, and safe on damaged files."""

from __future__ import annotations

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.errors import ModelError
from tunesmith.export.metadata import read_facts, read_metadata


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A small GGUF file by the reference writer."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_chat_template("{{ 'Ü' }}\n")
    writer.add_eos_token_id(7)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b", "ĠÜ"])
    writer.add_float32("some.float", 0.5)
    writer.add_bool("some.flag", True)
    writer.add_array("some.numbers", [1, -2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_values_are_those_that_were_written(written):
    values = read_metadata(written)
    assert values["some.float"] == 0.5
    assert values["some.flag"] is True
    assert values["some.numbers"] == [1, -2, 3]
    facts = read_facts(written)
    assert facts.tokens == ("a", "b", "ĠÜ")
    assert (facts.chat_template, facts.eos_id, facts.pre) == ("{{ 'Ü' }}\n", 7, "smollm")


@given(st.data())
def test_a_file_cut_anywhere_is_named_as_damaged(written, tmp_path_factory, data):
    content = written.read_bytes()
    cut = tmp_path_factory.getbasetemp() / "cut.gguf"
    cut.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ModelError, match=r"cut\.gguf is (not a|no readable) GGUF file"):
        read_metadata(cut)


@pytest.mark.parametrize("length", [2**40, 2**63])
def test_a_length_that_cannot_be_does_not_fill_the_memory(tmp_path, length):
    path = tmp_path / "long.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1).to_bytes(8, "little"))
    with path.open("ab") as stream:
        stream.write(length.to_bytes(8, "little"))
    with pytest.raises(ModelError, match="no readable GGUF"):
        read_metadata(path)
