"""The card in a sealed dataset: what the recipe and the report say, and nothing that was made up."""

from __future__ import annotations

import pytest
from ruamel.yaml import YAML

from tunesmith.config import recipe_from
from tunesmith.data.card import CARD, card_facts, spdx
from tunesmith.errors import ConfigError


def pairs(n):
    return [
        {"prompt": f"question {i}", "completion": f"answer {i}", "topic": "x"} for i in range(n)
    ]


@pytest.fixture
def made(seal, lines):
    """The card of 40 rows with these settings of `data.card`, and its front matter."""

    def make(**settings):
        section = {"source": {"kind": "files", "train": str(lines("a.jsonl", pairs(40)))}}
        if settings:
            section["card"] = settings
        text = seal(section).artifact.path(CARD).read_text(encoding="utf-8")
        _, front, body = text.split("---\n", 2)
        return YAML(typ="safe").load(front), body

    return make


def test_hubs_read_the_licence_languages_size_and_splits(made):
    front, body = made(
        title="Questions", license="cc-by-4.0", languages=["en"], sources=["a forum"]
    )
    assert front["license"] == "cc-by-4.0"
    assert front["pretty_name"] == "Questions"
    assert front["language"] == ["en"]
    assert front["size_categories"] == ["n<1K"]
    files = front["configs"][0]["data_files"]
    assert [file["path"] for file in files] == ["train.jsonl", "validation.jsonl", "test.jsonl"]
    assert "# Questions" in body
    assert "`CC-BY-4.0` (SPDX)" in body
    assert "- a forum" in body
    assert "a.jsonl" in body


def test_what_the_recipe_does_not_say_is_not_in_the_card(made):
    front, body = made()
    assert "license" not in front
    assert "language" not in front
    assert "## Licence" not in body
    assert "## Sources" not in body


def test_a_licence_that_the_hub_does_not_know_goes_by_its_own_name(made):
    front, _ = made(license="LicenseRef-House-Rules")
    assert front["license"] == "other"
    assert front["license_name"] == "LicenseRef-House-Rules"


@pytest.mark.parametrize(
    ("given", "spelled"),
    [("mit", "MIT"), ("apache-2.0 or mit", "Apache-2.0 OR MIT"), ("odbl-1.0", "ODbL-1.0")],
)
def test_a_licence_is_checked_against_the_spdx_list(given, spelled):
    assert spdx(given) == spelled


@pytest.mark.parametrize("given", ["free", "CC BY", "MIT AND", "<script>"])
def test_a_licence_that_is_on_no_list_is_refused(given):
    with pytest.raises(ConfigError, match="no SPDX licence expression"):
        card_facts(recipe_from({"data": {"card": {"license": given}}}))


@pytest.mark.slow
def test_samples_have_the_licence_that_their_own_card_states(seal):
    text = seal({"max_train_rows": 50}).artifact.path(CARD).read_text(encoding="utf-8")
    assert "\nlicense: apache-2.0\n" in text
    assert "License: Apache-2.0, as the project" in text


EVIL = "---\n# <script>alert(1)</script> [x](javascript:1) ![i](y) `c` | \x1b[31m \u202e\n- item"


def test_hostile_text_is_one_line_without_markup_and_ends_no_front_matter(made):
    front, body = made(title=EVIL[:190], description=f"{EVIL}\n\n1. {EVIL}", sources=[EVIL])
    assert front["pretty_name"] == EVIL[:190]
    assert front["tags"] == ["tunesmith", "chat"]
    text = body.replace("\\<", "").replace("\\[", "").replace("\\`", "").replace("\\|", "")
    assert "<script" not in text
    assert "](javascript" not in text.replace("\\]", "")
    assert not any(ord(c) < 32 and c != "\n" for c in body)
    assert "\u202e" not in body
    assert "\n---" not in body
    assert "\n1. " not in body


def test_cleaning_and_checks_are_counted(seal, lines):
    rows = [*pairs(40), {"prompt": "question 3", "completion": "answer 3", "topic": "x"}]
    rows.append({"prompt": "mail me", "completion": "at a@example.org", "topic": "x"})
    rows.append({"prompt": "drop me", "completion": "I am a@example.org", "topic": "y"})
    section = {
        "source": {"kind": "files", "train": str(lines("a.jsonl", rows))},
        "clean": {"exact": "drop", "pii": {"action": "mask"}},
        "require": {"topic": "x"},
    }
    result = seal(section)
    text = result.artifact.path(CARD).read_text(encoding="utf-8")
    assert "| exact | 1 | 0 |" in text
    assert "| private | 0 | 1 |" in text
    assert f"{result.report['score']['points']} of 100" in text
    whole = "".join(path.read_text("utf-8") for path in result.artifact.dir.glob("*.js*"))
    assert "a@example.org" not in whole
    assert "[EMAIL_1]" in whole
