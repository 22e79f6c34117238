"""What `tunesmith serve` says: the key apart from the command, and a line for each request."""

from __future__ import annotations

import logging
import shlex

import pytest

from tunesmith.cli.demo import _Tour
from tunesmith.cli.screen import console
from tunesmith.cli.serve import curl_line, key_lines, log_requests
from tunesmith.config import Recipe
from tunesmith.serve import Ready

SECRET = "sk-for-this-test"
READY = Ready("http://127.0.0.1:8321/v1", SECRET, "it's", (), 1.0)


@pytest.fixture
def log():
    """The gateway's logger, left as it was found."""
    found = logging.getLogger("tunesmith.serve")
    handlers, level, propagate = list(found.handlers), found.level, found.propagate
    found.handlers.clear()
    yield found
    found.handlers[:] = handlers
    found.setLevel(level)
    found.propagate = propagate


def test_the_key_stands_on_its_own_line_and_never_in_the_command():
    assert key_lines(READY)[-1] == f"export TUNESMITH_API_KEY={SECRET}"
    command = curl_line(READY, "it's $HOME?")
    assert SECRET not in command
    words = shlex.split(command)
    assert "Authorization: Bearer $TUNESMITH_API_KEY" in words
    assert '"it\'s $HOME?"' in words[-1]


def test_requests_are_logged_to_stderr_once_however_often_it_is_asked_for(log, capsys):
    log_requests()
    log_requests()
    logging.getLogger("tunesmith.serve").info("%s %d", "/v1/models", 200)
    found = capsys.readouterr()
    assert found.out == ""
    (line,) = found.err.splitlines()
    assert line.endswith("INFO /v1/models 200")


def test_escape_sequences_of_a_model_do_not_reach_the_terminal(capsys):
    _Tour(Recipe(), console())._show_piece("a\x1b[2Jb\u202ec\n")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\u202ec\n"
