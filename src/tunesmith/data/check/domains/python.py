"""Answers that are Python: they compile. Nothing is run."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator

from tunesmith.data.check.domains import fenced
from tunesmith.data.check.finding import Finding, finding, shortened
from tunesmith.data.check.options import CheckOptions
from tunesmith.data.rows import Row

__all__ = ["PythonAnswers", "why_not_python"]

_MAX_CHARACTERS = 200_000
_LANGUAGES = ("python", "py", "python3", "")
_MAGIC = re.compile(r"^([ \t]*)[%!].*$", re.MULTILINE)
_PROMPT = re.compile(r"^[ \t]*>>> ?", re.MULTILINE)


class PythonAnswers:
    """Checks Python answers: the fenced blocks where there are some, else the whole text."""

    def __init__(self, options: CheckOptions) -> None:
        del options  # a domain is made with them; Python has none

    def check(self, row: Row, answer: str, field: str) -> Iterator[Finding]:
        """That each piece of code compiles; a completion may do so only after its prompt."""
        blocks = [text for language, text in fenced(answer) if language in _LANGUAGES]
        if "```" in answer and not blocks:
            return
        for code in blocks or [answer]:
            error = why_not_python(code)
            if error is None:
                continue
            if not blocks and why_not_python(f"{row.question}{code}") is None:
                continue
            line, why = error
            what = f"line {line} does not compile: {why}" if line else why
            lines = code.split("\n")
            shown = shortened(lines[line - 1].strip() if 0 < line <= len(lines) else code)
            yield finding(row.where, "python", what, field=field, value=shown)


def why_not_python(code: str) -> tuple[int, str] | None:
    """The line (0 when there is none) and reason why a text does not compile; None when it does.

    Sessions of the interpreter (`>>>`), a notebook's magic lines, `await` at the top and code that is
    indented as a whole count as Python.
    """
    if len(code) > _MAX_CHARACTERS:
        return None
    if _PROMPT.search(code):
        code = _session(code)
    code = textwrap.dedent(_MAGIC.sub(r"\1pass", code)).strip("\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(code, "<answer>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        return error.lineno or 0, str(error.msg)
    except ValueError as error:
        return 0, str(error)
    except (RecursionError, MemoryError):
        return 0, "nested too deeply"
    return None


def _session(code: str) -> str:
    """The statements of an interpreter's session, without prompts and results."""
    lines = []
    for line in code.split("\n"):
        bare = line.lstrip()
        if bare.startswith((">>>", "...")):
            lines.append(bare[4:])
    return "\n".join(lines)
