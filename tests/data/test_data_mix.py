"""Weighted mixes of several sets of files."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows_of_text import rows_in

from tunesmith.data.mix import Mix, shares
from tunesmith.errors import ConfigError, DataError


def rows(name, count):
    return [{"prompt": f"{name} asks for {n}", "completion": f"{name} {n}"} for n in range(count)]


@pytest.fixture
def mix(lines):
    """The section of a recipe that mixes parts of so many rows."""

    def make(counts, **settings):
        parts = {name: str(lines(f"{name}.jsonl", rows(name, n))) for name, n in counts.items()}
        split = {"near_duplicates": False}
        return {"source": {"kind": "mix", "parts": parts, **settings}, "split": split}

    return make


def counts_of(result, rows_of):
    return Counter(row["meta"]["source"] for row in rows_of(result, "train"))


def test_a_limit_of_repeats_is_refused_where_nothing_is_repeated(seal, mix):
    with pytest.raises(ConfigError, match=r"data\.source\.max_repeats"):
        seal(mix({"sql": 9, "chat": 9}, max_repeats=2))


@pytest.mark.parametrize("weight", [0, 1e308, float("nan")])
def test_a_weight_that_is_out_of_bounds_is_refused(seal, mix, weight):
    with pytest.raises(ConfigError, match=r"data\.source\.weights\.sql"):
        seal(mix({"sql": 9, "chat": 9}, weights={"sql": weight, "chat": 1e6}))


def test_parts_have_the_shares_of_their_weights_and_every_row_is_accounted_for(seal, mix, rows_of):
    result = seal(mix({"sql": 100, "chat": 100}, weights={"sql": 3}))
    n_sql = result.report["mix"]["sql"]["rows"]
    assert counts_of(result, rows_of) == {"sql": n_sql, "chat": round(n_sql / 3)}
    dropped = result.artifact.path("dropped.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["rule"] for line in dropped} == {"mix"}
    assert sum(result.rows.values()) + len(dropped) == 200 == result.report["rows_read"]


def test_a_part_that_is_too_small_is_repeated_and_that_is_said(seal, mix, rows_of):
    result = seal(mix({"small": 40, "large": 100}, train_rows=100))
    assert counts_of(result, rows_of) == {"small": 50, "large": 50}
    told = result.report["mix"]["small"]
    assert told["in_mix"] == 50
    assert told["repeats"] == round(50 / told["rows"], 3) > 1
    times = Counter(row["messages"][0]["content"] for row in rows_of(result, "train"))
    small = [count for prompt, count in times.items() if prompt.startswith("small")]
    assert max(small) - min(small) <= 1
    assert len(small) == told["rows"]


def test_test_rows_are_held_out_before_the_mix_and_never_repeated(seal, mix, rows_of):
    result = seal(mix({"small": 20, "large": 100}, train_rows=120))
    held = [r["messages"][0]["content"] for s in ("validation", "test") for r in rows_of(result, s)]
    assert len(held) == len(set(held)) == 24
    assert not set(held) & {r["messages"][0]["content"] for r in rows_of(result, "train")}


def test_another_seed_draws_other_rows(seal, mix):
    section = mix({"a": 60, "b": 20})
    one, two = (seal(section, seed=seed, name=str(seed)).artifact for seed in (1, 2))
    assert one.files["train.jsonl"] != two.files["train.jsonl"]
    assert (
        one.files["train.jsonl"]
        == seal(section, seed=1, name="again").artifact.files["train.jsonl"]
    )


def test_too_many_repeats_are_refused_with_the_figures(seal, mix):
    with pytest.raises(DataError, match=r"max_repeats=4 times: small: 250 wanted, \d+ there"):
        seal(mix({"small": 20, "large": 600}, train_rows=500))


def test_a_weight_of_an_unknown_part_is_refused(seal, mix):
    with pytest.raises(ConfigError, match="'sgl', which is no part"):
        seal(mix({"sql": 20, "chat": 20}, weights={"sgl": 2}))


def test_a_row_keeps_a_source_of_its_own_under_another_name_and_in_its_place(
    seal, mix, lines, rows_of
):
    section = mix({"a": 20, "b": 20})
    own = [
        f'{{"prompt": "q{n}", "completion": "a", "source": "web \\u00e9", "x": 1.50}}'
        for n in range(20)
    ]
    lines("a.jsonl", own)
    section["source"]["test"] = [str(lines("t.jsonl", [{**rows("t", 1)[0], "source": "faq.md"}]))]
    result = seal(section)
    text = result.artifact.path("train.jsonl").read_text(encoding="utf-8")
    assert '"meta": {"own_source": "web \\u00e9", "x": 1.50, "source": "a"}}' in text
    assert set(counts_of(result, rows_of)) == {"a", "b"}
    assert [row["meta"] for row in rows_of(result, "test")] == [{"own_source": "faq.md"}]


def test_a_mix_of_mixes_keeps_every_name(seal, mix, lines, rows_of):
    section = mix({"a": 20, "b": 20})
    lines("a.jsonl", [{**row, "source": "s", "own_source": "o"} for row in rows("a", 20)])
    made = rows_of(seal(section), "train")
    (meta,) = {json.dumps(row["meta"]) for row in made if row["meta"]["source"] == "a"}
    assert json.loads(meta) == {"own_own_source": "s", "own_source": "o", "source": "a"}


def test_the_name_of_the_part_is_added_and_nothing_else_changes(seal, mix, lines, rows_of):
    section = mix({"a": 20, "b": 20})
    lines("a.jsonl", [f'{{"prompt": "q{n}", "completion": "1.50", "x": 1.50}}' for n in range(20)])
    lines("b.jsonl", [f'{{"prompt": "p{n}", "completion": "b"}}' for n in range(20)])
    result = seal(section)
    text = result.artifact.path("train.jsonl").read_text(encoding="utf-8")
    assert '"meta": {"x": 1.50, "source": "a"}}' in text
    assert '"meta": {"source": "b"}}' in text


def test_files_are_mixed_and_split_from_python(lines, tmp_path):
    from tunesmith import data

    parts = {name: [lines(f"{name}.jsonl", rows(name, 50))] for name in ("a", "b")}
    section = {"split": {"near_duplicates": False}, "test_rows": 7}
    made = data.mix_files(parts, tmp_path / "mix", weights={"a": 2}, train_rows=30, **section)
    assert made.report["mix"]["a"]["in_mix"] == 20
    assert made.rows["test"] == 7
    made = data.split_files(parts["a"], tmp_path / "split", seed=3, **section)
    assert made.rows == {"train": 38, "validation": 5, "test": 7}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=st.lists(st.integers(1, 200), min_size=2, max_size=5),
    weights=st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
)
def test_a_mix_without_a_number_needs_no_row_twice_and_keeps_the_weights(counts, weights):
    names = [str(n) for n in range(len(counts))]
    asked = dict(zip(names, weights, strict=False))
    there = dict(zip(names, counts, strict=True))
    found = shares(Mix(asked, None, 4), there)
    assert all(share.wanted <= share.rows for share in found.values())
    total = sum(share.wanted for share in found.values())
    for name, share in found.items():
        assert abs(share.wanted - total * asked[name] / sum(asked.values())) <= 2


@settings(
    max_examples=4 if settings().max_examples < 50 else 40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    counts=st.lists(st.integers(4, 30), min_size=2, max_size=3),
    weights=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    wanted=st.none() | st.integers(4, 60),
    repeated=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_every_row_of_every_part_is_used_held_out_or_in_the_side_file(
    tmp_path_factory, counts, weights, wanted, repeated, seed
):
    from tunesmith import data

    folder = tmp_path_factory.mktemp("mix")
    parts = {}
    for number, count in enumerate(counts):
        made = rows(str(number), count)
        made += made[:repeated]  # equal rows, which `clean.exact` drops
        parts[str(number)] = path = folder / f"{number}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in made), encoding="utf-8")
    asked = dict(zip(parts, weights, strict=False))
    settings_ = {"split": {"near_duplicates": False}, "clean": {"exact": "drop"}}
    if wanted is not None:
        settings_ |= {"train_rows": wanted}
    try:
        sealed = [
            data.mix_files(
                {name: [path] for name, path in parts.items()},
                folder / f"mix{n}",
                weights=asked,
                seed=seed,
                **settings_,
            )
            for n in range(2)
        ]
        refused = ""
    except DataError as error:
        refused = error.what
    if refused:
        assert "max_repeats" in refused or "no training rows" in refused
        return
    result, again = sealed
    assert {k: v for k, v in result.artifact.files.items() if k != "README.md"} == {
        k: v for k, v in again.artifact.files.items() if k != "README.md"
    }
    used = {name: Counter() for name in parts}
    for split in ("train", "validation", "test"):
        for row in rows_in(result.artifact.path(f"{split}.jsonl")):
            used[row["meta"]["source"]][split, row["messages"][0]["content"]] += 1
    gone = Counter()
    for line in rows_in(result.artifact.path("dropped.jsonl")):
        gone[line["where"].rpartition("/")[2].partition(".")[0], line["rule"]] += 1
    total = sum(result.report["mix"][name]["in_mix"] for name in parts)
    if wanted is not None:
        assert total == wanted
    for name, count in zip(parts, counts, strict=True):
        share = result.report["mix"][name]
        train = [times for (split, _), times in used[name].items() if split == "train"]
        held = [times for (split, _), times in used[name].items() if split != "train"]
        assert set(held) <= {1}
        assert sum(train) == share["in_mix"]
        ideal = total * asked[name] / sum(asked.values())
        assert abs(sum(train) - ideal) < (2 if wanted is None else 1)
        assert share["rows"] == len(train) + gone[name, "mix"]
        least = share["in_mix"] // share["rows"]
        assert set(train) <= {least, least + 1}
        # In = used + held out + in the side file.
        n_gone = sum(n for (part, _), n in gone.items() if part == name)
        assert len(train) + len(held) + n_gone == count + repeated
