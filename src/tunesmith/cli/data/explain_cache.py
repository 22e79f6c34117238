"""`tunesmith data explain-cache`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import Asked, json_option, recipe_options
from tunesmith.cli.screen import print_json, size, table, where

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.token_cache import TokenCache

__all__ = ["explain_cache"]


@click.command
@recipe_options()
@json_option
def explain_cache(asked: Asked, as_json: bool) -> None:
    """Why training finds its rows' tokens in the cache, or has to make them.

    For each split: everything that its tokens depend on, whether the cache has them, and if not, in
    what the nearest entry differs. The dataset must be built.

    \b
    Examples:
      tunesmith data explain-cache recipe.yaml
      tunesmith data explain-cache recipe.yaml --set train.max_row_tokens=512
    """
    from tunesmith import pipeline
    from tunesmith.models.chat import ChatRenderer
    from tunesmith.models.load import load_tokenizer, resolve_base
    from tunesmith.models.token_cache import TokenCache

    recipe = asked.load("data")
    folder = pipeline.find(recipe, "data", spelled=asked.spelled("data")).dir
    cache = TokenCache.of(recipe.train.token_cache_gib)
    renderer = ChatRenderer(load_tokenizer(resolve_base(recipe.model)))
    found = [
        _explained(recipe, folder / f"{name}.jsonl", renderer, cache)
        for name in ("train", "validation")
    ]
    if as_json:
        print_json({"cache": str(cache.place) if cache else None, "splits": found})
        return
    for split in found:
        _print(split)
    if cache is None:
        click.echo("no cache is used: train.token_cache_gib is 0")
        return
    entries = cache.entries()
    used = sum(entry.n_bytes for entry in entries)
    click.echo(
        f"cache: {where(cache.place)}, {len(entries)} entries, {size(used)} of at most "
        f"{size(cache.limit_bytes)}"
    )


def _explained(
    recipe: Recipe, path: Path, renderer: ChatRenderer, cache: TokenCache | None
) -> dict[str, Any]:
    """The parts of a split's key, and what the cache has."""
    from tunesmith.train.rows import key_parts

    limit, policy = recipe.train.max_row_tokens, recipe.train.on_long_row
    parts = key_parts(path, renderer, max_row_tokens=limit, on_long_row=policy)
    near = cache.nearest(parts) if cache else None
    differs = near.differs_in(parts) if near else ()
    return {
        "split": path.stem,
        "parts": parts,
        "cached": bool(near and not differs),
        "nearest": {name: near.parts.get(name) for name in differs} if near and differs else None,
    }


def _print(split: dict[str, Any]) -> None:
    near = split["nearest"] or {}
    rows = [
        (name, _short(value), _short(near[name]) if name in near else "")
        for name, value in split["parts"].items()
    ]
    headers = ("part of the key", "now", "in the nearest entry")
    width = len(headers) if near else len(headers) - 1
    table(headers[:width], [row[:width] for row in rows], title=split["split"])
    if split["cached"]:
        click.echo(f"{split['split']}: in the cache\n")
    elif near:
        click.echo(f"{split['split']}: not in the cache; differs in {', '.join(near)}\n")
    else:
        click.echo(f"{split['split']}: not in the cache, which has no entries\n")


def _short(value: Any) -> str:
    """A value, of a hash the begin."""
    text = str(value)
    is_hash = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:16] if is_hash else text
