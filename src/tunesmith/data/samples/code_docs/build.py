"""Makes the code documentation set: `python -m tunesmith.data.samples.code_docs.build`.

Functions and docstrings are cut apart by the builder that `tunesmith data make code-docs` uses. The example in
each docstring is what the function really gave.
"""

from __future__ import annotations

import ast
import doctest
import sys
import tempfile
from pathlib import Path
from typing import Any

from tunesmith.data.make.code_docs import CodeDocsOptions, make_code_docs
from tunesmith.data.samples.code_docs.algorithms import numbers, sequences, texts
from tunesmith.data.samples.code_docs.families import Part, functions
from tunesmith.data.samples.draws import Draws, json_lines, write_files

__all__ = ["build", "modules"]

SEED = 19
N_FUNCTIONS = (400, 110, 94)
"""Functions about numbers, words and records; the algorithms come on top."""
_SHARES = {"test": 0.15, "validation": 0.08}
_HERE = Path(__file__).resolve().parent
_ALGORITHMS = (numbers, sequences, texts)


def build() -> dict[str, str]:
    """The set's files: name -> content.

    Raises:
        ValueError: an example of an algorithm is wrong.
    """
    if any(doctest.testmod(module).failed for module in _ALGORITHMS):
        raise ValueError("an example of an algorithm is wrong")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, text in modules().items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        made = make_code_docs(Path(folder), CodeDocsOptions(direction="both"))
    for row in made.rows:
        if row["meta"]["task"] == "docs":
            # No model can know which example the author chose: it is part of what is asked, not of what is learned.
            row["messages"][-1]["content"] = row["messages"][-1]["content"].partition("\n\n>>>")[0]
        names = {key: row["meta"][key] for key in ("name", "task")}
        rows.append({"messages": row["messages"], "meta": names})
    splits = _splits(sorted({row["meta"]["name"] for row in rows}))
    return {
        f"{split}.jsonl": json_lines(_ordered(rows, splits, split))
        for split in ("train", "validation", "test")
    }


def modules() -> dict[str, str]:
    """The Python that the rows are cut from: file -> text."""
    parts: dict[str, str] = {}
    for part in functions(SEED, N_FUNCTIONS):
        name = part.name
        while name in parts:
            name += "_again" if name.endswith("_too") else "_too"
        parts[name] = _written(part, name)
    files = {f"{path.stem}.py": path for path in sorted((_HERE / "algorithms").glob("[a-z]*.py"))}
    written = {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    return {**written, "families.py": "\n\n\n".join(parts.values()) + "\n"}


def _written(part: Part, name: str) -> str:
    """The function with its docstring; the example's result is computed by running it."""
    code = f"def {name}({part.signature}:\n{part.body}"
    names: dict[str, Any] = {}
    exec(compile(code, name, "exec"), names)
    result = names[name](*(ast.literal_eval(text) for text in part.inputs))
    example = f">>> {name}({', '.join(part.inputs)})\n    {result!r}"
    return f'def {name}({part.signature}:\n    """{part.summary}\n\n    {example}\n    """\n{part.body}'


def _splits(names: list[str]) -> dict[str, str]:
    """A split for each function; both of its rows are in it."""
    order = Draws(SEED, "splits").several(names, len(names))
    n_test, n_validation = (round(_SHARES[split] * len(names)) for split in ("test", "validation"))
    held = {**dict.fromkeys(order[:n_test], "test")}
    held |= dict.fromkeys(order[n_test : n_test + n_validation], "validation")
    return {name: held.get(name, "train") for name in names}


def _ordered(
    rows: list[dict[str, Any]], splits: dict[str, str], split: str
) -> list[dict[str, Any]]:
    found = [row for row in rows if splits[row["meta"]["name"]] == split]
    return Draws(SEED, "order", split).several(found, len(found))


if __name__ == "__main__":
    sys.stdout.write(f"{write_files(_HERE, build())} files changed\n")
