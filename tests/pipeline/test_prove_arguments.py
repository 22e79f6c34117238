"""What `pipeline.prove` refuses before it does anything."""

from __future__ import annotations

import pytest

from tunesmith import pipeline
from tunesmith.config import recipe_from


def test_chosen_proofs_with_quick_are_refused_and_not_ignored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="'fast'"):
        pipeline.prove(recipe_from({}), quick=True, only=("fast",))
    assert not list(tmp_path.iterdir())
