"""What a merge is asked to do, checked as far as no model must be looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith.errors import (
    ArtifactError,
    ConfigError,
    MissingError,
    TunesmithError,
    UsedDirectoryError,
    listed,
)
from tunesmith.export.merge.methods import METHODS, Method, Settings
from tunesmith.registry import nearest
from tunesmith.store import MANIFEST, Artifact

__all__ = ["Asked", "raise_all", "settings_of", "wrong_with"]


@dataclass(frozen=True)
class Asked:
    """A merge as the user asks for it; None is "not set".

    Attributes:
        models: paths, in the order of `weights`.
        weights, densities: one a model, or one for all.
        scale: lambda.
        normalise: divide by the sum of the weights; each method has a default.
    """

    models: tuple[str, ...]
    out: Path
    method: str = "linear"
    weights: tuple[float, ...] | None = None
    base: str | None = None
    densities: tuple[float, ...] | None = None
    scale: float | None = None
    t: float | None = None
    normalise: bool | None = None
    seed: int = 0


def wrong_with(asked: Asked) -> list[TunesmithError]:
    """Everything that can be told from the arguments alone."""
    found: list[TunesmithError] = []
    kind = METHODS.get(asked.method)
    if kind is None:
        found.append(
            ConfigError(
                f"no merge method is called {asked.method!r}{nearest(asked.method, METHODS)}",
                fix=f"--method with one of: {', '.join(METHODS)}",
            )
        )
    else:
        found += _wrong_count(asked, kind)
        found += [ConfigError(what, fix=fix) for what, fix in _wrong_for(asked, kind)]
    lists = (("--weights", asked.weights), ("--density", asked.densities))
    for option, values in lists:
        if values is not None and len(values) not in (1, len(asked.models)):
            found.append(
                ConfigError(
                    f"{option} has {len(values)} numbers, --models {len(asked.models)} models",
                    fix=f"give {option} one number a model, or one for all",
                )
            )
    found += [ConfigError(what, fix=fix) for what, fix in _wrong_numbers(asked)]
    found += _wrong_out(asked)
    return found


def _wrong_out(asked: Asked) -> Iterator[TunesmithError]:
    """A place that holds something, or lies in an artifact or in one of the models."""
    out = asked.out.expanduser()
    # A sealed one is looked at later: it may be this very merge.
    is_sealed = (out / MANIFEST).is_file()
    if out.is_dir() and not is_sealed and any(out.iterdir()):
        yield UsedDirectoryError(
            f"{asked.out} is not empty",
            why="a merge overwrites nothing",
            fix="name a new folder with --out, or delete that one",
        )
        return
    if out.exists() and not out.is_dir():
        yield UsedDirectoryError(
            f"{asked.out} is a file", why="a merge makes a folder", fix="name a new --out"
        )
        return
    for given in (*asked.models, *(() if asked.base is None else (asked.base,))):
        place = Path(given).expanduser().resolve()
        if place.is_dir() and place in out.resolve().parents:
            yield ConfigError(
                f"--out {asked.out} lies in {given}",
                why="a merge changes nothing in the models that it is made of",
                fix="name a folder elsewhere with --out",
            )
            return
    for parent in out.resolve().parents:
        if _is_sealed(parent):
            yield UsedDirectoryError(
                f"--out {asked.out} lies in the sealed {parent}",
                why="nothing is added to what is sealed, and maybe signed",
                fix="name a folder elsewhere with --out",
            )


def _is_sealed(folder: Path) -> bool:
    """Whether it is an artifact: a manifest.json may also be another program's."""
    try:
        Artifact.open(folder)
    except (ArtifactError, MissingError):
        return False
    return True


def _wrong_count(asked: Asked, kind: Method) -> Iterator[ConfigError]:
    """More or fewer models than the method takes."""
    fewest, most = kind.models
    count = len(asked.models)
    if fewest <= count <= (count if most is None else most):
        return
    wanted = f"{fewest} models" if fewest == most else f"at least {fewest} models"
    yield ConfigError(
        f"--method {asked.method} takes {wanted}, --models names {count}",
        why=f"it is {kind.about}",
        fix="name them with commas between, --models A,B; or use --method linear, which takes any number",
    )


def _wrong_for(asked: Asked, kind: Method) -> Iterator[tuple[str, str]]:
    """What does not go with the method, and how to mend it."""
    is_slerp, is_concat = asked.method == "slerp", asked.method == "concat"
    set_but_unread = {
        "--weights": asked.weights is not None and is_slerp,
        "--density": asked.densities is not None and kind.keep == "all",
        "--lambda": asked.scale is not None and not kind.base,
        "--t": asked.t is not None and not is_slerp,
        "--normalize": asked.normalise is not None and (is_slerp or is_concat),
        "--seed": asked.seed != 0 and kind.keep != "random",
    }
    for option, unread in set_but_unread.items():
        if unread:
            yield f"{option} has no effect with --method {asked.method}", f"leave {option} away"


def _wrong_numbers(asked: Asked) -> Iterator[tuple[str, str]]:
    numbers = {
        "--weights": asked.weights or (),
        "--density": asked.densities or (),
        "--lambda": () if asked.scale is None else (asked.scale,),
        "--t": () if asked.t is None else (asked.t,),
    }
    for option, values in numbers.items():
        for value in values:
            if not math.isfinite(value):
                yield f"{option} holds {value}", "use finite numbers"
    for value in asked.densities or ():
        if math.isfinite(value) and not 0 < value <= 1:
            yield (
                f"--density is {value:g}",
                "use a share above 0 and at most 1; to leave a model out, do not name it",
            )
    if asked.t is not None and math.isfinite(asked.t) and not 0 <= asked.t <= 1:
        yield f"--t is {asked.t:g}", "use 0 (the first model) to 1 (the second)"
    yield from _wrong_sums(asked)


def _wrong_sums(asked: Asked) -> Iterator[tuple[str, str]]:
    """Numbers that leave nothing of the models."""
    weights, kind = asked.weights or (), METHODS.get(asked.method)
    for option, values in (("--weights", weights), ("--lambda", (asked.scale,))):
        if values and not any(value is None or value for value in values):
            yield f"all of {option} is 0", "use another number: nothing of the models would be left"
    if kind is None or not any(weights) or not all(map(math.isfinite, weights)):
        return
    normalise = kind.normalise if asked.normalise is None else asked.normalise
    if normalise and not kind.base and math.isclose(sum(weights), 0, abs_tol=1e-6):
        yield "the sum of --weights is 0", "change the weights, or add --no-normalize"


def settings_of(asked: Asked) -> Settings:
    """The settings with the method's defaults; `asked` has nothing wrong."""
    kind, count = METHODS[asked.method], len(asked.models)
    default = 1 / count if kind.weight is None else kind.weight
    return Settings(
        method=asked.method,
        weights=_spread(asked.weights, count, default),
        normalise=kind.normalise if asked.normalise is None else asked.normalise,
        densities=_spread(asked.densities, count, 1.0),
        scale=1.0 if asked.scale is None else asked.scale,
        t=0.5 if asked.t is None else asked.t,
        seed=asked.seed,
    )


def _spread(values: Sequence[float] | None, count: int, default: float) -> tuple[float, ...]:
    if values is None:
        return (default,) * count
    return tuple(values) * count if len(values) == 1 else tuple(values)


def raise_all(problems: Sequence[TunesmithError]) -> None:
    """Raise the one problem, or one error of the first one's kind that names them all."""
    if not problems:
        return
    if len(problems) == 1:
        raise problems[0]
    lines = [f"{p.what} ({p.why})" if p.why else p.what for p in problems]
    raise type(problems[0])(
        f"{len(problems)} things are wrong:\n{listed(lines)}",
        fix="; ".join(dict.fromkeys(p.fix for p in problems if p.fix)),
    )
