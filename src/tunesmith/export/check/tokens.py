"""Tokenizer, chat template and stop tokens of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.errors import ModelError
from tunesmith.export.check.report import Desk
from tunesmith.export.check.sandbox import ANSWER, MOST_TEMPLATE, render_apart
from tunesmith.export.check.tree import only
from tunesmith.models.files import MOST_TOKENIZER_BYTES, Findings, read_json_object

__all__ = ["check_template", "check_tokens", "ids_of"]

_RESTORE = "copy the tokenizer's files of the model that it was trained from"
_MOST_TEMPLATE_BYTES = 4 * MOST_TEMPLATE
_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


def check_tokens(
    desk: Desk,
    folder: Path,
    rows: int | None,
    config: Mapping[str, Any] | None,
    *,
    texts: Sequence[Path],
) -> None:
    """Everything from tokenizer.json to the stop tokens.

    Args:
        rows: of the embedding; None when it is not known.
        config: config.json; None for a folder of a tokenizer alone.
        texts: the folder's JSON and text files that may be read.
    """
    stops = _config_stops(desk, folder, config, rows)
    found = desk.about(folder / "tokenizer.json", _RESTORE)
    if not (folder / "tokenizer.json").is_file():
        slow = (folder / "tokenizer.model").is_file()
        told = "there is only tokenizer.model" if slow else "there is no tokenizer"
        fix = "save the tokenizer again with transformers, which writes tokenizer.json"
        found.error(
            "tokenizer-missing", "", told, "no text can be turned into tokens", fix if slow else ""
        )
        return
    words = read_json_object(folder / "tokenizer.json", found, most_bytes=MOST_TOKENIZER_BYTES)
    ids = None if words is None else ids_of(words, found)
    settings_file = folder / "tokenizer_config.json"
    about_settings = desk.about(settings_file, _RESTORE)
    settings: dict[str, Any] = {}
    if settings_file.is_file():
        settings = read_json_object(settings_file, about_settings) or {}
    else:
        told = "it is not there: special tokens and template are not known"
        about_settings.warning("tokenizer-missing", "", told)
    if ids is None:
        return
    _check_ids(desk, found, folder, ids, rows)
    special = _special(settings, ids, about_settings)
    template, named = _template(desk, folder, settings)
    may_load = settings_file in texts or template is not None
    tokenizer = _loaded(desk, folder, texts) if may_load else None
    if template is None:
        if template_expected := desk.sealed.get("renderer_fingerprint"):
            told = f"there is no chat template; the run was sealed with {template_expected[:12]}"
            desk.about(named, _RESTORE).error("template-missing", "", told)
        else:
            desk.about(named, "use the instruct version of the model, or add its template").warning(
                "template-missing",
                "",
                "there is no chat template",
                "conversations cannot be rendered",
            )
        return
    rendered = check_template(desk.about(named, _RESTORE), template, special)
    if rendered is not None and tokenizer is not None:
        _check_renderer(desk, (folder, named), tokenizer, stops)


def ids_of(words: Mapping[str, Any], found: Findings) -> dict[str, int] | None:
    """Token -> id out of tokenizer.json, added tokens included; None when it is not understood."""
    model = words.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        pairs = [
            (one[0], number)
            for number, one in enumerate(vocabulary)
            if isinstance(one, list) and one and isinstance(one[0], str)
        ]
        vocabulary = dict(pairs)
    if not isinstance(vocabulary, dict) or not vocabulary:
        found.error("tokenizer-vocabulary", "key model.vocab", "it holds no vocabulary")
        return None
    added = words.get("added_tokens") or []
    ids = dict(vocabulary)
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("content"), str):
            ids[token["content"]] = token.get("id")
    odd = [text for text, number in ids.items() if type(number) is not int or number < 0]
    if odd:
        found.error("tokenizer-vocabulary", f"token {odd[0]!r}"[:200], f"its id is {ids[odd[0]]!r}")
        return None
    return ids


def _check_ids(
    desk: Desk, found: Findings, folder: Path, ids: Mapping[str, int], rows: int | None
) -> None:
    desk.tell(folder, vocabulary=len(ids))
    if rows is not None:
        desk.tell(folder, embedding_rows=rows)
    text, highest = max(ids.items(), key=lambda one: one[1])
    if rows is not None and highest >= rows:
        found.error(
            "tokenizer-vocabulary",
            f"token {text!r}"[:200],
            f"its id is {highest:,}; the embedding has {rows:,} rows",
            "the model would read beyond its embedding",
            "use the tokenizer of this model, or enlarge its embedding",
        )
    numbers: dict[int, str] = {}
    for token, number in ids.items():
        if number in numbers:
            told = f"it has the id {number} of {numbers[number]!r}"
            found.warning("tokenizer-vocabulary", f"token {token!r}"[:200], told)
        numbers[number] = token


def _special(
    settings: Mapping[str, Any], ids: Mapping[str, int], found: Findings
) -> dict[str, str]:
    special = {}
    for key in _SPECIAL:
        value = settings.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            special[key] = text
            if text not in ids:
                told = f"{text!r} is not in the vocabulary"
                found.error("tokenizer-special", f"key {key}", told, "it would be cut into pieces")
    return special


def _config_stops(
    desk: Desk, folder: Path, config: Mapping[str, Any] | None, rows: int | None
) -> dict[str, tuple[int, ...]]:
    """File -> end-of-sequence ids that it names."""
    owners: dict[str, Mapping[str, Any]] = {} if config is None else {"config.json": config}
    path = folder / "generation_config.json"
    if config is not None and path.is_file():
        settings = read_json_object(path, desk.about(path, "restore it, or delete it"))
        if settings is not None:
            owners["generation_config.json"] = settings
    stops: dict[str, tuple[int, ...]] = {}
    for name, owner in owners.items():
        found = desk.about(
            folder / name, "set eos_token_id to the id of the token that ends an answer"
        )
        value = owner.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(
            type(one) is not int or one < 0 or (rows is not None and one >= rows) for one in ids
        ):
            told = f"it is {value!r}; token ids go from 0 to {rows - 1 if rows else '?'}"
            found.error("stop-token", "key eos_token_id", told, "answers would never end")
            continue
        if ids:
            stops[name] = tuple(ids)
    return stops


def _template(desk: Desk, folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, Path]:
    """The template that a loader takes, and its file."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > _MOST_TEMPLATE_BYTES:
            told = f"it has {path.stat().st_size:,} bytes, {_MOST_TEMPLATE_BYTES:,} is the most"
            desk.about(path, _RESTORE).error("template-broken", "", told)
            return None, path
        try:
            return path.read_text(encoding="utf-8"), path
        except UnicodeDecodeError as error:
            told = f"it is no UTF-8: {error.reason} at byte {error.start}"
            desk.about(path, _RESTORE).error("template-broken", "", told)
            return None, path
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
        found = named[-1].get("template") if named else None
    return (found or None) if isinstance(found, str) else None, folder / "tokenizer_config.json"


def check_template(
    found: Findings, template: str, special: Mapping[str, str]
) -> list[list[str] | None] | None:
    """What the template makes of the probes (see `sandbox`); None when it cannot be used."""
    answer = render_apart(template, special)
    if "error" in answer:
        found.error(
            "template-broken", "", f"it cannot be rendered: {answer['error']}", _WHY_TEMPLATE
        )
        return None
    texts: list[list[str] | None] = answer["texts"]
    if texts[0] is None:
        told = f"it refuses a user's turn: {answer['refused'][0]}"
        found.error("template-broken", "", told, _WHY_TEMPLATE)
        return None
    without, opened = texts[0]
    if "Hi" not in without:
        found.error("template-broken", "", "it does not write what the user said", _WHY_TEMPLATE)
        return None
    if texts[1] is None or ANSWER not in texts[1][0]:
        found.error(
            "template-broken", "", "it does not write the assistant's answer", _WHY_TEMPLATE
        )
        return None
    if opened == without and not texts[1][0].removeprefix(opened).lstrip().startswith(ANSWER):
        told = "add_generation_prompt changes nothing: it does not open the assistant's turn"
        found.warning("template-opening", "", told, "the model may go on with the user's turn")
    return texts


_WHY_TEMPLATE = "the model would be asked otherwise than it was trained"


def _loaded(desk: Desk, folder: Path, texts: Sequence[Path]) -> Any | None:
    """The tokenizer that its loader makes of these files; None, and told, when it is of no use."""
    from tunesmith.models.load import load_tokenizer
    from tunesmith.models.refusals import refuse_silent

    found = desk.about(folder / "tokenizer.json", _RESTORE)
    with only(texts) as place:
        try:
            tokenizer = load_tokenizer(place)
        except ModelError as error:
            # A failed load names the passing folder; its reason is what counts.
            named = str(place) in error.what
            what = f"it cannot be loaded: {error.why}" if named else error.what
            what = what.replace(str(place), desk.name(folder))
            found.error("tokenizer-load", "", what, "no text can be turned into tokens", error.fix)
            return None
    try:
        refuse_silent(tokenizer)
    except ModelError as error:
        found.error("tokenizer-vocabulary", "", error.what, error.why, error.fix)
        return None
    return tokenizer


def _check_renderer(
    desk: Desk, places: tuple[Path, Path], tokenizer: Any, stops: Mapping[str, tuple[int, ...]]
) -> None:
    """Our own renderer on it, the template in the limited child: fingerprint, and the tokens that end an answer.

    Args:
        places: the folder, and the template's file.
    """
    from tunesmith.export.check.apart import write_apart
    from tunesmith.models.chat import ChatRenderer

    folder, named = places
    found = desk.about(named, _RESTORE)
    try:
        renderer = ChatRenderer(tokenizer, write_apart)
        fingerprint = renderer.fingerprint
    except ModelError as error:
        what, why = error.what.splitlines()[0], "the model cannot be asked as it was trained"
        found.error("template-renderer", "", what, why, error.fix)
        return
    desk.tell(
        folder, fingerprint=fingerprint, stops=[_shown(renderer, i) for i in renderer.stop_ids]
    )
    sealed = desk.sealed.get("renderer_fingerprint")
    if sealed is not None and sealed != fingerprint:
        told = f"its fingerprint is {fingerprint[:12]}, the run was sealed with {str(sealed)[:12]}"
        found.error("template-fingerprint", "", told, _WHY_TEMPLATE)
    _check_stops(desk, folder, renderer, stops)


def _check_stops(
    desk: Desk, folder: Path, renderer: Any, stops: Mapping[str, tuple[int, ...]]
) -> None:
    if not stops:
        return
    used = next(name for name in ("generation_config.json", "config.json") if name in stops)
    ends, *others = renderer.stop_ids
    found = desk.about(
        folder / used, f'set "eos_token_id": {ends} in it, or add {ends} to its list'
    )
    if ends not in stops[used]:
        told = (
            f"generation stops at {_listed(renderer, stops[used])}; the template ends an answer "
            f"with {_shown(renderer, ends)}"
        )
        found.error("stop-token", "key eos_token_id", told, "answers would never end")
    missing = [one for one in others if one not in stops[used]]
    if missing:
        told = (
            f"the tokenizer's end of sequence {_shown(renderer, missing[0])} is not among its stops"
        )
        found.note("stop-token", "key eos_token_id", told)
    if len(stops) == 2 and not set(stops["config.json"]) & set(stops["generation_config.json"]):
        told = (
            f"config.json stops at {_listed(renderer, stops['config.json'])}, "
            f"generation_config.json at {_listed(renderer, stops['generation_config.json'])}"
        )
        desk.about(folder / "config.json", "set the same eos_token_id in both").warning(
            "stop-token", "key eos_token_id", told, "programs differ in which of the two they read"
        )


def _listed(renderer: Any, ids: tuple[int, ...]) -> str:
    return ", ".join(_shown(renderer, one) for one in ids)


def _shown(renderer: Any, token: int) -> str:
    return f"{token} ({renderer.decode([token], special=True)!r})"
