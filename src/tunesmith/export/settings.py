"""What a form says of itself, held key by key against what it was made from: no figure shows most of it.

The figures come from token ids, and from the first tokens of a few prompts. A wrong merge, a wrong
kind of token or a rotary base that is slightly off do not show there.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunesmith.config import Form
from tunesmith.errors import ParityError
from tunesmith.export.convert import known_rule
from tunesmith.export.folders.parts import BESIDE
from tunesmith.export.forms import KINDS, Sources
from tunesmith.export.gguf_tokenizer import is_named, rule_in
from tunesmith.export.metadata import FLOAT32, GgufFacts
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.files.gguf import GgufFile, look_at_gguf, refuse_damaged_gguf

__all__ = ["check_settings", "check_vocabulary", "read_settings"]

_OF_THE_FORM = ("general.file_type", "general.quantization_version")
_OF_IMPORTANCE = "quantize.imatrix."
_MOST_TOLD = 6
_SHORT = 40
_WRITTEN = frozenset({"dtype", "torch_dtype", "transformers_version", "_name_or_path"})
"""Keys of `config.json` that every writer of a folder sets as it likes."""
_NOT_QUANTISED = ("merged", "onnx", "pruned")
_GENAI: Mapping[str, str] = {
    "head_size": "head_dim",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_hidden_layers": "num_hidden_layers",
    "num_key_value_heads": "num_key_value_heads",
}
"""Key of onnxruntime-genai's decoder -> key of `config.json`."""


def check_settings(form: Form, place: Path, sources: Sources) -> str:
    """Hold what a form says of itself against what it was made from; no weight is read.

    Returns:
        What it was held against, or that this is no longer there.

    Raises:
        ParityError: names the keys that differ.
    """
    kind = KINDS[form]
    if kind.template == "gguf":
        return _check_metadata(place, sources.scratch / FLOAT32)
    if kind.template == "folder":
        return _check_folder(form, place, sources)
    return _check_lora(place, sources) if kind.on else _check_adapter(place, sources)


def _differ(place: str, source: str, differences: list[str]) -> None:
    """Refuse when there are any.

    Raises:
        ParityError: names them.
    """
    if not differences:
        return
    more = len(differences) - _MOST_TOLD
    told = "; ".join(differences[:_MOST_TOLD]) + (f"; and {more} more" if more > 0 else "")
    raise ParityError(f"{place} says otherwise than {source} in {len(differences)} keys: {told}")


def _told(key: str, wanted: Any, found: Any) -> str:
    if isinstance(wanted, list) and isinstance(found, list):
        apart = sum(a != b for a, b in zip(wanted, found, strict=False))
        apart += abs(len(wanted) - len(found))
        return f"{key} ({apart} of {max(len(wanted), len(found))} entries)"
    return f"{key} ({_short(found)} for {_short(wanted)})"


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."


# -- GGUF files ----------------------------------------------------------------------------------------


def _check_metadata(path: Path, source: Path) -> str:
    """Every pair of a GGUF form, byte for byte, against the float32 file that it was quantised from."""
    if not source.is_file():
        return f"not compared: {source.name} is no longer there"
    found, wanted = refuse_damaged_gguf(path), look_at_gguf(source)
    keys = [key for key in dict.fromkeys((*wanted.keys, *found.keys)) if not _is_own(key)]
    differences = [
        _told(key, wanted.get(key), found.get(key))
        for key in keys
        if _pair(wanted, key) != _pair(found, key)
    ]
    _differ(path.name, source.name, differences)
    return f"all {len(keys)} keys of {source.name} that are not of the file type"


def _pair(file: GgufFile, key: str) -> bytes:
    return file.pair(key) if key in file.keys else b""


def _is_own(key: str) -> bool:
    return key in _OF_THE_FORM or key.startswith(_OF_IMPORTANCE)


def _check_lora(path: Path, sources: Sources) -> str:
    """A GGUF LoRA file has few keys; its strength follows from the adapter's config."""
    file = refuse_damaged_gguf(path)
    trained = read_settings(sources.trained.folder("adapter") / "adapter_config.json")
    alpha = float(trained["lora_alpha"])
    # As a file has it, in 32 bits.
    (stored,) = struct.unpack("<f", struct.pack("<f", alpha if alpha > 0 else 1.0))
    wanted = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": stored}
    differences = [
        _told(key, value, file.get(key)) for key, value in wanted.items() if file.get(key) != value
    ]
    _differ(path.name, "the run's adapter", differences)
    return f"{', '.join(wanted)}: by the run's adapter_config.json"


# -- vocabulary ----------------------------------------------------------------------------------------


def check_vocabulary(facts: GgufFacts, path: Path, renderer: ChatRenderer) -> None:
    """Stop token, splitting rule and every token's text, against the trained tokenizer itself.

    Raises:
        ParityError: they are not the trained ones.
    """
    tokenizer = renderer.tokenizer
    if facts.eos_id != tokenizer.eos_token_id:
        raise ParityError(
            f"{path.name} ends answers at token {facts.eos_id}, the trained model at "
            f"{tokenizer.eos_token_id}"
        )
    if facts.model not in ("gpt2", "llama"):
        return  # WordPiece's and others' texts are stored in another spelling.
    if facts.model == "gpt2":
        _check_rule(facts, path, tokenizer)
    added = set(tokenizer.get_added_vocab().values())
    numbers = sorted(set(tokenizer.get_vocab().values()))
    missing = [number for number in numbers if number >= len(facts.tokens)]
    there = numbers[: len(numbers) - len(missing)]
    texts = dict(zip(there, tokenizer.convert_ids_to_tokens(there), strict=True))
    wrong = [
        number
        for number, text in texts.items()
        if text is not None and facts.tokens[number] != text
    ]
    wrong = [n for n in wrong if n not in added or not _is_spelt(tokenizer, texts[n], facts, n)]
    if wrong or missing:
        such = [f", such as {n}: {facts.tokens[n]!r} for {texts[n]!r}" for n in wrong[:1]]
        raise ParityError(
            f"the vocabulary of {path.name} is not the trained one: {len(facts.tokens)} tokens for "
            f"{len(numbers)}, {len(wrong)} differ{''.join(such)}"
        )


def _is_spelt(tokenizer: Any, text: str, facts: GgufFacts, number: int) -> bool:
    """Whether an added token's text is as llama.cpp wants it: with blanks, and normalised."""
    found = facts.tokens[number]
    if found == text.replace("▁", " "):
        return True
    again = str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)))
    return found in (again, again.replace("▁", " "))


def _check_rule(facts: GgufFacts, path: Path, tokenizer: Any) -> None:
    if not facts.pre or facts.pre == "default":
        raise ParityError(
            f"{path.name} does not say how text is split before the merges (tokenizer.ggml.pre)"
        )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rule = None if backend is None else rule_in(json.loads(backend.to_str()))
    # On some vocabularies two rules come to the same, which the converter knows by a tokenized text.
    if rule is not None and not is_named(facts.pre, rule) and facts.pre != known_rule(tokenizer):
        raise ParityError(
            f"{path.name} splits text as {facts.pre!r} before the merges (tokenizer.ggml.pre), the "
            f"trained tokenizer as {rule!r}"
        )


# -- folders -------------------------------------------------------------------------------------------


def _check_folder(form: Form, place: Path, sources: Sources) -> str:
    """`config.json` and the files beside the weights, against those of the merged model."""
    source = sources.merged / "config.json"
    if not source.is_file():
        return "not compared: the merged model is no longer there"
    wanted, found = read_settings(source), read_settings(place / "config.json")
    own = _WRITTEN if form in _NOT_QUANTISED else _WRITTEN | {"quantization_config"}
    dropped = _dropped(wanted, sources) if form == "pruned" else 0
    _differ(
        f"{place.name}/config.json",
        "the merged model's",
        [_told(*one) for one in _differences(wanted, found, own, dropped)],
    )
    if form == "onnx":
        _check_genai(place, wanted, sources)
    names = sorted({f.name for pattern in BESIDE for f in sources.merged.glob(pattern)})
    for name in names:
        copy = place / name
        if not copy.is_file() or copy.read_bytes() != (sources.merged / name).read_bytes():
            raise ParityError(f"{place.name}/{name} is not the merged model's")
    return f"config.json of the merged model, and {', '.join(names)}"


def _dropped(config: Mapping[str, Any], sources: Sources) -> int:
    from tunesmith.export.folders.prune import SHARE

    total = (config.get("text_config") or config).get("num_hidden_layers")
    if not isinstance(total, int):
        return 0
    return sources.config.prune_layers or max(1, total // SHARE)


def _differences(
    wanted: Mapping[str, Any],
    found: Mapping[str, Any],
    own: frozenset[str],
    dropped: int,
    above: str = "",
) -> Iterator[tuple[str, Any, Any]]:
    """Key, wanted and found value where two configs differ; what is null may be left out.

    Args:
        own: keys that may differ.
        dropped: layers that `found` has fewer.
    """
    total = wanted.get("num_hidden_layers")
    for key in sorted({*wanted, *found} - own):
        one, other = wanted.get(key), found.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, own, dropped, f"{above}{key}.")
        elif dropped and key == "num_hidden_layers" and isinstance(one, int):
            if other != one - dropped:
                yield f"{above}{key}", one - dropped, other
        elif dropped and isinstance(one, list) and isinstance(other, list) and len(one) == total:
            rest = iter(one)
            if len(other) != len(one) - dropped or not all(item in rest for item in other):
                yield f"{above}{key}", one, other
        elif one != other:
            yield f"{above}{key}", one, other


def _check_genai(place: Path, config: Mapping[str, Any], sources: Sources) -> None:
    """onnxruntime-genai reads stop tokens and sizes from a file of its own."""
    model = read_settings(place / "genai_config.json").get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise ParityError(f"{place.name}/genai_config.json describes no decoder")
    stops = list(sources.renderer.stop_ids)
    differences = [
        _told(f"decoder.{key}", config[name], decoder.get(key))
        for key, name in _GENAI.items()
        if isinstance(config.get(name), int) and decoder.get(key) != config[name]
    ]
    if model.get("eos_token_id") != stops:
        differences.append(f"eos_token_id ({model.get('eos_token_id')} for {stops})")
    _differ(f"{place.name}/genai_config.json", "the merged model", differences)


def _check_adapter(place: Path, sources: Sources) -> str:
    """`adapter_config.json`, against the run's; the base's name alone is written anew."""
    wanted = read_settings(sources.trained.folder("adapter") / "adapter_config.json")
    found = read_settings(place / "adapter_config.json")
    own = frozenset({"base_model_name_or_path"})
    differences = [_told(*one) for one in _differences(wanted, found, own, 0)]
    _differ(f"{place.name}/adapter_config.json", "the run's", differences)
    return "adapter_config.json of the run"


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a form's file.

    Raises:
        ParityError: there is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ParityError(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ParityError(f"{path.parent.name}/{path.name} is no JSON object")
    return value
