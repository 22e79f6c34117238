"""Tables and plots from the journal; nothing in them is written by hand."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plots
import scenarios
from harness import Journal

Records = list[dict[str, Any]]
GIB = 2**30
TITLES = {
    "lora": "LoRA r=16 on all linear layers, GeoQuery's rows",
    "long": "The same with steps of 2,048 positions",
    "prefix": "A system prompt of about 400 tokens that all rows share, rows of about 100 tokens",
    "dpo": "DPO: pairs that share their prompt",
    "qlora": "QLoRA: the base model in NF4",
    "full": "Against full fp32 fine-tuning, to the same validation loss",
    "full-search": "Learning rates that were tried to reach the loss, full and LoRA",
    "peers": "Other tools, by their own command lines, in environments of their own",
    "search": "TRL's settings that were tried",
}
PREFACE = """All start from the same weights (SmolLM2-135M-Instruct) and read the same rows once (`full`: again until the
loss is reached), with the same adapter (r=16, alpha 32, all linear layers), AdamW and a constant learning rate
(1e-3; DPO 1e-4; `full`: rates searched for both sides). tokens/s counts
the tokens of rows, without padding, after the warm-up steps; a token that rows share counts in every row. Peak memory
is the resident memory of the process and its children at its highest, Python, torch and the model's file
included. The loss is that of the dev rows after the run, by the same code for all (`losses.py`: plain Hugging
Face, fp32, row by row). Each run is a process of its own; contestants that one call runs take turns; medians, and the lowest and
highest in brackets. Differences that remain: TRL draws rows at random and pads, tunesmith fills a budget of positions, so
a step holds about as many rows, not exactly as many."""


def write(journal: Journal, out: Path) -> None:
    """Write throughput/, memory/ and, when it was measured, growth/ under `out`."""
    records = settled(journal.records())
    grown = of(records, "growth")
    for folder in ("throughput", "memory", *(["growth"] if grown else [])):
        (out / folder).mkdir(parents=True, exist_ok=True)
    _save(out / "throughput" / "results.md", _throughput(records))
    _save(out / "memory" / "results.md", _memory(records))
    plots.bars(records, "throughput", out / "throughput" / "throughput.png")
    plots.bars(records, "memory", out / "memory" / "memory.png")
    if grown:
        _save(out / "growth" / "results.md", _growth(records))
        plots.growth(records, out / "growth" / "growth.png")


def settled(records: Records) -> Records:
    """Per scenario, the runs of the largest size on a quiet machine, or on a loaded one if there is no other."""
    kept: Records = []
    for name in dict.fromkeys(r["scenario"] for r in records):
        mine = [r for r in records if r["scenario"] == name]
        good = [r for r in mine if not r["loaded"] and "error" not in r] or mine
        largest = max(r["size"] for r in good)
        last = {(r["contestant"], r["repetition"], r["loaded"]): r for r in mine}
        quiet = any(not r["loaded"] for r in good)
        kept += [
            r
            for r in last.values()
            if r["size"] == largest and (name == "search" or r["loaded"] != quiet)
        ]
    return kept


def of(records: Records, scenario: str, contestant: str | None = None) -> Records:
    return [
        r
        for r in records
        if r["scenario"] == scenario and contestant in (None, r["contestant"]) and "error" not in r
    ]


def median(records: Records, key: str) -> float | None:
    found = [r[key] for r in records if r.get(key) is not None]
    return statistics.median(found) if found else None


@dataclass(frozen=True)
class Target:
    """One row of the table: a ratio against a peer, and what was asked for."""

    work: str
    against: str
    asked: str
    scenario: str
    peer: str
    ours: str
    key: str
    value: Callable[[float, float], float]
    reached: Callable[[float], bool]
    form: str


def _times(work: str, scenario: str, sides: tuple[str, str], at_least: float, key: str) -> Target:
    unit = {"tokens_per_second": "tokens/s", "rows_per_second": "rows/s"}[key]
    return Target(
        work,
        sides[0],
        f">= {at_least:g}x {unit}",
        scenario,
        *sides,
        key,
        lambda peer, ours: ours / peer,
        lambda ratio: ratio >= at_least,
        "{:.2f}x",
    )


def _part(work: str, scenario: str, sides: tuple[str, str], at_most: float, key: str) -> Target:
    what = {"peak_tree_bytes": "peak memory", "train_seconds": "time"}[key]
    return Target(
        work,
        sides[0],
        f"<= {at_most:.0%} of its {what}",
        scenario,
        *sides,
        key,
        lambda peer, ours: ours / peer,
        lambda ratio: ratio <= at_most,
        "{:.0%}",
    )


def targets() -> list[Target]:
    lora, speed, memory = "LoRA r=16, all linear layers", "tokens_per_second", "peak_tree_bytes"
    made = []
    for peer, least, most in (
        ("trl-defaults", 4, 0.4),
        ("trl-best", 3, 0.5),
        ("trl-best-packed", 3, 0.5),
    ):
        made.append(_times(lora, "lora", (peer, "tunesmith"), least, speed))
        made.append(_part(lora, "lora", (peer, "tunesmith"), most, memory))
    for peer in ("trl-best-packed", "trl-packed-2048"):
        longer = f"{lora}, steps of 2,048 positions"
        made.append(_times(longer, "long", (peer, "tunesmith-2048"), 3, speed))
        made.append(_part(longer, "long", (peer, "tunesmith-2048"), 0.5, memory))
    small = f"{lora}, micro batches of 320"
    made.append(_times(small, "lora", ("trl-defaults", "tunesmith-320"), 4, speed))
    made.append(_part(small, "lora", ("trl-defaults", "tunesmith-320"), 0.4, memory))
    for side in ("tunesmith", "tunesmith-320"):
        for key in ("train_seconds", memory):
            work = f"to the same loss, {side}"
            made.append(_part(work, "full", ("hf-full", side), 0.2, key))
    shared = "400-token prefix, 100-token rows"
    for peer, side in (
        ("trl-best", "tunesmith"),
        ("trl-best", "tunesmith-2176"),
        ("trl-best-packed", "tunesmith"),
    ):
        made.append(_times(shared, "prefix", (peer, side), 8, "rows_per_second"))
    made.append(_times("DPO pairs", "dpo", ("trl-best", "tunesmith"), 3, "rows_per_second"))
    for peer in ("peft-bitsandbytes", "peft-bitsandbytes-best"):
        made.append(_times("QLoRA NF4", "qlora", (peer, "tunesmith-qlora"), 2, speed))
    sides = ("tunesmith-lora-bf16", "tunesmith-qlora")
    made.append(_part("QLoRA NF4", "qlora", sides, 1.0, memory))
    return made


def _target_row(target: Target, records: Records) -> str:
    sides = [of(records, target.scenario, name) for name in (target.peer, target.ours)]
    medians = [median(side, target.key) for side in sides]
    head = f"| {target.work} | {target.against} | {target.asked} |"
    if None in medians or (target.scenario == "full" and not _both_reached(sides)):
        return f"{head} not measured | |"
    peers = {r["repetition"]: r[target.key] for r in sides[0]}
    ratios = [
        target.value(peers[r["repetition"]], r[target.key])
        for r in sides[1]
        if r["repetition"] in peers
    ]
    ratio = target.value(*medians)
    spread = f"n={len(ratios)}"
    if len(ratios) > 1:
        spread += f", {target.form.format(min(ratios))} to {target.form.format(max(ratios))}"
    verdict = "reached" if target.reached(ratio) else "short"
    loaded = any(r["loaded"] for side in sides for r in side)
    return f"{head} {target.form.format(ratio)} ({spread}) | {'loaded machine' if loaded else verdict} |"


def _both_reached(sides: list[Records]) -> bool:
    return all(side and all(r["reached"] for r in side) for side in sides)


def _share_rows(records: Records) -> Iterator[str]:
    for name in dict.fromkeys(r["contestant"] for r in of(records, "share")):
        runs = of(records, "share", name)
        for form in ("bf16", "fp32"):
            parts = [median(runs, f"{form}_share_{way}") for way in ("needed", "executed")]
            if None in parts:
                continue
            mark = "reached" if parts[0] >= 0.6 else "short"
            asked = ">= 60%" if form == "bf16" else ""
            yield (
                f"| share of the machine, {name} | best {form} product of the step's shapes | {asked} "
                f"| {parts[0]:.0%} of what is needed, {parts[1]:.0%} of what is executed (n={len(runs)}) "
                f"| {'loaded machine' if runs[0]['loaded'] else mark if asked else ''} |"
            )


def _throughput(records: Records) -> list[str]:
    lines = ["# Training, side by side", "", *PREFACE.splitlines(), "", *_machine(records), ""]
    lines += ["| work | against | target | measured | verdict |", "|---|---|---|---|---|"]
    lines += [_target_row(target, records) for target in targets()]
    lines += [*_share_rows(records), "", "![speed](throughput.png)"]
    for name in (
        "lora",
        "long",
        "prefix",
        "qlora",
        "dpo",
        "full",
        "full-search",
        "peers",
        "search",
    ):
        mine = [r for r in records if r["scenario"] == name]
        if mine:
            lines += ["", f"## {TITLES[name]}", "", *_scenario(name, mine)]
        if mine and name == "peers":
            lines += [
                "",
                "A tool's own time for all steps, the first ones included: not after warm-up, as above.",
            ]
    lines += _share(records)
    return lines


def _machine(records: Records) -> Iterator[str]:
    if not records:
        yield "The journal is empty."
        return
    last = next((r["machine"] for r in reversed(records) if r["scenario"] != "peers"), None)
    if last is None:
        return
    versions = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    policy = ", ".join(f"{name}={value}" for name, value in last["omp"].items())
    loads = [r["load_average"] for r in records if not r["loaded"]]
    yield f"{last['cpu']}, {last['cores']} cores, {last['memory_gib']} GiB; Python {last['python']}, {versions};"
    yield f"{policy} for all. `make bench-training`; the journal is"
    yield "`benchmarks/throughput/results.jsonl` (each run with its command, settings, time and load)."
    yield f"Revisions: {'; '.join(_revisions(records))}."
    if loads:
        yield f"Load average at the start of the runs (their own predecessors' included): {min(loads)} to {max(loads)}."


def _revisions(records: Records) -> Iterator[str]:
    """Which revision ran what: a journal may have been filled by several calls."""
    ran: dict[str, list[str]] = {}
    for r in records:
        if r["scenario"] != "peers":
            ran.setdefault(r["machine"]["revision"], []).append(
                f"{r['scenario']} {r['contestant']}"
            )
    most = max(ran, key=lambda revision: len(ran[revision]))
    yield most if len(ran) == 1 else f"{most} unless named here"
    for revision, names in ran.items():
        if revision != most:
            yield f"{revision}: {', '.join(dict.fromkeys(names))}"


def _scenario(name: str, records: Records) -> Iterator[str]:
    if any(r["loaded"] for r in records):
        yield "**On a loaded machine: only the column of processor time says something about speed.**"
        yield ""
    yield "| contestant | runs | rows | steps | tokens/s | rows/s | seconds | CPU s | peak | dev loss | settings |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|"
    for contestant in dict.fromkeys(r["contestant"] for r in records):
        runs = [r for r in records if r["contestant"] == contestant]
        good = [r for r in runs if "error" not in r]
        yield _contestant_row(contestant, good) if good else _refusal(contestant, runs[-1])
    if name == "dpo":
        yield ""
        yield from _dpo_wholes(records)


def _contestant_row(name: str, runs: Records) -> str:
    last = runs[-1]
    settings = ", ".join(f"{k}={_short(v)}" for k, v in last["settings"].items())
    shown = "; ".join(part for part in (last["note"], settings, _versions(last)) if part)
    reached = "" if last.get("reached", True) else " (loss not reached)"
    cells = [
        name,
        str(len(runs)),
        f"{last.get('rows_seen', '')}",
        f"{last.get('steps', '')}{reached}",
        _cell(runs, "tokens_per_second", "{:.0f}"),
        _cell(runs, "rows_per_second", "{:.2f}"),
        _cell(runs, "train_seconds", "{:.1f}"),
        _cell(runs, "cpu_seconds", "{:.0f}"),
        _cell(runs, "peak_tree_bytes", "{:.2f} GiB", GIB),
        _cell(runs, "validation_loss", "{:.4f}"),
        shown,
    ]
    return f"| {' | '.join(cells)} |"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(str(one) for one in value.values())
    return str(value)


def _refusal(name: str, record: dict[str, Any]) -> str:
    said = " ".join(record["error"].split())[-400:].replace("|", "\\|")
    shown = "; ".join(part for part in (record["note"], _versions(record)) if part)
    return f"| {name} | 0 | | | | | | | | | {shown}; did not run: `{said}` |"


def _versions(record: dict[str, Any]) -> str:
    """What a tool in an environment of its own ran with."""
    if record["scenario"] != "peers":
        return ""
    found = record["machine"].get("versions", {})
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _cell(runs: Records, key: str, form: str, unit: float = 1) -> str:
    values = [r[key] / unit for r in runs if r.get(key) is not None]
    if not values:
        return ""
    middle = form.format(statistics.median(values))
    if len(values) < 2:
        return middle
    number = form.split("}")[0] + "}"
    return f"{middle} ({number.format(min(values))} to {number.format(max(values))})"


def _dpo_wholes(records: Records) -> Iterator[str]:
    yield "With the reference's log-probabilities and everything else from the first line to the last step:"
    yield ""
    for name in dict.fromkeys(r["contestant"] for r in records):
        runs = of(records, "dpo", name)
        whole = median(runs, "whole_seconds")
        if whole:
            yield f"- {name}: {runs[0]['rows_seen'] / whole:.2f} pairs/s over {whole:.0f} s"


def _share(records: Records) -> Iterator[str]:
    runs = of(records, "share")
    if not runs:
        return
    yield from ("", "## Share of the machine", "")
    yield "Operations of one LoRA step over its median time, against products of the step's own shapes, timed in the"
    yield "same process. *executed*: every product that runs, padding and what is computed twice included."
    yield "*needed*: what the mathematics asks for (`share.py:needed`). *best*: over the fastest of the shapes;"
    yield "*shape by shape*: the time of all products, each at its own best, over the step's time."
    yield ""
    yield "| contestant | format | step | executed | needed | best bf16 | share executed | share needed | shape by shape | best fp32 | share executed | share needed | shape by shape |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name in dict.fromkeys(r["contestant"] for r in runs):
        mine = of(records, "share", name)
        cells = [name, mine[-1]["precision"], f"{median(mine, 'median_step_seconds'):.2f} s"]
        cells += [f"{median(mine, f'{k}_flops') / 1e9:.0f} GFLOP" for k in ("executed", "needed")]
        for form in ("bf16", "fp32"):
            cells.append(f"{median(mine, f'{form}_best_gflops'):.0f} GFLOP/s")
            for key in ("share_executed", "share_needed", "share_shape_by_shape"):
                cells.append(f"{median(mine, f'{form}_{key}'):.0%}")
        yield f"| {' | '.join(cells)} |"


def _memory(records: Records) -> list[str]:
    lines = ["# Memory of training, side by side", "", *_machine(records), ""]
    lines += [
        "Peak resident memory of the process and its children; the runs are those of",
        "[throughput](../throughput/results.md). Medians.",
        "",
        "| work | contestant | peak | runs |",
        "|---|---|---:|---:|",
    ]
    for name in ("lora", "long", "prefix", "qlora", "dpo", "full", "peers"):
        for contestant in dict.fromkeys(r["contestant"] for r in of(records, name)):
            runs = of(records, name, contestant)
            peak = _cell(runs, "peak_tree_bytes", "{:.2f} GiB", GIB)
            lines.append(f"| {name} | {contestant} | {peak} | {len(runs)} |")
    return [*lines, "", "![memory](memory.png)"]


def _growth(records: Records) -> list[str]:
    runs = of(records, "growth")
    base = ", ".join(f"{name} {value}" for name, value in scenarios.BASE.items())
    lines = ["# Growth of a training step", "", *_machine(records), ""]
    lines += [
        f"Random weights of the Llama shape, LoRA, one micro batch a step ({base}; one axis changes at a time). The time is",
        "the median of the steps but the first, which starts cold, and the last, which holds what is left (of two steps the first). *exponent*: slope of log time over the log of the axis, by least",
        "squares; *top*: between the last two points; *what is added*: of what time and memory have above the first",
        "point's, over what the axis has above it, so that what every step costs does not hide the growth.",
        *(
            ["", "**On a loaded machine: the times say nothing.**"]
            if any(r["loaded"] for r in runs)
            else []
        ),
        "",
        "| axis | point | parameters | format | tokens a step | seconds a step | peak |",
        "|---|---:|---:|---|---:|---:|---:|",
    ]
    for axis in scenarios.AXES:
        for run in sorted(_axis(runs, axis), key=lambda r: r["settings"][axis]):
            lines.append(
                f"| {axis} | {run['settings'][axis]} | {run['parameters'] / 1e6:.0f}M | {run['precision']} "
                f"| {run['tokens_seen'] // run['steps']} | {plots.whole_step(run):.2f} "
                f"| {run['peak_tree_bytes'] / GIB:.2f} GiB |"
            )
    lines += ["", "| axis | time: exponent | time: top | time: added | memory: added |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for axis in scenarios.AXES:
        points = sorted(_axis(runs, axis), key=lambda r: r["settings"][axis])
        if len(points) > 1:
            x = [p["parameters"] if axis == "width" else p["settings"][axis] for p in points]
            time = [plots.whole_step(p) for p in points]
            peak = [p["peak_tree_bytes"] for p in points]
            shown = f"{axis} (over parameters)" if axis == "width" else axis
            lines.append(
                f"| {shown} | {plots.slope(x, time):.2f} | {plots.slope(x[-2:], time[-2:]):.2f} "
                f"| {_added(x, time)} | {_added(x, peak)} |"
            )
    return [*lines, "", "![growth](growth.png)"]


def _added(x: list[float], y: list[float]) -> str:
    """Exponent of the growth above the first point."""
    more = [(a - x[0], b - y[0]) for a, b in zip(x[1:], y[1:], strict=True)]
    if len(more) < 2 or any(b <= 0 for _, b in more):
        return "flat" if len(more) > 1 else ""
    return f"{plots.slope([a for a, _ in more], [b for _, b in more]):.2f}"


def _axis(runs: Records, axis: str) -> Records:
    return [r for r in runs if r["note"] == axis]


def _save(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
