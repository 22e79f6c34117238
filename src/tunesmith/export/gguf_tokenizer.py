"""A tokenizer as llama.cpp's converter wants to find it.

The converter reads the files that models were first published with: `tokenizer.model` of
SentencePiece, the kinds of tokens in `tokenizer_config.json`, a splitting rule that it knows by the
hash of one tokenized text. transformers 5 saves only `tokenizer.json`, which says the same in another
way. Here it is said in the old one; what cannot be said exactly is refused.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError

__all__ = [
    "is_byte_level",
    "is_named",
    "keep_model_file",
    "name_for",
    "rule_in",
    "rule_of",
    "tokenizer_folder",
    "with_rules",
]

FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""What the converter reads beside the weights."""
_LETTERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
RULES: Mapping[str, tuple[tuple[str, ...], bool]] = {
    "llama-bpe": (("split " + _LETTERS % "{1,3}", "bytes"), True),
    "qwen2": (("split " + _LETTERS % "", "bytes"), False),
    "gpt-2": (("bytes, split",), False),
    "smollm": (("digits", "bytes, split"), False),
}
"""llama.cpp's name of a rule (its src/llama-vocab.cpp) -> its steps, and whether whole words skip the merges."""
_RULE_OF_NAME: Mapping[str, str] = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral"), "llama-bpe"),
    **dict.fromkeys(("midm-2.0", "lfm2", "jina-v5-nano"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2"), "qwen2"),
    **dict.fromkeys(("hunyuan", "solar-open", "grok-2"), "qwen2"),
    **dict.fromkeys(("phi-2", "gigachat", "a.x-4.0", "mellum", "modern-bert", "mpt"), "gpt-2"),
    **dict.fromkeys(("jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de"), "gpt-2"),
    **dict.fromkeys(("jina-v2-code", "roberta-bpe", "exaone4", "olmo", "jais"), "gpt-2"),
    **dict.fromkeys(("trillion", "granite-docling"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone"), "smollm"),
    "minerva-7b": "smollm",
}
"""Another name -> the rule above by which llama.cpp splits text under it (its src/llama-vocab.cpp)."""
PHI3_TOKENS = frozenset({"<s>", "</s>", "<unk>", "<|endoftext|>"})
_PHI3_NAME = re.compile("phi-?3", re.IGNORECASE)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE_KIND = 1, 2, 3, 4, 6


def keep_model_file(tokenizer: Any, folder: Path) -> None:
    """SentencePiece's file beside a saved tokenizer: transformers reads it and does not save it again."""
    own = Path(tokenizer.name_or_path) / "tokenizer.model"
    if tokenizer.name_or_path and own.is_file():
        shutil.copyfile(own, folder / "tokenizer.model")


def rule_of(folder: Path) -> str | None:
    """llama.cpp's name for how the tokenizer splits text before the merges; None when it has none.

    The rule stands in `tokenizer.json` and does not depend on the vocabulary, by which llama.cpp's
    converter knows tokenizers.
    """
    words = _read(folder)
    return None if words is None else rule_in(words)


def rule_in(words: Mapping[str, Any]) -> str | None:
    """The same for what stands in a `tokenizer.json`."""
    if not _is_byte_level(words):
        return None
    steps = words.get("pre_tokenizer") or {}
    found = tuple(_step(step) for step in steps.get("pretokenizers", [steps]))
    whole = bool(words["model"].get("ignore_merges"))
    return next((name for name, rule in RULES.items() if rule == (found, whole)), None)


def is_named(name: str, rule: str) -> bool:
    """Whether llama.cpp splits text by `rule` when a file names it `name`."""
    return _RULE_OF_NAME.get(name, name) == rule


def is_byte_level(folder: Path) -> bool:
    """Whether the tokenizer is byte-level BPE, and no piece of SentencePiece's."""
    words = _read(folder)
    return words is not None and _is_byte_level(words)


def _is_byte_level(words: Mapping[str, Any]) -> bool:
    return words["model"].get("type") == "BPE" and not words["model"].get("byte_fallback")


def _step(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes, split" if step.get("use_regex", True) else "bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    pattern = step.get("pattern")
    if kind == "Split" and isinstance(pattern, Mapping):
        how = (step.get("behavior"), bool(step.get("invert")))
        if how in (("Isolated", False), ("Removed", True)):
            return f"split {pattern.get('Regex')}"
    return f"other: {kind}"


def name_for(name: str, folder: Path) -> str:
    """The model's name, such that llama.cpp treats its special tokens as its tokenizer does.

    llama.cpp (its src/llama-vocab.cpp) takes white space behind special tokens away when the *name*
    holds "phi-3" or "phi3", and fails to load such a model without Phi-3's tokens. So the name holds
    it if, and only if, the tokenizer is of that kind.
    """
    tokens = {token["content"]: token for token in (_read(folder) or {}).get("added_tokens", [])}
    strips = [text for text, token in tokens.items() if token.get("rstrip")]
    is_phi = bool(strips) and tokens.keys() >= PHI3_TOKENS
    if is_phi == bool(_PHI3_NAME.search(name)):
        return name
    return f"{name} (phi-3)" if is_phi else _PHI3_NAME.sub("phi 3", name)


@contextmanager
def tokenizer_folder(source: Path) -> Iterator[Path]:
    """A folder in which the converter finds all of the tokenizer; `source` itself where it does.

    Raises:
        ModelError: the merges of a tokenizer of SentencePiece's kind do not follow from scores.
    """
    words = _read(source)
    if words is None or not words["model"].get("byte_fallback"):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="tunesmith-tokenizer-") as name:
        folder = Path(name)
        for file in FILES:
            if (source / file).is_file():
                shutil.copyfile(source / file, folder / file)
        if not (folder / "tokenizer.model").is_file():
            (folder / "tokenizer.model").write_bytes(_sentencepiece(words, source))
        _name_kinds(words, folder / "tokenizer_config.json")
        yield folder


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    words: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return words


def _name_kinds(words: Mapping[str, Any], path: Path) -> None:
    """Which tokens are special, and whether a space goes in front, as older versions wrote it down."""
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kinds = {str(token["id"]): dict(token) for token in words.get("added_tokens", [])}
    settings["added_tokens_decoder"] = kinds | settings.get("added_tokens_decoder", {})
    if settings.get("add_prefix_space") is None:
        settings["add_prefix_space"] = _prefix_space(words)
    settings.setdefault("tokenizer_class", "LlamaTokenizer")
    path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def _prefix_space(words: Mapping[str, Any]) -> bool:
    normalizer, splitter = words.get("normalizer") or {}, words.get("pre_tokenizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    if any(step.get("type") == "Prepend" and step.get("prepend") == "▁" for step in steps):
        return True
    parts = splitter.get("pretokenizers", [splitter])
    return any(
        part.get("type") == "Metaspace" and part.get("prepend_scheme") in ("first", "always")
        for part in parts
    )


def _sentencepiece(words: Mapping[str, Any], source: Path) -> bytes:
    """SentencePiece's file for a tokenizer that was made from one.

    Both join the two neighbours whose union is best: by the order of the merges in
    `tokenizer.json`, by the union's score in SentencePiece. They are the same if every way to cut a
    piece in two known pieces is among the merges.
    """
    spm = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    vocabulary: dict[str, int] = words["model"]["vocab"]
    added = {token["content"]: token for token in words.get("added_tokens", [])}
    merges = [
        tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in words["model"]["merges"]
    ]
    rank = {"".join(merge): n for n, merge in reversed(list(enumerate(merges)))}
    _refuse_lost_cuts(vocabulary, set(merges), set(added), source)
    unknown = words["model"].get("unk_token")
    model = spm.ModelProto()
    model.trainer_spec.model_type = spm.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = _prefix_space(words)
    model.normalizer_spec.remove_extra_whitespaces = False
    texts = {number: text for text, number in vocabulary.items()}
    for number in range(max(texts) + 1):
        text = texts.get(number, f"[PAD{number}]")
        kind = _kind(text, unknown, added.get(text))
        model.pieces.add(piece=text, score=-float(rank.get(text, len(merges))), type=kind)
    data: bytes = model.SerializeToString()
    return data


def _kind(text: str, unknown: str | None, added: Mapping[str, Any] | None) -> int:
    if text == unknown:
        return _UNKNOWN
    if _BYTE.fullmatch(text):
        return _BYTE_KIND
    if added is None:
        return _NORMAL
    return _CONTROL if added.get("special") else _USER_DEFINED


def _refuse_lost_cuts(
    vocabulary: Mapping[str, int], merges: set[tuple[str, ...]], added: set[str], source: Path
) -> None:
    for text in vocabulary:
        if text in added or _BYTE.fullmatch(text):
            continue
        for place in range(1, len(text)):
            cut = (text[:place], text[place:])
            if cut[0] in vocabulary and cut[1] in vocabulary and cut not in merges:
                raise ModelError(
                    f"the tokenizer in {source} cannot be written as GGUF",
                    why=f"its merges do not follow from scores of pieces: {cut[0]!r} + {cut[1]!r} "
                    "is a piece and no merge, and llama.cpp would join them",
                    fix="put the model's own tokenizer.model into the folder, if it has one",
                )


Ask = Callable[[Any], str]


def with_rules(ask: Ask, folder: Path) -> Ask:
    """The converter's question for the splitting rule, answered from `tokenizer.json` where its own
    list of hashes does not know the tokenizer."""

    def asked(tokenizer: Any) -> str:
        try:
            return ask(tokenizer)
        except NotImplementedError:
            rule = rule_of(folder)
            if rule is None:
                raise
            return rule

    return asked
