"""Tables of variants: own rows, rows of other packages, and errors that name the nearest one."""

from __future__ import annotations

import pytest

from tunesmith.errors import ConfigError, EnvironmentProblem
from tunesmith.registry import Table


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package that adds rows to tables of the kind "spell"."""
    facts = tmp_path / "spells-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: spells\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(
        "[tunesmith.spell]\nadded = spells_for_a_test:ADDED\nown = spells_for_a_test:OTHER\n"
    )
    (tmp_path / "spells_for_a_test.py").write_text("ADDED = 'added'\nOTHER = 'not this one'\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_package_adds_rows_and_takes_none_away(package):
    table = Table("spell", {"own": "pathlib:Path"})
    assert sorted(table) == ["added", "own"]
    assert table["own"] == "pathlib:Path"
    assert table.load("added") == "added"
    # The table of another kind has nothing of it.
    assert list(Table("potion", {})) == []


def test_an_unknown_name_is_refused_with_the_nearest_and_all_others():
    table = Table("charm", {"linear": "pathlib:Path", "cosine": "pathlib:Path"})
    with pytest.raises(ConfigError, match="did you mean 'linear'") as caught:
        table.load("liner")
    assert "cosine, linear" in caught.value.fix


def test_a_missing_package_is_named_with_what_brings_it():
    rows = {"a": "no_such_package_at_all:thing", "b": "tunesmith.no_such_room:thing"}
    with pytest.raises(EnvironmentProblem, match="no_such_package_at_all") as caught:
        Table("jinx", rows, extra="export").load("a")
    assert "pip install 'tunesmith[export]'" in caught.value.fix
    # A module of ours that is not there is a bug, not a missing extra.
    with pytest.raises(ModuleNotFoundError):
        Table("jinx", rows).load("b")
