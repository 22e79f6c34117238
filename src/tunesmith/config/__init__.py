"""Every type that a user can set, and the loader that reads them."""

from tunesmith.config.base import Settings
from tunesmith.config.data import DataConfig, FieldMapping, FilesSource, SampleSource
from tunesmith.config.evaluate import EvaluateConfig, ExactMatchTask, SqlExecutionTask
from tunesmith.config.export import FORMS, ExportConfig, Form
from tunesmith.config.load import Value, explain, load_recipe, recipe_from
from tunesmith.config.model import ModelConfig
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
    "FORMS",
    "DataConfig",
    "DpoObjective",
    "EvaluateConfig",
    "ExactMatchTask",
    "ExportConfig",
    "FieldMapping",
    "FilesSource",
    "Form",
    "FullMethod",
    "LoraMethod",
    "ModelConfig",
    "OptimizerConfig",
    "QloraMethod",
    "Recipe",
    "SampleSource",
    "ServeConfig",
    "Settings",
    "SftObjective",
    "SqlExecutionTask",
    "TrainConfig",
    "Value",
    "explain",
    "load_recipe",
    "recipe_from",
    "refuse_unread",
]
