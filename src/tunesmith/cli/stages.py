"""How a stage's step and result are printed; `run` and the stage commands share it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from tunesmith.cli.screen import note, print_json, print_rich, table, where

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tunesmith.cli.options import Asked
    from tunesmith.pipeline import Done, Stage, Step
    from tunesmith.store import Artifact

__all__ = ["as_dict", "one_stage", "print_done", "tell"]

_VERBS = {"reuse": "skipped", "resume": "resumed", "run": "running"}


def tell(step: Step) -> None:
    """One line on stderr before a stage: what happens and why."""
    note(f"{step.stage}: {_VERBS[step.action]} ({step.why})")


def one_stage(
    asked: Asked, stage: Stage, *, resume: bool, as_json: bool, processes: int | None = None
) -> None:
    """A stage command: load, call, print."""
    from tunesmith import pipeline

    recipe = asked.load(stage)
    done = pipeline.run_stage(
        recipe, stage, resume=resume, spelled=asked.spelled(stage), tell=tell, processes=processes
    )
    if as_json:
        print_json(as_dict(done))
        return
    print_done([done])
    if stage == "data":
        from tunesmith.cli.data.split import print_report

        print_report(done.artifact.read_json("report.json"))
    if stage == "evaluate":
        from tunesmith.evaluate import open_result, render_summary

        print_rich(render_summary(open_result(done.artifact)))


def as_dict(done: Done) -> dict[str, Any]:
    """A stage's result for `--json`."""
    from tunesmith.store.signatures import is_signed

    return {
        "stage": done.stage,
        "reused": done.reused,
        "seconds": done.seconds,
        "peak_rss_bytes": done.peak_rss_bytes,
        "directory": str(done.artifact.dir),
        "key": done.artifact.key,
        "sha256": done.artifact.sha256,
        "facts": dict(done.artifact.facts),
        **({"signed": is_signed(done.artifact.dir)} if done.stage == "export" else {}),
    }


def print_done(results: Sequence[Done]) -> None:
    """A table of stages on stdout."""
    rows = [
        (
            done.stage,
            "unchanged, skipped" if done.reused else "made",
            "" if done.seconds is None else f"{done.seconds:.1f}",
            headline(done.stage, done.artifact.facts),
            where(done.artifact.dir),
        )
        for done in results
    ]
    table(("stage", "", "seconds", "result", "directory"), rows, right=(2,))
    for done in results:
        if done.stage == "export":
            _print_ends(done.artifact.facts)
            _print_signature(done.artifact)


def _print_ends(facts: Mapping[str, Any]) -> None:
    """What the certificates leave open about the ends of answers; bundles of earlier versions do not know it."""
    from tunesmith.export.card import told_ends

    if told := told_ends(facts["parity"], facts.get("answer_tokens", 0)):
        note(f"note: {told}")


def _print_signature(bundle: Artifact) -> None:
    from tunesmith.store import signatures

    if signatures.is_signed(bundle.dir):
        place = shlex.quote(where(bundle.dir))
        note(
            f"signed ({signatures.SIGNATURE}); by whom: tunesmith check {place} --public-key FILE.pub"
        )


def headline(stage: Stage, facts: Any) -> str:
    """A stage's result in one line, each figure with its n."""
    if stage == "data":
        rows = facts["rows"]
        return f"{rows['train']} train, {rows['validation']} validation, {rows['test']} test rows"
    if stage == "train":
        return (
            f"{facts['steps']} steps, {facts['tokens_per_second']:.0f} tokens/s, validation loss "
            f"{facts['first_validation_loss']:.3f} -> {facts['validation_loss']:.3f} nats"
        )
    if stage == "evaluate":
        low, high = facts["gain"]["interval_points"]
        return (
            f"{facts['base']['accuracy']:.1%} -> {facts['tuned']['accuracy']:.1%}, gain "
            f"{facts['gain']['points']:+.1f} points [{low:+.1f}, {high:+.1f}], n={facts['n']}: "
            f"{facts['verdict']}"
        )
    agreement = ", ".join(
        f"{form} {found['greedy_agreement']:.1%}" for form, found in facts["parity"].items()
    )
    return f"same greedy tokens: {agreement}"
