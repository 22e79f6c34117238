"""Several stages in order; the only package that knows two of them."""

from tunesmith.pipeline.forms import FormRow, FormsTable, measure_forms
from tunesmith.pipeline.merging import check_after_merge, check_rows, export_merge, rank_merge
from tunesmith.pipeline.proofs import Proved, prove
from tunesmith.pipeline.stages import (
    STAGES,
    TIMING,
    Done,
    Stage,
    Step,
    find,
    plan,
    run,
    run_stage,
)

__all__ = [
    "STAGES",
    "TIMING",
    "Done",
    "FormRow",
    "FormsTable",
    "Proved",
    "Stage",
    "Step",
    "check_after_merge",
    "check_rows",
    "export_merge",
    "find",
    "measure_forms",
    "plan",
    "prove",
    "rank_merge",
    "run",
    "run_stage",
]
