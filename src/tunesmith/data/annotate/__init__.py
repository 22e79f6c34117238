"""Rows to people and back: Label Studio tasks and results, agreement, and a review in the terminal."""

from tunesmith.data.annotate.agreement import (
    Agreement,
    agreement_of,
    cohens_kappa,
    krippendorffs_alpha,
    majority,
)
from tunesmith.data.annotate.label_studio import Export, export, form_of
from tunesmith.data.annotate.queue import Suspect, by_field, most_suspicious
from tunesmith.data.annotate.results import form_in, read_results
from tunesmith.data.annotate.review import Review, ReviewPlaces
from tunesmith.data.annotate.verdicts import Imported, import_results

__all__ = [
    "Agreement",
    "Export",
    "Imported",
    "Review",
    "ReviewPlaces",
    "Suspect",
    "agreement_of",
    "by_field",
    "cohens_kappa",
    "export",
    "form_in",
    "form_of",
    "import_results",
    "krippendorffs_alpha",
    "majority",
    "most_suspicious",
    "read_results",
]
