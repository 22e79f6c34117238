"""The recipe: all that a user can set, one section a stage."""

from __future__ import annotations

from operator import attrgetter

from pydantic import Field, PrivateAttr

from tunesmith.config.base import Settings, unread_keys
from tunesmith.config.data import DataConfig
from tunesmith.config.evaluate import EvaluateConfig
from tunesmith.config.export import ExportConfig
from tunesmith.config.model import ModelConfig
from tunesmith.config.serve import ServeConfig
from tunesmith.config.train import TrainConfig
from tunesmith.errors import ConfigError, listed

__all__ = ["Recipe", "refuse_unread"]


class Recipe(Settings):
    """Everything a run needs. What is not set has a default that runs."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Names the folder below `workspace` in which all artifacts of this recipe lie."""
    workspace: str = Field("runs", min_length=1)
    """Folder for artifacts, relative to where the command is run."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of every random choice: splits, order, initial adapter weights, resamples."""
    model: ModelConfig = ModelConfig()
    """Which base model."""
    data: DataConfig = DataConfig()
    """Where the examples come from."""
    train: TrainConfig = TrainConfig()
    """How the model is trained."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """How base and tuned model are compared."""
    export: ExportConfig = ExportConfig()
    """In which forms the model leaves."""
    serve: ServeConfig = ServeConfig()
    """How the gateway listens."""
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def origin(self, key: str) -> str:
        """Where the value of a dotted key comes from: "recipe.yaml:12", "--set seed", "Python", or "default"."""
        return self._origins.get(key, "default")


def _short(origin: str, key: str) -> str:
    """An origin beside its key, which it need not say again."""
    return "--set" if origin == f"--set {key}" else origin


def refuse_unread(recipe: Recipe, section: str) -> None:
    """Fail a stage at its start when a key that the user set has no effect in it.

    Call it after the stage's plan was made, that is, after everything it will use was read.

    Args:
        recipe: the whole recipe.
        section: the stage's section, such as "train", or a part of it, such as "data.clean".

    Raises:
        ConfigError: names every such key and its origin.
    """
    keys = list(unread_keys(attrgetter(section)(recipe), f"{section}."))
    if keys:
        noun = "a key that is set" if len(keys) == 1 else f"{len(keys)} keys that are set"
        raise ConfigError(
            f"{noun} would have no effect:\n"
            + listed(f"{key} ({_short(recipe.origin(key), key)})" for key in keys),
            why="with the other settings as they are, nothing reads it",
            fix="remove it, or change the setting that makes it meaningless",
        )
