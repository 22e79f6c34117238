"""`--fit` is the setting `train.fit`, on the two commands that train."""

from __future__ import annotations

import pytest

from tunesmith.cli.main import main
from tunesmith.cli.options import Asked


@pytest.mark.parametrize("section", ["", "train"])
def test_fit_sets_the_setting_that_it_is_short_for(section):
    asked = Asked(("demo",), ("train.epochs=2",))
    assert not asked.to_fit(False).load(section).train.fit
    fitted = asked.to_fit(True)
    assert fitted.load(section).train.fit
    assert fitted.load(section).train.epochs == 2
    assert "--set train.fit=true" in fitted.spelled


@pytest.mark.parametrize("command", ["train", "run"])
def test_both_commands_that_train_have_it(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "--fit" in capsys.readouterr().out
