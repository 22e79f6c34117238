"""Who runs against whom, with which settings."""

from __future__ import annotations

from typing import Any

from harness import Contestant, Journal

BF16 = {"weights": "bfloat16", "bf16": False, "gradient_checkpointing": False}
FP32 = {"weights": "float32", "bf16": False, "gradient_checkpointing": False}
AUTOCAST = {"weights": "float32", "bf16": True, "gradient_checkpointing": False}
PACKED = {"packing": True, "packing_strategy": "bfd", "per_device_train_batch_size": 1}


def _batch(rows: int) -> dict[str, int]:
    return {"per_device_train_batch_size": rows}


SEARCH: dict[str, dict[str, Any]] = {
    "defaults-8": _batch(8),
    "bf16-4": BF16 | _batch(4),
    "bf16-8": BF16 | _batch(8),
    "bf16-16": BF16 | _batch(16),
    "bf16-8-multiple-64": BF16 | _batch(8) | {"pad_to_multiple_of": 64},
    "bf16-4-multiple-64": BF16 | _batch(4) | {"pad_to_multiple_of": 64},
    "bf16-8-grouped": BF16 | _batch(8) | {"train_sampling_strategy": "group_by_length"},
    "bf16-8-eager": BF16 | _batch(8) | {"attention": "eager"},
    "bf16-8-workers": BF16 | _batch(8) | {"dataloader_num_workers": 1},
    "bf16-8-checkpointing": BF16 | _batch(8) | {"gradient_checkpointing": True},
    "autocast-8": AUTOCAST | _batch(8),
    "fp32-4": FP32 | _batch(4),
    "fp32-8": FP32 | _batch(8),
    "fp32-8-multiple-64": FP32 | _batch(8) | {"pad_to_multiple_of": 64},
    "fp32-8-grouped": FP32 | _batch(8) | {"train_sampling_strategy": "group_by_length"},
    "bf16-8-padding-free": BF16 | _batch(8) | {"padding_free": True, "max_length": None},
    "bf16-packed-1024": BF16 | PACKED | {"max_length": 1024},
    "bf16-packed-512": BF16 | PACKED | {"max_length": 512},
    "bf16-packed-1024-multiple-1024": BF16
    | PACKED
    | {"max_length": 1024, "pad_to_multiple_of": 1024},
    "fp32-packed-1024": FP32 | PACKED | {"max_length": 1024},
    "fp32-packed-1024-multiple-1024": FP32
    | PACKED
    | {"max_length": 1024, "pad_to_multiple_of": 1024},
    "fp32-wrapped-1024": FP32 | PACKED | {"packing_strategy": "wrapped", "max_length": 1024},
    "bf16-wrapped-1024": BF16 | PACKED | {"packing_strategy": "wrapped", "max_length": 1024},
}
"""SFTTrainer's settings that are tried. Its loss is computed in chunks, without whole logits, in all of them.

`weights` is the base's format, `bf16` TRL's autocast; `bfd` packing keeps rows apart by their positions,
`wrapped` packing lets rows see their neighbours and cuts rows (another computation: shown, never the best).
"""
LIKELY = [
    "fp32-8",
    "fp32-8-multiple-64",
    "fp32-8-grouped",
    "bf16-4",
    "bf16-8-multiple-64",
    "fp32-packed-1024",
    "fp32-packed-1024-multiple-1024",
    "bf16-packed-1024",
]
"""What the plan tries when time is short; `run.py search` tries all."""
FALLBACK = {"unpacked": "bf16-8-multiple-64", "packed": "bf16-packed-1024"}
EIGHT_ROWS = {"batch_tokens": 640, "micro_batch_tokens": 640}
SMALL_MICRO = {"batch_tokens": 640, "micro_batch_tokens": 320}


def best(journal: Journal, kind: str) -> tuple[str, dict[str, Any]]:
    """The fastest settings of the search, of those that keep rows apart; a fixed one without a search."""
    speeds: dict[str, list[float]] = {}
    quiet = [
        r
        for r in journal.records()
        if r["scenario"] == "search" and "error" not in r and r["contestant"] in SEARCH
    ]
    chosen = [r for r in quiet if not r["loaded"]] or quiet
    for record in chosen:
        name = record["contestant"]
        is_packed = "packing" in SEARCH[name]
        if "wrapped" in name or is_packed != (kind == "packed"):
            continue
        speed = (
            record["tokens_seen"] / record["cpu_seconds"]
            if record["loaded"]
            else record["tokens_per_second"]
        )
        speeds.setdefault(name, []).append(speed)
    if not speeds:
        return FALLBACK[kind], SEARCH[FALLBACK[kind]]
    name = max(speeds, key=lambda one: sum(speeds[one]) / len(speeds[one]))
    return name, SEARCH[name]


def shortlist(journal: Journal, count: int) -> list[str]:
    """The settings of the first search that are worth a second one: the best unpacked and packed."""
    found: dict[str, float] = {}
    for record in journal.records():
        if record["scenario"] == "search" and "error" not in record and record["loaded"]:
            found[record["contestant"]] = record["tokens_seen"] / record["cpu_seconds"]
    order = sorted((n for n in found if "wrapped" not in n), key=found.get, reverse=True)
    unpacked = [n for n in order if "packing" not in SEARCH[n]]
    packed = [n for n in order if "packing" in SEARCH[n]]
    return unpacked[:count] + packed[: max(1, count - 1)]


def search(names: list[str]) -> list[Contestant]:
    warm = {"warm_steps": 1}
    return [Contestant(name, "trl-sft", SEARCH[name] | warm) for name in names]


def lora(journal: Journal) -> list[Contestant]:
    unpacked, packed = best(journal, "unpacked"), best(journal, "packed")
    return [
        Contestant("trl-defaults", "trl-sft", _batch(8), note="8 rows a step"),
        Contestant("trl-best", "trl-sft", unpacked[1], note=f"search: {unpacked[0]}"),
        Contestant("trl-best-packed", "trl-sft", packed[1], note=f"search: {packed[0]}"),
        Contestant("tunesmith", "tunesmith", EIGHT_ROWS, note="a budget that holds about 8 rows"),
        Contestant(
            "tunesmith-320",
            "tunesmith",
            SMALL_MICRO,
            note="the same steps in two micro batches each: less memory",
        ),
        Contestant(
            "tunesmith-1024",
            "tunesmith",
            {"batch_tokens": 1024, "micro_batch_tokens": 1024},
            note="a budget that holds about 13 rows, so fewer steps for the same rows",
        ),
    ]


def long(journal: Journal) -> list[Contestant]:
    """Steps of 2,048 positions for tunesmith; TRL's best packed settings, as they are and at 2,048."""
    name, settings = best(journal, "packed")
    longer = {**settings, "max_length": 2048}
    return [
        Contestant("trl-best-packed", "trl-sft", settings, note=f"search: {name}"),
        Contestant("trl-packed-2048", "trl-sft", longer, note=f"{name}, but 2,048 tokens a step"),
        Contestant(
            "tunesmith-2048",
            "tunesmith",
            {"batch_tokens": 2048, "micro_batch_tokens": 2048},
            note="a budget that holds about 28 rows",
        ),
    ]


def prefix(journal: Journal) -> list[Contestant]:
    """32 rows a step for all: TRL in micro batches of 4 rows, tunesmith in one, or two of half the rows."""
    name, settings = best(journal, "unpacked")
    small = {**settings, **_batch(4), "gradient_accumulation_steps": 8, "warm_steps": 1}
    packed_name, packed = best(journal, "packed")
    long = {**packed, "max_length": 2048, "gradient_accumulation_steps": 8, "warm_steps": 1}
    one = {"batch_tokens": 3712, "micro_batch_tokens": 3712, "warm_steps": 1}
    two = {"batch_tokens": 4352, "micro_batch_tokens": 2176, "warm_steps": 1}
    return [
        Contestant("trl-best", "trl-sft", small, note=f"search: {name}; 8 x 4 rows a step"),
        Contestant(
            "trl-best-packed",
            "trl-sft",
            long,
            note=f"search: {packed_name}, 2,048 tokens; 8 x about 4 rows a step",
        ),
        Contestant("tunesmith", "tunesmith", one, note="about 32 rows a step, one micro batch"),
        Contestant(
            "tunesmith-2176", "tunesmith", two, note="about 32 rows a step, two micro batches"
        ),
    ]


def dpo(journal: Journal) -> list[Contestant]:
    name, settings = best(journal, "unpacked")
    kept = {k: v for k, v in settings.items() if k in ("weights", "bf16", "pad_to_multiple_of")}
    kept |= {"gradient_checkpointing": False, "warm_steps": 1, **_batch(4)}
    ours = {
        "objective": {"kind": "dpo", "beta": 0.1},
        "batch_tokens": 1536,
        "micro_batch_tokens": 1536,
        "warm_steps": 1,
    }
    return [
        Contestant(
            "trl-defaults",
            "trl-dpo",
            _batch(4) | {"warm_steps": 1},
            note="4 pairs a step",
            most_runs=1,
        ),
        Contestant(
            "trl-best",
            "trl-dpo",
            kept | {"precompute_ref_log_probs": True},
            note=f"formats of {name}, reference precomputed, 4 pairs a step",
        ),
        Contestant("tunesmith", "tunesmith", ours, note="about 4 pairs a step"),
        Contestant(
            "tunesmith-schema",
            "tunesmith",
            ours,
            rows="schema",
            note="the schema in one order for all rows: computed once for each micro batch",
        ),
    ]


def qlora(journal: Journal) -> list[Contestant]:
    name, settings = best(journal, "unpacked")
    kept = {k: v for k, v in settings.items() if k != "attention"} | {"warm_steps": 1}
    # The micro batch is its own choice, as by default.
    ours = {"batch_tokens": 640, "warm_steps": 1}
    return [
        Contestant("peft-bitsandbytes", "trl-qlora", _batch(8) | {"warm_steps": 1}, most_runs=1),
        Contestant("peft-bitsandbytes-best", "trl-qlora", kept, note=f"settings of {name}"),
        Contestant("tunesmith-qlora", "tunesmith", ours | {"method": {"kind": "qlora"}}),
        Contestant("tunesmith-lora-bf16", "tunesmith", ours | {"precision": "bf16"}),
    ]


FULL_RATES = (5e-5, 1e-4)
LORA_RATES = (1e-3, 2e-3)
TARGET = {"target_loss": 0.40, "every_steps": 2, "most_steps": 40}


def _lora_rate(rate: float) -> dict[str, Any]:
    return {"optimizer": {"learning_rate": rate, "schedule": "constant", "warmup_ratio": 0}}


def full_search() -> list[Contestant]:
    """Learning rates for both sides: what counts is steps to the loss, which load does not change."""
    theirs = [
        Contestant(f"full-{rate:g}", "full-reach", TARGET | {"learning_rate": rate})
        for rate in FULL_RATES
    ]
    ours = [
        Contestant(f"lora-{rate:g}", "tunesmith-reach", TARGET | EIGHT_ROWS | _lora_rate(rate))
        for rate in LORA_RATES
    ]
    return theirs + ours


def _fastest_rate(journal: Journal, side: str, rates: tuple[float, ...], usual: float) -> float:
    """The rate that reached the loss in the fewest steps, of the search; the usual one without a search."""
    steps = {
        r["contestant"]: r["steps"]
        for r in journal.records()
        if r["scenario"] == "full-search" and r.get("reached")
    }
    found = [rate for rate in rates if f"{side}-{rate:g}" in steps]
    return min(found, key=lambda rate: steps[f"{side}-{rate:g}"], default=usual)


def full(journal: Journal) -> list[Contestant]:
    rate = _fastest_rate(journal, "full", FULL_RATES, 5e-5)
    ours = TARGET | _lora_rate(_fastest_rate(journal, "lora", LORA_RATES, 1e-3))
    return [
        Contestant("hf-full", "full-reach", TARGET | {"learning_rate": rate}),
        Contestant("tunesmith", "tunesmith-reach", ours | EIGHT_ROWS),
        Contestant("tunesmith-320", "tunesmith-reach", ours | SMALL_MICRO),
    ]


def share(journal: Journal) -> list[Contestant]:
    del journal
    both = {
        f"tunesmith-{size}": {"batch_tokens": size, "micro_batch_tokens": size, "steps": 6}
        for size in (1024, 2048)
    }
    return [Contestant(name, "tunesmith-share", one) for name, one in both.items()]


BASE = {"rows": 4, "length": 128, "rank": 16, "layers": 30, "width": 576, "steps": 4}
AXES: dict[str, list[dict[str, int]]] = {
    "rows": [{"rows": n} for n in (1, 4, 16, 32)],
    "length": [{"rows": 1, "length": n} for n in (128, 256, 512, 1024, 2048, 4096)],
    "rank": [{"rank": n} for n in (4, 64, 256)],
    "layers": [{"layers": n} for n in (4, 8, 16, 32)],
    "width": [
        {"layers": 24, "width": 576},
        {"layers": 24, "width": 1152},
        {"layers": 24, "width": 1728, "steps": 3},
        {"layers": 24, "width": 2304, "steps": 2},
    ],
}
"""One axis at a time, around 4 rows of 128 tokens of a 135M shape; the widest model has 1.5B parameters."""


def growth(journal: Journal) -> list[Contestant]:
    del journal
    made = {}
    for axis, points in AXES.items():
        for point in points:
            settings = BASE | point
            name = f"{axis}-{settings[axis]}"
            made[name] = Contestant(name, "tunesmith-growth", settings, note=axis)
    return list(made.values())


SCENARIOS = {
    "lora": lora,
    "long": long,
    "prefix": prefix,
    "qlora": qlora,
    "dpo": dpo,
    "full": full,
    "share": share,
    "growth": growth,
}
SIZES = {
    "lora": 56,
    "long": 168,
    "prefix": 64,
    "qlora": 32,
    "dpo": 12,
    "full": 320,
    "share": 160,
    "growth": 1,
}
SIZES |= {"search": 24, "full-search": 320, "peers": 48}
QUICK = {
    "lora": 16,
    "long": 16,
    "prefix": 16,
    "qlora": 16,
    "dpo": 8,
    "full": 32,
    "share": 32,
    "growth": 1,
}
QUICK |= {"search": 16, "full-search": 32, "peers": 16}
"""Rows that a run sees once (`full`: rows to draw from)."""
REPETITIONS = {
    "lora": 3,
    "long": 2,
    "prefix": 2,
    "qlora": 2,
    "dpo": 2,
    "full": 1,
    "share": 1,
    "growth": 1,
}
