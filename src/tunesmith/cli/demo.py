"""`tunesmith demo`: the whole journey on the sample data."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tunesmith.cli.options import Asked, fit_option, json_option
from tunesmith.cli.question import Answer, Question, ask, choose, execute
from tunesmith.cli.screen import console, print_json, table, where
from tunesmith.cli.serve import curl_line, key_lines, log_requests
from tunesmith.cli.stages import headline
from tunesmith.errors import EnvironmentProblem, listed
from tunesmith.telemetry import visible

if TYPE_CHECKING:
    from rich.console import Console

    from tunesmith.config import Recipe
    from tunesmith.pipeline import Done, Step
    from tunesmith.serve import Ready

__all__ = ["demo"]

_TITLES = {
    "data": "data: raw rows to a sealed dataset",
    "train": "train: dataset and base model to an adapter",
    "evaluate": "evaluate: base against tuned on held-out questions",
    "export": "export: every form checked against the model that was judged",
}


@click.command
@click.option("--workspace", default="runs", show_default=True, help="Folder for artifacts.")
@click.option(
    "--fresh",
    is_flag=True,
    help="Run every stage anew, beside what earlier demos have made.",
)
@click.option("--keep-serving", is_flag=True, help="Leave the gateway up at the end, until Ctrl-C.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one setting of the recipe `demo`, such as --set train.epochs=1.",
)
@fit_option
@json_option
def demo(
    workspace: str,
    fresh: bool,
    keep_serving: bool,
    sets: tuple[str, ...],
    fit: bool,
    as_json: bool,
) -> None:
    """The whole journey on the sample data, in minutes.

    Checks the machine, builds a text-to-SQL dataset, trains a 135M model on it, measures how much
    better it got, exports it, serves it, and asks it a question. A second demo uses what is there
    again and takes seconds. No account, no GPU and no network are needed.

    \b
    Examples:
      tunesmith demo
      tunesmith demo --keep-serving
      tunesmith demo --workspace /tmp/try --set train.epochs=0.5
    """
    asked = Asked(("demo",), (f"workspace={json.dumps(workspace)}", *sets)).to_fit(fit)
    tour = _Tour(asked.load(), console(stderr=as_json))
    tour.doctor()
    tour.stages(fresh=fresh)
    summary = tour.serve(keep_serving=keep_serving, as_json=as_json)
    if not keep_serving and as_json:
        print_json(summary)


@dataclass
class _Tour:
    """The demo's stops, in order; each prints what it did."""

    recipe: Recipe
    out: Console
    results: dict[str, Done] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def doctor(self) -> None:
        """The machine in a few lines; problems with their fixes.

        Raises:
            EnvironmentProblem: something that the demo needs is missing.
        """
        from tunesmith.cli.doctor import summary_lines
        from tunesmith.plan import examine

        self._title("doctor: this machine")
        started = time.monotonic()
        found = examine(Path(self.recipe.workspace))
        self.seconds["doctor"] = time.monotonic() - started
        for name, value in summary_lines(found):
            self._say(f"{name:<10} {value}")
        for problem in found.problems:
            self.out.print(f"problem: {problem.what}", style="red", markup=False)
            self._say(f"  fix: {problem.fix}")
        # The demo goes through every stage: what only a later one needs would stop it there.
        lacking = [problem for problem in found.problems if problem.needed or problem.package]
        if lacking:
            raise EnvironmentProblem(
                f"this machine cannot run the demo yet:\n{listed(p.what for p in lacking)}",
                fix="\n".join(dict.fromkeys(p.fix for p in lacking)),
            )

    def stages(self, *, fresh: bool) -> None:
        """Data to export; what is there and unchanged is used again."""
        from tunesmith import pipeline

        start = pipeline.STAGES[0] if fresh else None
        pipeline.run(self.recipe, start=start, tell=self._before, tell_done=self._after)

    def serve(self, *, keep_serving: bool, as_json: bool) -> Mapping[str, Any]:
        """Start the gateway, ask it one question, write the summary, stop it or leave it up."""
        from tunesmith.serve import Gateway

        self._title("serve: an OpenAI-compatible endpoint")
        question = choose(self._artifact("evaluate"), self._artifact("data"))
        started = time.monotonic()
        with Gateway(self.recipe, self._artifact("export")) as gateway:
            ready = gateway.ready
            self._say(f"{ready.base_url} answers after {ready.start_seconds:.1f} s")
            answer, rows = self._ask(ready, question)
            if keep_serving:
                summary = self._finish(time.monotonic() - started, answer, rows)
                self._keep(ready, question, summary if as_json else None)
                return summary
        self._say("the gateway and its engine are stopped")
        return self._finish(time.monotonic() - started, answer, rows)

    def _before(self, step: Step) -> None:
        self._title(_TITLES[step.stage])
        if step.action == "resume":
            self._say("going on with an unfinished run")

    def _after(self, done: Done) -> None:
        self.results[done.stage] = done
        if done.seconds is not None:
            self.seconds[done.stage] = done.seconds
        took = "an unknown time" if done.seconds is None else f"{done.seconds:.1f} s"
        self._say(headline(done.stage, done.artifact.facts))
        self._say(f"reused; it took {took} when it was made" if done.reused else f"took {took}")
        self._say(where(done.artifact.dir))
        if done.stage == "data":
            self._show_row(done)

    def _show_row(self, done: Done) -> None:
        """One training row as the model sees it."""
        from tunesmith.cli.data.show import show_row

        self._say("")
        shown = show_row(self.recipe, done.artifact.dir, split="train", row=1)
        self.out.print(shown.rich() if self.out.is_terminal else shown.plain(), markup=False)

    def _ask(self, ready: Ready, question: Question) -> tuple[Answer, list[list[Any]] | None]:
        self._say(f"question   {question.asked}   (held out; {question.found})")
        self.out.print("answer     ", end="")
        tokens = self.recipe.evaluate.max_answer_tokens
        answer = ask(ready, question, max_tokens=tokens, show=self._show_piece)
        self._say("")
        self._say(f"first token after {answer.first_token_seconds:.2f} s")
        if question.database is None:
            return answer, None
        rows, note = execute(answer.text, question.database)
        self._say(f"on {question.database.name}: {visible(note)}")
        for row in rows or ():
            cells = ("NULL" if cell is None else str(cell) for cell in row)
            self._say(visible("  " + " | ".join(cells)))
        return answer, rows

    def _show_piece(self, text: str) -> None:
        # A model may write anything: escape sequences would steer the terminal.
        self.out.print(visible(text), end="", markup=False, soft_wrap=True)

    def _finish(
        self, seconds: float, answer: Answer, rows: list[list[Any]] | None
    ) -> Mapping[str, Any]:
        from tunesmith.store import write_atomically
        from tunesmith.telemetry import peak_rss_bytes

        self.seconds["serve"] = seconds
        earlier = [done.seconds for done in self.results.values() if done.reused and done.seconds]
        peaks = [done.peak_rss_bytes for done in self.results.values() if done.peak_rss_bytes]
        summary = summarise(
            {stage: done.artifact.facts for stage, done in self.results.items()}, self.seconds
        ) | {
            # Reused stages count with the time they took: the whole journey's, not this visit's.
            "seconds_total": round(time.monotonic() - self.began + sum(earlier), 3),
            # Of the process that trains, judges and exports; the inference engine is a child.
            "peak_rss_bytes": max([*peaks, peak_rss_bytes()]),
            "answer_sql": answer.text,
            "answer_rows": rows,
            "first_token_seconds": round(answer.first_token_seconds, 4),
        }
        path = self._artifact("export").dir.parent / "summary.json"
        write_atomically(path, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        self._closing_table(summary, path)
        return summary

    def _closing_table(self, summary: Mapping[str, Any], path: Path) -> None:
        self._title("what was made")
        rows = [
            (stage, headline(done.stage, done.artifact.facts), where(done.artifact.dir))
            for stage, done in self.results.items()
        ]
        rows.append(("summary", f"{summary['seconds_total']:.0f} s for the whole", where(path)))
        table(("", "result", "where"), rows, to=self.out)
        self._say("next:")
        for command in next_commands(self._artifact("evaluate").dir, self._artifact("export").dir):
            self._say(f"  {command}")

    def _keep(self, ready: Ready, question: Question, summary: Mapping[str, Any] | None) -> None:
        """Wait for Ctrl-C or SIGTERM while the gateway answers."""
        log_requests()
        self._say(f"\nserving at {ready.base_url}; Ctrl-C stops it")
        for line in (*key_lines(ready), curl_line(ready, question.asked)):
            self._say(line)
        if summary is not None:
            print_json(summary)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()

    def _artifact(self, stage: str) -> Any:
        return self.results[stage].artifact

    def _title(self, text: str) -> None:
        self.out.print(f"\n{text}", style="bold", markup=False)

    def _say(self, text: str) -> None:
        self.out.print(text, markup=False, soft_wrap=True)


def summarise(facts: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The part of `summary.json` that stages' facts hold.

    `peak_rss_bytes` is the largest resident memory of the processes that ran the stages, without
    that of their children, such as the inference engine.
    """
    found, parity = facts["evaluate"], facts["export"]["parity"]
    return {
        "seconds_total": 0.0,
        "seconds_by_stage": {stage: round(value, 3) for stage, value in seconds.items()},
        "base_accuracy": found["base"]["accuracy"],
        "tuned_accuracy": found["tuned"]["accuracy"],
        "gain_points": found["gain"]["points"],
        "gain_ci95": found["gain"]["interval_points"],
        "n_test": found["n"],
        "train_tokens_per_second": facts["train"]["tokens_per_second"],
        "peak_rss_bytes": 0,
        "parity": {
            form: {key: measured[key] for key in ("greedy_agreement", "mean_kl")}
            for form, measured in parity.items()
        },
    }


def next_commands(report: Path, bundle: Path) -> Sequence[str]:
    """What to type after the demo."""
    return (
        f"open {where(report / 'report.html')}   (the report, in a browser)",
        f"tunesmith serve {where(bundle)}",
        f"tunesmith show {where(bundle)}",
        "tunesmith init --data YOUR_EXAMPLES.jsonl   then: tunesmith run recipe.yaml",
    )
