"""The table of docs/export/families.md: tiny random models of the families, transformers against llama.cpp.

    python benchmarks/export/families.py

The models, settings and tolerances are those of tests/export/test_families.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "export"))
import gguf_families as tiny
import test_families as families

from tunesmith.errors import TunesmithError


def main() -> None:
    """Print the two tables."""
    print("| model | max abs. difference of a log-probability | same best token |")
    print("|---|---|---|")
    for name, case in families.CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            _, found = families.measured(case, Path(folder))
        print(f"| {name} | {found.largest:.1e} | {100 * found.agreement:.1f} % |", flush=True)
    print("\n| setting | refused for | llama.cpp's converter alone |\n|---|---|---|")
    for name, (case, told) in families.REFUSED.items():
        print(f"| {name} | `{told}` | {_alone(case)} |", flush=True)
    for name, case in families.WINDOWS.items():
        print(f"| {name} window 16 | context of the file is 16 | {_alone(case)} |", flush=True)


def _alone(case: tiny.Case) -> str:
    with tempfile.TemporaryDirectory() as name:
        base = tiny.save_case(case, Path(name) / "model")
        gguf = Path(name) / "model.gguf"
        try:
            tiny.convert_as_it_is(base, gguf)
        except (ArithmeticError, TypeError, ValueError, tiny.StructError) as error:
            return f"fails: {type(error).__name__}"
        try:
            found = families.gap_of(base, gguf)
        except TunesmithError:
            return "writes a file that llama.cpp does not load"
        return f"off by {found.largest:.2g}, same best token {100 * found.agreement:.0f} %"


if __name__ == "__main__":
    main()
