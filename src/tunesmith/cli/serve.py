"""`tunesmith serve`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import Asked, json_option, recipe_options
from tunesmith.cli.screen import note, print_json

if TYPE_CHECKING:
    from tunesmith.config import Recipe
    from tunesmith.serve import Ready
    from tunesmith.store import Artifact

__all__ = ["curl_line", "key_lines", "log_requests", "serve"]

KEY_VARIABLE = "TUNESMITH_API_KEY"


@click.command
@recipe_options()
@json_option
def serve(asked: Asked, as_json: bool) -> None:
    """Serve an exported model over HTTP.

    For OpenAI's clients. RECIPE is a recipe whose export is made, or an export's folder. Paths: /v1/models,
    /v1/chat/completions, /healthz, /readyz, /metrics. A key is generated and printed once, unless
    serve.keys_path names a file made by `tunesmith serve keys new`. Stderr gets a line for each
    request, without texts or keys. Ctrl-C stops it.

    \b
    Examples:
      tunesmith serve recipe.yaml
      tunesmith serve recipe.yaml --set port=8080 --set form=gguf-f16
      tunesmith serve runs/demo/export-0123456789ab
      tunesmith serve keys new keys.txt alice
    """
    from tunesmith import serve as room

    recipe, bundle = _resolve(asked)
    log_requests()
    room.run(recipe, bundle, on_ready=_say_ready_json if as_json else _say_ready)


def _resolve(asked: Asked) -> tuple[Recipe, Artifact]:
    from tunesmith import pipeline
    from tunesmith.store import Artifact

    if len(asked.files) == 1 and Path(asked.files[0]).is_dir():
        bundle = Artifact.open(Path(asked.files[0]).absolute(), "export")
        sets = (f"name={json.dumps(bundle.dir.parent.name)}", *asked.sets)
        return Asked((), sets).load("serve"), bundle
    recipe = asked.load("serve")
    return recipe, pipeline.find(recipe, "export", spelled=asked.spelled("serve"))


def _say_ready(ready: Ready) -> None:
    for warning in ready.warnings:
        note(f"warning: {warning}")
    note(f"serving {ready.model!r} after {ready.start_seconds:.1f} s; Ctrl-C stops it")
    click.echo(f"base url   {ready.base_url}")
    for line in key_lines(ready):
        click.echo(line)
    click.echo(curl_line(ready))


def _say_ready_json(ready: Ready) -> None:
    print_json(
        {
            "base_url": ready.base_url,
            "key": ready.key,
            "model": ready.model,
            "warnings": list(ready.warnings),
            "start_seconds": ready.start_seconds,
        }
    )


def log_requests() -> None:
    """Send the gateway's log to stderr: a line a request, with neither texts nor keys."""
    log = logging.getLogger("tunesmith.serve")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    # Other handlers of the root logger would print each line twice.
    log.propagate = False


def key_lines(ready: Ready) -> list[str]:
    """The shell command that sets the key for `curl_line`; a generated key is in it."""
    if ready.key is None:
        return [f"export {KEY_VARIABLE}=...   (one of the keys in serve.keys_path)"]
    return ["the key is shown only now:", f"export {KEY_VARIABLE}={ready.key}"]


def curl_line(ready: Ready, question: str = "Hello") -> str:
    """A command that asks the gateway, to be copied. The key stays in the environment: a command's
    arguments can be seen by every user of a machine, and a shell keeps them in its history."""
    body = json.dumps(
        {"model": ready.model, "messages": [{"role": "user", "content": question}]},
        ensure_ascii=False,
    ).replace("'", "'\\''")
    return (
        f"curl -s {ready.base_url}/chat/completions -H 'Content-Type: application/json' "
        f"-H \"Authorization: Bearer ${KEY_VARIABLE}\" -d '{body}'"
    )
