"""LoRA by Unsloth, as its own guides start: load, then train. @NAMES@ are filled in by run.py."""

from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="@MODEL@", max_seq_length=1024, load_in_4bit=False
)
model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32)

from datasets import load_dataset  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

table = load_dataset("json", data_files="@DATA@/train.jsonl", split="train")
table = table.map(
    lambda row: {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)},
    remove_columns=["messages"],
)
options = SFTConfig(
    output_dir="@OUT@",
    per_device_train_batch_size=int("@BATCH@"),
    max_steps=int("@STEPS@"),
    learning_rate=1e-3,
    lr_scheduler_type="constant",
    save_strategy="no",
    report_to="none",
)
SFTTrainer(model=model, processing_class=tokenizer, train_dataset=table, args=options).train()
