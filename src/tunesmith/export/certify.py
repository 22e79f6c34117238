"""Measure one exported form: load it as its users will, ask it, and compare."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import Form
from tunesmith.errors import ModelError, ParityError
from tunesmith.export.metadata import GgufFacts, read_facts
from tunesmith.export.parity import FormParity, Tally
from tunesmith.export.plan import PATHS
from tunesmith.export.reference import Reference, answer_logits
from tunesmith.models.adapters import put_adapter
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import BaseModel, load_model, load_tokenizer
from tunesmith.store import sha256_of_file

if TYPE_CHECKING:
    from tunesmith.engine import Backend

__all__ = ["Expected", "files_of", "measure"]

TOP_TOKENS = 64
"""Most likely tokens that llama.cpp reports at each position."""
FREE_ANSWERS = 4
"""Answers that llama.cpp also generates freely, to see that they end where the reference's end."""


@dataclass(frozen=True)
class Expected:
    """What every form must equal.

    Attributes:
        base: the model that an exported adapter is put on.
        renderer: the chat renderer that the run was trained with.
        reference: the trained model's answers and logits.
    """

    base: BaseModel
    renderer: ChatRenderer
    reference: Reference


def files_of(form: Form, bundle: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of each file of a form."""
    place = bundle / PATHS[form]
    files = sorted(place.rglob("*")) if place.is_dir() else [place]
    return {f.relative_to(bundle).as_posix(): sha256_of_file(f) for f in files if f.is_file()}


def measure(form: Form, bundle: Path, expected: Expected, limit: float) -> FormParity:
    """The figures of a form in a bundle's folder.

    Args:
        bundle: folder with the form's files and `tokenizer/`.
        limit: carried into the result; nothing is refused for being below it.

    Raises:
        ParityError: template, stop token or vocabulary are not the trained ones, or the form
            computes numbers that are not finite.
        ModelError, EngineError: the form cannot be loaded.
    """
    began = time.monotonic()
    sha256 = files_of(form, bundle)
    if form.startswith("gguf"):
        fingerprint = _check_gguf(bundle / PATHS[form], bundle, expected.renderer)
        tally, stops = _ask_llama(bundle / PATHS[form], expected.reference)
        kl = f"lower bound: {TOP_TOKENS} most likely tokens, the others as one"
        engine = f"llama.cpp (xllamacpp {version('xllamacpp')})"
    else:
        fingerprint = _check_folder(form, bundle, expected.renderer)
        tally, stops = _ask_transformers(form, bundle, expected), 0
        kl = "all tokens"
        engine = f"transformers {version('transformers')}, float32"
    return FormParity(
        form=form,
        limit=limit,
        kl=kl,
        max_abs_dlogit=None if form.startswith("gguf") else tally.largest_dlogit,
        renderer_fingerprint=fingerprint,
        stops_checked=stops,
        engine=engine,
        sha256=sha256,
        seconds=round(time.monotonic() - began, 3),
        **tally.figures(),
    )


def _ask_transformers(form: Form, bundle: Path, expected: Expected) -> Tally:
    """Teacher forcing through the reloaded files, computed in float32."""
    model = _reloaded(form, bundle, expected.base)
    reference, tally = expected.reference, Tally()
    blocks = answer_logits(model, reference.rows, reference.starts)
    for wanted, found in zip(reference.by_row(), blocks, strict=True):
        tally.add_logits(wanted, found)
    return tally


def _reloaded(form: Form, bundle: Path, base: BaseModel) -> Any:
    import torch

    if form == "merged":
        return load_model(bundle / PATHS["merged"], torch.float32)
    return put_adapter(load_model(base, torch.float32), bundle / PATHS["adapter"])


def _ask_llama(path: Path, reference: Reference) -> tuple[Tally, int]:
    """Teacher forcing and a few free answers through the engine that also serves."""
    from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings

    # Room for a free answer that fails to stop.
    context = max(map(len, reference.rows)) + 64
    tally = Tally()
    with LlamaBackend(path, LlamaSettings(context_tokens=context)) as backend:
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
        stops = _check_stops(backend, reference, tally.same_rows)
    return tally, stops


def _check_stops(backend: Backend, reference: Reference, same_rows: Sequence[bool]) -> int:
    """Where every expectation agreed, a free answer must be the same and end at the same token.

    Raises:
        ParityError: an answer goes on beyond the stop token, or differs.
    """
    from tunesmith.engine import Sampling

    longest = max(map(len, reference.answers))
    chosen = [
        (prompt, answer)
        for prompt, answer, same in zip(
            reference.prompts, reference.answers, same_rows, strict=True
        )
        if same and len(answer) < longest
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


def _check_folder(form: Form, bundle: Path, renderer: ChatRenderer) -> str:
    """Template and stop tokens of a folder with a tokenizer; returns the fingerprint.

    Raises:
        ParityError: they are not the trained ones.
    """
    folder = bundle / ("merged" if form == "merged" else "tokenizer")
    found = ChatRenderer(load_tokenizer(folder))
    _same_fingerprint(found, renderer, folder)
    if form == "merged":
        path = folder / "generation_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        eos = settings.get("eos_token_id")
        stops = set(eos) if isinstance(eos, list) else {eos}
        if stops != set(renderer.stop_ids):
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
    tokenizer = copy.copy(load_tokenizer(bundle / "tokenizer"))
    tokenizer.chat_template = facts.chat_template
    try:
        found = ChatRenderer(tokenizer)
    except ModelError as error:
        raise ParityError(
            f"the chat template in {path.name} is not the trained one: {error.what}"
        ) from error
    _same_fingerprint(found, renderer, path)
    if facts.chat_template != renderer.template:
        raise ParityError(
            f"the chat template in {path.name} is not the trained one, letter by letter"
        )
    _check_vocabulary(facts, path, renderer)
    return found.fingerprint


def _check_vocabulary(facts: GgufFacts, path: Path, renderer: ChatRenderer) -> None:
    tokenizer = renderer.tokenizer
    if facts.eos_id != tokenizer.eos_token_id:
        raise ParityError(
            f"{path.name} ends answers at token {facts.eos_id}, the trained model at "
            f"{tokenizer.eos_token_id}"
        )
    if facts.model != "gpt2":
        return  # Other tokenizers' texts are stored in another spelling.
    if not facts.pre or facts.pre == "default":
        raise ParityError(
            f"{path.name} does not say how text is split before the merges (tokenizer.ggml.pre)"
        )
    wanted = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), len(facts.tokens)))))
    wrong = [i for i, text in enumerate(wanted) if text is not None and text != facts.tokens[i]]
    added = set(tokenizer.get_added_vocab().values())
    wrong = [i for i in wrong if i not in added]
    if wrong or len(facts.tokens) < len(tokenizer):
        raise ParityError(
            f"the vocabulary of {path.name} is not the trained one: {len(facts.tokens)} tokens for "
            f"{len(tokenizer)}, {len(wrong)} differ"
        )


def _same_fingerprint(found: ChatRenderer, renderer: ChatRenderer, place: Path) -> None:
    if found.fingerprint != renderer.fingerprint:
        raise ParityError(
            f"the chat template of {place.name} is not the one that was trained with: its "
            f"fingerprint is {found.fingerprint[:12]}, the trained one's {renderer.fingerprint[:12]}"
        )
