"""The Python page's program runs, and says what it should."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data" / "python.md"


@pytest.mark.slow
def test_the_program_on_the_python_page_runs(tmp_path):
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)

    found = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )

    assert found.returncode == 0, found.stderr
    schema, checked, cleaned, split, sample, n_rows, equal = found.stdout.splitlines()
    assert schema == "chat"
    assert checked.split()[1] == "green"
    assert cleaned.startswith("1008 ")
    assert "'test': 100" in split
    assert split.endswith("chat")
    assert "'test': 231" in sample
    assert int(n_rows) == int(cleaned.split()[1])
    assert equal == n_rows
