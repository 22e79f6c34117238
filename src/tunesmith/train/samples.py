"""Sample answers while the model learns: what a loss curve does not show."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from tunesmith.engine import Sampling
from tunesmith.telemetry import Bar, Recorder, visible
from tunesmith.train.packing import Row
from tunesmith.train.stopping import Check, go_on

if TYPE_CHECKING:
    from tunesmith.train.session import Session

__all__ = ["show_samples"]

MAX_TOKENS = 64


def show_samples(session: Session, recorder: Recorder, bar: Bar, check: Check = go_on) -> None:
    """Answer the first validation prompts greedily, and print them beside the references.

    `check` is called whenever an answer is whole; what it raises ends the samples.
    """
    from tunesmith.engine.backends.transformers import TransformersBackend

    plan = session.plan
    rows = plan.validation.leading[: plan.cadence.sample_rows]
    pairs = [_split((row.tokens, row.trained)) for row in rows]
    session.model.eval()
    backend = TransformersBackend(session.model, plan.tokenizer, stop_ids=plan.renderer.stop_ids)
    try:
        answers = backend.generate(
            [prompt for prompt, _ in pairs],
            Sampling(max_tokens=MAX_TOKENS),
            on_done=lambda _: check(),
        )
    finally:
        session.model.train()
    for (prompt, reference), answer in zip(pairs, answers, strict=True):
        wanted = plan.renderer.decode(reference)
        question = plan.renderer.decode(prompt).strip().splitlines()
        bar.print(
            f"[dim]step {session.step}[/dim]  {escape(visible(wanted))}\n   model: {escape(visible(answer.text))}"
        )
        recorder.note(
            "sample", step=session.step, prompt=question, reference=wanted, answer=answer.text
        )


def _split(row: Row) -> tuple[list[int], list[int]]:
    """A row's tokens before its last answer, and that answer's."""
    tokens, trained = row
    end = len(tokens) - list(reversed(trained)).index(True)
    start = end
    while start > 0 and trained[start - 1]:
        start -= 1
    return list(tokens[:start]), list(tokens[start:end])
