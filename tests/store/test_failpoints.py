"""Failpoints: every name is reached somewhere in the source, and nothing happens when none is armed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tunesmith
from tunesmith.errors import ConfigError
from tunesmith.store import failpoints, reach
from tunesmith.store.failpoints import FAILPOINTS, VARIABLE, arm

SOURCE = Path(tunesmith.__file__).parent


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    arm("")


def test_every_failpoint_is_reached_in_the_source_and_has_a_name_in_the_table():
    reached = [
        node.args[0].value
        for file in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "reach"
        and isinstance(node.args[0], ast.Constant)
    ]
    assert set(reached) == set(FAILPOINTS)


def test_nothing_happens_when_none_is_armed():
    for name in FAILPOINTS:
        reach(name)


def test_the_nth_time_fails_and_only_that():
    arm("seal-file:3=enospc")
    reach("seal-file")
    reach("seal-begin")
    reach("seal-file")
    with pytest.raises(OSError, match="No space left"):
        reach("seal-file")
    reach("seal-file")


def test_several_are_armed_with_a_comma_and_each_happens_once():
    arm("seal-begin=enospc,seal-file:2=enospc")
    reach("seal-file")
    with pytest.raises(OSError, match="No space left"):
        reach("seal-begin")
    reach("seal-begin")
    with pytest.raises(OSError, match="No space left"):
        reach("seal-file")
    reach("seal-file")


@pytest.mark.parametrize(
    "spelled", ["seal-fil", "seal-file:0", "seal-file:x", "seal-file=late", "!", "seal-end,", ","]
)
def test_a_wrong_name_is_refused_with_the_known_ones(spelled):
    with pytest.raises(ConfigError, match="names no failpoint") as caught:
        arm(spelled)
    assert "seal-file" in caught.value.why
    assert VARIABLE in caught.value.fix


def test_the_environment_arms_one_and_the_process_is_killed():
    code = "from tunesmith.store import reach; reach('seal-begin'); reach('seal-file'); print('on')"
    for name, expected, printed in (("seal-file", -9, ""), ("seal-end", 0, "on\n")):
        found = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, VARIABLE: name},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (found.returncode, found.stdout) == (expected, printed)


def test_the_table_says_where_each_one_is():
    assert all(text and not text.endswith(".") for text in FAILPOINTS.values())
    assert failpoints.VARIABLE.startswith("TUNESMITH_")
