"""The base of every config type: frozen, strict, and able to say which fields were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr

__all__ = ["Settings", "unread_keys"]


class Settings(BaseModel):
    """Frozen settings that reject unknown keys and remember which fields were read.

    A stage reads all that it will use while it plans, then calls
    `tunesmith.config.refuse_unread`: a key that the
    user set and that nothing read would otherwise be a silent no-op.
    """

    # Strict: `true` is no 1 and "2" is no 2. Whole numbers still count for `float`; fields of tuples
    # set strict=False, since a list is all that YAML has for them (their items stay strict).
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    _read: set[str] = PrivateAttr(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        """The attribute; a field's name is also noted as read."""
        value = super().__getattribute__(name)
        if not name.startswith(("_", "model_")) and name in type(self).__pydantic_fields__:
            private = object.__getattribute__(self, "__pydantic_private__")
            if private is not None:
                private["_read"].add(name)
        return value


def unread_keys(settings: Settings, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields that were set by the user and read by nobody, depth first."""
    read: set[str] = settings._read
    for name in type(settings).model_fields:
        if name not in settings.model_fields_set:
            continue
        dotted = f"{prefix}{name}"
        value = settings.__dict__[name]
        if isinstance(value, Settings):
            yield from unread_keys(value, f"{dotted}.")
        elif isinstance(value, Mapping) and name in read:
            for key, item in value.items():
                if isinstance(item, Settings):
                    yield from unread_keys(item, f"{dotted}.{key}.")
        elif name not in read and name != "kind":
            yield dotted
