"""A row as the model sees it."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from tunesmith import data
from tunesmith.config import recipe_from
from tunesmith.errors import ArtifactError, DataError, MissingError

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def renderer():
    """A byte-level tokenizer: every byte is a token, so no model file is needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from tunesmith.models.chat import ChatRenderer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = TEMPLATE
    return ChatRenderer(fast)


ROW = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "你好?"},
        {"role": "assistant", "content": "yes\nno"},
    ],
    "id": 7,
}


@pytest.fixture
def shown(lines, renderer):
    return data.show(data.find_row(lines("a.jsonl", [ROW])), renderer)


def test_trained_tokens_are_the_answer_and_its_stop_token(shown):
    trained = "".join(token.text for token in shown.tokens if token.trained)
    assert trained == "yes\nno<|im_end|>"
    assert {token.role for token in shown.tokens if token.trained} == {"assistant"}


def test_the_texts_of_the_tokens_add_up_to_the_rendered_row(shown):
    text = "".join(token.text for token in shown.tokens)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n你好?")
    assert "\ufffd" not in text


def test_without_colour_marks_stand_for_it(shown):
    stream = io.StringIO()
    Console(file=stream, width=200).print(shown.on(Console(file=stream)))
    text = stream.getvalue()
    assert "* assistant | yes⏎" in text
    assert "* assistant | no<|im_end|>" in text
    assert "  user      | 你好?" in text
    assert "* = trained" in text
    assert "\x1b[" not in text


def test_with_colour_roles_differ_and_trained_tokens_are_underlined(shown):
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=True, color_system="standard", no_color=False, width=200
    )
    console.print(shown.on(console))
    text = stream.getvalue()
    assert "\x1b[1;4;32my\x1b[0m" in text
    assert "\x1b[34mB\x1b[0m" in text
    assert "trained" in text


def test_no_color_is_obeyed_even_on_a_terminal(shown):
    console = Console(file=io.StringIO(), force_terminal=True, no_color=True)
    assert "* = trained" in str(shown.on(console))


def test_the_structure_for_programs_counts_what_it_lists(shown):
    found = json.loads(json.dumps(shown.as_dict()))
    assert found["counts"]["tokens"] == len(found["tokens"])
    assert found["counts"]["trained"] == 7
    assert sum(found["counts"]["by_role"].values()) == len(found["tokens"])
    assert found["meta"] == {"id": 7}
    assert found["row"].endswith("a.jsonl:1")


@pytest.mark.slow
def test_a_row_of_a_sealed_dataset_is_found_by_split_and_number(seal, renderer):
    result = seal({"max_test_rows": 3})
    row = data.find_row(result.artifact.dir, split="test", number=3)
    last = result.artifact.path("test.jsonl").read_text(encoding="utf-8").splitlines()[2]
    assert row.text == last
    assert data.show(row, renderer).n_trained > 0


def test_a_raw_file_is_read_with_the_fields_of_the_recipe(lines):
    path = lines("a.jsonl", [{"q": "ask", "a": "answer"}])
    section = {"fields": {"prompt": "q", "completion": "a"}, "system": "hint"}
    row = data.find_row(path, recipe_from({"data": section}))
    assert [turn["content"] for turn in row.messages] == ["hint", "ask", "answer"]


@pytest.mark.slow
def test_what_cannot_be_shown_is_a_clear_error(lines, seal, tmp_path):
    path = lines("a.jsonl", [ROW])
    with pytest.raises(MissingError, match="has no row 2"):
        data.find_row(path, number=2)
    with pytest.raises(MissingError, match="no dataset at"):
        data.find_row(tmp_path / "gone")
    with pytest.raises(MissingError, match="not a sealed dataset"):
        data.find_row(tmp_path)
    with pytest.raises(DataError, match=r"b\.jsonl:1: not valid JSON"):
        data.find_row(lines("b.jsonl", ["{"]))
    sealed = seal({}).artifact
    with pytest.raises(MissingError, match="no split 'tset'"):
        data.find_row(sealed.dir, split="tset")
    (sealed.dir / "test.jsonl").write_text("changed", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"test\.jsonl is not the file that was sealed"):
        data.find_row(sealed.dir, split="test")


def test_a_pair_shows_both_answers_and_no_turn_of_its_prompt_is_trained(lines, renderer):
    said = ("one?", "1", "two?")
    roles = ("user", "assistant", "user")
    prompt = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
    answers = {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("chosen", "2"), ("rejected", "five"))
    }
    path = lines("pairs.jsonl", [{"prompt": prompt, **answers}])
    shown = data.show(data.find_row(path), renderer)
    assert shown.rejected is not None
    for one, text in ((shown, "2"), (shown.rejected, "five")):
        learned = "".join(token.text for token in one.tokens if token.trained)
        assert learned == f"{text}<|im_end|>"
    assert shown.where.endswith(":1, chosen")
    assert shown.as_dict()["rejected"]["row"].endswith(":1, rejected")
    assert ", rejected" in shown.plain()
    assert ", rejected" in shown.rich().plain
