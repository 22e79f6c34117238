"""The Modelfile: Ollama reads back exactly what was meant, whatever a user's text holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.export.gotemplate import derive, evaluate
from tunesmith.export.modelfile import modelfile, parse, quoted
from tunesmith.models.chat import ChatRenderer

FRAGMENTS = ['"', '"""', "\n", "\r\n", "\t", " ", "#", "\u00a0", "\x00", "é", "FROM ./evil.gguf"]
FRAGMENTS += ["SYSTEM hello", "PARAMETER stop x", "LICENSE y", "{{ .System }}", "<|im_end|>", "a"]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))


@given(TEXTS)
def test_a_quoted_text_is_one_value_and_comes_back_unchanged(text):
    value = quoted(text)
    if value is not None:
        assert parse(f"FROM m\nSYSTEM {value}\nPARAMETER temperature 0\n") == [
            ("model", "m"),
            ("system", text),
            ("temperature", "0"),
        ]


@given(st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters='"')))
def test_text_without_quotes_and_odd_characters_can_always_be_quoted(text):
    assert quoted(text) is not None


@given(TEXTS)
def test_no_system_text_adds_or_changes_a_command(bench, text):
    commands = parse(modelfile(bench.renderer, "model-q8_0.gguf", text))
    assert commands[:4] == parse(modelfile(bench.renderer, "model-q8_0.gguf", None))
    assert commands[4:] in ([], [("system", text)])


def test_a_system_text_that_a_modelfile_cannot_hold_is_left_out_with_the_reason(bench):
    text = modelfile(bench.renderer, "m.gguf", 'ends its line with """\nSYSTEM evil')
    assert "There is no SYSTEM" in text
    assert "evil" not in text


def test_the_modelfile_names_the_gguf_the_stop_token_and_greedy_decoding(bench):
    commands = parse(modelfile(bench.renderer, "model-q8_0.gguf", "Be brief."))
    assert commands[0] == ("model", "./model-q8_0.gguf")
    assert ("temperature", "0") in commands
    assert ("stop", "<|im_end|>") in commands
    assert commands[-1] == ("system", "Be brief.")


@pytest.mark.parametrize(
    "broken",
    ["SYSTEM a\n", "FROM x\nHELLO y\n", 'FROM x\nSYSTEM """never ends\n', "FROM x\nSYSTEM", "FR0M"],
)
def test_files_that_ollama_refuses_are_refused(broken):
    with pytest.raises(ValueError, match=r"command|FROM|ends inside"):
        parse(broken)


def conversations():
    contents = st.one_of(st.text(max_size=20), st.sampled_from(FRAGMENTS))
    users = st.lists(st.tuples(contents, contents), max_size=3)

    def turns(system, pairs, last):
        messages = [] if system is None else [{"role": "system", "content": system}]
        for ask, answer in pairs:
            messages += [
                {"role": "user", "content": ask},
                {"role": "assistant", "content": answer},
            ]
        return [*messages, {"role": "user", "content": last}]

    return st.builds(turns, st.none() | contents, users, contents)


@given(conversations())
def test_the_go_template_writes_what_our_renderer_writes(bench, messages):
    template, _ = derive(bench.renderer)
    assert template is not None
    text = bench.renderer.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert evaluate(template, messages) == text


def with_template(bench, template):
    import copy

    tokenizer = copy.copy(bench.renderer.tokenizer)
    tokenizer.chat_template = template
    return ChatRenderer(tokenizer)


LOOP = "{% for m in messages %}"
TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def test_a_template_of_the_same_shape_without_a_default_system_is_derived(bench):
    template, why = derive(with_template(bench, LOOP + TURN + "{% endfor %}" + OPEN))
    assert why == ""
    assert "if eq $i 0" not in template


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (TURN.replace("m['content']", "m['content'] | trim"), "renders some conversations"),
        (
            f"{{% if m.role == 'system' %}}<|im_start|>{{{{ m.content }}}}{{% else %}}{TURN}{{% endif %}}",
            "not of one shape",
        ),
        (TURN.replace("<|im_end|>", "<|im_end|>{{"), "braces"),
        ("{% if loop.index0 == 3 %}{{ '!' }}{% endif %}" + TURN, "renders some conversations"),
    ],
)
def test_a_template_that_go_would_render_otherwise_is_left_out_with_the_reason(bench, body, reason):
    renderer = with_template(bench, LOOP + body + "{% endfor %}" + OPEN)
    template, why = derive(renderer)
    assert template is None
    assert reason in why
    text = modelfile(renderer, "m.gguf", None)
    assert "There is no TEMPLATE" in text
    assert all(name != "template" for name, _ in parse(text))


def test_an_action_that_we_do_not_write_is_not_guessed():
    with pytest.raises(ValueError, match=r"\.System"):
        evaluate(
            "{{ range $i, $m := .Messages }}{{ .System }}{{ end }}",
            [{"role": "user", "content": ""}],
        )
