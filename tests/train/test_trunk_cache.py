"""Steps from kept states equal steps that compute them; what cannot be kept is said and not used."""

from __future__ import annotations

import json
import resource
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tunesmith.config import recipe_from
from tunesmith.errors import ConfigError, StorageError
from tunesmith.store import Artifact, Run
from tunesmith.store.failpoints import arm
from tunesmith.train import fast, run
from tunesmith.train.packing import pack, shared_prefix_tokens
from tunesmith.train.trunk_cache import CacheRequest, prepare, served

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny

# PEFT asks transformers for a property under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

UPPER = {"layers_to_transform": [2, 3], "target_modules": ["q_proj", "v_proj", "down_proj"]}
FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": 16},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma2": {"head_dim": 8, "sliding_window": 16},
    "Granite": {"embedding_multiplier": 12.0},
    "Phi": {"num_key_value_heads": 6, "resid_pdrop": 0.0},
}
ROWS = [([5, 6, 7] * 8 + ids, [False] * 24 + flags) for ids, flags in tiny.some_rows(16)]
VALIDATION = tiny.some_rows(6, seed=3)


def upper_model(family: str = "Llama", **changes):
    base = tiny.base_model(family, num_hidden_layers=4, **FAMILIES[family])
    targets = ["q_proj", "v_proj", "fc2"] if family == "Phi" else UPPER["target_modules"]
    return tiny.adapted(base, **{**UPPER, "target_modules": targets, **changes})


def request(**changes) -> CacheRequest:
    given = CacheRequest(
        setting="auto",
        rows=[tokens for tokens, _ in ROWS],
        validation=[tokens for tokens, _ in VALIDATION],
        micro_batch_tokens=256,
        repeats=True,
        memory_bytes=10**9,
        disk_bytes=10**9,
        identity={"seed": 1},
    )
    return replace(given, **changes)


def made(model, folder: Path, **changes):
    """The cache; its model is then as it was, and the states are read through `gather`."""
    cache, line = prepare(model, request(**changes), folder)
    assert cache is not None, line
    return cache


def all_states(cache) -> torch.Tensor:
    return cache.gather(cache.rows.places)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("on_fast_path", [True, False])
def test_a_step_from_kept_states_equals_one_that_computes_them(tmp_path, family, on_fast_path):
    model = upper_model(family)
    if on_fast_path:
        fast.apply(model)
    batches = list(pack(ROWS, 256, order=range(15, -1, -1), prefix_tokens=23))
    plain = [fast.train_microbatch(model, batch, 100.0) for batch in batches]
    grads = tiny.adapter_grads(model)
    cache = made(model, tmp_path)
    assert cache.place == "ram"
    for batch, (loss, tokens) in zip(batches, plain, strict=True):
        with served(cache, batch):
            found = fast.train_microbatch(model, batch, 100.0)
        assert found == (pytest.approx(loss, rel=1e-5), tokens)
    tiny.assert_same_grads(grads, tiny.adapter_grads(model))


def test_validation_rows_are_served_by_their_own_numbers(tmp_path):
    model = upper_model()
    fast.apply(model)
    (batch,) = pack(VALIDATION, 512)
    loss = fast.evaluate_microbatch(model, batch)
    cache = made(model, tmp_path)
    with served(cache, batch, "validation"):
        assert fast.evaluate_microbatch(model, batch) == (pytest.approx(loss[0], rel=1e-5), loss[1])
    with served(cache, batch, "train"), pytest.raises(ValueError, match="not the rows from 0 on"):
        fast.evaluate_microbatch(model, batch)


def test_bf16_states_are_kept_in_bf16_and_serve_nearly_the_same_loss(tmp_path):
    model = tiny.adapted(tiny.base_model("Llama", num_hidden_layers=4).to(torch.bfloat16), **UPPER)
    fast.apply(model)
    (batch,) = pack(ROWS[:4], 512)
    loss, _ = fast.evaluate_microbatch(model, batch)
    for setting in ("ram", "disk"):
        cache = made(model, tmp_path, setting=setting)
        assert all_states(cache).dtype == torch.bfloat16
        with served(cache, batch):
            assert fast.evaluate_microbatch(model, batch)[0] == pytest.approx(loss, rel=1e-2)
        cache.trunk.detach()


def test_memory_and_disk_keep_the_same_bits_and_again_in_another_attempt(tmp_path):
    states = []
    for name, setting in (("a", "ram"), ("b", "disk"), ("b", "disk"), ("a", "auto")):
        model = upper_model()
        fast.apply(model)
        states.append(all_states(made(model, tmp_path / name, setting=setting)))
    assert all(torch.equal(states[0], other) for other in states[1:])


def test_what_rows_share_is_kept_once(tmp_path):
    model = upper_model()
    _, line = prepare(model, request(validation=[]), tmp_path)
    positions = sum(len(tokens) - 1 for tokens, _ in ROWS)
    shared = shared_prefix_tokens(ROWS)
    assert shared >= 23
    kept = int(line.split(" states")[0].rpartition(" ")[2])
    assert kept <= positions - shared * (len(ROWS) - 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"setting": "off"}, "off, as set"),
        ({"repeats": False}, "off, each row is visited once"),
        (
            {"memory_bytes": 1000, "disk_bytes": 2000},
            "0.0 MB of memory and 0.0 MB of disk are free",
        ),
        ({"setting": "ram", "memory_bytes": 1000}, "off, the states take"),
        ({"setting": "disk", "disk_bytes": 1000}, "off, the states take"),
    ],
)
def test_what_is_not_kept_is_said_with_its_reason(tmp_path, changes, said):
    cache, line = prepare(upper_model(), request(**changes), tmp_path)
    assert cache is None
    assert said in line


def test_states_that_memory_does_not_hold_go_to_disk(tmp_path):
    model = upper_model()
    assert made(model, tmp_path, memory_bytes=1000).place == "disk"
    assert (tmp_path / "states.raw").stat().st_size > 0


def test_training_of_all_layers_has_no_cache_and_says_nothing(tmp_path):
    model = upper_model(layers_to_transform=None)
    assert prepare(model, request(), tmp_path / "trunk") == (None, "")
    assert not (tmp_path / "trunk").exists()
    with pytest.raises(ConfigError, match="trunk_cache = ram has no effect"):
        prepare(model, request(setting="ram"), tmp_path / "trunk")


def test_dropout_in_a_frozen_layer_is_said_and_nothing_kept(tmp_path):
    base = tiny.base_model("Llama", num_hidden_layers=4, attention_dropout=0.1)
    cache, line = prepare(tiny.adapted(base, **UPPER), request(), tmp_path)
    assert cache is None
    assert "dropout" in line


def test_upper_layers_that_read_more_than_hidden_states_are_found_out(tmp_path):
    model = upper_model()
    layers = model.get_base_model().model.layers
    seen = []
    layers[0].register_forward_pre_hook(lambda *_: seen.clear())
    layers[0].mlp.register_forward_hook(lambda module, inputs, out: seen.append(out))
    layers[3].mlp.register_forward_hook(
        lambda module, inputs, out: out + seen.pop() if seen else out
    )
    cache, line = prepare(model, request(), tmp_path)
    assert cache is None
    assert "upper layers then differ" in line


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "header"])
def test_damaged_states_are_reported_and_computed_again(tmp_path, capsys, damage):
    model = upper_model()
    cache = made(model, tmp_path, setting="disk")
    states = all_states(cache).clone()
    cache.trunk.detach()
    file = tmp_path / "states.raw"
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-3])
    elif damage == "gone":
        file.unlink()
    else:
        (tmp_path / "states.json").write_text("{")
    capsys.readouterr()
    again = made(upper_model(), tmp_path, setting="disk")
    assert "is damaged; computing it again" in capsys.readouterr().err
    assert torch.equal(all_states(again), states)
    assert file.read_bytes() == data


def test_whole_states_are_read_and_not_computed_again(tmp_path, capsys):
    made(upper_model(), tmp_path, setting="disk")
    assert "frozen layers" in capsys.readouterr().err
    made(upper_model(), tmp_path, setting="disk")
    assert "frozen layers" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": [[*tokens[:-2], 9, 9] for tokens, _ in ROWS]},
        {"identity": {"seed": 2}},
        {"micro_batch_tokens": 128},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_rows_or_settings_make_other_states(tmp_path, capsys, changes):
    made(upper_model(), tmp_path, setting="disk")
    capsys.readouterr()
    made(upper_model(), tmp_path, setting="disk", **changes)
    assert "of other rows or settings; computing it again" in capsys.readouterr().err


@contextmanager
def small_files():
    """The system refuses files above 16 KiB, as a full disk refuses them: also pytest's own, at a test's end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_refuses_is_said_and_training_goes_on_without(tmp_path):
    model = upper_model()
    (batch,) = pack(ROWS[:4], 512)
    loss = fast.evaluate_microbatch(model, batch)
    with small_files():
        cache, line = prepare(model, request(setting="disk"), tmp_path)
    assert cache is None
    assert "cannot write" in line
    assert "states.raw" in line
    assert [file.name for file in tmp_path.iterdir()] == ["choice.json"]
    with served(cache, batch):
        assert fast.evaluate_microbatch(model, batch) == loss


def test_a_run_that_began_without_a_cache_stays_without_one(tmp_path):
    with small_files():
        prepare(upper_model(), request(setting="disk"), tmp_path)
    cache, line = prepare(upper_model(), request(setting="auto"), tmp_path)
    assert cache is None
    assert "as in the earlier attempt" in line


def train(place: Path, base: Path, dataset: Artifact, **changes):
    values = {
        "model": {"base": str(base)},
        "train": {
            "epochs": 2,
            "batch_tokens": 512,
            "micro_batch_tokens": 256,
            "precision": "fp32",
            "threads": 1,
            "sample_rows": 1,
            "checkpoint_every_steps": 3,
            "method": {"kind": "lora", "rank": 4, "layers": 1},
            **changes,
        },
    }
    with Run.open(place, "train", inputs={}, parents=[dataset.as_parent()], resume=True) as at:
        return run(recipe_from(values), at, dataset)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["ram", "disk"])
def test_a_resumed_run_with_a_cache_is_bit_equal_to_a_straight_one(
    tmp_path, tiny_base, dataset, place
):
    straight = train(tmp_path / "straight", tiny_base, dataset, trunk_cache=place)
    assert any("layers run once" in line for line in straight.artifact.facts["fast"])
    arm("event-after:4=enospc")
    with pytest.raises(StorageError):
        train(tmp_path / "stopped", tiny_base, dataset, trunk_cache=place)
    arm("")
    assert (tmp_path / "stopped/scratch/trunk/states.raw").is_file() == (place == "disk")
    resumed = train(tmp_path / "stopped", tiny_base, dataset, trunk_cache=place)
    name = "adapter/adapter_model.safetensors"
    assert resumed.artifact.path(name).read_bytes() == straight.artifact.path(name).read_bytes()


@pytest.mark.slow
def test_a_run_with_a_cache_ends_where_one_without_does(tmp_path, tiny_base, dataset):
    results = [
        train(
            tmp_path / setting,
            tiny_base,
            dataset,
            trunk_cache=setting,
            optimizer={"learning_rate": 0.02},
        )
        for setting in ("auto", "off")
    ]
    assert results[0].validation_loss == pytest.approx(results[1].validation_loss, rel=1e-4)
    assert results[0].validation_loss < results[0].first_validation_loss
    config = json.loads(results[0].artifact.path("adapter/adapter_config.json").read_text())
    assert config["layers_to_transform"] == [1]


def test_more_layers_than_the_model_has_are_refused(tmp_path, tiny_base, dataset):
    with pytest.raises(ConfigError, match=r"train\.method\.layers = 3.*has 2") as caught:
        train(tmp_path / "run", tiny_base, dataset, method={"kind": "lora", "layers": 3})
    assert "train.method.layers=2" in caught.value.fix


@pytest.mark.slow
def test_pairs_are_served_too(tmp_path, tiny_base):
    def pair(a: int, b: int) -> dict:
        asked = [{"role": "user", "content": f"what is {a} plus {b}?"}]
        said = [[{"role": "assistant", "content": f"it is {sum_}."}] for sum_ in (a + b, a * b + 1)]
        return {"prompt": asked, "chosen": said[0], "rejected": said[1], "meta": {}}

    rows = [json.dumps(pair(a, b)) + "\n" for a in range(5) for b in range(5)]
    with Run.open(tmp_path / "data", "data", inputs={}) as at:
        for name in ("train", "validation", "test"):
            at.write_text(f"{name}.jsonl", "".join(rows if name == "train" else rows[:4]))
        pairs = at.finish({"name": "pairs", "rows": {}, "databases": []})
    changes = {"objective": {"kind": "dpo"}, "optimizer": {"learning_rate": 0.02}}
    results = [
        train(tmp_path / setting, tiny_base, pairs, trunk_cache=setting, **changes)
        for setting in ("ram", "off")
    ]
    assert results[0].validation_loss == pytest.approx(results[1].validation_loss, rel=1e-4)
    # The steps did something: without any, both would be equal too.
    assert abs(results[0].validation_loss - results[0].first_validation_loss) > 1e-3
