"""Whether the packages of the forms that are asked for are there."""

from __future__ import annotations

from collections.abc import Iterable

from tunesmith.config import Form
from tunesmith.errors import EnvironmentProblem, listed
from tunesmith.export.forms import KINDS

__all__ = ["check_packages"]


def check_packages(forms: Iterable[Form]) -> None:
    """Look for the forms' packages without importing them.

    Raises:
        EnvironmentProblem: names every form that lacks one, and the one command that brings them all.
    """
    lacking = {form: missing for form in forms if (missing := KINDS[form].missing())}
    if not lacking:
        return
    lines = [f"{form} needs {', '.join(missing)}" for form, missing in lacking.items()]
    extras = sorted({extra for missing in lacking.values() for extra in missing.values()})
    raise EnvironmentProblem(
        f"packages are not installed:\n{listed(lines)}",
        fix=f"pip install 'tunesmith[{','.join(extras)}]', or leave these forms out of export.forms",
    )
