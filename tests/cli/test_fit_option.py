"""`--fit` is the setting `train.fit`, on every command whose training may be short of memory."""

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
    assert "--set train.fit=true" in fitted.spelled(section)


@pytest.mark.parametrize(
    ("words", "at"),
    [
        (["train", "demo"], "tunesmith.cli.train.one_stage"),
        (["run", "demo"], "tunesmith.pipeline.run"),
        (["prove", "demo"], "tunesmith.pipeline.prove"),
        (["demo"], "tunesmith.cli.demo._Tour"),
    ],
)
@pytest.mark.parametrize("fit", [True, False])
def test_every_command_that_trains_or_rehearses_reads_it(words, at, fit, monkeypatch):
    class Reached(BaseException):
        pass

    def reached(asked, *args, **kwargs):
        recipe = asked.load("train") if isinstance(asked, Asked) else asked
        raise Reached(recipe.train.fit)

    monkeypatch.setattr(at, reached)
    with pytest.raises(Reached) as found:
        main([*words, *(["--fit"] if fit else [])])
    assert found.value.args == (fit,)
