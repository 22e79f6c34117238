"""What is done about personal data and secrets in the rows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from tunesmith.config.base import Settings

__all__ = ["PiiConfig", "PiiKind", "SecretsConfig"]

PiiKind = Literal[
    "email",
    "phone",
    "card",
    "iban",
    "national_id",
    "ip",
    "mac",
    "birth_date",
    "address",
    "name",
]
Region = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]


class PiiConfig(Settings):
    """Personal data in the rows."""

    action: Literal["keep", "mask", "drop"] = "keep"
    """`mask` puts stand-ins such as `[EMAIL_1]` in its place, equal ones for equal values of a row;
    `drop` leaves out rows that hold some; `keep` does not look."""
    kinds: Annotated[tuple[PiiKind, ...], Strict(False)] = Field(
        (
            "email",
            "phone",
            "card",
            "iban",
            "national_id",
            "ip",
            "mac",
            "birth_date",
            "address",
            "name",
        ),
        min_length=1,
    )
    """What to look for. Names and addresses are found only where the words around them say so."""
    regions: Annotated[tuple[Region, ...], Strict(False)] = Field(
        ("US", "GB", "DE", "FR", "ES", "IT", "NL", "IN"), min_length=1
    )
    """Countries (ISO 3166 codes) whose phone numbers are found without their country's code. More of them
    find more, and take more other numbers for phone numbers."""
    allow: Annotated[tuple[str, ...], Strict(False)] = ()
    """Values that may stay, without regard to case; `*` and `?` stand for other characters, such as
    `*@ourcompany.test`."""


class SecretsConfig(Settings):
    """Keys, tokens, passwords and private keys in the rows."""

    action: Literal["keep", "mask", "drop"] = "keep"
    """`mask` puts stand-ins such as `[SECRET_1]` in their place, `drop` leaves out rows that hold some,
    `keep` does not look."""
    allow: Annotated[tuple[str, ...], Strict(False)] = ()
    """Values that may stay, such as keys of the documentation; `*` and `?` stand for other characters."""
