"""The command line in this process, for tests of any room."""

from __future__ import annotations

import pytest

from tunesmith.cli.main import main


def call(*words: object) -> int:
    """Run a command; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    return int(caught.value.code or 0)
