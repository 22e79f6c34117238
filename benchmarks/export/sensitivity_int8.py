"""What the certificate of `bnb-int8` says of right exports, and of one damage at a time, on models tuned here.

    python benchmarks/export/sensitivity_int8.py --project runs/geoquery [--other runs/demo] [--write]

`--project` is what `make bench-geoquery` leaves, `--other` any project with a sealed dataset and run, whose right
exports are measured as well. The trained model is merged and quantised as `tunesmith export` does it; one thing in
the written file is damaged, and the folder is loaded and asked again (24 prompts, answers of up to 32 tokens).
`--write` puts the tables into `sensitivity_int8.md` beside this file. Needs bitsandbytes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sensitivity import PROMPTS, TOKENS, newest

from tunesmith.config import recipe_from
from tunesmith.errors import ParityError
from tunesmith.export import weights
from tunesmith.export.folders import bnb
from tunesmith.export.forms import KINDS, Sources
from tunesmith.export.parity import Tally, is_as_likely
from tunesmith.export.reference import Reference, given_rows, own_logprobs, record_reference
from tunesmith.models.adapters import load_trained
from tunesmith.models.chat import ChatRenderer, turns_of
from tunesmith.models.load import load_model, load_tokenizer, resolve_base
from tunesmith.store import Run

HERE = Path(__file__).parent
LIMITS = KINDS["bnb-int8"].limits
Figures = Mapping[str, float]
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], None]


class Subject:
    """A project's trained model, or its base, on the rows of one split."""

    def __init__(self, project: Path, work: Path, split: str = "test", *, tuned: bool = True):
        data, self.train = newest(project, "data"), newest(project, "train")
        self.recipe, self.work = recipe_from({"name": "sensitivity"}), work
        self.base = resolve_base(self.recipe.model)
        self.renderer = ChatRenderer(load_tokenizer(self.base))
        lines = data.path(f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:PROMPTS]
        rows = [turns_of(json.loads(line)) for line in lines]
        prompts = [self.renderer.prompt_ids(row[:-1]) for row in rows]
        given = given_rows(self.renderer, rows, TOKENS)
        self.model = load_model(self.base, torch.float32)
        if tuned:
            self.model = weights.merge(load_trained(self.train, self.base, torch.float32))
        with Run.open(work / "reference", "export", inputs={}) as at:
            self.reference: Reference = record_reference(
                self.model, self.renderer, prompts, given, TOKENS, at, lambda: None
            )

    @property
    def perplexity(self) -> float:
        """Of the user's answers, by the model itself."""
        return math.exp(-(self.reference.given_logprob or 0.0))

    def written(self, name: str, strength: float = 1.0) -> Path:
        """The form's folder; the adapter at another strength than 1 is another model."""
        kept = {key: tensor.detach().clone() for key, tensor in self.model.named_parameters()}
        plain = (
            dict(load_model(self.base, torch.float32).named_parameters()) if strength < 1 else kept
        )
        with torch.no_grad():
            for key, tensor in self.model.named_parameters():
                tensor.copy_(
                    plain[key] + strength * (kept[key] - plain[key]) if strength < 1 else kept[key]
                )
            weights.save_merged(self.model, self.renderer, self.work / "float32")
            for key, tensor in self.model.named_parameters():
                tensor.copy_(kept[key])
        sources = Sources(
            merged=self.work / "float32",
            base=self.base,
            trained=self.train,
            renderer=self.renderer,
            name="sensitivity",
            scratch=self.work,
            calibration=(),
            config=self.recipe.export,
        )
        place = self.work / name
        place.mkdir()
        bnb.write_bnb_int8(sources, place)
        shutil.rmtree(self.work / "float32")
        return place

    def figures(self, place: Path) -> Figures | None:
        """What the certificate measures of a folder; None when it computes no finite numbers."""
        tally, reference, given = Tally(), self.reference, self.reference.given
        rows, starts = [*reference.rows, *given.rows], [*reference.starts, *given.starts]
        wanted = reference.by_row()
        try:
            for index, found in enumerate(bnb.answers(place, None, rows, starts)):
                if index < len(reference.rows):
                    tally.add_logits(next(wanted), found)
                else:
                    tally.add_given(own_logprobs(found, rows[index][starts[index] :]))
        except ParityError:
            return None
        found = tally.figures()
        return {
            "greedy_agreement": found["greedy_agreement"],
            "mean_kl": found["mean_kl"],
            "perplexity_ratio": float(tally.perplexity or math.nan) / self.perplexity,
            "max_abs_dlogit": tally.largest_dlogit,
            "nats": math.log(self.perplexity),
        }


def seen_by(found: Figures | None) -> list[str]:
    """The figures that are beyond the default limits."""
    if found is None:
        return ["not finite"]
    nats = min(max(1.0, found["nats"]), LIMITS.most_nats)
    beyond = {
        "agreement": found["greedy_agreement"] < LIMITS.greedy_agreement,
        "KL": found["mean_kl"] > LIMITS.mean_kl,
        "perplexity": not is_as_likely(found["perplexity_ratio"], LIMITS.perplexity_ratio, nats),
        "logit": found["max_abs_dlogit"] > LIMITS.max_abs_dlogit,
    }
    return [name for name, is_beyond in beyond.items() if is_beyond]


def line(name: str, found: Figures | None) -> str:
    """One row of a table."""
    told = "| | |"
    if found is not None:
        told = (
            f"{100 * found['greedy_agreement']:.1f} % | {found['mean_kl']:.2g} | "
            f"{found['perplexity_ratio']:.4f} | {found['max_abs_dlogit']:.3g}"
        )
    return f"| {name} | {told} | {', '.join(seen_by(found)) or 'nothing'} |"


def times(factor: float, name: str, where: int | None = None) -> Change:
    """Multiplies a tensor, or one of its numbers."""

    def change(tensors: Tensors) -> None:
        place = tensors[name] if where is None else tensors[name].view(-1)[where : where + 1]
        place.mul_(factor)

    return change


def taken(name: str, layer: int, parts: tuple[str, ...] = ("weight", "SCB")) -> Change:
    """A matrix (its numbers, its scales, or both) is that of the layer above."""

    def change(tensors: Tensors) -> None:
        for part in parts:
            above = tensors[f"model.layers.{layer + 1}.{name}.{part}"]
            tensors[f"model.layers.{layer}.{name}.{part}"] = above.clone()

    return change


def damages() -> Iterator[tuple[str, Change]]:
    """Name, change."""
    down, query = "model.layers.15.mlp.down_proj.SCB", "model.layers.3.self_attn.q_proj.SCB"
    value, norm = "model.layers.15.self_attn.v_proj.SCB", "model.layers.15.input_layernorm.weight"
    for factor in (1.05, 1.2, 2.0, 0.0, -1.0):
        yield f"layer 15 `down_proj`, all scales x {factor:g}", times(factor, down)
    for factor in (1.05, 2.0, 0.0):
        yield f"layer 3 `q_proj`, all scales x {factor:g}", times(factor, query)
    for factor in (1.05, 0.0, -1.0):
        yield f"layer 15 `v_proj`, all scales x {factor:g}", times(factor, value)
    for layer in (0, 15):
        for name in (
            "mlp.down_proj",
            "mlp.up_proj",
            "self_attn.q_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
        ):
            yield (
                f"layer {layer} `{name.partition('.')[2]}` is layer {layer + 1}'s",
                taken(name, layer),
            )
        for part, told in (("weight", "numbers"), ("SCB", "scales")):
            yield (
                f"layer {layer} `down_proj`, the {told} alone are layer {layer + 1}'s",
                taken("mlp.down_proj", layer, (part,)),
            )
    for factor in (0.0, -1.0, 2.0, 16.0, 256.0, 65_536.0):
        yield f"layer 15 `down_proj`, one scale x {factor:g}", times(factor, down, 7)
    for factor in (16.0, 256.0):
        yield (
            f"layer 0 `up_proj`, one scale x {factor:g}",
            times(factor, "model.layers.0.mlp.up_proj.SCB", 7),
        )
    yield "layer 15, first norm x 2", times(2.0, norm)
    yield "layer 15, one number of the first norm x 256", times(256.0, norm, 7)


def measured(subject: Subject) -> Iterator[tuple[str, Figures | None]]:
    """Every damage and its figures, as they come."""
    right = subject.written("right")
    yield "nothing", subject.figures(right)
    place = Path(shutil.copytree(right, subject.work / "damaged"))
    file = place / "model.safetensors"
    with safe_open(file, "pt") as stream:
        metadata = stream.metadata()
    for name, change in damages():
        tensors = load_file(right / file.name)
        change(tensors)
        save_file(tensors, file, metadata=metadata)
        yield name, subject.figures(place)
    shutil.copyfile(right / file.name, file)
    for factor in (1.1, 2.0, 0.1):
        config = json.loads((right / "config.json").read_text(encoding="utf-8"))
        config.get("rope_parameters", config)["rope_theta"] *= factor
        (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield f"rope theta x {factor:g} (the config is compared as well)", subject.figures(place)
    for strength in (0.9, 0.5, 0.0):
        other = subject.written(f"strength-{strength:g}", strength)
        yield f"the adapter's scale x {strength:g}", subject.figures(other)


def right_exports(project: Path, other: Path | None) -> Iterator[tuple[str, Figures | None]]:
    """Undamaged exports of other models and rows: what the limits must let pass."""
    asked = [(project, "test", False), (project, "train", True), (project, "validation", True)]
    asked += [] if other is None else [(other, "test", True), (other, "test", False)]
    for place, split, tuned in asked:
        with TemporaryDirectory() as folder:
            subject = Subject(place, Path(folder), split, tuned=tuned)
            which = f"tuned on {place.name}" if tuned else "the base"
            name = f"{which}, {split} rows of {place.name} (perplexity {subject.perplexity:.3g})"
            yield name, subject.figures(subject.written("right"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--other", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    head = "| {} | same tokens | mean KL (nats) | perplexity ratio | max abs. logit difference | beyond the limit |"
    rule = "|---|---|---|---|---|---|"
    lines = [head.format("right export"), rule]
    print("\n".join(lines))
    for name, found in right_exports(options.project, options.other):
        lines.append(line(name, found))
        print(lines[-1], flush=True)
    lines += ["", head.format("damage"), rule]
    with TemporaryDirectory() as folder:
        subject = Subject(options.project, Path(folder))
        perplexity = subject.perplexity
        for name, found in measured(subject):
            lines.append(line(name, found))
            print(lines[-1], flush=True)
    if options.write:
        text = (
            "# What the certificate of `bnb-int8` sees\n\nMade by `python benchmarks/export/sensitivity_int8.py "
            "--project runs/geoquery --other runs/demo --write`: first right exports, then\nthe model tuned on "
            f"GeoQuery (perplexity of its test rows' answers {perplexity:.3g}) with one damage of the written file "
            "at a time.\n\n"
        )
        (HERE / "sensitivity_int8.md").write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
