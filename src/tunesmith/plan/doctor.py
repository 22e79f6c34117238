"""The doctor: what this machine is, what it can train, and what is wrong with a fix for each."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunesmith.errors import StorageError
from tunesmith.models.memory import GIB, METHODS, SHAPES, largest_that_fits, needs
from tunesmith.plan.machine import Machine, read_machine
from tunesmith.plan.packages import Package, packages
from tunesmith.store import storage_errors

__all__ = ["Capability", "Doctor", "Problem", "Speed", "examine"]

LEAST_DISK_BYTES = 3 * GIB
"""The demo's artifacts and the model cache take about 2 GiB."""
RESERVE_RATIO = 0.9
"""Share of the free memory that a plan may use: the rest is for the system."""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        needed: nothing can be trained until it is mended; otherwise a stage or two cannot run.
        package: packages are missing.
    """

    what: str
    fix: str
    needed: bool
    package: bool = False


@dataclass(frozen=True)
class Speed:
    """Measured matrix products on the device that training would use, in GFLOP/s."""

    device: str
    bf16_gflops: float
    fp32_gflops: float
    chosen: str


@dataclass(frozen=True)
class Capability:
    """What one method can train in the memory at hand.

    Attributes:
        needs_gib: model -> memory at the peak of a step.
        fits: model -> whether that is free here.
        largest_parameters: of the largest Llama-like model that fits; 0 when none does.
    """

    method: str
    needs_gib: Mapping[str, float]
    fits: Mapping[str, bool]
    largest_parameters: int


@dataclass(frozen=True)
class Doctor:
    """Everything that the doctor found.

    Attributes:
        budget_bytes: memory that training may use, on the device that it would use.
        speed: None when torch is not installed.
    """

    machine: Machine
    packages: tuple[Package, ...]
    speed: Speed | None
    budget_bytes: int
    capabilities: tuple[Capability, ...]
    problems: tuple[Problem, ...]

    @property
    def healthy(self) -> bool:
        """Nothing that is needed is missing."""
        return not any(problem.needed for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values, for `--json`."""
        return {
            "healthy": self.healthy,
            "machine": asdict(self.machine),
            "packages": [asdict(package) for package in self.packages],
            "speed": asdict(self.speed) if self.speed else None,
            "budget_bytes": self.budget_bytes,
            "capabilities": [asdict(capability) for capability in self.capabilities],
            "problems": [asdict(problem) for problem in self.problems],
        }


def examine(workspace: Path, *, port: int = 0, measure: bool = True) -> Doctor:
    """Look at machine, packages, disk and port; takes about two seconds with `measure`.

    Args:
        workspace: where artifacts would lie; nothing is left in it.
        port: the gateway's port, checked to be free; 0 is not checked.
        measure: time matrix products.
    """
    machine = read_machine(workspace)
    found = tuple(packages())
    budget = int(RESERVE_RATIO * _free_bytes(machine))
    problems = [
        *_package_problems(found),
        *_storage_problems(machine, workspace),
        *_memory_problems(budget),
        *_gpu_problems(machine),
        *_port_problems(port),
    ]
    has_torch = any(p.name == "torch" and p.installed for p in found)
    return Doctor(
        machine=machine,
        packages=found,
        speed=_speed() if measure and has_torch else None,
        budget_bytes=budget,
        capabilities=tuple(_capabilities(budget)),
        problems=tuple(problems),
    )


def _free_bytes(machine: Machine) -> int:
    """Free memory of the device that training would use: the first usable GPU, else main memory."""
    usable = [found for found in machine.accelerators if found.usable]
    return usable[0].free_bytes if usable else machine.available_bytes


def _speed() -> Speed:
    from tunesmith.models.devices import choose_precision, device_name

    device = device_name()
    choice = choose_precision(device)
    return Speed(device, choice.bf16_gflops, choice.fp32_gflops, choice.precision)


def _capabilities(budget: int) -> Iterator[Capability]:
    for method in METHODS:
        taken = {name: needs(shape, method).total for name, shape in SHAPES.items()}
        largest = largest_that_fits(budget, method)
        yield Capability(
            method=method.name,
            needs_gib={name: round(total / GIB, 2) for name, total in taken.items()},
            fits={name: total <= budget for name, total in taken.items()},
            largest_parameters=largest.parameters if largest else 0,
        )


def _package_problems(found: tuple[Package, ...]) -> Iterator[Problem]:
    """One problem a fix: a single command installs all that an extra lacks. Optional ones are none."""
    by_fix: dict[str, list[Package]] = {}
    for package in found:
        if not package.is_optional and (package.installed is None or package.is_old):
            by_fix.setdefault(package.fix, []).append(package)
    for fix, lacking in by_fix.items():
        names = ", ".join(
            f"{p.name} ({p.installed} is older than {p.wanted})" if p.is_old else p.name
            for p in lacking
        )
        needed = any(p.extra in ("", "train") for p in lacking)
        extra = lacking[0].extra
        stage = f" for the extra {extra!r}" if extra else ""
        yield Problem(f"not installed{stage}: {names}", fix, needed, package=True)


def _storage_problems(machine: Machine, workspace: Path) -> Iterator[Problem]:
    if machine.disk_free_bytes < LEAST_DISK_BYTES:
        yield Problem(
            f"{machine.disk_free_bytes / GIB:.1f} GiB are free where {workspace} lies; "
            f"{LEAST_DISK_BYTES / GIB:.0f} GiB are needed",
            "free some space, or choose a larger disk: --workspace DIR here, --set workspace=DIR for a recipe",
            needed=True,
        )
    try:
        _try_to_write(workspace)
    except StorageError as error:
        yield Problem(f"{error.what}: {error.why}", error.fix, needed=True)


def _try_to_write(workspace: Path) -> None:
    """Write and remove a file in the nearest folder that is there.

    Raises:
        StorageError: the disk refuses.
    """
    place = workspace.expanduser().absolute()
    nearest = next(folder for folder in (place, *place.parents) if folder.exists())
    probe = nearest / f".tunesmith-doctor-{id(place)}"
    with storage_errors(place):
        try:
            probe.write_bytes(b"x")
        finally:
            if probe.is_file():
                probe.unlink()


def _memory_problems(budget: int) -> Iterator[Problem]:
    smallest = min(METHODS, key=lambda m: needs(SHAPES["SmolLM2-135M"], m).total)
    need = needs(SHAPES["SmolLM2-135M"], smallest).total
    if budget < need:
        yield Problem(
            f"{budget / GIB:.1f} GiB of memory are free for training; the embedded model needs "
            f"{need / GIB:.1f} GiB with {smallest.name}",
            "close other programs, or lower --set train.micro_batch_tokens=256",
            needed=False,
        )


def _gpu_problems(machine: Machine) -> Iterator[Problem]:
    for gpu in machine.accelerators:
        if not gpu.usable:
            yield Problem(
                f"{gpu.name} is there, but the installed torch cannot use it",
                "install a build of torch with CUDA: pip install --force-reinstall torch",
                needed=False,
            )


def _port_problems(port: int) -> Iterator[Problem]:
    with socket.socket() as probe:
        taken = port and probe.connect_ex(("127.0.0.1", port)) == 0
    if taken:
        yield Problem(
            f"port {port}, on which the gateway would listen, is taken",
            f"stop the program that has it, or choose another: --set serve.port={port + 1}",
            needed=False,
        )
