"""Merging models and adapters: what is written is what the definitions say, and loads everywhere."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.errors import ModelError
from tunesmith.export.merge import Asked, run
from tunesmith.export.merge.lora import read_adapter
from tunesmith.export.weights import merge as export_merge
from tunesmith.export.weights import save_merged, stored_tensors, write_rounded
from tunesmith.models.adapters import load_trained, put_adapter
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_model, load_tokenizer, save_model
from tunesmith.store import Artifact

INPUTS = torch.tensor([[1, 520, 33, 7, 999, 2, 40, 41]])


def logits(model):
    with torch.inference_mode():
        return model(input_ids=INPUTS).logits.double()


@pytest.fixture(scope="session")
def bench(merging):
    """Here the models that are merged, not the ones that are exported."""
    return merging


def merged(bench, out: Path, models, method="linear", **asked):
    given = tuple(str(getattr(model, "dir", model)) for model in models)
    return run(Asked(models=given, out=out, method=method, base=str(bench.base.dir), **asked))


def weights_of(bench, artifact) -> dict[str, torch.Tensor]:
    """A run's weights in float32, by PEFT."""
    model = load_trained(artifact, bench.base, torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    return {name: weight.detach() for name, weight in plain.named_parameters()}


CONFIGS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "alpha_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 32},
        "rank_pattern": {"v_proj": 2},
    },
    "rslora-patterns": {"use_rslora": True, "rank_pattern": {"down_proj": 8}},
    "dora": {"use_dora": True},
    "embedding": {"targets": ["embed_tokens", "q_proj"]},
    "head": {"targets": ["lm_head"]},
    "whole": {"modules_to_save": ["lm_head"], "targets": ["o_proj"]},
}
CASES = [(name, tied) for name in CONFIGS for tied in (False, True)]
# PEFT trains a tied head that is saved whole in a copy: its own merge of that is not defined.
CASES.remove(("whole", True))
QUICK = {("patterns", False), ("dora", False), ("head", True)}


@pytest.mark.parametrize(
    ("name", "tied"),
    [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES],
)
def test_an_adapters_change_of_each_weight_is_pefts_own(tmp_path, make, name, tied):
    config = CONFIGS[name]
    base = make.short(tmp_path / "base", dtype="float32", tied=tied)
    place = make.adapter(tmp_path / "adapter", base, **config)
    wanted = logits(put_adapter(load_model(base, torch.float32), place))
    assert (wanted - logits(load_model(base, torch.float32))).abs().max() > 0.05
    asked = Asked(
        models=(str(place), str(place)), out=tmp_path / "out", method="linear", base=str(base.dir)
    )
    result = run(asked)
    found = load_model(result.dir, torch.float32)
    assert (logits(found) - wanted).abs().max() < 5e-4
    is_changed = bool({"lm_head", "embed_tokens"} & {*config.get("targets", ())})
    assert result.plan.untied == (tied and is_changed)
    assert found.config.tie_word_embeddings == (tied and not is_changed)


def test_an_embeddings_pair_counts_beside_the_base_weight_that_peft_saves_with_it(tmp_path, make):
    """PEFT's own `save_pretrained` adds `embed_tokens.base_layer.weight` to an adapter of the embedding."""
    base = make.short(tmp_path / "base", dtype="float32", tied=False)
    place = make.adapter(tmp_path / "adapter", base, targets=["embed_tokens", "lm_head"])
    tensors, stored = (
        load_file(place / "adapter_model.safetensors"),
        load_file(base.dir / "model.safetensors"),
    )
    for name in ("model.embed_tokens", "lm_head"):
        tensors[f"base_model.model.{name}.base_layer.weight"] = stored[f"{name}.weight"]
    save_file(tensors, place / "adapter_model.safetensors", metadata={"format": "pt"})
    wanted = logits(put_adapter(load_model(base, torch.float32), place))
    assert (wanted - logits(load_model(base, torch.float32))).abs().max() > 0.05
    with pytest.raises(ModelError, match="save_embedding_layers=False"):
        run(Asked((str(place),) * 2, tmp_path / "c", method="concat", base=str(base.dir)))
    for method in ("linear", "task_arithmetic"):
        asked = Asked((str(place),), tmp_path / method, method=method, base=str(base.dir))
        found = load_model(run(asked).dir, torch.float32)
        assert (logits(found) - wanted).abs().max() < 5e-4


def test_sentencepieces_file_goes_with_the_merge(make, tmp_path):
    base = make.short(tmp_path / "base")
    (base.dir / "tokenizer.model").write_bytes(b"pieces")
    result = run(Asked((str(base.dir),) * 2, tmp_path / "out"))
    assert (result.dir / "tokenizer.model").read_bytes() == b"pieces"


def test_linear_is_the_weighted_mean_rounded_once(bench, tmp_path):
    result = merged(bench, tmp_path / "out", bench.adapters, weights=(0.5, 0.25, 0.25))
    parents = [weights_of(bench, artifact) for artifact in bench.adapters]
    found = load_file(result.dir / "model.safetensors")
    assert found.keys() == stored_tensors(bench.base.dir).keys()
    for name, tensor in found.items():
        wanted = sum(w * p[name] for w, p in zip((0.5, 0.25, 0.25), parents, strict=True))
        assert tensor.dtype == torch.float16
        assert torch.allclose(tensor.float(), wanted, rtol=1e-3, atol=1e-5)


def test_a_head_of_its_own_in_one_parent_gives_the_result_one(bench, tmp_path):
    model = load_model(bench.base, torch.float16)
    embedding = model.model.embed_tokens.weight.detach().clone()
    model.lm_head.weight = torch.nn.Parameter(2 * embedding)
    model.config.tie_word_embeddings = False
    save_model(model, load_tokenizer(bench.base), tmp_path / "own")
    given = [tmp_path / "own", bench.base.dir]
    result = run(Asked(models=tuple(map(str, given)), out=tmp_path / "out", weights=(1.0, 3.0)))
    found = load_file(result.dir / "model.safetensors")
    assert torch.equal(found["model.embed_tokens.weight"], embedding)
    assert torch.allclose(found["lm_head.weight"].float(), 1.25 * embedding.float(), atol=1e-3)
    assert json.loads((result.dir / "config.json").read_text())["tie_word_embeddings"] is False
    # The other way round the base is tied, and the result is not.
    other = run(Asked(models=tuple(map(str, given[::-1])), out=tmp_path / "other"))
    assert other.plan.untied
    assert torch.allclose(
        load_file(other.dir / "model.safetensors")["lm_head.weight"].float(),
        1.5 * embedding.float(),
        atol=1e-3,
    )
    assert load_model(other.dir, torch.float32).config.tie_word_embeddings is False


def test_one_adapter_is_merged_as_the_export_merges_it(bench, tmp_path):
    trained = bench.adapters[0]
    result = merged(bench, tmp_path / "out", [trained])
    plain = export_merge(load_trained(trained, bench.base, torch.float32))
    save_merged(plain, bench.renderer, tmp_path / "exact")
    write_rounded(tmp_path / "exact", bench.base.dir, tmp_path / "rounded")
    wanted = load_file(tmp_path / "rounded/model.safetensors")
    found = load_file(result.dir / "model.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_adapters_and_whole_models_go_together_as_differences(bench, tmp_path):
    parents = [bench.adapters[0], bench.models[0]]
    result = merged(bench, tmp_path / "out", parents, "task_arithmetic", weights=(1.0, 0.5))
    base = load_file(bench.base.dir / "model.safetensors")
    one, other = (weights_of(bench, artifact) for artifact in parents)
    for name, tensor in load_file(result.dir / "model.safetensors").items():
        start = base[name].float()
        wanted = one[name] + 0.5 * (other[name] - start)
        assert torch.allclose(tensor.float(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        "slerp",
        "ties",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("linear", "task_arithmetic")),
    ],
)
def test_a_model_with_itself_is_bit_for_bit_itself(bench, tmp_path, method):
    asked = {"weights": (0.5, 0.5)} if method == "task_arithmetic" else {}
    result = merged(bench, tmp_path / "out", [bench.models[0]] * 2, method, **asked)
    parent = load_file(bench.models[0].dir / "model/model.safetensors")
    found = load_file(result.dir / "model.safetensors")
    assert all(torch.equal(found[name], parent[name]) for name in parent)


def test_the_result_is_sealed_with_parents_method_and_prompts(bench, tmp_path):
    result = merged(
        bench, tmp_path / "out", bench.adapters[:2], "dare_ties", densities=(0.5,), seed=3
    )
    sealed = Artifact.open(tmp_path / "out", "merge")
    sealed.verify()
    facts = sealed.facts
    assert facts["method"] == {
        "kind": "dare_ties",
        "weights": [1.0, 1.0],
        "normalise": False,
        "lambda": 1.0,
        "density": [0.5, 0.5],
        "seed": 3,
    }
    assert [parent["sha256"] for parent in facts["parents"]] == [
        artifact.sha256 for artifact in bench.adapters[:2]
    ]
    assert facts["base"] == {"name": "base", "sha256": bench.base.sha256}
    assert [parent.kind for parent in sealed.parents] == ["train", "train", "model"]
    assert facts["renderer_fingerprint"] == bench.renderer.fingerprint
    renderer = ChatRenderer(load_tokenizer(result.dir))
    assert renderer.fingerprint == bench.renderer.fingerprint
    stops = json.loads((result.dir / "generation_config.json").read_text())["eos_token_id"]
    assert tuple([stops] if isinstance(stops, int) else stops) == renderer.stop_ids
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    again = merged(
        bench, tmp_path / "again", bench.adapters[:2], "dare_ties", densities=(0.5,), seed=3
    )
    files = [load_file(r.dir / "model.safetensors") for r in (result, again)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


@pytest.mark.slow
def test_a_sealed_merge_is_a_parent_and_a_base_again(bench, tmp_path):
    from tunesmith.config import ModelConfig
    from tunesmith.models.load import resolve_base

    first = merged(bench, tmp_path / "first", bench.adapters[:2])
    second = merged(bench, tmp_path / "second", [first.artifact, bench.models[0]])
    assert second.artifact.parents[0].sha256 == first.artifact.sha256
    base = resolve_base(ModelConfig(base=str(second.artifact.dir)))
    assert (base.name, base.dir) == ("second", second.dir)
    assert resolve_base(ModelConfig(base=str(second.dir))).sha256 == base.sha256
    third = run(
        Asked(
            models=(str(first.dir), str(second.dir)),
            out=tmp_path / "third",
            method="ties",
            base=str(first.artifact.dir),
        )
    )
    assert third.plan.base.sha256 == resolve_base(ModelConfig(base=str(first.dir))).sha256


@pytest.mark.parametrize(
    "shares", [pytest.param((1.0, 1.0, 1.0), marks=pytest.mark.slow), (0.4, -0.3, 2.0)]
)
def test_concatenated_adapters_are_one_adapter_with_the_sum_of_their_changes(
    bench, make, tmp_path, shares
):
    other = make.adapter(
        tmp_path / "other", bench.base, targets=["q_proj", "down_proj"], r=3, use_rslora=True
    )
    parents = [bench.adapters[0].dir, bench.dir / "peft-b", other]
    result = merged(bench, tmp_path / "out", parents, "concat", weights=shares)
    assert result.dir.name == "adapter"
    found = read_adapter(result.dir)
    each = [read_adapter(bench.adapters[0].dir / "adapter"), *map(read_adapter, parents[1:])]
    assert found.pairs.keys() == {name for adapter in each for name in adapter.pairs}
    assert {pair.rank for pair in found.pairs.values()} == {8, 11}
    for name in found.pairs:
        wanted = sum(
            share * adapter.delta(name)
            for share, adapter in zip(shares, each, strict=True)
            if name in adapter.pairs
        )
        assert torch.allclose(found.delta(name), wanted, atol=1e-5)
    # PEFT and the linear merge of whole weights agree with it.
    put = put_adapter(load_model(bench.base, torch.float32), result.dir)
    whole = merged(bench, tmp_path / "whole", parents, "task_arithmetic", weights=shares)
    found_logits = logits(put)
    change = (found_logits - logits(load_model(bench.base, torch.float32))).abs().max()
    assert change > 1
    rounding = (found_logits - logits(load_model(whole.dir, torch.float32))).abs().max()
    assert rounding < 0.02 * change


@pytest.mark.slow
def test_a_sharded_base_gives_a_sharded_result_that_loads(bench, tmp_path):
    sharded = tmp_path / "sharded"
    model = load_model(bench.base, torch.float16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(sharded, max_shard_size="100KB")
    load_tokenizer(bench.base).save_pretrained(sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    asked = Asked(
        models=(str(bench.dir / "peft-a"), str(bench.dir / "peft-b")),
        out=tmp_path / "out",
        base=str(sharded),
    )
    result = run(asked)
    assert len(list(result.dir.glob("*.safetensors"))) == len(list(sharded.glob("*.safetensors")))
    whole = merged(bench, tmp_path / "whole", bench.adapters[:2])
    assert torch.equal(
        logits(load_model(result.dir, torch.float32)), logits(load_model(whole.dir, torch.float32))
    )


@pytest.mark.slow
def test_each_tensor_keeps_the_bases_own_format(bench, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in bench.base.dir.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors[
        "model.layers.0.mlp.up_proj.weight"
    ].bfloat16()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    given = (str(bench.dir / "peft-a"), str(bench.dir / "peft-b"))
    result = run(Asked(models=given, out=tmp_path / "out", base=str(base)))
    found = load_file(result.dir / "model.safetensors")
    assert {n: t.dtype for n, t in found.items()} == {n: t.dtype for n, t in tensors.items()}
    assert json.loads((result.dir / "config.json").read_text())["dtype"] == "float16"
