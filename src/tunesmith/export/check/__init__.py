"""Is this model whole, sound, and what it says it is: any folder, adapter, GGUF or bundle, with remedies."""

from tunesmith.export.check.report import CheckOptions, CheckResult
from tunesmith.export.check.run import bytes_to_read, check_model
from tunesmith.models.files import Finding

__all__ = ["CheckOptions", "CheckResult", "Finding", "bytes_to_read", "check_model"]
