"""How much a column matters: measured at the layers' inputs, kept in llama.cpp's format, used by the kernels."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from sample_gguf import importance, write_sample

from tunesmith.errors import MissingError, ModelError
from tunesmith.export.quantise import kernels
from tunesmith.export.quantise.forms import useful
from tunesmith.export.quantise.importance import (
    measure_importance,
    read_importance,
    write_importance,
)
from tunesmith.models.files.gguf import look_at_gguf

ROWS = ((5, 9, 2, 40), (7, 7, 7, 1, 30, 22, 8), tuple(range(3, 40)), (11,))


def name_of(weight):
    """A GGUF name for a layer's weight, none for the head."""
    if not weight.startswith("model.layers."):
        return None
    _, _, layer, *rest = weight.split(".")
    return ".".join(["blk", layer, *rest])


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def sums(model):
    return measure_importance(model, name_of, ROWS)


def test_each_linear_layer_of_the_body_is_measured_over_every_token(sums):
    assert len(sums) == 2 * 7
    assert {count for _, count in sums.values()} == {sum(map(len, ROWS))}


@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_sums_are_those_of_each_row_alone(part, model, sums):
    module = model.get_submodule(f"model.layers.1.{part}")
    seen = []
    handle = module.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0][0]))
    with torch.inference_mode():
        for row in ROWS:
            model(torch.tensor([row]))
    handle.remove()
    alone = torch.cat(seen).double().square().sum(0)
    assert torch.allclose(torch.tensor(sums[f"blk.1.{part}.weight"][0]).double(), alone, rtol=1e-5)


def test_inputs_that_are_shared_have_equal_sums_and_no_hook_stays(model, sums):
    for layer in (0, 1):
        one, *others = [sums[f"blk.{layer}.self_attn.{x}_proj.weight"][0] for x in "qkv"]
        assert all(np.array_equal(one, other) for other in others)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_order_of_rows_and_what_is_filled_up_change_nothing(model, sums):
    again = measure_importance(model, name_of, [*ROWS[::-1], ()])
    for name, (total, count) in sums.items():
        assert again[name][1] == count
        np.testing.assert_allclose(again[name][0], total, rtol=1e-5)


def test_a_file_is_read_alike_by_another_reader_of_the_format(sums, tmp_path):
    import libgguf

    path = tmp_path / "importance.gguf"
    write_importance(path, sums, "rows", len(ROWS), 37)
    mine, other = read_importance(path), libgguf.load_imatrix(path)
    assert (mine.file, mine.dataset, mine.chunks, mine.tokens) == ("importance.gguf", "rows", 4, 49)
    assert set(mine.values) == set(other) == set(sums)
    for name, values in mine.values.items():
        assert np.array_equal(values, other[name])
        np.testing.assert_allclose(values, sums[name][0] / 49, rtol=1e-6)


def test_an_expert_that_no_token_came_to_weighs_evenly(tmp_path):
    import gguf

    path = tmp_path / "experts.gguf"
    writer = gguf.GGUFWriter(path, arch="")
    writer.kv_data[0].clear()
    writer.add_string("general.type", "imatrix")
    writer.add_tensor("a.in_sum2", np.array([[2, 4], [0, 0]], np.float32))
    writer.add_tensor("a.counts", np.array([[2], [0]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_importance(path).values["a"].tolist() == [1, 2, 1, 1]


@pytest.mark.parametrize("total", [float("nan"), float("inf")])
def test_a_matrix_that_is_no_finite_number_is_refused(total, tmp_path):
    path = tmp_path / "bad.gguf"
    write_importance(path, {"blk.0.x": (np.array([1, total], np.float32), 4)}, "rows", 1, 4)
    with pytest.raises(ModelError, match="no importance matrix that can be used") as error:
        read_importance(path)
    assert error.value.why == "blk.0.x holds what is no finite number"


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "text").write_text("no matrix")
    with pytest.raises(ModelError, match="not a GGUF file"):
        read_importance(tmp_path / "text")
    with pytest.raises(MissingError, match="no importance matrix at"):
        read_importance(tmp_path / "absent")
    write_importance(tmp_path / "i.gguf", {}, "rows", 1, 4)
    with pytest.raises(ModelError) as error:
        read_importance(tmp_path / "i.gguf")
    assert error.value.why == "it holds no sums"


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_columns_that_matter_keep_more_of_their_weights(kind):
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(32, 256)).astype(np.float32)
    weights = np.exp(generator.normal(size=256) * 2).astype(np.float32)

    def error(importance):
        back = kernels.to_float(kernels.quantised(rows, kind, importance), kind, 256)
        return float((np.square(back - rows) * weights).sum())

    assert error(weights) < 0.9 * error(None)


def test_what_becomes_q5_1_is_not_weighed(tmp_path):
    header = look_at_gguf(write_sample(tmp_path / "model.gguf", "untied"))
    write_importance(tmp_path / "i.gguf", importance("untied"), "rows", 4, 16)
    matrix = read_importance(tmp_path / "i.gguf")
    narrow = {f"blk.{layer}.attn_output.weight" for layer in range(5)}  # rows of 96
    assert set(matrix.values) - set(useful(matrix, header, "q5_k_m").values) == narrow
    assert useful(matrix, header, "q4_k_m").values == matrix.values
    only = type(matrix)({n: matrix.values[n] for n in narrow}, "i.gguf", "rows", 4, 16)
    assert useful(only, header, "q5_k_m") is None
