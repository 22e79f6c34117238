"""Tokenizer, chat template and stop tokens: what all parents must share."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError, listed
from tunesmith.export.check.apart import refuse_endless_template
from tunesmith.export.merge.members import Member
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.files import Findings, read_json_object, refuse
from tunesmith.models.load import load_tokenizer
from tunesmith.store import sha256_of_file, sha256_of_json

__all__ = ["Prompts", "generation_of", "prompts_of", "refuse_other_tokens"]


@dataclass(frozen=True)
class Prompts:
    """What the merged model is asked with.

    Attributes:
        renderer: None when no parent has a chat template.
        notes: what the user should know.
    """

    tokenizer: Any
    renderer: ChatRenderer | None
    notes: tuple[str, ...] = ()

    def as_facts(self) -> dict[str, Any]:
        """What the sealed result stores."""
        if self.renderer is None:
            return {}
        return {**self.renderer.as_facts(), "stop_ids": list(self.renderer.stop_ids)}


def prompts_of(members: Sequence[Member], reference: Path) -> Prompts:
    """The one tokenizer and template of all parents.

    A reference without a template (a base that was never taught to chat) takes that of the models.

    Raises:
        ModelError: they differ; the message shows where. Or the reference's stop tokens cannot be read.
    """
    generation_of(reference)
    folders = dict.fromkeys((reference, *(m.dir for m in members if m.adapter is None)))
    loaded: dict[str, Any] = {}
    tokenizers: dict[Path, Any] = {}
    for folder in folders:
        # Equal files are one tokenizer, which is loaded once.
        key = _identity(folder)
        if key not in loaded:
            loaded[key] = load_tokenizer(folder)
        tokenizers[folder] = loaded[key]
    first = tokenizers[reference]
    for folder, tokenizer in tokenizers.items():
        _refuse_other_words(reference, first, folder, tokenizer)
    for folder, tokenizer in tokenizers.items():
        refuse_endless_template(tokenizer, folder)
    renderers = {id(t): ChatRenderer(t) for t in loaded.values() if t.chat_template}
    chatting = {f: renderers[id(t)] for f, t in tokenizers.items() if id(t) in renderers}
    if not chatting:
        return Prompts(first, None, ("no parent has a chat template: the result has none either",))
    folder, renderer = next(iter(chatting.items()))
    for other, found in chatting.items():
        if found is renderer:
            continue
        _refuse_other_prompts(folder, renderer, other, found.as_facts())
    for member in members:
        if member.facts.get("renderer_fingerprint"):
            _refuse_other_prompts(folder, renderer, Path(member.given), member.facts)
    notes = (
        ()
        if len(chatting) == len(tokenizers)
        else (f"the chat template is that of {folder}; not all parents have one",)
    )
    return Prompts(renderer.tokenizer, renderer, notes)


def generation_of(folder: Path) -> dict[str, Any]:
    """What a model's generation_config.json says; empty when it has none.

    Raises:
        ModelError: it cannot be read.
    """
    path = folder / "generation_config.json"
    found = Findings(str(path), "")
    settings = read_json_object(path, found) if path.is_file() else None
    refuse(
        found.found,
        f"{path} cannot be read",
        "restore it, or delete it: its stop tokens are made anew",
    )
    return settings or {}


_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*")


def _identity(folder: Path) -> str:
    """Hash of the files that make a folder's tokenizer; of its model type too, which may choose its class."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    files = sorted({file for pattern in _FILES for file in folder.glob(pattern) if file.is_file()})
    return sha256_of_json(
        [config.get("model_type"), [(file.name, sha256_of_file(file)) for file in files]]
    )


def refuse_other_tokens(folder: Path, reference: Path) -> None:
    """Refuse a model whose tokens are not the reference's.

    Raises:
        ModelError: names the first tokens that differ.
    """
    _refuse_other_words(reference, load_tokenizer(reference), folder, load_tokenizer(folder))


def _refuse_other_words(reference: Path, first: Any, folder: Path, tokenizer: Any) -> None:
    if tokenizer is first:
        return
    words, known = tokenizer.get_vocab(), first.get_vocab()
    odd = sorted({number for _, number in set(words.items()) ^ set(known.items())})
    if not odd:
        return
    found, wanted = ({number: word for word, number in one.items()} for one in (words, known))
    shown = "; ".join(
        f"token {n} is {_shown(found.get(n))} there and {_shown(wanted.get(n))} here"
        for n in odd[:3]
    )
    more = f"; and {len(odd) - 3} more" if len(odd) > 3 else ""
    is_longer = not any(n in found and n in wanted for n in odd)
    raise ModelError(
        f"{folder} (there) has another vocabulary than {reference} (here): {len(words)} tokens against "
        f"{len(known)}; {shown}{more}",
        why="the models that lack a token know nothing that its row could be merged with"
        if is_longer
        else "a row of one model's embedding would be added to another token's",
        fix="add the same tokens to every model before it is trained (tokenizer.add_tokens, "
        "model.resize_token_embeddings), or merge models of one tokenizer",
    )


def _shown(word: str | None) -> str:
    return "none" if word is None else repr(word)


def _refuse_other_prompts(
    folder: Path, renderer: ChatRenderer, other: Path, facts: Mapping[str, Any]
) -> None:
    if facts["renderer_fingerprint"] == renderer.fingerprint:
        return
    before = str(facts.get("renderer_probe", "")).splitlines()
    changes = [
        line
        for line in difflib.unified_diff(renderer.probe.splitlines(), before, lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    raise ModelError(
        f"{folder} (-) and {other} (+) are asked with different prompts "
        f"(token, role, text):\n{listed(changes, limit=8)}",
        why="a merged model can answer to one chat template only, and one of the parents was trained on another",
        fix="merge models that were trained with one chat template",
    )
