"""What cleaning is asked for, resolved from the recipe's section `data.clean`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.config import CleanConfig
from tunesmith.data.check.language import NAMES
from tunesmith.errors import ConfigError
from tunesmith.registry import nearest

if TYPE_CHECKING:
    from tunesmith.data.clean.masking import Privacy

__all__ = ["CleanPlan", "Decision", "plan_clean"]


@dataclass(frozen=True)
class CleanPlan:
    """Every rule that is on; picklable, so that chunks can be cleaned side by side.

    Attributes:
        exact, near, semantic: drop rows that repeat an earlier one in this way.
        near_threshold, semantic_threshold: similarity from which they do.
        semantic_model: what `semantic` compares by.
        normalize, strip_html: change texts.
        question_characters, answer_characters: least and most characters; None for no limit.
        drop_empty, drop_refusals: drop rows by their answer.
        languages: codes of languages that rows may be in; any when there are none.
        drop_where: field -> value of rows to drop.
        against: benchmark files.
        against_words: words of a passage that is looked for in them.
        drop_unreadable: rows that cannot be read are dropped; else nothing is made from their files.
        privacy: masks or drops personal data and secrets; None when neither is asked for.
    """

    exact: bool = False
    near: bool = False
    near_threshold: float = 0.7
    semantic: bool = False
    semantic_threshold: float = 0.95
    semantic_model: str = "embedded"
    normalize: bool = False
    strip_html: bool = False
    question_characters: tuple[int, int | None] = (0, None)
    answer_characters: tuple[int, int | None] = (0, None)
    drop_empty: bool = False
    drop_refusals: bool = False
    languages: tuple[str, ...] = ()
    drop_where: Mapping[str, Any] = field(default_factory=dict)
    against: tuple[Path, ...] = ()
    against_words: int = 13
    drop_unreadable: bool = False
    privacy: Privacy | None = None

    @property
    def compares_rows(self) -> bool:
        """Whether rows must be held against each other, or against a benchmark."""
        return self.exact or self.near or self.semantic or bool(self.against)

    @property
    def does_something(self) -> bool:
        """Whether any rule is on."""
        return self.compares_rows or replace(self, **_HOW) != CleanPlan(**_HOW)


_HOW: dict[str, Any] = {
    "near_threshold": 0.7,
    "semantic_threshold": 0.95,
    "semantic_model": "embedded",
    "against_words": 13,
    "drop_unreadable": False,
}
"""Settings that say how rows are compared, or are about rows that no rule sees; alone they do nothing to a row."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What was done with a row, and why.

    Attributes:
        row_index: the row's place among the rows that came in, from 0.
        where: "file:line" of the row.
        rule: which rule did it; it names the counts in reports.
        reason: one clause with what was found; it quotes nothing that a mask hides.
        text: of a change, the row as it is now, as one line of JSON.
    """

    row_index: int
    where: str
    action: Literal["drop", "change"]
    rule: str
    reason: str
    text: str = ""


def plan_clean(config: CleanConfig) -> CleanPlan:
    """Read every setting.

    Raises:
        ConfigError: limits contradict each other, or a language is not known. All are named.
    """
    question = (config.min_question_characters, config.max_question_characters)
    answer = (config.min_answer_characters, config.max_answer_characters)
    crossed = [
        f"data.clean.min_{name}_characters={low} is more than max_{name}_characters={high}"
        for name, (low, high) in (("question", question), ("answer", answer))
        if high is not None and low > high
    ]
    unknown = [
        f"data.clean.languages: no language is called {code!r}{nearest(code, NAMES)}"
        for code in config.languages
        if not code or code not in NAMES
    ]
    if crossed or unknown:
        fixes = ["lower the least, or raise the most"] if crossed else []
        fixes += [f"languages are {', '.join(filter(None, NAMES))}"] if unknown else []
        raise ConfigError("\n".join([*crossed, *unknown]), fix="; ".join(fixes))
    from tunesmith.data.clean.masking import Privacy

    privacy = Privacy(config.pii, config.secrets)
    return CleanPlan(
        exact=config.exact == "drop",
        near=config.near == "drop",
        semantic=config.semantic == "drop",
        normalize=config.normalize,
        strip_html=config.html == "strip",
        question_characters=question,
        answer_characters=answer,
        drop_empty=config.empty == "drop",
        drop_refusals=config.refusals == "drop",
        languages=tuple(config.languages),
        drop_where=dict(config.drop_where),
        against=tuple(Path(path) for path in config.against),
        drop_unreadable=config.unreadable == "drop",
        privacy=privacy if privacy.is_on else None,
        **dict(_how(config)),
    )


def _how(config: CleanConfig) -> Iterator[tuple[str, Any]]:
    """How rows are compared; what no rule asks for is not read, and refused if set."""
    if config.near == "drop":
        yield "near_threshold", config.near_threshold
    if config.semantic == "drop":
        yield "semantic_threshold", config.semantic_threshold
        yield "semantic_model", config.semantic_model
    if config.against:
        yield "against_words", config.against_words
