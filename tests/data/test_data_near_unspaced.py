"""Near-duplicates in scripts without spaces, and of short texts: another name or number is another question."""

from __future__ import annotations

import pytest

from tunesmith.data.near import Said, are_near


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("東京の天気を教えてください", "大阪の天気を教えてください"),
        ("北京的人口是多少，请用一句话告诉我？", "上海的人口是多少，请用一句话告诉我？"),
        ("你好,今天天气怎么样?", "你好,明天天气怎么样?"),
        ("如何打开设备的蓝牙功能呢?", "如何关闭设备的蓝牙功能呢?"),
        ("What is 12 plus 7?", "What is 12 plus 8?"),
        ("How far is Paris from here today?", "How far is Berlin from here today?"),
    ],
)
def test_another_name_or_word_makes_another_question(one, other):
    assert not are_near(Said(one, "はい"), Said(other, "はい"))
    assert are_near(Said(one, "はい"), Said(one, "はい"))


def test_a_character_more_or_less_does_not():
    one, other = "我想取消我的订单,请帮帮我", "我想取消我的订单，请帮我。"
    assert are_near(Said(one, "好的"), Said(other, "好的"))


def test_a_long_text_may_differ_in_a_few_characters():
    text = "".join(chr(0x4E00 + n * 7) for n in range(150))
    assert are_near(Said(text, "好"), Said(text.replace(text[70], "天"), "好"))
