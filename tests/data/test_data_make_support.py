"""Questions and answers of Markdown, with what stands in it kept as it stands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.data.make import SupportOptions, make_support
from tunesmith.errors import ConfigError, DataError, MissingError

FAQ = """\
---
title: Help
---
# Help

Welcome.

## How do I **reset** my [password](https://x.invalid/p)?

Open `Settings` and press *Reset*.

```sh
# not a heading?
reset --all
```

See [the guide][g] and ![pic](a.png).

### On a phone

Use the app.

## Delivery

Three days.

How long is it kept?
--------------------

Ten days.

## What does nothing?

## Questions

Q: Is it free?
A: Yes.
It stays free.

**Q2:** Can I cancel?

**A2:** At any time, with [this form](f.html).

- **Do you repair?** We do, for 25 euros.

<details>
<summary>Who are you?</summary>

A small shop in a small town.
</details>

[g]: https://x.invalid/guide "The guide"
[unused]: https://x.invalid/none
"""


def by_question(made):
    return {row["messages"][0]["content"]: row["messages"][-1]["content"] for row in made.rows}


@pytest.fixture
def faq(tmp_path):
    path = tmp_path / "faq.md"
    path.write_text(FAQ, encoding="utf-8")
    return path


def test_each_form_of_question_is_found_with_its_answer(faq):
    found = by_question(make_support(faq))

    assert set(found) == {
        "How do I reset my password?", "How long is it kept?", "Is it free?", "Can I cancel?", "Do you repair?",
        "Who are you?",
    }  # fmt: skip
    assert found["Is it free?"] == "Yes.\nIt stays free."
    assert found["How long is it kept?"] == "Ten days."
    assert found["Can I cancel?"] == "At any time, with [this form](f.html)."
    assert found["Do you repair?"] == "We do, for 25 euros."
    assert found["Who are you?"] == "A small shop in a small town."


FOLDED = """\
## Before?

Yes, before.

<details><summary>Only one?</summary>

One is enough.
</details>

<details open><summary><b>On one line?</b></summary>All of it.</details>

<DETAILS>
  <summary>
    Over several
    lines?
  </summary>

All lines count.</details>

<details><summary>Nothing?</summary></details>

<details><summary>Never
closed?

It ends with its paragraph.
"""


def test_questions_that_fold_are_rows_as_github_writes_them_or_are_counted(tmp_path):
    path = tmp_path / "folded.md"
    path.write_text(FOLDED, encoding="utf-8")

    made = make_support(path)

    assert by_question(made) == {
        "Before?": "Yes, before.",
        "Only one?": "One is enough.",
        "On one line?": "All of it.",
        "Over several lines?": "All lines count.",
        "Never closed?": "It ends with its paragraph.",
    }
    assert [(one.what, one.where) for one in made.dropped] == [("Nothing?", "folded.md:20")]


def test_links_code_and_parts_below_stay_exactly_and_definitions_come_along(faq):
    answer = by_question(make_support(faq))["How do I reset my password?"]

    assert answer == (
        "Open `Settings` and press *Reset*.\n\n```sh\n# not a heading?\nreset --all\n```\n\n"
        "See [the guide][g] and ![pic](a.png).\n\n### On a phone\n\nUse the app.\n\n"
        '[g]: https://x.invalid/guide "The guide"'
    )


def test_indented_code_stays_indented(tmp_path):
    (tmp_path / "a.md").write_text(
        "# How?\nRun:\n\n    make\n    make test\n\n- **Why?** So:\n\n  as it is\n\n      code\n"
    )
    found = by_question(make_support(tmp_path / "a.md"))

    assert found == {
        "How?": "Run:\n\n    make\n    make test",
        "Why?": "So:\n\nas it is\n\n    code",
    }


def test_each_row_says_its_section_and_line(faq):
    row = make_support(faq).rows[0]

    assert row["meta"] == {
        "source": "faq.md", "where": "faq.md:8", "section": "Help > How do I reset my password?", "form": "heading",
    }  # fmt: skip


def test_headings_that_are_no_questions_are_asked_only_by_a_template(faq):
    plain = make_support(faq)
    assert ("faq.md:23", "Delivery") in {(gone.where, gone.what) for gone in plain.dropped}

    asked = by_question(make_support(faq, SupportOptions(templates=("Tell me about {path}.",))))
    assert asked["Tell me about Help > Delivery."] == "Three days."
    assert asked["Tell me about Help > How do I reset my password? > On a phone."] == "Use the app."


def test_a_question_without_an_answer_makes_no_row(faq):
    reasons = {gone.what: gone.reason for gone in make_support(faq).dropped}

    assert reasons["What does nothing?"] == "there is no text below it"


@pytest.mark.parametrize("template", ["{headin}?", "What?", "{", "{0}"])
def test_a_template_that_cannot_work_is_refused(faq, template):
    with pytest.raises(ConfigError, match="template"):
        make_support(faq, SupportOptions(templates=(template,)))


def test_a_folder_is_searched_and_junk_in_it_is_named(tmp_path, faq):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "again.md").write_text("## Is it free?\nYes, of course it is.\n")
    (tmp_path / "junk.md").write_bytes(b"\0\1\2")
    made = make_support(tmp_path)

    reasons = {gone.where: gone.reason for gone in made.dropped}
    assert reasons["sub/again.md:1"] == "a duplicate: the question of faq.md:36"
    assert "NUL" in reasons["junk.md"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no question"),
        (b"# Title\ntext\n", "no question"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a\0", "NUL"),
    ],
)
def test_a_file_that_gives_nothing_is_one_error(tmp_path, data, said):
    (tmp_path / "a.md").write_bytes(data)

    with pytest.raises(DataError, match=said):
        make_support(tmp_path / "a.md")


def test_a_missing_file_and_an_empty_folder_are_errors(tmp_path):
    with pytest.raises(MissingError):
        make_support(tmp_path / "none.md")
    with pytest.raises(DataError, match="no Markdown file"):
        make_support(tmp_path)


LINE = st.sampled_from(
    [
        "# A",
        "## B?",
        "Q: x?",
        "A: y",
        "```",
        "~~~",
        "text",
        "",
        "---",
        "===",
        "- **C?** d",
        "[a]: b",
        "<details>",
        "    # code?",
    ]
)


@given(
    lines=st.lists(
        st.one_of(LINE, st.text(alphabet="#-*`~[]():?QA ab\t", max_size=12)), max_size=15
    )
)
def test_no_text_is_made_up(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("md") / "a.md"
    path.write_text("\n".join(lines), encoding="utf-8")

    try:
        made = make_support(path, SupportOptions(templates=("About {heading}?",), min_chars=1))
    except DataError:
        return
    kept = {line.strip() for line in lines} | {line.split(" ", 1)[-1].strip() for line in lines}
    for row in made.rows:
        for line in row["messages"][-1]["content"].split("\n"):
            assert not line.strip() or any(
                line.strip() in known or known.endswith(line.strip()) for known in kept
            )


@pytest.mark.parametrize("piece", ["[", "*", "?", "_", "`", "Q: ?", "**a?", "<summary>", "#"])
def test_long_lines_of_marks_take_no_longer_than_their_length(tmp_path, piece):
    (tmp_path / "a.md").write_text(
        f"# How?\nSo.\n\n[a]: b\n{piece * 40_000}\n===\n{piece * 40_000}\n## Why?\nSo.\n"
    )
    found = by_question(make_support(tmp_path / "a.md"))

    assert found["Why?"] == "So."
