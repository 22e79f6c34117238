"""What is told of other libraries' errors."""

from __future__ import annotations

import pytest

from tunesmith.errors import reason_of


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError(), "ValueError"),
        (OSError("\n \n"), "OSError"),
        (ValueError("\n first \nsecond"), "first"),
        (RuntimeError("Error(s):\n\tsize mismatch\nmore"), "Error(s): size mismatch"),
        (KeyError("name"), "KeyError: 'name'"),
        (ValueError("x" * 500), "x" * 300 + " ..."),
    ],
)
def test_the_reason_of_an_error_is_one_line_that_is_never_empty(error, told):
    assert reason_of(error) == told
