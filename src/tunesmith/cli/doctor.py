"""`tunesmith doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tunesmith.cli.options import json_option
from tunesmith.cli.screen import print_json, table

if TYPE_CHECKING:
    from tunesmith.plan.doctor import Doctor

__all__ = ["doctor", "summary_lines"]

NOT_HEALTHY = 14
"""The exit code of `EnvironmentProblem`."""
_GIB = 2**30


@click.command
@click.option("--workspace", default="runs", help="Folder for artifacts; its disk is checked.")
@click.option("--port", default=8_321, show_default=True, help="The gateway's port; 0: any.")
@json_option
def doctor(workspace: str, port: int, as_json: bool) -> None:
    """Check this machine and what it can train.

    Memory is computed from each model's shape; speed is measured. Each problem comes with the
    command that mends it. The exit code is 14 when something that training needs is missing.

    \b
    Examples:
      tunesmith doctor
      tunesmith doctor --workspace /data/runs --json
    """
    from tunesmith.plan import examine

    found = examine(Path(workspace), port=port)
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)
    raise SystemExit(0 if found.healthy else NOT_HEALTHY)


def _print(found: Doctor) -> None:
    for name, value in summary_lines(found):
        click.echo(f"{name:<14} {value}")
    click.echo()
    _print_capabilities(found)
    _print_packages(found)
    _print_problems(found)


def summary_lines(found: Doctor) -> list[tuple[str, str]]:
    """The machine in a few lines, as (name, value)."""
    machine = found.machine
    limit = " (a container's limit)" if machine.memory_limit_bytes else ""
    lines = [
        ("Python", f"{machine.python} on {machine.system}"),
        (
            "processor",
            f"{machine.processor}; {machine.physical_cores} cores, {machine.usable_cores} usable "
            f"threads; {', '.join(machine.instruction_sets) or 'no known extensions'}",
        ),
        (
            "memory",
            f"{machine.available_bytes / _GIB:.1f} of {machine.memory_bytes / _GIB:.1f} GiB free"
            + limit,
        ),
        ("disk", f"{machine.disk_free_bytes / _GIB:.1f} GiB free in the workspace"),
    ]
    for gpu in machine.accelerators:
        capability = f", capability {gpu.capability}" if gpu.capability else ""
        free = f"{gpu.free_bytes / _GIB:.1f} of {gpu.memory_bytes / _GIB:.1f} GiB free"
        usable = "" if gpu.usable else ", not usable by the installed torch"
        lines.append(("GPU", f"{gpu.name} ({gpu.kind}{capability}), {free}{usable}"))
    if not machine.accelerators:
        lines.append(("GPU", "none; training runs on the CPU"))
    if found.speed:
        speed = found.speed
        lines.append(
            (
                "speed",
                f"bf16 {speed.bf16_gflops:.0f}, fp32 {speed.fp32_gflops:.0f} GFLOP/s measured on "
                f"{speed.device}; training would use {speed.chosen}",
            )
        )
    return lines


def _print_capabilities(found: Doctor) -> None:
    from rich.text import Text

    rows: list[tuple[object, ...]] = []
    for name in found.capabilities[0].needs_gib:
        cells: list[object] = [name]
        for capability in found.capabilities:
            fits = capability.fits[name]
            text = f"{capability.needs_gib[name]:.1f} GiB {'fits' if fits else 'too large'}"
            cells.append(Text(text, style="green" if fits else "red"))
        rows.append(tuple(cells))
    largest = [f"{c.largest_parameters / 1e9:.2f} billion" for c in found.capabilities]
    rows.append(("largest that fits", *largest))
    headers = ("model", *(capability.method for capability in found.capabilities))
    title = (
        f"What can be trained in {found.budget_bytes / _GIB:.1f} GiB "
        "(90 % of what is free; 1,024 tokens a forward pass)"
    )
    table(headers, rows, title=title, right=tuple(range(1, len(headers))))


def _print_packages(found: Doctor) -> None:
    groups: dict[str, list[str]] = {}
    for package in found.packages:
        version = package.installed or ("not there, optional" if package.is_optional else "missing")
        groups.setdefault(package.extra or "base", []).append(f"{package.name} {version}")
    for extra, names in groups.items():
        click.echo(f"{extra:<10} {', '.join(names)}")


def _print_problems(found: Doctor) -> None:
    """Each problem in red with its fix, or that there is none."""
    click.echo()
    if not found.problems:
        click.secho("no problems found", fg="green")
    for problem in found.problems:
        click.secho(f"problem: {problem.what}", fg="red")
        click.echo(f"  fix: {problem.fix}")
