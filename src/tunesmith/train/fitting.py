"""A session that fits into memory: rehearsed, and with `--fit` lowered rung by rung until it does."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tunesmith.models.memory import Recompute
from tunesmith.train.memory import Rehearsal, rehearse
from tunesmith.train.session import Session, load
from tunesmith.train.shortage import StepTooLarge
from tunesmith.train.stopping import Check, go_on

if TYPE_CHECKING:
    from tunesmith.train.plan import TrainPlan

__all__ = ["fitted_session"]

HAS_BEGUN = (
    "close other programs and run the same command again; a run that has begun keeps its settings, "
    "so others are a new run"
)

PlanOf = Callable[[Mapping[str, Any]], "TrainPlan"]
"""The plan of what `Resources.as_choice` gave."""


def fitted_session(
    plan: TrainPlan,
    plan_of: PlanOf,
    say: Callable[[str], None],
    keep: Recompute | None = None,
    check: Check = go_on,
    *,
    has_begun: bool = False,
) -> tuple[Session, Rehearsal]:
    """Load the model and rehearse the longest micro batch; the objective is not prepared yet.

    With `train.fit`, while the rehearsal finds too much, the next rung of the ladder is taken, told,
    and rehearsed again, on a model that is loaded anew.

    Args:
        plan: as asked, or as the formula's ladder left it.
        plan_of: makes the plan of the next rung.
        say: is told each rung that is taken.
        keep: what an earlier attempt computed again, see `rehearse`.
        check: called when a model is loaded; what it raises ends it.
        has_begun: a checkpoint is there, so no setting may change any more.

    Raises:
        StepTooLarge: it does not fit; with `train.fit` neither does the ladder's last rung.
    """
    from tunesmith.train.fast.swap import give_back_freed

    while True:
        session = load(plan, check)
        try:
            session.rehearsal = rehearse(session, keep)
            return session, session.rehearsal
        except StepTooLarge as error:
            if has_begun:
                error.fix = HAS_BEGUN
                raise
            rung = error.shortage.next_choice(error.found) if plan.resources.asked.fit else None
            if rung is None:
                raise
        choice, line = rung
        # The model is let go before the next one is loaded: its blocks hold each other in circles.
        del session
        gc.collect()
        give_back_freed()
        say(f"fit: {line}")
        plan = replace(plan_of(choice), precision_choice=plan.precision_choice)
        keep = None
