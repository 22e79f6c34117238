"""Files of models, looked at before any other program's parser reads them; light: no torch, no numpy."""

from tunesmith.models.files.counts import check_counts, refuse_odd_counts
from tunesmith.models.files.finding import Finding, Findings, refuse
from tunesmith.models.files.ggml import GGML_TYPES, GgmlType
from tunesmith.models.files.gguf import (
    GgufFile,
    GgufTensor,
    look_at_gguf,
    parts_of_gguf,
    read_metadata,
    refuse_damaged_gguf,
)
from tunesmith.models.files.json_text import (
    MOST_CONFIG_BYTES,
    MOST_TOKENIZER_BYTES,
    read_json_object,
)
from tunesmith.models.files.pickles import PICKLE_NAMES, pickle_in
from tunesmith.models.files.safetensors import (
    SafetensorsFile,
    StoredTensor,
    look_at_safetensors,
    refuse_damaged_safetensors,
    stored_tensors,
)

__all__ = [
    "GGML_TYPES",
    "MOST_CONFIG_BYTES",
    "MOST_TOKENIZER_BYTES",
    "PICKLE_NAMES",
    "Finding",
    "Findings",
    "GgmlType",
    "GgufFile",
    "GgufTensor",
    "SafetensorsFile",
    "StoredTensor",
    "check_counts",
    "look_at_gguf",
    "look_at_safetensors",
    "parts_of_gguf",
    "pickle_in",
    "read_json_object",
    "read_metadata",
    "refuse",
    "refuse_damaged_gguf",
    "refuse_damaged_safetensors",
    "refuse_odd_counts",
    "stored_tensors",
]
