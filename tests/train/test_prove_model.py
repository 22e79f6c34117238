"""Each fault in gradients, packing, files and disks is seen by the proof that names it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.config import recipe_from
from tunesmith.export import weights
from tunesmith.models.memory import GIB, Recompute, shape_of
from tunesmith.pipeline.proofs import rooms_of
from tunesmith.store import Run
from tunesmith.train import fast, methods, packing
from tunesmith.train.ladder import Situation, need_of
from tunesmith.train.objectives import Sft
from tunesmith.train.plan import plan_training
from tunesmith.train.prove import gradients, prove
from tunesmith.train.prove.gradients import CEILING, FLOOR, Gradients, distance, limit_of
from tunesmith.train.session import Session

SETTINGS = {
    "batch_tokens": 256,
    "micro_batch_tokens": 256,
    "precision": "fp32",
    "threads": 1,
    "sample_rows": 0,
    "method": {"kind": "lora", "rank": 4},
}


def values(base: Path, **train) -> dict:
    return {"model": {"base": str(base)}, "train": {**SETTINGS, **train}}


def proved(base: Path, dataset, folder: Path, *only: str, **train):
    recipe = recipe_from(values(base, **train))
    report = prove(recipe, dataset, folder, rooms_of(recipe), only=only, spelled="my.yaml")
    assert not list(folder.glob(".prove-*"))
    return {proof.name: proof for proof in report.proofs}


def statuses(proofs) -> dict[str, str]:
    return {name: proof.status for name, proof in proofs.items()}


def test_the_distance_is_that_of_the_worst_tensor_and_sees_what_is_missing():
    one = Gradients(1.0, {"a": torch.ones(4), "b": torch.full((4,), 2.0)})
    two = Gradients(1.0, {"a": torch.ones(4), "b": torch.full((4,), 2.02)})
    assert distance(two, one) == (pytest.approx(0.01), "b")
    assert distance(one, one)[0] == 0
    assert distance(Gradients(1.0, {"a": torch.ones(4)}), one) == (float("inf"), "b")
    broken = Gradients(1.0, {**one.tensors, "a": torch.full((4,), float("nan"))})
    assert distance(broken, one)[0] == float("inf")
    assert distance(Gradients(2.0, one.tensors), one) == (1.0, "loss")


def test_a_tensor_that_is_all_rounding_is_held_against_the_largest():
    one = Gradients(1.0, {"a": torch.ones(4), "b": torch.full((4,), 1e-9)})
    two = Gradients(1.0, {"a": torch.ones(4), "b": torch.full((4,), 2e-9)})
    assert distance(two, one)[0] < 1e-5


def test_the_limit_follows_the_noise_between_a_floor_and_a_ceiling():
    assert limit_of(0.0) == FLOOR
    assert limit_of(1e-4) == pytest.approx(8e-4)
    assert limit_of(0.5) == CEILING["fp32"] < limit_of(0.5, "bf16") == CEILING["bf16"]


@pytest.mark.slow
def test_a_right_model_is_green_in_gradients_and_files(tiny_base, dataset, tmp_path):
    names = ("split", "packed", "fast", "resume", "save", "merge", "longest")
    proofs = proved(tiny_base, dataset, tmp_path, *names)
    assert set(statuses(proofs).values()) == {"green"}
    assert all(0 < proofs[name].limit < 1e-3 for name in ("split", "packed", "fast", "merge"))
    assert (proofs["resume"].figure, proofs["save"].figure) == (0, 0)


@pytest.mark.slow
def test_what_fit_settled_is_what_is_proved(tiny_base, dataset, tmp_path):
    config = recipe_from(values(tiny_base)).train
    rows = plan_training(recipe_from(values(tiny_base)), dataset).rows.rows
    longest = max(len(row.tokens) for row in rows)
    at = Situation(config, 64, longest, "fp32", shape_of(tiny_base), Recompute(2, 2))
    recipe = recipe_from(values(tiny_base, fit=True, memory_gib=(need_of(at) - 1) / GIB))
    rooms = rooms_of(recipe)
    report = prove(recipe, dataset, tmp_path, rooms, only=("build",), spelled="my.yaml")
    assert statuses({proof.name: proof for proof in report.proofs})["build"] == "green"
    assert report.facts["method"] == "qlora"
    roomy = proved(tiny_base, dataset, tmp_path, "longest", fit=True, memory_gib=100)
    assert roomy["longest"].status == "green"
    ballast = torch.ones(2**28)  # 1 GiB that no formula knows of
    tight = proved(tiny_base, dataset, tmp_path, "longest", fit=True, memory_gib=1)
    del ballast
    assert tight["longest"].status == "red"
    assert "the ladder so far" in tight["longest"].detail
    assert tight["build"].status == "green"


@pytest.mark.slow
def test_full_training_has_nothing_to_merge_and_the_rest_is_green(tiny_base, dataset, tmp_path):
    names = ("split", "packed", "resume", "merge")
    proofs = proved(tiny_base, dataset, tmp_path, *names, method={"kind": "full"})
    assert proofs["merge"].status == "skipped"
    others = {name: status for name, status in statuses(proofs).items() if name != "merge"}
    assert set(others.values()) == {"green"}


@pytest.mark.slow
def test_a_quantised_base_is_green_too(tiny_base, dataset, tmp_path):
    method = {"kind": "qlora", "rank": 4}
    proofs = proved(tiny_base, dataset, tmp_path, "fast", "resume", "merge", method=method)
    assert set(statuses(proofs).values()) == {"green"}


@pytest.mark.slow
def test_bf16_is_held_to_its_own_rounding(tiny_base, dataset, tmp_path):
    proofs = proved(tiny_base, dataset, tmp_path, "split", "packed", "fast", precision="bf16")
    assert set(statuses(proofs).values()) == {"green"}
    assert proofs["fast"].limit > 1e-3


def counted(n: int) -> list[dict[str, str]]:
    answer = " ".join(map(str, range(n + 1)))
    return [
        {"role": "user", "content": f"count to {n}"},
        {"role": "assistant", "content": answer},
    ]


@pytest.mark.slow
def test_a_mean_of_means_is_seen_by_the_split(monkeypatch, tiny_base, tmp_path):
    # Answers of different lengths: with equal ones a mean of means is the mean.
    lines = [json.dumps({"messages": counted(n)}) + "\n" for n in range(12)]
    with Run.open(tmp_path / "data", "data", inputs={}) as at:
        for name in ("train", "validation", "test"):
            at.write_text(f"{name}.jsonl", "".join(lines))
        dataset = at.finish({"name": "counts", "rows": {}, "databases": []})
    real = Sft.__call__

    def mean_of_means(self, model, batch, normaliser):
        return real(self, model, batch, float(batch.trained_tokens))

    monkeypatch.setattr(Sft, "__call__", mean_of_means)
    proofs = proved(tiny_base, dataset, tmp_path / "runs", "split")
    assert proofs["split"].status == "red"
    assert "micro_batch_tokens" in proofs["split"].remedy


@pytest.mark.slow
def test_rows_that_see_their_neighbours_are_seen_by_packed(
    monkeypatch, tiny_base, dataset, tmp_path
):
    real = packing.pack

    def leaking(rows, micro_batch_tokens, **options):
        for batch in real(rows, micro_batch_tokens, **options):
            yield chained(batch)

    monkeypatch.setattr(packing, "pack", leaking)
    monkeypatch.setattr(gradients, "pack", leaking)
    proofs = proved(tiny_base, dataset, tmp_path, "packed")
    assert statuses(proofs)["packed"] == "red"
    assert "train.fast=false" in proofs["packed"].remedy


def chained(batch: packing.MicroBatch) -> packing.MicroBatch:
    """The second row of a batch as if it went on from the first one."""
    if batch.leaves.size < 2:
        return batch
    one, two = batch.leaves[:2].tolist()
    parents, places = batch.segment_parents.copy(), batch.position_ids.copy()
    start, size = int(batch.segment_starts[two]), int(batch.segment_lengths[two])
    first = int(batch.segment_offsets[one] + batch.segment_lengths[one])
    parents[two] = one
    places[start : start + size] = range(first, first + size)
    return dataclasses.replace(batch, segment_parents=parents, position_ids=places)


@pytest.mark.slow
def test_a_corrupted_copy_of_the_weights_is_seen_by_fast_alone(
    monkeypatch, tiny_base, dataset, tmp_path
):
    real = fast.apply

    def corrupting(model, switches=None):
        from tunesmith.train.fast.swap import fast_path_of

        report = real(model, switches)
        path = fast_path_of(model)
        assert path is not None
        path.groups[0].weight[0, 0] += 0.5
        return report

    monkeypatch.setattr(fast, "apply", corrupting)
    proofs = proved(tiny_base, dataset, tmp_path, "split", "packed", "fast")
    assert statuses(proofs)["fast"] == "red"
    assert [statuses(proofs)[name] for name in ("split", "packed")] == ["green", "green"]
    assert "tunesmith train my.yaml --set train.fast=false" in proofs["fast"].remedy


@pytest.mark.slow
def test_a_save_that_loses_a_tensor_is_seen(monkeypatch, tiny_base, dataset, tmp_path):
    real = methods.save_trained

    def losing(model, tokenizer, folder, **options):
        real(model, tokenizer, folder, **options)
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        del tensors[sorted(name for name in tensors if "lora_B" in name)[0]]
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(methods, "save_trained", losing)
    proofs = proved(tiny_base, dataset, tmp_path, "save", "resume")
    assert statuses(proofs)["save"] == "red"
    assert statuses(proofs)["resume"] == "green"
    assert proofs["save"].figure > 0
    assert proofs["save"].remedy


@pytest.mark.slow
def test_a_resume_that_loses_the_moments_is_seen(monkeypatch, tiny_base, dataset, tmp_path):
    real = Session.restore

    def forgetting(self, checkpoint):
        real(self, checkpoint)
        for parameter in self.parameters.values():
            self.optimizer.state[parameter]["exp_avg"].zero_()

    monkeypatch.setattr(Session, "restore", forgetting)
    proofs = proved(tiny_base, dataset, tmp_path, "resume", "save")
    assert statuses(proofs)["resume"] == "red"
    assert statuses(proofs)["save"] == "green"
    assert "without --resume" in proofs["resume"].remedy


@pytest.mark.slow
def test_a_broken_merge_is_seen(monkeypatch, tiny_base, dataset, tmp_path):
    real = weights.merge

    def halving(model):
        merged = real(model)
        with torch.no_grad():
            merged.model.layers[0].self_attn.q_proj.weight.mul_(0.5)
        return merged

    monkeypatch.setattr(weights, "merge", halving)
    proofs = proved(tiny_base, dataset, tmp_path, "merge")
    assert statuses(proofs)["merge"] == "red"
    assert "export.forms=[adapter]" in proofs["merge"].remedy


@pytest.mark.slow
def test_a_red_row_does_not_stop_the_proofs_on_the_others(
    monkeypatch, tiny_base, dataset, tmp_path
):
    from tunesmith.models.chat import ChatRenderer

    real = ChatRenderer.render

    def one_untrained(self, messages, *, for_answer=False):
        found = real(self, messages, for_answer=for_answer)
        if "5 plus 5" not in messages[0]["content"] or for_answer:
            return found
        return dataclasses.replace(found, trained=(False,) * len(found.trained))

    monkeypatch.setattr(ChatRenderer, "render", one_untrained)
    proofs = proved(tiny_base, dataset, tmp_path, "resume", "longest", "training")
    assert statuses(proofs)["mask"] == "red"
    assert statuses(proofs)["longest"] == "skipped"
    assert [statuses(proofs)[name] for name in ("resume", "training")] == ["green", "green"]


@pytest.mark.slow
def test_masks_of_zeros_leave_nothing_to_compute(monkeypatch, tiny_base, dataset, tmp_path):
    from tunesmith.models.chat import ChatRenderer

    real = ChatRenderer.render

    def untrained(self, messages, *, for_answer=False):
        found = real(self, messages, for_answer=for_answer)
        return dataclasses.replace(found, trained=(False,) * len(found.trained))

    monkeypatch.setattr(ChatRenderer, "render", untrained)
    proofs = proved(tiny_base, dataset, tmp_path)
    assert statuses(proofs)["mask"] == "red"
    assert {proofs[name].status for name in ("build", "fast", "export")} == {"skipped"}
    assert "needs mask" in proofs["build"].detail


@pytest.mark.slow
def test_too_little_memory_is_red_with_a_remedy(tiny_base, dataset, tmp_path):
    # More than the weights, which `build` counts, and less than any process that runs a step takes.
    proofs = proved(tiny_base, dataset, tmp_path, "longest", memory_gib=0.1)
    red = [proof for proof in proofs.values() if proof.status == "red"]
    assert [proof.name for proof in red] == ["longest"]
    assert "a training step needs" in red[0].detail
    assert red[0].remedy


@pytest.mark.slow
def test_a_full_disk_at_save_is_seen_and_named(tiny_base, dataset, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        proofs = proved(tiny_base, dataset, disk, "resume", "save", "training", "evaluation")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    for name in ("resume", "training"):
        assert proofs[name].status == "red"
        assert proofs[name].why == "the disk is full"
        assert "free some space" in proofs[name].remedy
    assert proofs["evaluation"].status == "skipped"
