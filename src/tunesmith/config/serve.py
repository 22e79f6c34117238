"""How the gateway listens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tunesmith.config.base import Settings

__all__ = ["ServeConfig"]


ServedForm = Literal[
    "gguf-f16",
    "gguf-bf16",
    "gguf-q8_0",
    "gguf-q6_k",
    "gguf-q5_k_m",
    "gguf-q4_k_m",
    "gguf-q4_0",
]


class ServeConfig(Settings):
    """Bundle to an endpoint."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback unless you mean to open it to a network."""
    port: int = Field(8_321, ge=0, le=65_535)
    """Port to listen on; 0 lets the system choose one."""
    form: ServedForm = "gguf-q8_0"
    """Which file of the bundle is served."""
    context_tokens: int = Field(2_048, ge=64)
    """Longest prompt and answer together, for each request."""
    slots: int = Field(2, ge=1, le=64)
    """Requests that are decoded side by side; more wait in a queue."""
    max_queue: int = Field(64, ge=0)
    """Requests that may wait; more are answered with 429."""
    max_answer_tokens: int = Field(512, ge=1)
    """Longest answer when the request does not say."""
    public_key: str | None = Field(None, json_schema_extra={"path": "always"})
    """Public key (PEM) of who must have signed the bundle; without it only its hashes are checked."""
    keys_path: str | None = Field(None, json_schema_extra={"path": "always"})
    """File with the hashes of the API keys. When not set, a key is generated at the start and printed once."""
