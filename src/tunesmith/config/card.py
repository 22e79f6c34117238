"""What a dataset's card says about it that its rows cannot tell."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from tunesmith.config.base import Settings

__all__ = ["CardConfig"]


class CardConfig(Settings):
    """What you say about your data. What is not set is not in the card: nothing is made up."""

    title: str | None = Field(None, min_length=1, max_length=200)
    """Heading of the card; the recipe's name when not set."""
    license: str | None = Field(None, min_length=1, max_length=200)
    """Licence of the dataset as an SPDX expression, such as `CC-BY-4.0` or `MIT OR Apache-2.0`."""
    description: str | None = Field(None, min_length=1, max_length=10_000)
    """What the rows are about, in your words."""
    sources: Annotated[tuple[str, ...], Strict(False)] = ()
    """Where the rows come from: names, addresses, how they were collected."""
    languages: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...], Strict(False)
    ] = ()
    """Languages of the rows (ISO 639 codes such as `en`)."""
