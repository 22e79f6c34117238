"""Splits that never part what belongs together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith import data
from tunesmith.data.power import DIFFERING, detectable_points, what_the_test_can_tell
from tunesmith.data.rows import Row
from tunesmith.data.split import (
    LEFT_OUT,
    SPLITS,
    Units,
    drawn,
    drawn_order,
    hold_out,
    largest_remainder,
    overlapping,
    prompt_key,
    template_of,
    together,
)
from tunesmith.errors import ConfigError, DataError
from tunesmith.store import Artifact


def row(prompt, answer="a", place=1, **meta):
    messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})
    return Row(f"f.jsonl:{place}", "chat", "{}", {"messages": messages, "meta": meta})


def digests(prompts):
    keys = [bytes.fromhex(prompt_key(row(prompt))) for prompt in prompts]
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 32)


def held_rows(prompts, n_wanted, seed, split="test", strata=None):
    """Places of the rows that are held out."""
    found = digests(prompts)
    units = Units.of(found[:, :8].copy().view("<u8")[:, 0], strata, "equal prompts")
    order = drawn_order(units.keys(found), seed, split)
    held = hold_out(units, order, n_wanted, split)
    return set(np.flatnonzero(held[units.of_row]).tolist())


prompts = st.lists(st.sampled_from("abcdefghij"), min_size=6, max_size=60).filter(
    lambda found: max(map(found.count, found)) * 4 < len(found)
)


@given(prompts=prompts, seed=st.integers(0, 9))
def test_a_prompt_stays_on_one_side(prompts, seed):
    held = held_rows(prompts, len(prompts) // 4, seed)
    assert 0 < len(held) < len(prompts)
    mine = {prompts[place] for place in held}
    assert mine.isdisjoint(prompts[place] for place in range(len(prompts)) if place not in held)


@given(prompts=prompts, seed=st.integers(0, 9))
def test_the_choice_does_not_depend_on_the_order_of_the_rows(prompts, seed):
    n_wanted = len(prompts) // 4
    held = {prompts[place] for place in held_rows(prompts, n_wanted, seed)}
    turned = prompts[::-1]
    assert held == {turned[place] for place in held_rows(turned, n_wanted, seed)}


def test_another_seed_or_split_holds_out_other_rows_and_the_wanted_number():
    prompts = [f"question {n}" for n in range(200)]
    found = [
        held_rows(prompts, 20, *asked) for asked in ((0, "test"), (1, "test"), (0, "validation"))
    ]
    assert [len(held) for held in found] == [20, 20, 20]
    assert len({frozenset(held) for held in found}) == 3


@pytest.mark.parametrize(
    ("prompts", "n_wanted", "why"),
    [
        (["q", "q"], 1, "equal prompts stay on one side"),
        (["a", "b", "c"], 3, "some rows must stay for training"),
        (
            ["q"] * 90 + [f"q{n}" for n in range(2)],
            20,
            "the largest of 3 such groups has 90 of the 92",
        ),
    ],
)
def test_rows_that_cannot_be_split_are_refused_with_the_reason_and_a_way_out(
    prompts, n_wanted, why
):
    with pytest.raises(DataError, match="cannot be split") as caught:
        held_rows(prompts, n_wanted, 0)
    assert why in caught.value.why
    assert "docs/data/splitting.md" in caught.value.fix


def test_each_stratum_gives_its_share():
    prompts = [f"question {n}" for n in range(400)]
    strata = np.array([0] * 300 + [1] * 90 + [2] * 10)
    held = held_rows(prompts, 40, 3, strata=strata)
    assert np.bincount(strata[list(held)]).tolist() == [30, 9, 1]


def test_units_that_are_larger_than_a_stratum_wants_do_not_add_up():
    strata = np.repeat(np.arange(20), 12)
    units = Units.of(np.arange(240) // 3, strata, "x")
    held = hold_out(units, np.arange(80), 20, "test")
    assert 20 <= units.sizes[held].sum() <= 22


def test_a_unit_counts_for_the_stratum_that_most_of_its_rows_have():
    units = Units.of(np.array([5, 5, 5, 7]), np.array([2, 1, 1, 3]), "x")
    assert units.strata.tolist() == [1, 3]
    assert units.sizes.tolist() == [3, 1]


def test_rows_are_in_one_unit_when_any_key_joins_them_even_through_others():
    first = np.array([1, 1, 2, 3, 4, 5], dtype=np.uint64)
    second = np.array([9, 8, 8, 7, 7, 6], dtype=np.uint64)
    assert together(first, second).tolist() == [0, 0, 0, 3, 3, 5]


@given(pairs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40))
def test_units_are_the_connected_rows(pairs):
    found = together(*(np.array(column, dtype=np.uint64) for column in zip(*pairs, strict=True)))
    expected = list(range(len(pairs)))
    changed = True
    while changed:
        changed = False
        for i, one in enumerate(pairs):
            for j, other in enumerate(pairs):
                if (one[0] == other[0] or one[1] == other[1]) and expected[i] != expected[j]:
                    expected[i] = expected[j] = min(expected[i], expected[j])
                    changed = True
    assert found.tolist() == expected


def test_the_latest_are_held_out_and_no_moment_is_parted():
    seconds = np.array([5, 1, 9, 9, 2, 3, 4, 6, 7, 8])
    units = Units.of(seconds, None, "the same time")
    order = np.arange(len(units.sizes))[::-1]
    held = hold_out(units, order, 1, "test", in_order=True)
    assert sorted(seconds[held[units.of_row]].tolist()) == [9, 9]


@given(total=st.integers(0, 500), shares=st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_a_total_is_divided_whole_and_each_share_is_within_one_of_its_quota(total, shares):
    counts = largest_remainder(total, shares)
    assert sum(counts) == total
    assert all(abs(c - total * s / sum(shares)) < 1 for c, s in zip(counts, shares, strict=True))


@pytest.mark.parametrize(
    "other", ["how many  BOOKS?", "How many books", "How\nmany books?! ", "How many \uff42ooks?"]
)
def test_prompts_that_differ_only_in_form_are_the_same(other):
    assert prompt_key(row("How many books?")) == prompt_key(row(other))


def test_prompts_that_differ_in_content_or_database_are_not_the_same():
    keys = {
        prompt_key(row("1+2")),
        prompt_key(row("1-2")),
        prompt_key(row("1+2", database="x")),
        prompt_key(row("12")),
    }
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Is the value 17 or 3.5 %?", "Is the value 4 or 99 %?"),
        ("Who wrote 'Emma'?", "Who wrote 'Ulysses'?"),
        ("How far is it to Oslo from Bergen?", "How far is it to New York from Paris?"),
        ("Sum of 2026-03-01 to 2026-04-02", "sum of 1999-01-01 to 2000-01-01."),
    ],
)
def test_rows_of_one_template_are_told(one, other):
    assert template_of(one) == template_of(other)


def test_templates_keep_their_words():
    assert template_of("Who wrote 'Emma'?") != template_of("Who read 'Emma'?")
    assert template_of("Paris is large. Rome is old.") == "paris is large. rome is old"


def test_every_shared_prompt_is_found_once_and_the_test_goes_before_validation():
    keys = np.array([1, 2, 3, 4, 2, 9, 3, 9, 3, 7], dtype=np.uint64)
    splits = np.array([0, 0, 0, 0, 1, 1, 2, 2, 1, LEFT_OUT], dtype=np.uint8)
    rows, held = overlapping(keys, splits)
    assert list(zip(rows.tolist(), held.tolist(), strict=True)) == [(1, 4), (2, 6), (5, 7), (8, 6)]


def test_a_limit_draws_rows_by_seed():
    chosen = drawn(50, 10, 0, "train")
    assert chosen.sum() == 10
    assert not chosen[:10].all()
    assert (chosen == drawn(50, 10, 0, "train")).all()
    assert (chosen != drawn(50, 10, 1, "train")).any()
    assert drawn(50, None, 0, "train").all()
    assert drawn(50, 99, 0, "train").all()


@pytest.mark.parametrize("n", [3, 20, 279, 3080])
@pytest.mark.parametrize("share", DIFFERING)
def test_the_detectable_gain_is_the_one_that_the_evaluation_states(n, share):
    from tunesmith.evaluate.comparison import detectable_gain

    differing = round(share * n)
    stated = detectable_gain(n, differing, 0.95)
    if stated is None or stated > 100 * differing / n:
        assert detectable_points(n, share) is None
    else:
        assert detectable_points(n, differing / n) == pytest.approx(stated, abs=1e-3)


@given(n=st.integers(1, 5000), share=st.floats(0.001, 1.0))
def test_a_gain_is_never_larger_than_the_share_that_changes(n, share):
    found = detectable_points(n, share)
    assert found is None or 0 < found <= 100 * share


def test_a_share_too_small_for_any_gain_is_said():
    from tunesmith.cli.data.split import _what_can_be_told

    assert _what_can_be_told(what_the_test_can_tell(26)) == (
        "26 test rows: a paired test finds, four times in five, a gain of 33.2 points where 40% of the answers "
        "change, none where 10% or 20% do"
    )
    assert _what_can_be_told(what_the_test_can_tell(5)) == (
        "5 test rows: too few to show a gain in a paired test, where up to 40% of the answers change"
    )


# From files to sealed splits


def examples(count, **fields):
    """Rows with the given fields; a function is called with the row's number."""
    return [
        {
            "prompt": f"Why does the {NOUNS[n % 20]} {VERBS[n // 20]}?",
            "completion": f"answer {n}",
            **{name: made(n) for name, made in fields.items()},
        }
        for n in range(count)
    ]


NOUNS = [
    "apple", "boat", "cloud", "dog", "engine",
    "forest", "guitar", "horse", "island", "jacket",
    "kettle", "lantern", "mountain", "needle", "ocean",
    "pencil", "quarry", "river", "saddle", "tower",
]  # fmt: skip
VERBS = [
    "grow", "sink", "vanish", "bark", "turn",
    "burn", "hum", "gallop", "erode", "tear",
    "boil", "flicker", "shake", "bend", "freeze",
]  # fmt: skip


def files(**named):
    return {"source": {"kind": "files", **{k: str(v) for k, v in named.items()}}}


def test_rows_of_a_group_stay_on_one_side(seal, lines, rows_of):
    path = lines("a.jsonl", examples(200, user=lambda n: n % 40))
    result = seal({**files(train=path), "split": {"group": "user"}})
    users = {name: {r["meta"]["user"] for r in rows_of(result, name)} for name in SPLITS}
    assert all(users.values())
    assert users["train"].isdisjoint(users["test"] | users["validation"])
    assert users["test"].isdisjoint(users["validation"])
    assert "the same 'user'" in result.report["held_out"]["kept_together"]


def test_labels_have_the_same_shares_in_every_split(seal, lines, rows_of):
    path = lines("a.jsonl", examples(200, label=lambda n: "rare" if n % 10 == 0 else "common"))
    result = seal({**files(train=path), "split": {"stratify": "label"}})
    for name in ("validation", "test"):
        labels = [r["meta"]["label"] for r in rows_of(result, name)]
        assert (len(labels), labels.count("rare")) == (20, 2)
    assert result.report["held_out"]["strata_without_rows"] == {"validation": 0, "test": 0}


def test_the_latest_rows_are_tested_on(seal, lines, rows_of):
    days = [f"2026-01-{1 + n // 4:02d}" for n in range(100)]
    path = lines("a.jsonl", examples(100, day=lambda n: days[n])[::-1])
    section = {**files(train=path), "split": {"kind": "time", "field": "day"}}
    result = seal({**section, "test_rows": 8, "validation_rows": 4})
    found = {name: [r["meta"]["day"] for r in rows_of(result, name)] for name in SPLITS}
    assert max(found["train"]) < min(found["validation"])
    assert max(found["validation"]) < min(found["test"])
    assert result.rows == {"train": 88, "validation": 4, "test": 8}


def test_rows_without_the_field_of_the_split_are_all_named(seal, lines):
    rows = examples(20, day=lambda n: n)
    rows[3]["day"] = "yesterday"
    del rows[5]["day"]
    path = lines("a.jsonl", rows)
    with pytest.raises(DataError) as caught:
        seal({**files(train=path), "split": {"kind": "time", "field": "day"}})
    assert f"{path}:4: day: 'yesterday' is neither ISO 8601" in caught.value.what
    assert f"{path}:6: the field 'day' is missing" in caught.value.what


def test_templates_stay_on_one_side_when_asked(seal, lines, rows_of):
    words = ["big", "old", "far", "near", "long", "cold", "warm", "high", "deep", "wide"] * 2
    rows = [
        {"prompt": f"How {word} {i} is thing number {n} of the list?", "completion": f"{n} {word}"}
        for i, word in enumerate(words)
        for n in range(20)
    ]
    result = seal(
        {
            **files(train=lines("a.jsonl", rows)),
            "split": {"by_template": True, "near_duplicates": False},
        }
    )
    found = {
        name: {r["messages"][0]["content"].split()[1] for r in rows_of(result, name)}
        for name in SPLITS
    }
    assert found["train"].isdisjoint(found["test"])


def test_a_group_that_is_nearly_everything_is_refused_with_its_size(seal, lines):
    path = lines("a.jsonl", examples(100, user=lambda n: max(0, n - 96)))
    with pytest.raises(DataError) as caught:
        seal({**files(train=path), "split": {"group": "user"}})
    assert "has 97 of the 100 rows" in caught.value.why


def test_settings_that_exclude_each_other_are_refused(seal, lines):
    path = lines("a.jsonl", examples(50, day=lambda n: n))
    with pytest.raises(ConfigError, match="group"):
        seal({**files(train=path), "split": {"kind": "time", "field": "day", "group": "user"}})
    with pytest.raises(ConfigError, match=r"data\.test_ratio"):
        seal({**files(train=path), "test_rows": 5, "test_ratio": 0.2})
    other = lines("b.jsonl", examples(60)[50:])
    with pytest.raises(ConfigError, match=r"data\.split\.stratify"):
        seal({**files(train=path, validation=other, test=other), "split": {"stratify": "day"}})


REWORDED = (
    {"prompt": "Which rivers flow through the state of Ohio?", "completion": "select 1"},
    {"prompt": "which rivers flow trough the state of Ohio", "completion": "select 1"},
)


def test_a_test_row_that_was_copied_and_reworded_is_reported(seal, lines):
    train = lines("train.jsonl", [*examples(60), REWORDED[1]])
    test = lines("test.jsonl", [*examples(90)[70:], REWORDED[0]])
    section = files(train=train, validation=lines("v.jsonl", examples(110)[100:]), test=test)
    result = seal(section)
    assert result.report["near_overlaps"]["found"] == 1
    assert f"{train}:61 (train) = {test}:21 (test)" in result.report["near_overlaps"]["first"][0]
    text = result.artifact.path("findings.jsonl").read_text(encoding="utf-8")
    found = [json.loads(line) for line in text.splitlines()]
    near = [one for one in found if one["check"] == "near-overlap"]
    assert [one["where"] for one in near] == [f"{train}:61"]
    with pytest.raises(DataError, match="almost shares its prompt"):
        seal({**section, "on_near_overlap": "refuse"}, name="refused")
    dropped = seal({**section, "on_near_overlap": "drop_from_train"}, name="dropped")
    assert dropped.rows["train"] == 60
    assert dropped.report["left_out"]["by_near_overlap"] == {"train": 1}


def test_nearly_equal_prompts_are_held_out_together(seal, lines, rows_of):
    rows = examples(100)
    twins = [{**row, "prompt": row["prompt"].replace("?", ", please?")} for row in rows]
    result = seal(files(train=lines("a.jsonl", [*rows, *twins])))
    for name in ("test", "validation"):
        answers = [r["messages"][-1]["content"] for r in rows_of(result, name)]
        assert len(answers) == 20
        assert all(answers.count(answer) == 2 for answer in answers)


def test_the_report_says_which_gain_the_test_can_show(seal, lines):
    result = seal(files(train=lines("a.jsonl", examples(300))))
    told = result.report["test_can_tell"]
    assert told["test_rows"] == 30
    assert told["detectable_points"]["40%"] == round(detectable_points(30, 0.4), 1)
    assert told["detectable_points"]["10%"] is None


@pytest.mark.parametrize("time", [10**400, float("1e308") * 10, "1e9", "12"])
def test_what_is_no_moment_is_named(seal, lines, time):
    rows = [{"prompt": f"q {n}", "completion": "a", "t": n} for n in range(40)]
    text = json.dumps({**rows[3], "t": time}).replace("Infinity", "1e999")
    path = lines("a.jsonl", rows)
    path.write_text(path.read_text() + f"{text}\n")
    source = {"kind": "files", "train": str(path)}
    with pytest.raises(DataError, match=r"a\.jsonl:41: t: .* is neither ISO 8601"):
        seal({"source": source, "split": {"kind": "time", "field": "t"}})


def test_seconds_in_a_table_are_a_time(seal, tmp_path):
    path = tmp_path / "a.csv"
    cells = [f"what is {n}?,it is {n},{1_700_000_000 + (n * 7) % 40}" for n in range(40)]
    path.write_text("prompt,completion,t\n" + "\n".join(cells) + "\n")
    source = {"kind": "files", "train": str(path)}
    found = seal({"source": source, "split": {"kind": "time", "field": "t"}})
    test = found.artifact.path("test.jsonl").read_text().split("\n")[:-1]
    assert sorted(json.loads(line)["meta"]["t"] for line in test) == [
        str(1_700_000_000 + n) for n in range(36, 40)
    ]


def test_a_text_of_opening_quotes_is_read_in_time_that_grows_with_its_length():
    assert template_of("“" * 200_000) == "“" * 200_000
    assert template_of("say “one“ two” here") == template_of("say “one“ three” here")


@pytest.mark.parametrize("setting", ["stratify", "group", "field"])
def test_a_misspelled_field_to_split_by_is_one_problem_with_its_near_miss(lines, seal, setting):
    rows = [{"prompt": f"Item {n}?", "completion": "y", "branch": str(n % 3)} for n in range(30)]
    split = {setting: "brnch", **({"kind": "time"} if setting == "field" else {})}
    with pytest.raises(DataError) as caught:
        seal({**files(train=lines("a.jsonl", rows)), "split": split})
    said = str(caught.value.what)
    assert "1 problem in the data" in said
    assert f"data.split.{setting}: no field 'brnch'" in said
    assert "did you mean 'branch'" in said
    rows[20].pop("branch")
    with pytest.raises(DataError, match=r"b\.jsonl:21: the field 'branch' is missing"):
        seal({**files(train=lines("b.jsonl", rows)), "split": {"stratify": "branch"}}, name="b")


def test_where_a_dataset_lies_changes_none_of_its_files(lines, tmp_path):
    place = lines("a.jsonl", examples(60))
    folders = [tmp_path / "one", tmp_path / "deeper" / "other"]
    for folder in folders:
        data.split_files([place], folder)
    one, other = (Artifact.open(folder, "data") for folder in folders)
    assert one.files == other.files
    report = one.read_json("report.json")
    assert [file["path"] for file in report["files"]] == ["a.jsonl"]
    assert report["card"]["title"] == "a"
