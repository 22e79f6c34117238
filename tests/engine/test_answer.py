from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tunesmith.engine.answer import HALF_CHARACTER, Answer

STOP = 256


def decode(ids):
    return bytes(i for i in ids if i != STOP).decode("utf-8", "replace")


def answer(stop=(), max_tokens=1_000):
    return Answer(decode, stop_ids={STOP}, stop=stop, max_tokens=max_tokens)


def feed(grown, data):
    """Feed tokens until the answer is complete; the texts that were shown."""
    shown = []
    for token in data:
        if grown.finish_reason is not None:
            break
        grown.add(token)
        shown.append(grown.chunk().text)
    return shown


def test_a_stop_token_ends_the_answer_and_is_no_text():
    grown = answer()
    feed(grown, [*b"ok", STOP, *b"never"])
    result = grown.generation(prompt_tokens=3)
    assert (result.text, result.finish_reason, result.prompt_tokens) == ("ok", "stop", 3)
    assert result.token_ids == (*b"ok", STOP)


def test_the_longest_answer_is_max_tokens_long():
    grown = answer(max_tokens=2)
    feed(grown, b"abc")
    assert grown.generation(1).text == "ab"
    assert grown.generation(1).finish_reason == "length"


def test_a_stop_string_is_cut_off_even_when_it_comes_in_pieces():
    grown = answer(stop=("\n\n", "END"))
    shown = feed(grown, b"one EN\nE two END three")
    assert "".join(shown) == grown.text == "one EN\nE two "
    assert grown.finish_reason == "stop"


def test_the_first_of_two_stop_strings_in_one_token_wins():
    grown = Answer(lambda ids: "abXcY" * len(ids), stop_ids=(), stop=("Y", "X"), max_tokens=9)
    grown.add(0)
    assert grown.text == "ab"


def test_what_may_open_a_stop_string_is_held_back_and_shown_later():
    grown = answer(stop=("STOP",))
    assert feed(grown, b"aST!") == ["a", "", "", "ST!"]


def test_a_character_in_several_tokens_is_shown_whole():
    grown = answer()
    assert [text for text in feed(grown, "né🦙".encode()) if text] == ["n", "é", "🦙"]


def test_half_a_character_at_the_end_is_dropped():
    grown = answer(max_tokens=4)
    feed(grown, "a🦙".encode())
    assert grown.text == "a"


def test_a_token_after_the_end_is_refused():
    grown = answer(max_tokens=1)
    grown.add(97)
    with pytest.raises(ValueError, match="after the end"):
        grown.add(98)


def test_an_unfinished_answer_is_no_generation():
    grown = answer()
    grown.add(97)
    with pytest.raises(ValueError, match="not complete"):
        grown.generation(1)


@given(
    data=st.lists(
        st.one_of(st.integers(0, 255), st.just(STOP), st.sampled_from(b"abc")), max_size=40
    ),
    stop=st.lists(st.text("abc", min_size=1, max_size=3), max_size=2),
    max_tokens=st.integers(1, 45),
)
@example(data=[*"é🦙".encode()], stop=["é"], max_tokens=45)
def test_streamed_pieces_are_the_text_whatever_the_tokens(data, stop, max_tokens):
    grown = answer(stop=tuple(stop), max_tokens=max_tokens)
    shown = feed(grown, [*data, STOP])
    assert "".join(shown) == grown.text
    assert not grown.text.endswith(HALF_CHARACTER) or grown.finish_reason == "stop"
    assert not any(text in grown.text for text in stop)
    assert len(grown.token_ids) <= max_tokens
