"""The form `onnx`: a decoder with key-value cache, built by onnxruntime-genai, asked through onnxruntime.

Names and shapes of inputs and outputs are those that optimum, transformers.js and onnxruntime-genai
share: `input_ids`, `attention_mask`, `past_key_values.N.key|value` (batch, heads, past, size) in,
`logits`, `present.N.key|value` out. Attention is the operator GroupQueryAttention of onnxruntime's own
domain `com.microsoft`: other ONNX engines do not run it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tunesmith.config import ModelConfig
from tunesmith.engine import Chunk, Generation, NextTokenLogprobs, Sampling, sampling_seeds
from tunesmith.engine.answer import Answer
from tunesmith.engine.prompts import check_prompts, check_rows
from tunesmith.errors import EngineError, ModelError, reason_of
from tunesmith.export.folders.parts import put_beside, require, versions
from tunesmith.store import storage_errors

if TYPE_CHECKING:
    from types import TracebackType

    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.export.forms import Sources
    from tunesmith.models.chat import ChatRenderer

    Cache = Mapping[str, NDArray[np.float32]]

__all__ = ["OnnxBackend", "answers", "open_form", "write_onnx"]

MODEL = "onnx/model.onnx"
MOST_BYTES_IN_ONE_FILE = 1_900_000_000
"""A protobuf message, which an ONNX file is, must stay below 2 GiB; larger weights lie beside it."""
_NEEDED = ("onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai")


def write_onnx(sources: Sources, target: Path) -> Mapping[str, Any]:
    """`onnx/model.onnx` in float32, `genai_config.json`, config, tokenizer and chat template.

    Raises:
        ModelError: onnxruntime-genai's builder does not know the architecture.
        EnvironmentProblem: the extra `onnx` is not installed.
        StorageError: the disk refuses.
    """
    require("onnx", "onnx", *_NEEDED)
    began = time.monotonic()
    with storage_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        built = target / "built"
        _build(sources.merged, built, sources.scratch / "onnx-cache")
        (target / "onnx").mkdir()
        genai = json.loads((built / "genai_config.json").read_text(encoding="utf-8"))
        size = int(genai["model"]["decoder"]["head_size"])
        facts = _place_model(built / "model.onnx", target / MODEL, size)
        genai["model"]["decoder"]["filename"] = MODEL
        genai["model"]["eos_token_id"] = list(sources.renderer.stop_ids)
        (target / "genai_config.json").write_text(json.dumps(genai, indent=2) + "\n")
        shutil.rmtree(built)
        shutil.copyfile(sources.merged / "config.json", target / "config.json")
        put_beside(sources, target)
    return {
        "format": "float32",
        **facts,
        "seconds": round(time.monotonic() - began, 1),
        "packages": versions("onnxruntime", "onnxruntime-genai", "onnx"),
    }


def _build(source: Path, target: Path, cache: Path) -> None:
    """onnxruntime-genai's documented command, in a process of its own.

    It puts generic module names on the import path and prints as it goes.
    """
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(source), "-o", str(target), "-c", str(cache), "-p", "fp32", "-e", "cpu"]
    command += ["--extra_options", "hf_token=false"]
    done = subprocess.run(
        command,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    shutil.rmtree(cache, ignore_errors=True)
    if done.returncode != 0 or not (target / "model.onnx").is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1] if lines else f"it ended with code {done.returncode}"
        if "No space left" in done.stderr:
            raise OSError(28, "No space left on device", str(target))
        raise ModelError(
            f"the model in {source} cannot be written as ONNX",
            why=f"onnxruntime-genai's builder says: {last}",
            fix="leave `onnx` out of export.forms; its builder knows these families: Llama, "
            "SmolLM, Mistral, Qwen 2 and 3, Gemma 2 and 3, Phi 3 and 4",
        )


def _place_model(built: Path, target: Path, head_size: int) -> dict[str, Any]:
    """One file where protobuf allows it; else the graph, and the weights beside it.

    The builder leaves the caches' last size open; transformers.js reads it from the graph.
    """
    import onnx

    data = built.with_name(built.name + ".data")
    alone = data.stat().st_size <= MOST_BYTES_IN_ONE_FILE
    model = onnx.load(built, load_external_data=alone)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    for entry in (*model.graph.input, *model.graph.output):
        if entry.name.startswith(("past_key_values.", "present.")):
            entry.type.tensor_type.shape.dim[3].dim_value = head_size
    onnx.save(model, target)
    if not alone:
        # The graph names its weights' file relative to itself.
        os.replace(data, target.with_name(data.name))
    return {"opset": opsets, "external_data": not alone}


class _Session:
    """The graph in onnxruntime on the CPU, one row at a time, with its cache."""

    def __init__(self, place: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        genai = json.loads((place / "genai_config.json").read_text(encoding="utf-8"))
        decoder = genai["model"]["decoder"]
        self._shape = (1, int(decoder["num_key_value_heads"]), 0, int(decoder["head_size"]))
        self.context_tokens = int(genai["model"]["context_length"])
        with _engine_errors(place):
            self._session = onnxruntime.InferenceSession(
                str(place / MODEL), options, providers=["CPUExecutionProvider"]
            )
        self._outputs = [entry.name for entry in self._session.get_outputs()]
        self._inputs = [entry.name for entry in self._session.get_inputs()]
        self._place = place

    def empty(self) -> Cache:
        """A cache without tokens."""
        import numpy as np

        names = [name for name in self._inputs if name.startswith("past_key_values.")]
        return {name: np.zeros(self._shape, np.float32) for name in names}

    def step(
        self, ids: Sequence[int], past: Cache, total: int
    ) -> tuple[NDArray[np.float32], Cache]:
        """Logits (tokens, vocabulary) of `ids`, the last of `total` tokens, and the longer cache."""
        import numpy as np

        given: dict[str, Any] = {
            "input_ids": np.array([list(ids)], np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            **past,
        }
        if "position_ids" in self._inputs:
            given["position_ids"] = np.arange(total - len(ids), total, dtype=np.int64)[None]
        with _engine_errors(self._place):
            found = dict(zip(self._outputs, self._session.run(None, given), strict=True))
        logits: NDArray[np.float32] = found.pop("logits")[0]
        return logits, {
            name.replace("present.", "past_key_values.", 1): value for name, value in found.items()
        }


@contextmanager
def _engine_errors(place: Path) -> Iterator[None]:
    """onnxruntime's exceptions have no common base of their own: its module lists them."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [value for value in vars(state).values() if isinstance(value, type)]
    try:
        yield
    except tuple(kind for kind in kinds if issubclass(kind, Exception)) as error:
        raise EngineError(
            f"onnxruntime cannot run {place / MODEL}",
            why=reason_of(error),
            fix="export the form again",
        ) from error


def answers(
    place: Path, _sources: Sources, rows: Sequence[Sequence[int]], starts: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """See `forms.Answers`: the prompt in one pass, the answer in a second one over its cache."""
    import numpy as np

    session = _Session(place)
    for row, start in zip(rows, starts, strict=True):
        first, past = session.step(row[:start], session.empty(), start)
        blocks = [first[-1:]]
        if len(row) - 1 > start:
            blocks.append(session.step(row[start:-1], past, len(row) - 1)[0])
        yield np.concatenate(blocks)


def open_form(
    place: Path, _base: ModelConfig, renderer: ChatRenderer, _context: int
) -> OnnxBackend:
    """See `forms.Opener`."""
    require("onnx", "onnx", "onnxruntime")
    return OnnxBackend(place, renderer)


class OnnxBackend:
    """A folder of the form `onnx` in onnxruntime on the CPU; one prompt at a time.

    Args:
        place: the folder.
        renderer: its chat renderer, for texts and stop tokens.

    Raises:
        EngineError: onnxruntime refuses the file.
    """

    name = "onnxruntime"

    def __init__(self, place: Path, renderer: ChatRenderer) -> None:
        self._session = _Session(place)
        self._renderer = renderer
        self.context_tokens = self._session.context_tokens

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """See `Backend.generate`."""
        check_prompts(prompts, self.context_tokens)
        found = []
        for index, seed in enumerate(sampling_seeds(prompts, sampling.seed)):
            answer = self._answer(prompts[index], sampling)
            for _ in self._decode(prompts[index], answer, sampling, seed):
                pass
            found.append(answer.generation(len(prompts[index])))
            if on_done is not None:
                on_done(index)
        return found

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[Chunk]:
        """See `Backend.stream`."""
        check_prompts([prompt], self.context_tokens)
        answer = self._answer(prompt, sampling)
        for _ in self._decode(prompt, answer, sampling, sampling_seeds([prompt], sampling.seed)[0]):
            chunk = answer.chunk()
            if chunk.text or chunk.finish_reason is not None:
                yield chunk

    def next_token_logprobs(
        self, rows: Sequence[Sequence[int]], starts: Sequence[int], *, top: int = 256
    ) -> list[NextTokenLogprobs]:
        """See `Backend.next_token_logprobs`."""
        import torch

        check_rows(rows, starts, self.context_tokens)
        results = []
        for row, start in zip(rows, starts, strict=True):
            ids = row[:-1]
            logits, _ = self._session.step(ids, self._session.empty(), len(ids))
            found = torch.from_numpy(logits[start - 1 :]).log_softmax(-1)
            best, tokens = found.topk(min(top, found.shape[-1]), dim=-1)
            results.append(NextTokenLogprobs(tokens.numpy(), best.numpy()))
        return results

    def close(self) -> None:
        """The session goes with the object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, prompt: Sequence[int], sampling: Sampling) -> Answer:
        room = self.context_tokens - len(prompt)
        return Answer(
            self._renderer.decode,
            stop_ids=frozenset(self._renderer.stop_ids),
            stop=sampling.stop,
            max_tokens=min(sampling.max_tokens, room),
        )

    def _decode(
        self, prompt: Sequence[int], answer: Answer, sampling: Sampling, seed: int
    ) -> Iterator[None]:
        """One token an iteration, until the answer is complete."""
        import torch

        from tunesmith.engine.draw import draw

        chance = random.Random(seed)
        logits, past = self._session.step(prompt, self._session.empty(), len(prompt))
        while True:
            drawn = draw(torch.from_numpy(logits[-1:]), sampling, [chance.random()])
            answer.add(int(drawn[0]))
            yield
            if answer.finish_reason is not None:
                return
            total = len(prompt) + len(answer.token_ids)
            logits, past = self._session.step(answer.token_ids[-1:], past, total)
