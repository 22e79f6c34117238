"""New rows: out of old ones by rules that keep the answer, or out of a model, with their origin.

Light to import: what it exports is loaded at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.data.grow.augmentation import RULES, Augmented, AugmentOptions, LeftOut, augment
    from tunesmith.data.grow.best import BestOfN
    from tunesmith.data.grow.documents import QuestionsFromDocuments, read_documents
    from tunesmith.data.grow.endpoint import Endpoint
    from tunesmith.data.grow.instruct import SelfInstruct
    from tunesmith.data.grow.local import LocalEngine
    from tunesmith.data.grow.synthesis import Places, SynthesisResult, synthesize

__all__ = [
    "RULES",
    "AugmentOptions",
    "Augmented",
    "BestOfN",
    "Endpoint",
    "LeftOut",
    "LocalEngine",
    "Places",
    "QuestionsFromDocuments",
    "SelfInstruct",
    "SynthesisResult",
    "augment",
    "read_documents",
    "synthesize",
]

_MODULES = {
    "RULES": "augmentation",
    "AugmentOptions": "augmentation",
    "Augmented": "augmentation",
    "LeftOut": "augmentation",
    "augment": "augmentation",
    "BestOfN": "best",
    "QuestionsFromDocuments": "documents",
    "read_documents": "documents",
    "Endpoint": "endpoint",
    "SelfInstruct": "instruct",
    "LocalEngine": "local",
    "Places": "synthesis",
    "SynthesisResult": "synthesis",
    "synthesize": "synthesis",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
