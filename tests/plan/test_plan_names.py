"""Every public name of the plan stage can be had."""

from __future__ import annotations

import pytest

from tunesmith import plan


@pytest.mark.parametrize("name", plan.__all__)
def test_a_public_name_is_importable(name):
    assert getattr(plan, name).__name__ == name
