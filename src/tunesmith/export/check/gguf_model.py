"""A GGUF file as a model: its numbers against its tensors, vocabulary, template, stop tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.export.check.report import Desk
from tunesmith.export.check.sandbox import ANSWER
from tunesmith.export.check.tokens import check_template
from tunesmith.models.files import (
    Findings,
    GgufFile,
    look_at_gguf,
    parts_of_gguf,
)

__all__ = ["check_gguf"]

_FIX = "convert or export the model again"
ENDS = frozenset(
    {
        *(
            "<|im_end|>",
            "<|eot_id|>",
            "<end_of_turn>",
            "<turn|>",
            "<|end|>",
            "<|endoftext|>",
            "</s>",
        ),
        *(
            "<|eom_id|>",
            "<|end_of_text|>",
            "<EOT>",
            "<|return|>",
            "<|call|>",
            "<|END_OF_TURN_TOKEN|>",
        ),
        *(
            "<|eot|>",
            "<|eom|>",
            "<eos>",
            "<|end▁of▁sentence|>",
            "<|end_of_turn|>",
            "[EOS]",
            "_<EOT>",
        ),
    }
)
"""Texts of tokens at which llama.cpp ends an answer by itself (`src/llama-vocab.cpp`)."""


def check_gguf(desk: Desk, path: Path) -> GgufFile:
    """The header's structure, then what it says."""
    file = look_at_gguf(path, desk.name(path))
    desk.take(path, file.findings)
    found = desk.about(path, _FIX)
    _check_parts(desk, found, file)
    if not file.is_sound:
        return file
    kinds: dict[str, int] = {}
    for tensor in file.tensors.values():
        kinds[tensor.type.name] = kinds.get(tensor.type.name, 0) + 1
    architecture = file.get("general.architecture")
    desk.tell(
        path,
        architecture=str(architecture),
        version=file.version,
        tensors=len(file.tensors),
        formats=kinds,
        bytes=file.size_bytes,
    )
    if not isinstance(architecture, str) or not architecture:
        why = "nothing can load it"
        found.error("gguf-architecture", "key general.architecture", "it names none", why)
        return file
    if file.get("general.type") == "adapter" or "adapter.type" in file.keys:
        _check_lora(found, file)
        return file
    if not file.tensors:
        told = "it holds no tensors: a vocabulary at most"
        found.error("gguf-missing", "", told, "nothing can be computed with it")
        return file
    if file.get("split.no", 0) == 0:
        _check_numbers(found, file, architecture)
        _check_vocabulary(desk, found, file)
    return file


def _check_parts(desk: Desk, found: Findings, file: GgufFile) -> None:
    """The other files of a model in parts."""
    count = file.get("split.count", 0)
    if not isinstance(count, int) or count < 2:
        return
    if count > 10_000:
        found.error("gguf-parts", "key split.count", f"it names {count:,} parts")
        return
    for part in parts_of_gguf(file):
        if not part.is_file():
            told = f"its part {part.name} is not there"
            found.error(
                "gguf-parts", "key split.count", told, "llama.cpp opens all parts", "copy it too"
            )
        elif part.parent != desk.root:
            other = look_at_gguf(part, desk.name(part))
            desk.take(part, other.findings)


def _check_lora(found: Findings, file: GgufFile) -> None:
    alpha = file.get("adapter.lora.alpha")
    if not isinstance(alpha, float) or not alpha > 0:
        told = f"it is {alpha!r}"
        found.error(
            "gguf-lora", "key adapter.lora.alpha", told, "its effect would be lost or wrong"
        )
    for name, tensor in file.tensors.items():
        stem, _, kind = name.rpartition(".")
        other = {"lora_a": "lora_b", "lora_b": "lora_a"}.get(kind)
        if other is None:
            continue
        pair = file.tensors.get(f"{stem}.{other}")
        if pair is None:
            found.error("gguf-lora", f"tensor {name}", f"there is no {stem}.{other} to it")
        elif not (len(tensor.shape) == len(pair.shape) == 2):
            told = f"its shape is {list(tensor.shape)}, that of {stem}.{other} {list(pair.shape)}"
            found.error("gguf-lora", f"tensor {name}", told, "a product takes two matrices")
        elif kind == "lora_a" and tensor.shape[-1] != pair.shape[0]:
            told = f"its rank is {tensor.shape[-1]}, that of {stem}.{other} {pair.shape[0]}"
            found.error("gguf-lora", f"tensor {name}", told)


def _check_numbers(found: Findings, file: GgufFile, architecture: str) -> None:
    """What a model cannot be without; that the numbers are plausible was seen with the header."""
    for count in ("block_count", "embedding_length", "context_length"):
        if file.get(f"{architecture}.{count}") is None:
            found.error(
                "gguf-number", f"key {architecture}.{count}", "it is not there", "loading fails"
            )
    _check_blocks(found, file, file.get(f"{architecture}.block_count"), architecture)
    embedding = file.tensors.get("token_embd.weight")
    width = file.get(f"{architecture}.embedding_length")
    if embedding is None:
        why = "no token has a vector"
        found.error("gguf-missing", "tensor token_embd.weight", "it is not there", why)
        return
    if width is not None and embedding.shape[:1] != (width,):
        told = f"its shape is {list(embedding.shape)}, {architecture}.embedding_length is {width}"
        found.error("gguf-shape", "tensor token_embd.weight", told, "loading fails")
    tokens = file.length("tokenizer.ggml.tokens")
    rows = embedding.shape[1] if len(embedding.shape) > 1 else 0
    if tokens and tokens != rows:
        told = f"it has {rows:,} rows, the vocabulary {tokens:,} tokens"
        found.error("tokenizer-vocabulary", "tensor token_embd.weight", told, "loading fails")


def _check_blocks(found: Findings, file: GgufFile, count: Any, architecture: str) -> None:
    if not isinstance(count, int) or "split.count" in file.keys:
        return  # The other parts have the other layers.
    have = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    missing = [number for number in range(count) if str(number) not in have]
    if missing:
        told = f"{len(missing)} of {count} layers have no tensor, such as blk.{missing[0]}"
        found.error("gguf-missing", f"key {architecture}.block_count", told, "loading fails")
    beyond = sorted(number for number in have if not number.isdecimal() or int(number) >= count)
    if beyond:
        told = f"there are tensors of blk.{beyond[0]}; {architecture}.block_count is {count}"
        found.warning("gguf-extra", f"tensor blk.{beyond[0]}", told, "nothing reads them")


def _check_vocabulary(desk: Desk, found: Findings, file: GgufFile) -> None:
    count = file.length("tokenizer.ggml.tokens")
    if not count:
        told = "there is no vocabulary"
        found.error(
            "tokenizer-missing", "key tokenizer.ggml.tokens", told, "no text can become tokens"
        )
        return
    desk.tell(file.path, vocabulary=count)
    pre = file.get("tokenizer.ggml.pre")
    if file.get("tokenizer.ggml.model") == "gpt2" and pre in (None, "", "default"):
        told = "it does not say how text is split before the merges"
        found.warning(
            "tokenizer-split", "key tokenizer.ggml.pre", told, "text becomes other tokens"
        )
    ids = {}
    for name in ("bos", "eos", "eot", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        value = file.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or not 0 <= value < count:
            told = f"it is {value!r}; token ids go from 0 to {count - 1:,}"
            found.error(
                "stop-token" if name in ("eos", "eot") else "tokenizer-special", f"key {key}", told
            )
        else:
            ids[name] = value
    if "eos" not in ids and "eot" not in ids:
        told = "no token ends an answer"
        found.warning(
            "stop-token", "key tokenizer.ggml.eos_token_id", told, "answers may never end"
        )
    _check_template(desk, found, file, ids)


def _check_template(desk: Desk, found: Findings, file: GgufFile, ids: Mapping[str, int]) -> None:
    key = "key tokenizer.chat_template"
    template = file.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template:
        fix = "convert a model whose tokenizer has one"
        why = "llama.cpp and Ollama then guess one"
        found.warning("template-missing", key, "there is no chat template", why, fix)
        return
    tokens: list[str] = file.get("tokenizer.ggml.tokens")
    special = {f"{name}_token": tokens[ids[name]] for name in ("bos", "eos") if name in ids}
    before = len(found.found)
    texts = check_template(found, template, special)
    found.found[before:] = [_at(one, key) for one in found.found[before:]]
    if texts is not None and texts[1] is not None:
        _check_end(found, texts[1][0], tokens, ids)
    _check_sealed(desk, found, template)


def _at(one: Any, where: str) -> Any:
    from dataclasses import replace

    return replace(one, where=one.where or where)


def _check_end(found: Findings, text: str, tokens: list[str], ids: Mapping[str, int]) -> None:
    """The token that the template writes after an answer must be one that ends it."""
    tail = text.partition(ANSWER)[2].lstrip()
    if not tail:
        return
    stops = {tokens[ids[name]] for name in ("eos", "eot") if name in ids}
    if any(tail.startswith(stop) for stop in stops):
        return
    known = next((end for end in ENDS if tail.startswith(end)), None)
    if known is not None and known in tokens:
        return  # llama.cpp finds it by its text.
    told = f"the template ends an answer with {tail[:40]!r}, the file stops at {sorted(stops)}"
    found.error(
        "stop-token",
        "key tokenizer.ggml.eos_token_id",
        told,
        "answers would never end",
        "set the id of the token that the template writes (gguf-new-metadata), or convert again",
    )


def _check_sealed(desk: Desk, found: Findings, template: str) -> None:
    """In a bundle of ours the template is the tokenizer's, letter by letter."""
    path = desk.root / "tokenizer" / "chat_template.jinja"
    if not desk.sealed or not path.is_file():
        return
    if path.read_bytes().decode("utf-8", "replace") != template:
        told = "it is not that of tokenizer/chat_template.jinja, letter by letter"
        found.error(
            "template-fingerprint", "key tokenizer.chat_template", told, "it was trained otherwise"
        )
