"""What the cards of the sample datasets promise."""

from __future__ import annotations

import datetime
import importlib
import json
import re
from collections import Counter, defaultdict

import pytest

from tunesmith.config import SampleSource
from tunesmith.data.samples import SAMPLES, describe, load_sample, write_sample
from tunesmith.data.samples.arithmetic import kinds
from tunesmith.data.samples.code_docs.algorithms import numbers, sequences, texts
from tunesmith.data.samples.preferences.flaws import FLAWS, fails
from tunesmith.data.samples.support import build as support_build
from tunesmith.data.samples.support.orders import working_days_after
from tunesmith.errors import ConfigError

OWN = [name for name in SAMPLES if name != "text-to-sql"]


def rows_of(name):
    files = SAMPLES[name].row_files()
    return {
        split: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for split, path in files.items()
    }


def questions(row):
    turns = row.get("messages") or row["prompt"]
    return "\n".join(turn["content"] for turn in turns if turn["role"] in ("system", "user"))


@pytest.mark.parametrize("name", OWN)
def test_the_shipped_files_are_what_the_builder_makes(name):
    module = SAMPLES[name]
    build = importlib.import_module(f"{module.__name__}.build")
    for file, content in build.build().items():
        shipped = module.row_files()[file.removesuffix(".jsonl")].read_text(encoding="utf-8")
        assert shipped == content, f"{file}: run `python -m {build.__name__}` again"


@pytest.mark.parametrize("name", OWN)
def test_the_card_has_the_real_numbers_and_the_licence(name):
    module = SAMPLES[name]
    card = " ".join(module.CARD.read_text(encoding="utf-8").split())
    told = next(one for one in describe() if one["name"] == name)

    assert f"{told['rows']:,}" in card
    for n_rows in told["splits"].values():
        assert f"{n_rows:,} for " in card
    assert "Apache-2.0" in card
    assert f"python -m {module.__name__}.build" in card
    assert told["bytes"] < 750_000


def test_recipes_know_the_same_datasets_as_the_table():
    assert set(SampleSource.model_fields["name"].annotation.__args__) == set(SAMPLES)
    for name, module in SAMPLES.items():
        assert load_sample(name) is module
        assert set(module.row_files()) == {"train", "validation", "test"}
    with pytest.raises(ConfigError, match="did you mean 'support'"):
        load_sample("suport")


@pytest.mark.parametrize("name", OWN)
def test_no_question_occurs_twice(name):
    asked = Counter(questions(row) for rows in rows_of(name).values() for row in rows)

    assert max(asked.values()) == 1


def test_a_dataset_is_written_to_a_new_folder_with_its_card(tmp_path):
    files = write_sample("text-to-sql", tmp_path / "out")

    assert {file.name for file in files} > {"CARD.md", "train.jsonl", "bikes.sql"}
    assert all(file.is_file() for file in files)
    with pytest.raises(ConfigError, match="holds files already"):
        write_sample("support", tmp_path / "out")


class Watched(kinds.Operands):
    """Operands that note the main ones."""

    def __init__(self, draws, *, held, drawn):
        super().__init__(draws, held=held)
        self.drawn = drawn

    def main(self, low, high):
        value = super().main(low, high)
        self.drawn.add(value)
        return value


class TestArithmetic:
    def test_every_answer_is_the_value_of_its_expression(self):
        for rows in rows_of("arithmetic").values():
            for row in rows:
                meta = row["meta"]
                assert row["answer"] == kinds.said(kinds.value_of(meta["expression"]), meta["kind"])

    def test_every_number_of_an_expression_stands_in_the_question_or_is_a_constant(self):
        for rows in rows_of("arithmetic").values():
            for row in rows:
                kind, asked = row["meta"]["kind"], row["prompt"][0]["content"].replace(".", "")
                constants = {"average": {"3"}, "gauss": {"1", "2"}, "minutes": {"60"}, "percent": {"100"},
                             "perimeter": {"2"}, "price": {"100"}, "decimals": {"10"}}  # fmt: skip
                numbers = set(re.findall(r"\d+", row["meta"]["expression"])) - constants.get(
                    kind, set()
                )
                if kind not in ("travel", "missing"):
                    assert numbers <= set(re.findall(r"\d+", asked)), row

    def test_the_test_uses_main_operands_of_its_own(self):
        for kind in kinds.KINDS:
            mains = {split: set() for split in ("train", "validation", "test")}
            for split, drawn in mains.items():
                for key in range(120):
                    kind.make(Watched(kinds.Draws(key, split), held=split == "test", drawn=drawn))
            assert mains["test"]
            assert not mains["test"] & (mains["train"] | mains["validation"]), kind.name

    def test_every_kind_and_level_is_in_every_split(self):
        for rows in rows_of("arithmetic").values():
            assert {row["meta"]["kind"] for row in rows} == {kind.name for kind in kinds.KINDS}
            assert {row["meta"]["level"] for row in rows} == {1, 2, 3, 4, 5}

    @pytest.mark.parametrize("expression", ["a + 1", "f(2)", "1.5 + 1", "[1]", "gcd(2, 3).real"])
    def test_other_expressions_are_refused(self, expression):
        with pytest.raises(ValueError, match=r"\w"):
            kinds.value_of(expression)


class TestPreferences:
    def test_the_rejected_answer_fails_its_check_and_the_chosen_one_passes(self):
        for rows in rows_of("preferences").values():
            for row in rows:
                (chosen,), (rejected,) = row["chosen"], row["rejected"]
                check = row["meta"]["check"]
                assert not fails(check, chosen["content"], chosen["content"]), row
                assert fails(check, rejected["content"], chosen["content"]), row

    def test_every_flaw_is_in_every_split(self):
        for rows in rows_of("preferences").values():
            assert {row["meta"]["flaw"] for row in rows} == set(FLAWS)

    def test_neither_side_is_told_by_its_length_alone(self):
        rows = [row for found in rows_of("preferences").values() for row in found]
        longer = sum(
            len(r["rejected"][0]["content"]) > len(r["chosen"][0]["content"]) for r in rows
        )

        assert 0.2 < longer / len(rows) < 0.6

    def test_no_person_of_the_test_is_in_training(self):
        from tunesmith.data.samples.preferences.build import WORDS

        text = {split: json.dumps(rows) for split, rows in rows_of("preferences").items()}
        for name in (*WORDS["test"].names, *WORDS["test"].places):
            assert re.search(rf"\b{name}\b", text["test"])
            assert not re.search(rf"\b{name}\b", text["train"])


class TestSupport:
    def test_every_wording_is_in_one_split_only(self):
        text = {
            split: {
                turn["content"]
                for row in rows
                for turn in row["messages"]
                if turn["role"] == "user"
            }
            for split, rows in rows_of("support").items()
        }
        for _, asked in support_build.policies().values():
            for at, wording in enumerate(asked):
                own = "train" if at < 6 else "validation" if at == 6 else "test"
                for split, said in text.items():
                    assert (wording in said) == (split == own), wording

    def test_what_is_said_about_an_order_follows_from_it(self):
        n_checked = Counter()
        for rows in rows_of("support").values():
            for row in rows:
                system, answer = row["messages"][0]["content"], row["messages"][-1]["content"]
                topic = row["meta"]["topic"]
                if topic in ("order_return", "order_warranty", "order_invoice", "order_refund"):
                    n_checked[
                        topic,
                        self.check_dates(topic, system, row["messages"][1]["content"], answer),
                    ] += 1
        assert len(n_checked) == 9
        assert min(n_checked.values()) > 3

    def check_dates(self, topic, system, asked, answer):
        today = datetime.date.fromisoformat(re.search(r"Today is (\S+)\.", system)[1])
        delivered = re.search(r"delivered on (\d{4}-\d\d-\d\d)", system)
        if delivered is None:
            assert "on its way to you now" in answer
            return "coming"
        day = datetime.date.fromisoformat(delivered[1])
        days = [
            datetime.datetime.strptime(text, "%d %B %Y").date()
            for text in re.findall(r"\d+ [A-Z]\w+ \d{4}", answer)
        ]
        if topic == "order_return":
            assert sorted(days) == [day, day + datetime.timedelta(30)]
            late = today > max(days)
            assert ("too late" in answer) == late
        elif topic == "order_warranty":
            years = 5 if "backpack" in system else 2
            assert days[0] == day
            assert (days[1].year, days[1].month) == (day.year + years, day.month)
            late = today > days[1]
            assert ("no longer under warranty" in answer) == late
        elif topic == "order_invoice":
            assert days == [day, day + datetime.timedelta(14)]
            late = today > days[1]
            assert ("has passed" in answer) == late
        else:
            back = datetime.datetime.strptime(
                re.search(r"\d+ [A-Z]\w+ \d{4}", asked)[0], "%d %B %Y"
            ).date()
            assert day < back <= today
            assert days == [back + datetime.timedelta(7)]
            assert re.search(r"([\d.]+) euros, delivered", system)[1] in answer
            late = "backpack" in system
        return late

    def test_five_working_days_are_a_week(self):
        assert working_days_after(datetime.date(2025, 3, 7), 5) == datetime.date(2025, 3, 14)
        assert working_days_after(datetime.date(2025, 3, 8), 1) == datetime.date(2025, 3, 10)

    def test_some_conversations_have_several_turns(self):
        for rows in rows_of("support").values():
            turns = Counter(sum(turn["role"] == "user" for turn in row["messages"]) for row in rows)
            assert set(turns) == {1, 2}
            assert turns[2] > 0.15 * len(rows)


class TestCodeDocs:
    def test_every_example_gives_what_it_says(self):
        n_run = 0
        for rows in rows_of("code-docs").values():
            for row in rows:
                if row["meta"]["task"] != "code":
                    continue
                names = {**vars(numbers), **vars(texts), **vars(sequences)}
                exec(row["messages"][1]["content"], names)
                asked = row["messages"][0]["content"]
                for call, result in re.findall(r"^>>> (.*)\n(.*)$", asked, re.M):
                    assert repr(eval(call, names)) == result
                    n_run += 1
        assert n_run >= 650

    def test_a_function_is_in_one_split_with_both_of_its_rows(self):
        where = defaultdict(list)
        for split, rows in rows_of("code-docs").items():
            for row in rows:
                where[row["meta"]["name"]].append((split, row["meta"]["task"]))
        for found in where.values():
            assert len({split for split, _ in found}) == 1
            assert sorted(task for _, task in found) == ["code", "docs"]

    def test_no_docstring_that_is_to_be_learned_has_an_example(self):
        for rows in rows_of("code-docs").values():
            for row in rows:
                if row["meta"]["task"] == "docs":
                    assert ">>>" not in row["messages"][1]["content"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SAMPLES))
def test_a_recipe_seals_every_dataset_with_its_card(name, seal, rows_of):
    result = seal({"source": {"kind": "sample", "name": name}})

    told = next(one for one in describe() if one["name"] == name)
    assert dict(result.rows) == told["splits"]
    card = result.artifact.path("README.md").read_text(encoding="utf-8")
    assert SAMPLES[name].CARD.read_text(encoding="utf-8").split("\n")[0].strip("# ") in card
    assert "Apache-2.0" in card
    assert not near_overlaps(result), "reword one of the two"


def near_overlaps(result):
    """Rows of which a held-out split has nearly the prompt."""
    found = result.artifact.path("findings.jsonl")
    lines = found.read_text(encoding="utf-8").splitlines() if found.is_file() else []
    return [line for line in lines if "near" in json.loads(line).get("check", "")]
