"""One step of TRL's DPOTrainer on the same pairs: the same loss and the same gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tunesmith.config import DpoObjective
from tunesmith.train import fast
from tunesmith.train.dpo import Dpo
from tunesmith.train.fast.preference import row_logps
from tunesmith.train.packing import pack, refer

sys.path.insert(0, str(Path(__file__).parent))
import families

pytestmark = [
    pytest.mark.slow,
    # PEFT asks transformers for a property under its old name.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]

PAIRS = 4


def word(token: int) -> str:
    """All of one length: no special word is the beginning of another."""
    return f"w{token:03d}"


@pytest.fixture(scope="module")
def tokenizer():
    """Words that are one token each, and a template that adds nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word(i): i for i in range(120)}, unk_token=word(3)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ("pad_token", "bos_token", "eos_token", "unk_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=words, **dict(zip(names, map(word, range(4)), strict=True))
    )


def pairs():
    random = np.random.default_rng(3)
    for _ in range(PAIRS):
        prompt = random.integers(4, 119, size=int(random.integers(3, 30))).tolist()
        # TRL takes what both answers begin with for the end of the prompt: they begin differently.
        answers = [[first, *random.integers(4, 119, size=9)] for first in (50, 60)]
        yield prompt, [[*map(int, answer), 2] for answer in answers]


def spoken(ids) -> str:
    return " ".join(map(word, ids))


def trl_step(model, tokenizer, folder):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    data = Dataset.from_list(
        [
            {"prompt": spoken(prompt) + " ", "chosen": spoken(one), "rejected": spoken(two)}
            for prompt, (one, two) in pairs()
        ]
    )
    config = DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=PAIRS,
        beta=0.3,
        max_length=None,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = DPOTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    # TRL copies an adapter that it is given as the reference; here the reference is the base model.
    trainer.model.delete_adapter("ref")
    (inputs,) = list(trainer.get_train_dataloader())
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return float(loss.detach()), families.take_grads(model)


def our_step(model):
    rows, groups = [], []
    for prompt, answers in pairs():
        groups.append((len(rows), len(rows) + 1))
        rows += [
            (prompt + answer, [False] * len(prompt) + [True] * len(answer)) for answer in answers
        ]
    (batch,) = pack(rows, 512, groups=groups)
    references = np.zeros(len(rows))
    with torch.no_grad(), model.disable_adapter():
        references[batch.members] = row_logps(model, batch).numpy()
    fast.apply(model)
    objective = Dpo(DpoObjective(kind="dpo", beta=0.3))
    measured = objective(model, refer(batch, references), PAIRS)
    return measured.loss / PAIRS, families.take_grads(model)


@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_a_step_of_trl_has_our_preference_loss_and_gradients(name, tokenizer, tmp_path):
    # TRL puts a forward pass of its own on the model, so each has its own.
    one, two = (families.adapted(families.random_model(name, 11)) for _ in range(2))
    loss, grads = trl_step(one, tokenizer, tmp_path)
    ours, our_grads = our_step(two)
    assert ours == pytest.approx(loss, rel=1e-5)
    families.assert_same_grads(grads, our_grads)
