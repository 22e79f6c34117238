"""Does an importance matrix of the user's own rows help? Each file type without one, and with one of more and more rows.

    python benchmarks/export/quantise_importance.py MERGED_FOLDER DATASET_FOLDER --json importance.json

MERGED_FOLDER: a model in float32, as `scratch/float32` of an unfinished export has it (or any folder of weights).
DATASET_FOLDER: a sealed dataset; the matrix is measured on `train.jsonl`, the figures are of the answers in `test.jsonl`
(or another `--split`, where the tests' answers are written in another manner than those of the training rows).
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tunesmith.export.convert import open_converter, to_gguf
from tunesmith.export.quantise import kernels
from tunesmith.export.quantise.forms import _names, useful
from tunesmith.export.quantise.importance import (
    measure_importance,
    read_importance,
    write_importance,
)
from tunesmith.export.quantise.policy import Model, choose_types
from tunesmith.export.reference import given_rows
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.files.gguf import GgufFile, look_at_gguf
from tunesmith.models.load import load_model, load_tokenizer
from tunesmith.store import Artifact

KINDS = ("q6_k", "q5_k_m", "q4_k_m", "q4_0")


def turns(dataset: Artifact, split: str, count: int) -> list[Any]:
    """The first conversations of a split."""
    with dataset.path(f"{split}.jsonl").open(encoding="utf-8") as stream:
        rows = map(json.loads, itertools.islice(stream, count))
        return [
            [*row["prompt"], *row["chosen"]] if "prompt" in row else row["messages"] for row in rows
        ]


def batches(given: Any) -> Iterator[tuple[Tensor, list[tuple[int, int, int]]]]:
    """Rows of about one length, filled up to the right, and where their answers stand: (row, first, end)."""
    order = sorted(range(len(given.rows)), key=lambda index: len(given.rows[index]))
    for start in range(0, len(order), 8):
        chosen = order[start : start + 8]
        ids = torch.zeros(len(chosen), len(given.rows[chosen[-1]]), dtype=torch.long)
        for place, index in enumerate(chosen):
            ids[place, : len(given.rows[index])] = torch.tensor(given.rows[index])
        yield ids, [(i, given.starts[i], len(given.rows[i])) for i in chosen]


def logprobs(model: Any, given: Any) -> tuple[Tensor, Tensor]:
    """(tokens, vocabulary) log probabilities at each token of the answers, and the tokens."""
    found, tokens = [], []
    with torch.inference_mode():
        for ids, places in batches(given):
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            for place, (index, first, end) in enumerate(places):
                logits = model.get_output_embeddings()(hidden[place, first - 1 : end - 1])
                found.append(logits.log_softmax(-1))
                tokens.append(torch.tensor(given.rows[index][first:end]))
    return torch.cat(found), torch.cat(tokens)


def figures(model: Any, given: Any, wanted: Tensor) -> dict[str, float]:
    """KL from the float32 model over all tokens, agreement of the best one, and perplexity of the answers."""
    found, tokens = logprobs(model, given)
    kl = torch.cat(
        [
            (p.exp() * (p - q)).sum(-1)
            for p, q in zip(wanted.split(128), found.split(128), strict=True)
        ]
    )
    own = found.gather(1, tokens[:, None])[:, 0]
    return {
        "mean_kl": round(float(kl.double().mean()), 6),
        "p99_kl": round(float(kl.quantile(0.99)), 4),
        "agreement": round(float((wanted.argmax(-1) == found.argmax(-1)).double().mean()), 5),
        "perplexity": round(math.exp(-float(own.double().mean())), 5),
        "tokens": len(tokens),
    }


def rounded(source: Any, target: Any, folder: Path, kind: Any, file: GgufFile, matrix: Any) -> None:
    """The weights of `source` in `target`, as they come back out of a GGUF file of this type.

    Each row is quantised by itself, so it does not matter that the converter puts some rows elsewhere.
    """
    converter = open_converter(folder)
    chosen = choose_types(kind, file.tensors, Model.of(file), importance=matrix is not None)
    own = dict(target.named_parameters())
    for name, weight in source.named_parameters():
        tensor = converter.map_tensor_name(name)
        rows = weight.detach().numpy()
        if rows.ndim == 2:
            form = chosen[tensor].type
            values = None if matrix is None else matrix.values.get(tensor)
            rows = kernels.to_float(kernels.quantised(rows, form, values), form, rows.shape[1])
        own[name].data.copy_(torch.from_numpy(rows))


def variants(matrix: Any, file: GgufFile, kind: Any) -> Iterator[tuple[str, Any]]:
    """What is weighed: nothing; what the export weighs; and all that llama.cpp weighs, where that is more."""
    if matrix is None:
        yield "nothing", None
        return
    part = useful(matrix, file, kind)
    yield "as exported", part
    if part is None or len(part.values) < len(matrix.values):
        yield "all", matrix


def main() -> None:
    """Measure every file type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--split", default="test", help="whose answers are asked")
    parser.add_argument("--asked", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    dataset = Artifact.open(args.dataset)
    renderer = ChatRenderer(load_tokenizer(args.model))
    given = given_rows(renderer, turns(dataset, args.split, args.asked), 64)
    model = load_model(args.model, torch.float32)
    other = copy.deepcopy(model)
    wanted, _tokens = logprobs(model, given)
    results: list[dict[str, Any]] = [
        {"model": args.model.name, "kind": "float32", "rows": 0} | figures(model, given, wanted)
    ]
    print(results[0], flush=True)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        to_gguf(args.model, place / "f32.gguf", "f32", "model")
        matrices: dict[int, Any] = {0: None}
        for count in args.rows:
            rows = [renderer.render(t).token_ids for t in turns(dataset, "train", count)]
            began = time.process_time()
            sums = measure_importance(model, _names(args.model), rows)
            print(f"{len(rows)} rows: {time.process_time() - began:.1f} CPU seconds", flush=True)
            write_importance(place / "i.gguf", sums, "train.jsonl", len(rows), max(map(len, rows)))
            matrices[count] = read_importance(place / "i.gguf")
        header = look_at_gguf(place / "f32.gguf")
        for kind, (count, matrix) in itertools.product(args.kinds, matrices.items()):
            for what, each in variants(matrix, header, kind):
                rounded(model, other, args.model, kind, header, each)
                result = {"model": args.model.name, "kind": kind, "rows": count, "weighed": what}
                results.append(result | figures(other, given, wanted))
                print(results[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
