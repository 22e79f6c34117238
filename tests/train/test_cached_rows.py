"""Rows out of the token cache equal rows that are made, and every part of their key counts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_base import values

from tunesmith.config import recipe_from
from tunesmith.errors import DataError, ModelError
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.token_cache import TOKENS, TokenCache
from tunesmith.train.plan import plan_training
from tunesmith.train.rows import encode_rows, key_parts
from tunesmith.train.token_rows import EncodedRows, TokenRow, from_arrays, to_arrays

Q = {"role": "user", "content": "a question é"}
A = {"role": "assistant", "content": "an answer"}
B = {"role": "assistant", "content": "another answer"}


@pytest.fixture(scope="module")
def renderer(tokenizer) -> ChatRenderer:
    return ChatRenderer(tokenizer)


@pytest.fixture
def cache(tmp_path):
    return TokenCache(10**8, tmp_path / "cache")


def write(path, *rows):
    path.write_text("".join(json.dumps({**row, "meta": {}}) + "\n" for row in rows))
    return path


CHATS = [{"messages": [Q, A]}, {"messages": [Q, A, {**Q, "content": "more " * 30}, B]}]
PAIRS = [{"prompt": [Q], "chosen": [A], "rejected": [B]}] * 2


@pytest.mark.parametrize("rows", [CHATS, PAIRS], ids=["chat", "pairs"])
@pytest.mark.parametrize("policy", ["drop", "cut_prompt"])
def test_cached_rows_equal_made_ones(tmp_path, renderer, cache, rows, policy):
    path = write(tmp_path / "train.jsonl", *rows)
    limits = {"max_row_tokens": 90, "on_long_row": policy}
    plain = encode_rows(path, renderer, **limits)
    made = encode_rows(path, renderer, **limits, cache=cache)
    found = encode_rows(path, renderer, **limits, cache=cache)
    assert plain == made == found
    assert (plain.origin, made.origin, found.origin) == ("", "made, none cached yet", "from cache")
    assert len({type(on) for row in found.rows for on in row.trained}) == 1


def test_a_damaged_entry_is_made_again_and_said(tmp_path, renderer, cache):
    path = write(tmp_path / "train.jsonl", *CHATS)
    limits = {"max_row_tokens": 512, "on_long_row": "refuse"}
    made = encode_rows(path, renderer, **limits, cache=cache)
    (entry,) = cache.entries()
    data = bytearray((entry.place / TOKENS).read_bytes())
    data[-1] ^= 1
    (entry.place / TOKENS).write_bytes(data)
    again = encode_rows(path, renderer, **limits, cache=cache)
    assert again == made
    assert "damaged" in again.origin
    assert encode_rows(path, renderer, **limits, cache=cache).origin == "from cache"


class Other:
    """A renderer with one thing changed."""

    def __init__(self, renderer, **changes):
        self._renderer, self._changes = renderer, changes

    def __getattr__(self, name):
        return self._changes.get(name, getattr(self._renderer, name))


def test_each_part_of_the_key_changes_with_what_it_stands_for(tmp_path, renderer, monkeypatch):
    path = write(tmp_path / "a.jsonl", *CHATS)
    before = key_parts(path, renderer, max_row_tokens=8, on_long_row="drop")

    def changed(**found):
        return {name for name in found if found[name] != before[name]}

    limits = {"max_row_tokens": 8, "on_long_row": "drop"}
    assert changed(**key_parts(path, renderer, **limits)) == set()
    other = write(tmp_path / "b.jsonl", *CHATS[:1])
    assert changed(**key_parts(other, renderer, **limits)) == {"rows"}
    longer = key_parts(path, renderer, max_row_tokens=9, on_long_row="drop")
    assert changed(**longer) == {"max_row_tokens"}
    refusing = key_parts(path, renderer, max_row_tokens=8, on_long_row="refuse")
    assert changed(**refusing) == {"on_long_row"}
    template = Other(renderer, template=renderer.template + " ")
    assert changed(**key_parts(path, template, **limits)) == {"template"}
    prompts = Other(renderer, fingerprint="other")
    assert changed(**key_parts(path, prompts, **limits)) == {"rendered probes"}
    spelled = Other(renderer, control_tokens=(*renderer.control_tokens, "<tool>"))
    assert changed(**key_parts(path, spelled, **limits)) == {"control tokens"}
    monkeypatch.setattr("tunesmith.train.rows.MASK_POLICY", "everything")
    assert changed(**key_parts(path, renderer, **limits)) == {"mask policy"}
    monkeypatch.undo()
    monkeypatch.setattr("tunesmith.train.rows.__file__", str(path))
    assert changed(**key_parts(path, renderer, **limits)) == {"code"}


def test_another_vocabulary_is_another_tokenizer(tmp_path, renderer):
    path = write(tmp_path / "a.jsonl", *CHATS)
    limits = {"max_row_tokens": 8, "on_long_row": "drop"}
    before = key_parts(path, renderer, **limits)
    spelled = json.loads(renderer.tokenizer.backend_tokenizer.to_str())
    spelled["added_tokens"] = spelled["added_tokens"][:-1]

    class Backend:
        def to_str(self):
            return json.dumps(spelled)

    class Tokenizer:
        backend_tokenizer = Backend()

    other = key_parts(path, Other(renderer, tokenizer=Tokenizer()), **limits)
    assert [name for name in before if before[name] != other[name]] == ["tokenizer"]


def test_a_plan_uses_the_cache_of_the_user_unless_it_has_no_space(
    rows, base, tmp_path, monkeypatch
):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path))
    plans = [
        plan_training(recipe_from(values(base, **changes)), rows)
        for changes in ({}, {}, {"token_cache_gib": 0})
    ]
    assert [plan.rows.origin for plan in plans] == ["made, none cached yet", "from cache", ""]
    assert [plan.validation.origin for plan in plans][1:] == ["from cache", ""]
    assert plans[0].rows == plans[1].rows == plans[2].rows


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, A], "tools": [{"name": "f"}]},
        {"messages": [Q, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}]},
    ],
)
def test_rows_with_tools_are_refused_and_not_trained_without_them(tmp_path, renderer, row):
    path = write(tmp_path / "train.jsonl", *CHATS, row)
    with pytest.raises(DataError, match=r"train.jsonl:3: the row has tools"):
        encode_rows(path, renderer, max_row_tokens=512, on_long_row="refuse")


def test_a_turn_without_text_is_refused_by_the_renderer(renderer):
    with pytest.raises(ModelError, match="turn 2 of a conversation"):
        renderer.render([Q, {"role": "assistant", "content": None}])


def test_a_turn_of_weight_0_is_read_and_not_learned(tmp_path, renderer):
    given = {"messages": [Q, {**A, "weight": 0}, Q, B]}
    path = write(tmp_path / "a.jsonl", given, {"messages": [Q, A, Q, {**B, "weight": 0}]})
    first, second = encode_rows(path, renderer, max_row_tokens=512, on_long_row="refuse").rows
    decoded = [
        renderer.decode([t for t, on in zip(row.tokens, row.trained, strict=True) if on])
        for row in (first, second)
    ]
    assert decoded == ["another answer", "an answer"]
    assert (first.answers, second.answers) == (("another answer",), ("an answer",))
    assert first.tokens == second.tokens


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@st.composite
def encoded(draw):
    rows = []
    for line in range(draw(st.integers(0, 4))):
        tokens = tuple(draw(st.lists(st.integers(0, 2**31 - 1), max_size=5)))
        trained = tuple(draw(st.booleans()) for _ in tokens)
        rows.append(TokenRow(line + 1, tokens, trained, tuple(draw(st.lists(texts, max_size=3)))))
    dropped, cut = (tuple(draw(st.lists(st.integers(1, 10**6), max_size=3))) for _ in range(2))
    pairs = tuple((n, n + 1) for n in range(0, len(rows) - 1, 2)) if len(rows) % 2 == 0 else None
    return EncodedRows(tuple(rows), dropped, cut, pairs)


@given(found=encoded())
def test_rows_as_arrays_and_back_are_equal(found):
    assert from_arrays(to_arrays(found)) == found
