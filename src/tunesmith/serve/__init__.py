"""Stage 5: a sealed bundle to an OpenAI-compatible endpoint. Light: FastAPI loads on use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tunesmith.errors import EnvironmentProblem

if TYPE_CHECKING:
    from tunesmith.serve.gateway import Gateway, Ready, run
    from tunesmith.serve.handbook import reference
    from tunesmith.serve.keys import NewKey, create_key, remove_key

__all__ = ["Gateway", "NewKey", "Ready", "create_key", "reference", "remove_key", "run"]

_HOMES = {
    "Gateway": "gateway",
    "NewKey": "keys",
    "Ready": "gateway",
    "create_key": "keys",
    "reference": "handbook",
    "remove_key": "keys",
    "run": "gateway",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used.

    Raises:
        EnvironmentProblem: a package that serving needs is not installed.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("tunesmith"):
            raise
        raise EnvironmentProblem(
            f"serving needs the package {error.name!r}, which is not installed",
            fix="pip install 'tunesmith[serve]'",
        ) from error
