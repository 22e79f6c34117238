"""Questions that mean the same, by the embedded model's token embeddings."""

import numpy as np
import pytest

from tunesmith.config import CleanConfig
from tunesmith.data.clean import clean_files
from tunesmith.data.clean.semantic import same_meaning, vectors
from tunesmith.data.near import Said

TOPICS = [
    "How do I open the window in the kitchen?",
    "Which train goes to the harbour in the morning?",
    "The printer prints only blank pages since yesterday.",
    "Where can children learn to swim in summer?",
    "What does the museum of glass cost on Sundays?",
    "My bicycle makes a strange noise when I brake.",
    "Can a lemon tree stand outside in winter?",
    "Who repairs old radios in this town?",
]
PARAPHRASE = "In summer, where can kids learn how to swim?"


@pytest.mark.slow
def test_a_paraphrase_is_nearer_than_any_other_question():
    made = vectors([*TOPICS, PARAPHRASE], "embedded")

    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    assert int(np.argmax(made[:-1] @ made[-1])) == 3
    assert made[3] @ made[-1] > 0.6


@pytest.mark.slow
def test_a_paraphrase_counts_only_with_an_equal_answer_and_equal_numbers():
    def first_of(question, answer):
        rows = [*(Said(topic, "yes") for topic in TOPICS), Said(question, answer)]
        return int(same_meaning(rows, 0.5, "embedded")[-1])

    assert first_of(PARAPHRASE, "yes") == 3
    assert first_of(PARAPHRASE, "no") == 8
    assert first_of(PARAPHRASE.replace("kids", "2 kids"), "yes") == 8


@pytest.mark.slow
def test_the_side_file_says_which_row_means_the_same(lines, tmp_path):
    rows = [{"prompt": question, "completion": "yes"} for question in [*TOPICS, PARAPHRASE]]
    path = lines("rows.jsonl", rows)

    result = clean_files(
        [path], CleanConfig(semantic="drop", semantic_threshold=0.5), out=tmp_path / "out"
    )

    assert result.dropped == {"semantic": 1}
    assert f"means the same as {path}:4" in (tmp_path / "out" / "dropped.jsonl").read_text()
