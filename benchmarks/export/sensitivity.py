"""How small a damage of the weights the parity certificate sees, on a model tuned on GeoQuery.

    python benchmarks/export/sensitivity.py --project runs/geoquery [--write]

`--project` is what `make bench-geoquery` leaves: a sealed dataset and run. The trained model is merged in float32, one thing in it
is damaged at a time, and it is asked what the certificate asks (24 prompts, answers of up to 32 tokens). Prints a table, and
which forms' default limits each damage alone is beyond. `--write` puts it into `sensitivity.md` beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tunesmith.config import ModelConfig
from tunesmith.export import weights
from tunesmith.export.forms import KINDS
from tunesmith.export.parity import Tally, is_as_likely
from tunesmith.export.reference import (
    Reference,
    answer_logits,
    given_rows,
    own_logprobs,
    record_reference,
)
from tunesmith.models.adapters import load_trained
from tunesmith.models.chat import ChatRenderer, turns_of
from tunesmith.models.load import load_model, load_tokenizer, resolve_base
from tunesmith.store import Artifact, Run

HERE = Path(__file__).parent
FORMS = ("merged", "gguf-f16", "gguf-q8_0", "gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-q4_0")
PROMPTS, TOKENS = 24, 32


def newest(project: Path, stage: str) -> Artifact:
    """The newest sealed artifact of a stage."""
    places = sorted(
        project.glob(f"{stage}-*/manifest.json"), key=lambda place: place.stat().st_mtime
    )
    return Artifact.open(places[-1].parent, stage)


def figures(model: Any, reference: Reference) -> dict[str, float]:
    """What the certificate measures of a model."""
    tally = Tally()
    answers = answer_logits(model, reference.rows, reference.starts)
    for wanted, found in zip(reference.by_row(), answers, strict=True):
        tally.add_logits(wanted, found)
    given = reference.given
    for logits, row, start in zip(
        answer_logits(model, given.rows, given.starts), given.rows, given.starts, strict=True
    ):
        tally.add_given(own_logprobs(logits, row[start:]))
    found = tally.figures()
    return {
        "greedy_agreement": found["greedy_agreement"],
        "mean_kl": found["mean_kl"],
        "perplexity_ratio": float(tally.perplexity or math.nan)
        / math.exp(-(reference.given_logprob or math.nan)),
        "max_abs_dlogit": tally.largest_dlogit,
        "reference_perplexity": math.exp(-(reference.given_logprob or 0.0)),
    }


@contextmanager
def changed(tensor: torch.Tensor, change: Callable[[torch.Tensor], object]) -> Iterator[None]:
    """The tensor damaged, and as it was again."""
    before = tensor.detach().clone()
    with torch.no_grad():
        change(tensor)
    try:
        yield
    finally:
        with torch.no_grad():
            tensor.copy_(before)


def times(factor: float, *where: Any) -> Callable[[torch.Tensor], object]:
    """Multiplies the entries at a place."""
    return lambda tensor: tensor[where or ...].mul_(factor)


def put(value: float, *where: Any) -> Callable[[torch.Tensor], object]:
    """Puts a value at a place."""
    return lambda tensor: tensor.__setitem__(where, value)


def damages(model: Any, token: int) -> Iterator[tuple[str, torch.Tensor, Any]]:
    """Name, tensor, change."""
    layers = model.model.layers
    down, query = layers[15].mlp.down_proj.weight, layers[3].self_attn.q_proj.weight
    value, first = layers[15].self_attn.v_proj.weight, layers[0].mlp.down_proj.weight
    embedding, norm = model.model.embed_tokens.weight, layers[15].input_layernorm.weight
    block = (7, slice(64, 96))
    yield "nothing", down, times(1.0)
    for factor in (1.05, 1.2, 2.0, 0.0, -1.0):
        yield f"layer 15 `down_proj`, every weight x {factor:g}", down, times(factor)
    for factor in (1.05, 0.0):
        yield f"layer 3 `q_proj`, every weight x {factor:g}", query, times(factor)
        yield f"layer 15 `v_proj`, every weight x {factor:g}", value, times(factor)
    yield "layer 0 `down_proj`, every weight x 1.05", first, times(1.05)
    for factor in (1.05, 2.0):
        yield f"layer 15, first norm x {factor:g}", norm, times(factor)
    for factor in (0.0, -1.0, 16.0):
        yield f"layer 15 `down_proj`, one row x {factor:g}", down, times(factor, 7)
    yield "layer 15 `down_proj`, half of its rows x 0", down, times(0.0, slice(0, None, 2))
    for factor in (2.0, 0.0):
        yield (
            f"the embedding of one token of the answers x {factor:g}",
            embedding,
            times(factor, token),
        )
    for factor in (2.0, 16.0, 256.0, 65536.0):
        yield (
            f"layer 15 `down_proj`, the scale of one block of 32 x {factor:g}",
            down,
            times(factor, *block),
        )
    yield "layer 15 `down_proj`, one weight is 60000", down, put(60000.0, 7, 64)


def measured(model: Any, reference: Reference, base: Any) -> Iterator[tuple[str, dict[str, float]]]:
    """Every damage and its figures, as they come."""
    token = reference.answers[0][0]
    for name, tensor, change in damages(model, token):
        with changed(tensor, change):
            yield name, figures(model, reference)
    for layer in (0, 15):
        down = model.model.layers[layer].mlp.down_proj.weight
        above = model.model.layers[layer + 1].mlp.down_proj.weight.detach().clone()
        with changed(down, lambda t, other=above: t.copy_(other)):
            yield f"layer {layer} `down_proj` is layer {layer + 1}'s", figures(model, reference)
    for factor in (1.1, 2.0, 0.1):
        with changed(model.model.rotary_emb.inv_freq, rope(factor)):
            yield f"rope theta x {factor:g}", figures(model, reference)
    for dtype in (torch.float16, torch.bfloat16):
        kept = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.copy_(kept[name].to(dtype))
        yield f"no damage: every weight rounded to {str(dtype)[6:]}", figures(model, reference)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.copy_(kept[name])
    plain = dict(base.named_parameters())
    for factor in (0.95, 0.9, 1.1, 0.5, 0.0):
        kept = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.copy_(plain[name] + factor * (kept[name] - plain[name]))
        yield f"the adapter's scale x {factor:g}", figures(model, reference)
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                tensor.copy_(kept[name])


def rope(factor: float) -> Callable[[torch.Tensor], object]:
    """inv_freq of another theta: theta ** (-i / n), i = 0, 1, ... n - 1."""

    def change(frequencies: torch.Tensor) -> None:
        n = len(frequencies)
        frequencies.mul_(factor ** (-torch.arange(n, dtype=torch.float32) / n))

    return change


def beyond(found: dict[str, float]) -> list[str]:
    """Forms whose default limits these figures are beyond."""
    names = []
    for form in FORMS:
        limits = KINDS[form].limits
        if (
            found["greedy_agreement"] < limits.greedy_agreement
            or found["mean_kl"] > limits.mean_kl
            or not is_as_likely(
                found["perplexity_ratio"],
                limits.perplexity_ratio,
                min(max(1.0, math.log(found["reference_perplexity"])), limits.most_nats),
            )
            or found["max_abs_dlogit"] > limits.max_abs_dlogit
        ):
            names.append(form.removeprefix("gguf-"))
    return names


def line(name: str, found: dict[str, float]) -> str:
    """One row of the table."""
    seen = beyond(found)
    forms = "all" if len(seen) == len(FORMS) else ", ".join(seen) or "none"
    return (
        f"| {name} | {100 * found['greedy_agreement']:.1f} % | {found['mean_kl']:.2g} | "
        f"{found['perplexity_ratio']:.4f} | {found['max_abs_dlogit']:.3g} | {forms} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    data, train = newest(options.project, "data"), newest(options.project, "train")
    base = resolve_base(ModelConfig())
    renderer = ChatRenderer(load_tokenizer(base))
    text = data.path("test.jsonl").read_text(encoding="utf-8").splitlines()[: options.prompts]
    rows = [turns_of(json.loads(row)) for row in text]
    prompts = [renderer.prompt_ids(row[:-1]) for row in rows]
    given = given_rows(renderer, rows, TOKENS)
    lines = [
        "| damage | same tokens | mean KL (nats) | perplexity ratio | max abs. logit difference | beyond the limits of |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    with TemporaryDirectory() as folder, Run.open(Path(folder) / "x", "export", inputs={}) as at:
        model = weights.merge(load_trained(train, base, torch.float32))
        reference = record_reference(model, renderer, prompts, given, TOKENS, at, lambda: None)
        for name, found in measured(model, reference, load_model(base, torch.float32)):
            lines.append(line(name, found))
            print(lines[-1], flush=True)
        asked = f"{len(rows)} prompts, {len(reference.logits)} positions of the model's own answers, {given.n_tokens} tokens of the user's, "
        asked += f"to which the model gives a perplexity of {math.exp(-(reference.given_logprob or 0.0)):.0f}."
    if options.write:
        head = (
            "# What the certificate sees\n\nMade by `python benchmarks/export/sensitivity.py --project "
            f"runs/geoquery --prompts {options.prompts} --write`: the model tuned on GeoQuery, merged in\n"
            "float32, one damage at a time. "
        )
        tail = (
            " The last column compares\neach damage alone with the default limits; a form's own rounding "
            "comes on top of it.\n\n"
        )
        (HERE / "sensitivity.md").write_text(head + asked + tail + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
