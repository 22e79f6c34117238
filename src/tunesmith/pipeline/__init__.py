"""Several stages in order; the only package that knows two of them."""

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
    "Proved",
    "Stage",
    "Step",
    "find",
    "plan",
    "prove",
    "run",
    "run_stage",
]
