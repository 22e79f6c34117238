"""The table of `tunesmith data` and the commands behind it agree."""

import click
import pytest

from tunesmith.cli.data import COMMANDS, data


@pytest.mark.parametrize("name", COMMANDS)
def test_a_data_command_is_described_by_its_own_first_line_and_shows_examples(name):
    command = data.get_command(click.Context(data), name)

    assert command is not None
    assert (command.help or "").split("\n")[0] == COMMANDS[name][1]
    assert "Examples:" in (command.help or "")
