"""One step of TRL's SFTTrainer on the same rows: the same loss and the same gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tunesmith.train import fast
from tunesmith.train.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
import families

pytestmark = [
    pytest.mark.slow,
    # PEFT asks transformers for a property under its old name.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),
]


@pytest.fixture(scope="module")
def tokenizer():
    """TRL wants one; the rows are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({f"t{place}": place for place in range(120)}, unk_token="t3")
    names = {"pad_token": "t0", "bos_token": "t1", "eos_token": "t2", "unk_token": "t3"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **names)


def trl_step(model, rows, tokenizer, folder):
    """Loss and gradients of `training_step` on all rows as one padded batch.

    TRL divides by the labels of the whole optimizer step (`num_items_in_batch`), as the Trainer
    hands them in; so does our step with that number as its normaliser.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list(
        [
            {"input_ids": ids, "completion_mask": [int(flag) for flag in flags]}
            for ids, flags in rows
        ]
    )
    config = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        completion_only_loss=True,
        max_length=None,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=data, processing_class=tokenizer)
    (inputs,) = list(trainer.get_train_dataloader())
    items = (inputs["labels"][:, 1:] != -100).sum()
    loss = trainer.training_step(trainer.model, inputs, num_items_in_batch=items)
    return float(loss), int(items), families.take_grads(model)


@pytest.mark.parametrize("method", ["adapters", "full"])
@pytest.mark.parametrize("name", list(families.FAMILIES))
def test_a_step_of_trl_has_our_loss_and_gradients(name, method, tokenizer, tmp_path):
    rows = families.random_rows(11)
    models = []
    for _ in range(2):  # TRL puts a forward pass of its own on the model
        model = families.random_model(name, 11)
        full = method == "full"
        models.append(model.train().requires_grad_(True) if full else families.adapted(model))
    loss, items, grads = trl_step(models[0], rows, tokenizer, tmp_path)
    (batch,) = pack(rows, 512)
    assert batch.trained_tokens == items
    report = fast.apply(models[1])
    assert report.packed
    total, _ = fast.train_microbatch(models[1], batch, items)
    assert total / items == pytest.approx(loss, rel=1e-5)
    families.assert_same_grads(grads, families.take_grads(models[1]))
