"""Measure one exported form: load its written files by the program that its users have, ask it, and compare."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form, ModelConfig
from tunesmith.errors import ModelError, ParityError
from tunesmith.export.forms import KINDS, PATHS, FormKind, Limits, Sources, finite
from tunesmith.export.metadata import read_facts, read_metadata
from tunesmith.export.parity import FormParity, Tally
from tunesmith.export.quantise.policy import FILE_TYPES
from tunesmith.export.reference import Given, Reference, own_logprobs
from tunesmith.export.same_weights import check_weights
from tunesmith.export.settings import check_settings, check_vocabulary, read_settings
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_tokenizer
from tunesmith.store import sha256_of_file

if TYPE_CHECKING:
    from tunesmith.engine import Backend
    from tunesmith.engine.backends.llama_cpp import LlamaBackend

__all__ = ["Asked", "Expected", "ask_llama", "files_of", "measure", "open_llama"]

TOP_TOKENS = 64
"""Most likely tokens that llama.cpp reports at each position."""
SLOTS = 1
"""Rows that llama.cpp is asked about at a time. Several are faster, but its kernels round by how many rows
happen to meet in a batch, and the figures of a certificate would differ from run to run."""
FREE_ANSWERS = 4
"""Answers that llama.cpp also generates freely, to see that they end where the reference's end."""


@dataclass(frozen=True)
class Expected:
    """What every form must equal.

    Attributes:
        sources: what the forms are made from; its renderer is the one that was trained with.
        reference: the trained model's answers and logits.
    """

    sources: Sources
    reference: Reference


@dataclass(frozen=True)
class Asked:
    """What a form said.

    Attributes:
        stops: answers that were generated freely, to see that they end.
        kl: over which tokens the KL was taken.
        engine: what computed it.
        has_logits: whether the engine gives all logits.
    """

    tally: Tally
    stops: int
    kl: str
    engine: str
    has_logits: bool


def files_of(form: Form, bundle: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of each file of a form."""
    place = bundle / PATHS[form]
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return {f.relative_to(bundle).as_posix(): sha256_of_file(f) for f in files if f.is_file()}


def measure(form: Form, bundle: Path, expected: Expected, limits: Limits) -> FormParity:
    """The figures of a form in a bundle's folder.

    Args:
        bundle: folder with the form's files and `tokenizer/`.
        limits: carried into the result; nothing is refused for being beyond them.

    Raises:
        ParityError: template, stop token or vocabulary are not the trained ones, a GGUF file is of
            another type than its name says, a setting is not that of what the form was made from, the form
            computes numbers that are not finite, or a weight that should be the merged model's is not.
        ModelError, EngineError: the form cannot be loaded.
    """
    began = time.monotonic()
    sha256 = files_of(form, bundle)
    kind, reference = KINDS[form], expected.reference
    place, renderer = bundle / kind.path, expected.sources.renderer
    if kind.template == "gguf":
        fingerprint = _check_gguf(place, bundle, renderer)
        _check_file_type(form, place)
    else:
        fingerprint = _check_folder(place if kind.template == "folder" else None, bundle, renderer)
    settings = check_settings(form, place, expected.sources)
    asked = _ask(kind, place, expected)
    logprob = reference.given_logprob
    found = FormParity(
        form=form,
        limits=finite(limits),
        kl=asked.kl,
        max_abs_dlogit=asked.tally.largest_dlogit if asked.has_logits else None,
        max_abs_dlogprob=None if asked.has_logits else asked.tally.largest_dlogprob,
        perplexity=asked.tally.perplexity,
        reference_perplexity=None if logprob is None else math.exp(min(700.0, -logprob)),
        given_tokens=len(asked.tally.given),
        renderer_fingerprint=fingerprint,
        stops_checked=asked.stops,
        ended=sum(reference.ended),
        engine=asked.engine,
        sha256=sha256,
        asked=reference.identity,
        settings=settings,
        **asked.tally.figures(),
    )
    # Only then: figures that are beyond a limit say more than that something differs.
    weights = "" if found.beyond() else check_weights(form, place, expected.sources.merged)
    return replace(found, weights=weights, seconds=round(time.monotonic() - began, 3))


def _ask(kind: FormKind, place: Path, expected: Expected) -> Asked:
    if kind.answers:
        return _ask_logits(kind, place, expected)
    if kind.ask:
        asked: Asked = kind.llama_asker()(place, expected.sources, expected.reference)
        return asked
    return ask_llama(place, expected.reference)


def _ask_logits(kind: FormKind, place: Path, expected: Expected) -> Asked:
    """Teacher forcing through the reloaded files by an engine that gives all logits."""
    reference, tally = expected.reference, Tally()
    given, n_rows = reference.given, len(reference.rows)
    rows, starts = [*reference.rows, *given.rows], [*reference.starts, *given.starts]
    wanted = reference.by_row()
    said = kind.asker()(place, expected.sources, rows, starts)
    # Strict: a form that says nothing about some rows must not be certified by the others.
    for index, found in zip(range(len(rows)), said, strict=True):
        if index < n_rows:
            tally.add_logits(next(wanted), found)
        else:
            tally.add_given(own_logprobs(found, rows[index][starts[index] :]))
    return Asked(tally, 0, "all tokens", kind.engine(), has_logits=True)


def ask_llama(path: Path, reference: Reference, adapter: Path | None = None) -> Asked:
    """Teacher forcing and a few free answers through the engine that also serves.

    Args:
        path: a GGUF model.
        adapter: a GGUF LoRA file that is put on it.
    """
    from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings

    given, tally = reference.given, Tally()
    # Room for a free answer that fails to stop.
    context = max(map(len, [*reference.rows, *given.rows])) + 64
    settings = LlamaSettings(context_tokens=context, slots=SLOTS, lora_path=adapter)
    with LlamaBackend(path, settings) as backend:
        # Prompts that start alike follow each other, so that a slot keeps what they share.
        order = sorted(range(len(reference.rows)), key=lambda index: reference.rows[index])
        found = backend.next_token_logprobs(
            [reference.rows[index] for index in order],
            [reference.starts[index] for index in order],
            top=min(TOP_TOKENS, reference.logits.shape[1]),
        )
        by_index = dict(zip(order, found, strict=True))
        for index, wanted in enumerate(reference.by_row()):
            tally.add_top(wanted, by_index[index])
        for logprobs in backend.own_logprobs(sorted(given.rows), _starts_sorted(given)):
            tally.add_given(logprobs)
        stops = _check_stops(backend, reference, tally.same_rows)
    kl = f"lower bound: {TOP_TOKENS} most likely tokens, the others as one"
    engine = f"llama.cpp (xllamacpp {version('xllamacpp')})"
    return Asked(tally, stops, kl, engine, has_logits=False)


def open_llama(
    place: Path, _base: ModelConfig, _renderer: ChatRenderer, context: int
) -> LlamaBackend:
    """See `forms.Opener`."""
    from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings

    return LlamaBackend(place, LlamaSettings(context_tokens=context))


def _starts_sorted(given: Given) -> list[int]:
    return [start for _, start in sorted(zip(given.rows, given.starts, strict=True))]


def _check_stops(backend: Backend, reference: Reference, same_rows: Sequence[bool]) -> int:
    """Where every expectation agreed, a free answer must be the same and end at the same token.

    Raises:
        ParityError: an answer goes on beyond the stop token, or differs.
    """
    from tunesmith.engine import Sampling

    longest = max(map(len, reference.answers))
    chosen = [
        (prompt, answer)
        for prompt, answer, same, ended in zip(
            reference.prompts, reference.answers, same_rows, reference.ended, strict=True
        )
        if same and ended
    ][:FREE_ANSWERS]
    if not chosen:
        return 0
    answers = backend.generate([prompt for prompt, _ in chosen], Sampling(max_tokens=longest + 8))
    for (_, wanted), found in zip(chosen, answers, strict=True):
        if found.token_ids[: len(wanted)] == wanted and len(found.token_ids) > len(wanted):
            raise ParityError(
                f"a free answer does not stop at the stop token (id {wanted[-1]}): "
                f"it goes on for {len(found.token_ids) - len(wanted)} tokens"
            )
    return len(chosen)


def _check_folder(own: Path | None, bundle: Path, renderer: ChatRenderer) -> str:
    """Template and stop tokens of a folder with a tokenizer; returns the fingerprint.

    Args:
        own: a form's folder that holds a tokenizer; None for a form that uses the bundle's.

    Raises:
        ParityError: they are not the trained ones.
    """
    folder = own or bundle / "tokenizer"
    found = _renderer(_tokenizer(folder), folder)
    _same_fingerprint(found, renderer, folder)
    if own is not None:
        path = folder / "generation_config.json"
        settings = read_settings(path) if path.is_file() else {}
        eos = settings.get("eos_token_id")
        stops = eos if isinstance(eos, list) else [eos]
        # As texts: in a damaged file they may be anything.
        if set(map(str, stops)) != set(map(str, renderer.stop_ids)):
            raise ParityError(
                f"{path} stops at the tokens {sorted(map(str, stops))}, the trained model at "
                f"{list(renderer.stop_ids)}"
            )
    return found.fingerprint


def _check_gguf(path: Path, bundle: Path, renderer: ChatRenderer) -> str:
    """Template, stop token and vocabulary in a GGUF file; returns the fingerprint.

    Raises:
        ParityError: they are not the trained ones.
    """
    facts = read_facts(path)
    if not facts.chat_template:
        raise ParityError(f"{path.name} has no chat template")
    tokenizer = copy.copy(_tokenizer(bundle / "tokenizer"))
    tokenizer.chat_template = facts.chat_template
    found = _renderer(tokenizer, path)
    _same_fingerprint(found, renderer, path)
    if facts.chat_template != renderer.template:
        raise ParityError(
            f"the chat template in {path.name} is not the trained one, letter by letter"
        )
    check_vocabulary(facts, path, renderer)
    return found.fingerprint


def _tokenizer(folder: Path) -> Any:
    """A form's tokenizer from its files; several forms use the bundle's, which is loaded once."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.suffix != ".safetensors")
    return _loaded(folder, tuple((file.name, sha256_of_file(file)) for file in files))


@lru_cache(maxsize=2)
def _loaded(folder: Path, _content: tuple[tuple[str, str], ...]) -> Any:
    return load_tokenizer(folder)


def _renderer(tokenizer: Any, place: Path) -> ChatRenderer:
    """The renderer of a form, which may refuse a template that somebody has changed.

    Raises:
        ParityError: it does.
    """
    try:
        found = ChatRenderer(tokenizer)
        _ = found.fingerprint  # Only now the template is run.
    except ModelError as error:
        raise ParityError(
            f"the chat template in {place.name} is not the trained one: {error.what}"
        ) from error
    return found


def _check_file_type(form: Form, path: Path) -> None:
    """That a GGUF file is of the form's type: F16 under the name of Q8_0 would pass every limit.

    Raises:
        ParityError: it is another form's.
    """
    names: dict[Any, str] = {kind.number: f"gguf-{name}" for name, kind in FILE_TYPES.items()}
    found = read_metadata(path).get("general.file_type")
    if names.get(found) != form:
        raise ParityError(
            f"{path.name} is not {form}: by its general.file_type it is {names.get(found, found)}"
        )


def _same_fingerprint(found: ChatRenderer, renderer: ChatRenderer, place: Path) -> None:
    if found.fingerprint != renderer.fingerprint:
        raise ParityError(
            f"the chat template of {place.name} is not the one that was trained with: its "
            f"fingerprint is {found.fingerprint[:12]}, the trained one's {renderer.fingerprint[:12]}"
        )
    if set(found.stop_ids) != set(renderer.stop_ids):
        raise ParityError(
            f"the tokenizer of {place.name} ends answers at the tokens {list(found.stop_ids)}, the "
            f"trained model at {list(renderer.stop_ids)}"
        )
