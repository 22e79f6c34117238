"""Every type that a user can set, and the loader that reads them."""

from tunesmith.config.base import Settings
from tunesmith.config.card import CardConfig
from tunesmith.config.data import (
    CheckConfig,
    CleanConfig,
    DataConfig,
    FieldMapping,
    FilesSource,
    MixSource,
    RandomSplit,
    SampleSource,
    SplitConfig,
    TimeSplit,
)
from tunesmith.config.evaluate import EvaluateConfig, ExactMatchTask, SqlExecutionTask
from tunesmith.config.export import DEFAULT_FORMS, FORMS, ExportConfig, Form, LimitConfig
from tunesmith.config.load import Value, explain, full_key, load_recipe, recipe_from
from tunesmith.config.model import ModelConfig
from tunesmith.config.privacy import PiiConfig, SecretsConfig
from tunesmith.config.recipe import Recipe, refuse_unread
from tunesmith.config.serve import ServeConfig
from tunesmith.config.train import (
    DpoObjective,
    FullMethod,
    LoraMethod,
    OptimizerConfig,
    QloraMethod,
    SftObjective,
    TrainConfig,
)

__all__ = [
    "DEFAULT_FORMS",
    "FORMS",
    "CardConfig",
    "CheckConfig",
    "CleanConfig",
    "DataConfig",
    "DpoObjective",
    "EvaluateConfig",
    "ExactMatchTask",
    "ExportConfig",
    "FieldMapping",
    "FilesSource",
    "Form",
    "FullMethod",
    "LimitConfig",
    "LoraMethod",
    "MixSource",
    "ModelConfig",
    "OptimizerConfig",
    "PiiConfig",
    "QloraMethod",
    "RandomSplit",
    "Recipe",
    "SampleSource",
    "SecretsConfig",
    "ServeConfig",
    "Settings",
    "SftObjective",
    "SplitConfig",
    "SqlExecutionTask",
    "TimeSplit",
    "TrainConfig",
    "Value",
    "explain",
    "full_key",
    "load_recipe",
    "recipe_from",
    "refuse_unread",
]
