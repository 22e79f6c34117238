"""The base of every config type: frozen, strict, and able to say which fields were read."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationInfo, field_validator

__all__ = ["Settings", "unread_keys"]


class Settings(BaseModel):
    """Frozen settings that reject unknown keys and remember which fields were read.

    A stage reads all that it will use while it plans, then calls
    `tunesmith.config.refuse_unread`: a key that the
    user set and that nothing read would otherwise be a silent no-op.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    _read: set[str] = PrivateAttr(default_factory=set)

    @field_validator("*", mode="before")
    @classmethod
    def _strict(cls, value: object, info: ValidationInfo) -> object:
        """Refuse a scalar of another type where pydantic would convert it in silence.

        Pydantic's own strict mode would also refuse lists for tuples, which is all YAML has. A
        whole number for a `float` field stays allowed.
        """
        # bool is a subclass of int, so the exact type decides.
        wanted, given = _scalars(cls.model_fields[info.field_name or ""].annotation), type(value)
        wanted |= {int} if float in wanted else set()
        if wanted and given in (bool, int, float, str) and given not in wanted:
            names = " or ".join(sorted(_NAMES[kind] for kind in wanted))
            raise ValueError(f"it must be {names}, not {_NAMES[given]}")
        return value

    def __getattribute__(self, name: str) -> Any:
        """The attribute; a field's name is also noted as read."""
        value = super().__getattribute__(name)
        if not name.startswith(("_", "model_")) and name in type(self).__pydantic_fields__:
            private = object.__getattribute__(self, "__pydantic_private__")
            if private is not None:
                private["_read"].add(name)
        return value


_NAMES: dict[type, str] = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a text",
}


def _scalars(annotation: Any) -> set[type]:
    """The scalar types that a field may hold; empty when it may hold anything else but None.

    Texts and lists need no check here: pydantic converts nothing to them.
    """
    found: set[type] = set()
    for kind in typing.get_args(annotation) or (annotation,):
        if kind in (bool, int, float):
            found.add(kind)
        elif kind is not type(None):
            return set()
    return found


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
        elif name not in read and name != "kind":
            yield dotted
