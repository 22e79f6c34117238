"""Tiny random models of the families with small tokenizers of their kinds, and what llama.cpp makes of them.

Vocabularies have some hundred tokens, so that a model is made, converted and asked in a fraction of a second.
Norms and biases are not at their neutral values: what is left out must show.
"""

from __future__ import annotations

import copy
import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings
from tunesmith.export.gguf_tokenizer import tokenizer_folder, with_rules
from tunesmith.models.load import quiet_transformers, save_model

TEXT = (
    "How many states border Texas? Name the capital of Kansas, and its rivers.\n"
    "def area(x: int) -> int:\n    return x * 12345 // 678\n\n"
    "It's what they've said: we'll see, I'M sure... 3.14159 and 1,000,000 people!\r\n"
    "Ünïcode: 你好，世界 — naïve café, Привет мир, 🚀 ✅\ttabs\t\tand   spaces\n"
)
PROBES = (
    "Hello world, it's 12345 o'clock!!  Really?",
    "Ünïcode: 你好, tab\there",
    "a\r\n\r\n b  \n  c   12 123 1234",
    "WE'LL I'm don't 3.14 e=mc² ...",
    "    indented\n\tcode = {x: 1}",
    "🚀 ✅ naïve — “quotes”",
    "<think>hm</think> an addedword <|tool|> addedwords",
    "<|user|>\nWho? <|end|>\n<|assistant|>\n  I</s>\nx",
    "<|im_start|>user\nHi<|im_end|>\n<end_of_turn>\n<start_of_turn>model\n",
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROW_TOKENS = 48


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10_000.0, **settings}


LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32)
LINEAR = rope("linear", factor=4.0)
LONG = rope(
    "longrope",
    short_factor=[1 + i / 8 for i in range(8)],
    long_factor=[2 + i for i in range(8)],
    original_max_position_embeddings=256,
)
TURNS = ["sliding_attention", "full_attention"] * 2
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
GEMMA2 = GEMMA | {"num_hidden_layers": 4, "layer_types": TURNS}
GEMMA3 = GEMMA | {"num_hidden_layers": 7}
PHI3 = {"rope_parameters": rope("default"), "sliding_window": None}
SMOL3 = {"num_hidden_layers": 4}


@dataclass(frozen=True)
class Case:
    """`family` names transformers' classes; `tokenizer` is a key of `tokenizer_of`."""

    family: str
    tokenizer: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 5e-4
    """Of log-probabilities. ggml computes GELU by a table of float16 numbers: 1e-2 for Gemma."""

    def has(self, **changes: Any) -> Case:
        return Case(self.family, self.tokenizer, {**self.changes, **changes}, self.tolerance)


LLAMA = Case("Llama", "llama-bpe")
MISTRAL = Case("Mistral", "spm", {"sliding_window": None})
QWEN2 = Case("Qwen2", "qwen2")
QWEN3 = Case("Qwen3", "qwen2", {"head_dim": 24})
SMOLLM3 = Case("SmolLM3", "llama-bpe", SMOL3)
PHI = Case("Phi3", "spm", PHI3)
PHI4 = Case("Phi3", "llama-bpe", PHI3)
G2 = Case("Gemma2", "gemma", GEMMA2, 1e-2)
G3 = Case("Gemma3Text", "gemma", GEMMA3, 1e-2)


def save_case(case: Case, folder: Path) -> Path:
    """The model on the disk, in float32, as transformers saves it today."""
    import transformers

    tokenizer = tokenizer_of(case.tokenizer)
    shape = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.15,
    }
    changes = json.loads(json.dumps(dict(case.changes)))  # transformers changes what it is given
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.family}Config")(**{**shape, **changes})
    model = getattr(transformers, f"{case.family.removesuffix('Text')}ForCausalLM")(config)
    middle = 0.0 if case.family.startswith("Gemma") else 1.0  # Gemma's norms add one
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, middle - 0.5, middle + 0.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.3)
    save_model(model.float(), tokenizer, folder)
    return folder


def adapter_for(model: Any, folder: Path, *, spread: float = 0.2, **settings: Any) -> Any:
    """A random adapter on all linear layers, with a B that shows; saved, and put on the model."""
    from peft import LoraConfig, get_peft_model

    given = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
    torch.manual_seed(1)
    with warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", **{"init_lora_weights": False} | given)
        )
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                torch.nn.init.normal_(weight, std=spread)
        adapted.save_pretrained(folder)
    return adapted.eval()


def row_of(vocabulary: int) -> tuple[int, ...]:
    numbers = torch.Generator().manual_seed(3)
    return tuple(torch.randint(10, vocabulary - 10, (ROW_TOKENS,), generator=numbers).tolist())


def logprobs_of(model: Any, row: tuple[int, ...]) -> np.ndarray:
    """(tokens, vocabulary), by transformers in float32."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([row[:-1]]), use_cache=False).logits[0]
    found: np.ndarray = torch.log_softmax(logits.double(), -1).numpy()
    return found


@dataclass(frozen=True)
class Gap:
    """The largest difference of a log-probability over llama.cpp's 64 most likely tokens at each
    position, and the share of positions with the same best token."""

    largest: float
    agreement: float


def gap(gguf: Path, wanted: np.ndarray, row: tuple[int, ...], lora: Path | None = None) -> Gap:
    settings = LlamaSettings(
        context_tokens=len(row) + 16, slots=1, threads=1, lora_path=lora, exact=True
    )
    with LlamaBackend(gguf, settings) as backend:
        found = backend.next_token_logprobs([row], [1], top=64)[0]
    same = wanted.argmax(axis=1) == found.token_ids[:, 0]
    difference = np.abs(np.take_along_axis(wanted, found.token_ids, 1) - found.logprobs)
    return Gap(float(difference.max()), float(same.mean()))


StructError = struct.error


def convert_as_it_is(folder: Path, target: Path) -> None:
    """llama.cpp's converter alone, without our rules; it is given what it misses of the tokenizer."""
    import logging
    from contextlib import redirect_stderr
    from importlib import import_module
    from io import StringIO

    import gguf

    conversion = import_module("conversion")
    with redirect_stderr(StringIO()), tokenizer_folder(folder) as tokenizer:
        logging.disable(logging.CRITICAL)
        try:
            hparams = conversion.ModelBase.load_hparams(folder, False)
            architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
            kind = conversion.get_model_class(architecture)
            converter = kind(folder, gguf.LlamaFileType.ALL_F32, target, model_name="tiny")
            converter.dir_model = tokenizer
            converter.get_vocab_base_pre = with_rules(converter.get_vocab_base_pre, tokenizer)
            try:
                converter.write()
            finally:
                converter.gguf_writer.close()
        finally:
            logging.disable(logging.NOTSET)


def replace_value(gguf: Path, key: str, value: float) -> None:
    """Write a number over a number of a GGUF file's metadata."""
    data = bytearray(gguf.read_bytes())
    name = struct.pack("<Q", len(key)) + key.encode()
    place = data.index(name) + len(name)
    form = {4: "<I", 5: "<i", 6: "<f"}[struct.unpack_from("<I", data, place)[0]]
    struct.pack_into(form, data, place + 4, value)
    gguf.write_bytes(data)


@cache
def tokenizer_of(kind: str) -> Any:
    """A tokenizer of some hundred tokens: "llama-bpe", "qwen2", "gpt-2", "smollm" (byte-level rules by their
    names in llama.cpp), "spm" or "gemma" (SentencePiece's kind); with "+", two tokens are added."""
    if kind.endswith("+"):
        from tokenizers import AddedToken

        tokenizer = copy.deepcopy(tokenizer_of(kind.removesuffix("+")))
        tokenizer.add_tokens([AddedToken("<think>", normalized=False), "addedword"])
        tokenizer.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
        return tokenizer
    if kind == "phi":
        return _phi3()
    return _sentencepiece(kind) if kind in ("spm", "gemma") else _byte_level(kind)


def _phi3() -> Any:
    """Phi-3's kind: a space in front, and special tokens that swallow the white space behind them."""
    import tempfile

    from tokenizers import AddedToken, normalizers
    from transformers import GemmaTokenizer, PreTrainedTokenizerFast

    pieces = {"bos_piece": "<s>", "eos_piece": "</s>", "unk_piece": "<unk>", "pad_id": -1}
    ids = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "user_defined_symbols": []}
    with tempfile.TemporaryDirectory() as name, quiet_transformers():
        sentencepiece_model(Path(name), add_dummy_prefix=True, **pieces, **ids)
        gemma = GemmaTokenizer.from_pretrained(name)
    words = type(gemma.backend_tokenizer).from_str(_only_pieces(gemma.backend_tokenizer.to_str()))
    words.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    words.pre_tokenizer = None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", unk_token="<unk>", eos_token="<|endoftext|>"
    )
    special = ["<|user|>", "<|assistant|>", "<|end|>", "</s>"]
    tokenizer.add_tokens(
        [AddedToken(t, special=True, rstrip=True, normalized=False) for t in special],
        special_tokens=True,
    )
    return tokenizer


def _only_pieces(text: str) -> str:
    """A `tokenizer.json` without the tokens that a class of transformers added."""
    words = json.loads(text)
    words["added_tokens"] = []
    words["post_processor"] = None
    return json.dumps(words)


def _byte_level(kind: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    def split(digits: str) -> Any:
        rule = pre_tokenizers.Split(Regex(SPLIT % digits), "isolated")
        return pre_tokenizers.Sequence(
            [rule, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    single = pre_tokenizers.Digits(individual_digits=True)
    rules = {
        "llama-bpe": split("{1,3}"),
        "qwen2": split(""),
        "gpt-2": plain,
        "smollm": pre_tokenizers.Sequence([single, plain]),
    }
    words = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    words.pre_tokenizer, words.decoder = rules[kind], decoders.ByteLevel()
    if kind == "qwen2":
        words.normalizer = normalizers.NFC()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    words.train_from_iterator([TEXT, *PROBES], trainer)
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    if kind != "qwen2":
        return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<|im_start|>", **ends)
    model = json.loads(words.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    return Qwen2Tokenizer(
        vocab=model["vocab"], merges=merges, extra_special_tokens=["<|im_start|>"], **ends
    )


def sentencepiece_model(folder: Path, **changes: Any) -> Path:
    """SentencePiece's own file, trained on the text above."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(TEXT + "\n".join(PROBES), encoding="utf-8")
    settings = {
        "input": str(folder / "text.txt"),
        "model_prefix": str(folder / "tokenizer"),
        "vocab_size": 600,
        "hard_vocab_limit": False,
        "model_type": "bpe",
        "byte_fallback": True,
        "character_coverage": 1.0,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "pad_piece": "<pad>",
        "bos_piece": "<bos>",
        "eos_piece": "<eos>",
        "user_defined_symbols": ["<start_of_turn>", "<end_of_turn>"],
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "split_digits": True,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(**{**settings, **changes})
    return folder / "tokenizer.model"


def _sentencepiece(kind: str) -> Any:
    import tempfile

    from transformers import GemmaTokenizer, PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as name, quiet_transformers():
        sentencepiece_model(Path(name))
        gemma = GemmaTokenizer.from_pretrained(name)
    if kind == "gemma":
        return gemma
    words = type(gemma.backend_tokenizer).from_str(gemma.backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
