"""A loss or gradient that is not finite: the layer is found, and the failure record shows it again."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tunesmith.cli.main import _door
from tunesmith.config import recipe_from
from tunesmith.errors import ArtifactError, MissingError, ModelError
from tunesmith.models.half import HalfLinear
from tunesmith.store import Artifact, Run
from tunesmith.train import run
from tunesmith.train.nonfinite import NotFinite, locate_in
from tunesmith.train.plan import plan_training
from tunesmith.train.record import explained, read_record
from tunesmith.train.replay import replay
from tunesmith.train.session import Session, build

sys.path.insert(0, str(Path(__file__).parent))
import fast_models as tiny
from small_base import save_small_base

from tunesmith.train import fast

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_small_base(tmp_path_factory.mktemp("base") / "base", layers=4)


def with_bad_weight(base: Path, folder: Path, name: str, value: float) -> Path:
    """The base model with one value of one weight replaced."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def values(base: Path, **train) -> dict:
    settings = {
        "epochs": 1,
        "batch_tokens": 256,
        "micro_batch_tokens": 128,
        "precision": "fp32",
        "threads": 1,
        "sample_rows": 0,
        "method": {"kind": "lora", "rank": 2},
    }
    return {"model": {"base": str(base)}, "train": {**settings, **train}}


def fails(place: Path, rows: Artifact, recipe: dict) -> NotFinite:
    with (
        pytest.raises(NotFinite) as caught,
        Run.open(place, "train", inputs={}, parents=[rows.as_parent()], resume=True) as at,
    ):
        run(recipe_from(recipe), at, rows)
    assert not (place / "manifest.json").exists()
    return caught.value


def the_record(place: Path) -> Path:
    (found,) = (place / "scratch").glob("nonfinite-*")
    return found


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_bad_base_weight_is_named_with_its_layer_and_replay_shows_it(
    tmp_path, base, rows, fast_path, bad
):
    name = "model.layers.2.mlp.down_proj.weight"
    broken = with_bad_weight(base, tmp_path / "broken", name, bad)
    error = fails(tmp_path / "run", rows, values(broken, fast=fast_path))
    assert "model.layers.2" in error.why
    assert "model.layers.1" not in error.why
    assert "lines of validation.jsonl" in error.why
    assert "another copy" in error.fix
    record = the_record(tmp_path / "run")
    result = replay(record)
    assert result.is_reproduced
    assert result.found is not None
    assert "layers.2" in result.found.module
    assert any("layers.2.mlp.down_proj" in weight for weight in result.found.weights)
    assert [name.rpartition(".")[2] for name, _ in result.found.trail][:2] == ["0", "1"]


@pytest.mark.parametrize("fast_path", [True, False], ids=["fast", "plain"])
def test_an_absurd_learning_rate_stops_with_step_lines_and_a_record_that_replays(
    tmp_path, base, rows, fast_path
):
    absurd = {"learning_rate": 1e30, "warmup_ratio": 0.0}
    recipe = values(base, fast=fast_path, optimizer=absurd, validate_every_steps=1000)
    error = fails(tmp_path / "run", rows, recipe)
    assert "at step 2" in error.what
    assert "lines of train.jsonl" in error.why
    assert "tunesmith replay" in error.fix
    record = the_record(tmp_path / "run")
    assert record.name == "nonfinite-step-2"
    kept = read_record(record)
    assert kept.facts["step"] == 1
    assert max(float(w.abs().max()) for w in kept.weights.values()) > 1e20  # before the step
    assert len(kept.batches) == 1
    lines = {int(i) + 1 for i in kept.batches[0].members}
    assert lines == set(kept.facts["lines"])
    again = replay(record)
    assert again.is_reproduced
    assert again.found is not None
    assert again.found.sentence() in error.why
    other = replay(record, precision="bf16")
    assert (other.precision, other.trained_precision) == ("bf16", "fp32")
    assert other.found is not None  # weights this large overflow in both


def test_replay_says_when_the_base_is_another_one_and_finds_one_that_was_moved(
    tmp_path, base, rows
):
    name = "model.layers.0.mlp.up_proj.weight"
    broken = with_bad_weight(base, tmp_path / "broken", name, math.inf)
    fails(tmp_path / "run", rows, values(broken))
    record = the_record(tmp_path / "run")
    moved = broken.rename(tmp_path / "moved")
    with pytest.raises(MissingError, match="broken") as caught:
        replay(record)
    assert "--base" in caught.value.fix
    assert replay(record, base_dir=moved).is_reproduced
    with pytest.raises(ModelError, match="another base model"):
        replay(record, base_dir=base)


def test_the_command_exits_with_0_when_it_is_reproduced_and_1_when_it_is_not(
    tmp_path, base, rows, capsys
):
    name = "model.layers.3.mlp.gate_proj.weight"
    broken = with_bad_weight(base, tmp_path / "broken", name, math.inf)
    fails(tmp_path / "run", rows, values(broken))
    record = str(the_record(tmp_path / "run"))
    capsys.readouterr()
    assert _door(["replay", record, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["is_reproduced"] is True
    assert "layers.3" in found["found"]["module"]
    facts = json.loads((Path(record) / "failure.json").read_text())
    finding = facts["finding"] | {"module": "another"}
    rewrite(Path(record), finding=finding)
    assert _door(["replay", record]) == 1
    assert "no" in capsys.readouterr().out


def rewrite(record: Path, **changes) -> None:
    """Change facts of a record and seal them again."""
    from tunesmith.store import sha256_of_json

    facts = json.loads((record / "failure.json").read_text()) | changes
    facts.pop("sha256", None)
    (record / "failure.json").write_text(json.dumps(facts | {"sha256": sha256_of_json(facts)}))


@pytest.mark.parametrize("damage", ["cut", "flip", "facts", "gone", "format"])
def test_a_damaged_record_is_one_clear_error(tmp_path, base, rows, damage):
    broken = with_bad_weight(base, tmp_path / "b", "model.layers.0.mlp.up_proj.weight", math.inf)
    fails(tmp_path / "run", rows, values(broken))
    record = the_record(tmp_path / "run")
    weights = record / "weights.safetensors"
    data = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(data[:-5])
    elif damage == "flip":
        weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "facts":
        text = (record / "failure.json").read_text()
        (record / "failure.json").write_text(text.replace('"step": 0', '"step": 3'))
    elif damage == "gone":
        (record / "micro-batch-0.safetensors").unlink()
    else:
        rewrite(record, format=99)
    with pytest.raises(ArtifactError, match="is damaged"):
        replay(record)


@pytest.mark.parametrize("bad", ["weight", "bias"])
def test_of_a_layer_kept_in_16_bits_the_bad_one_of_weight_and_bias_is_named(bad):
    values = {"weight": torch.ones(4, 4), "bias": torch.ones(4)}
    values[bad].view(-1)[0] = math.nan
    bits = torch.nn.Parameter(values["weight"].bfloat16().view(torch.int16), requires_grad=False)
    bias = torch.nn.Parameter(values["bias"], requires_grad=False)
    model = torch.nn.Sequential(HalfLinear(bits, torch.bfloat16, bias))
    _, finding = locate_in(model, [lambda: float(model(torch.ones(2, 4)).sum())], with_norm=False)
    assert finding is not None
    assert finding.weights == (f"0.{bad}",)


def test_no_record_is_a_missing_error(tmp_path):
    with pytest.raises(MissingError, match="is no failure record"):
        replay(tmp_path / "nothing")


class _Blows(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy / 0.0


@pytest.mark.parametrize("layer", [0, 1, 2, 3])
def test_a_gradient_that_blows_up_names_the_layer_that_it_leaves(layer):
    model = tiny.adapted(tiny.base_model("Llama", num_hidden_layers=4))
    batch = tiny.one_batch(tiny.some_rows())
    target = model.get_base_model().model.layers[layer]
    own = target.forward
    target.forward = lambda x, *args, **kwargs: own(_Blows.apply(x), *args, **kwargs)
    runs = [lambda: fast.train_microbatch(model, batch, 1.0)[0]]
    index, finding = locate_in(model, runs, with_norm=True)
    if layer == 0:  # Nothing below it is trained, so its gradient goes nowhere.
        assert finding is None
        return
    assert index == 0
    assert finding is not None
    assert (finding.where, finding.module) == ("gradient", f"base_model.model.model.layers.{layer}")
    assert not finding.weights


def test_the_first_of_several_micro_batches_is_found():
    model = tiny.adapted(tiny.base_model("Llama"))
    batches = [tiny.one_batch(tiny.some_rows(4, seed=seed)) for seed in range(3)]
    embedding = model.get_base_model().model.embed_tokens.weight
    token = int(next(t for t in batches[1].input_ids if t not in batches[0].input_ids))
    with torch.no_grad():
        embedding[token] = math.inf
    runs = [lambda b=b: fast.train_microbatch(model, b, 1.0)[0] for b in batches]
    index, finding = locate_in(model, runs, with_norm=True)
    assert index == 1
    assert finding is not None
    assert finding.module.endswith("embed_tokens")


@pytest.mark.parametrize(("times", "where"), [(1, "norm"), (2, "weight gradient")])
def test_a_norm_and_a_sum_of_gradients_that_are_not_finite_are_told_apart(times, where):
    layer = torch.nn.Linear(2, 2, bias=False)
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([layer])

    def run() -> float:
        # Four gradients of 3e38: each is finite, their norm is 6e38, two of them are 6e38.
        (layer.weight * 3e38).sum().backward()
        return 1.0

    index, finding = locate_in(model, [run] * times, with_norm=True)
    assert index is None
    assert finding is not None
    assert (finding.where, finding.module) == (where, "layers.0.weight")


def session_in_backward(base: Path, rows: Artifact) -> Session:
    recipe = values(
        base,
        method={"kind": "full"},
        micro_batch_tokens=256,
        optimizer={"max_grad_norm": None, "in_backward": "on"},
    )
    return build(plan_training(recipe_from(recipe), rows))


def test_with_an_optimizer_in_the_backward_pass_the_weight_is_found_too(tmp_path, base, rows):
    session = session_in_backward(base, rows)
    name = "model.layers.1.mlp.up_proj.weight"
    session.parameters[name].register_hook(lambda gradient: gradient / 0.0)
    before = {name: weight.detach().clone() for name, weight in session.parameters.items()}
    with pytest.raises(NotFinite) as caught:
        session.train_step()
    kept = {name: weight.detach().clone() for name, weight in session.parameters.items()}
    changed = {name for name in before if not torch.equal(before[name], kept[name])}
    assert "model.layers.3.mlp.up_proj.weight" in changed  # as the docstring of NotFinite says
    assert not {place for place in changed if ".layers.0." in place}
    error = explained(session, caught.value, tmp_path)
    assert f"first not finite: the gradient of {name}" in error.why
    assert all(torch.equal(kept[name], weight) for name, weight in session.parameters.items())
    assert all(weight.grad is None for weight in session.parameters.values())


def test_what_does_not_come_again_is_laid_to_the_updates_and_not_to_the_machine(
    tmp_path, base, rows
):
    session = session_in_backward(base, rows)
    weight = session.parameters["model.layers.0.mlp.up_proj.weight"]
    once = iter([math.inf])
    weight.register_hook(lambda gradient: gradient * next(once, 1.0))
    with pytest.raises(NotFinite) as caught:
        session.train_step()
    error = explained(session, caught.value, tmp_path)
    assert "updated by then" in error.why
    assert "machine" not in error.why


def test_a_sound_micro_batch_has_no_finding():
    model = tiny.adapted(tiny.base_model("Llama"))
    batch = tiny.one_batch(tiny.some_rows())
    runs = [lambda: fast.train_microbatch(model, batch, 1.0)[0]]
    assert locate_in(model, runs, with_norm=True) == (None, None)
