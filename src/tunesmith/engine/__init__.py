"""Token ids in, tokens and text out: one interface over several inference engines. Light to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunesmith.engine.types import Backend, Chunk, Generation, NextTokenLogprobs, Sampling
from tunesmith.registry import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "BACKENDS",
    "Backend",
    "Chunk",
    "Generation",
    "NextTokenLogprobs",
    "Sampling",
    "open_backend",
    "sampling_seeds",
]

BACKENDS = Table(
    "backend",
    {
        "transformers": "tunesmith.engine.backends.transformers:TransformersBackend",
        "llama_cpp": "tunesmith.engine.backends.llama_cpp:LlamaBackend",
    },
    extra="serve",
)
"""Inference engines by name; packages add rows by the entry point group `tunesmith.backend`."""


def open_backend(name: str, *args: Any, **options: Any) -> Backend:
    """A backend that is ready to answer; close it, or use it in a `with` statement.

    Args:
        name: a row of `BACKENDS`.
        args: what its constructor takes, such as the path of a GGUF file.
        options: the same, by keyword.

    Raises:
        ConfigError: no such backend.
        EnvironmentProblem: a package that it needs is not installed.
    """
    backend: Backend = BACKENDS.load(name)(*args, **options)
    return backend


def sampling_seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """One 32-bit seed a prompt, the same in whichever company the prompt is sent.

    It depends on `seed`, on the prompt's tokens, and on how often the same prompt came before it
    in `prompts`: equal prompts get different samples, and another order or batch changes nothing.
    """
    from hashlib import sha256

    seen: dict[tuple[int, ...], int] = {}
    seeds = []
    for prompt in prompts:
        key = tuple(prompt)
        nth = seen[key] = seen.get(key, -1) + 1
        digest = sha256(repr((seed, nth, key)).encode()).digest()
        seeds.append(int.from_bytes(digest[:4], "little"))
    return seeds
