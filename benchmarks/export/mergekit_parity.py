"""tunesmith's merges against mergekit's own, on the same models: differences, time and memory.

    python -m venv ../mergekit && ../mergekit/bin/pip install torch==2.13.0
    ../mergekit/bin/pip install -c constraints.txt mergekit==0.1.5
    python benchmarks/export/mergekit_parity.py --mergekit ../mergekit/bin/python --work /tmp/merges

Makes a base and three models near it (tiny ones of two families in float32, and SmolLM2-135M in float16),
merges them with both by every method that both have, and compares every weight. Writes
`mergekit_parity.json` and `mergekit_parity.md` beside this file. See `mergekit_child.py` for what is done so
that both see the same coins (DARE), and choose the same of equal differences (TIES).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SEED = 5
WEIGHTS = [0.5, 0.3, 0.4]
DENSITY = [0.5, 0.3, 0.7]
METHODS: dict[str, dict[str, Any]] = {
    "linear": {"weight": WEIGHTS},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": WEIGHTS, "lambda": 0.8},
    "ties": {"weight": WEIGHTS, "density": DENSITY},
    "dare_linear": {"weight": WEIGHTS, "density": DENSITY},
    "dare_ties": {"weight": WEIGHTS, "density": DENSITY},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mergekit", required=True, help="python of mergekit's environment")
    parser.add_argument("--work", type=Path, required=True, help="a folder for models")
    parser.add_argument(
        "--only", nargs="*", help="names of model sets; the figures of the others stay"
    )
    asked = parser.parse_args()
    file = HERE / "mergekit_parity.json"
    before = json.loads(file.read_text(encoding="utf-8")) if asked.only and file.is_file() else []
    results = [found for found in before if found["models"] not in asked.only]
    for name, (make, out_dtype) in SETS.items():
        if asked.only and name not in asked.only:
            continue
        folder = asked.work / name
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
        for method, settings in METHODS.items():
            found = compared(asked.mergekit, folder, method, settings, out_dtype)
            results.append({"models": name, "format": out_dtype, "method": method, **found})
            print(json.dumps(results[-1]), flush=True)
    file.write_text(json.dumps(results, indent=2) + "\n")
    (HERE / "mergekit_parity.md").write_text(table(results))


def make_tiny(family: str, folder: Path) -> None:
    """A random tiny model of a family, and three near it, in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_tokenizer, resolve_base, save_model

    tokenizer = load_tokenizer(resolve_base(ModelConfig()))
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=family == "llama",
    )
    model = AutoModelForCausalLM.from_config(config)
    save_model(model, tokenizer, folder / "base")
    perturbed(model, tokenizer, folder)


def make_smollm2(folder: Path) -> None:
    """SmolLM2-135M-Instruct as it is embedded, and three models near it, in float16."""
    import torch

    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_model, load_tokenizer, resolve_base, save_model

    base = resolve_base(ModelConfig())
    model, tokenizer = load_model(base, torch.float16), load_tokenizer(base)
    save_model(model, tokenizer, folder / "base")
    perturbed(model, tokenizer, folder)


def perturbed(model: Any, tokenizer: Any, folder: Path) -> None:
    """Three copies, each weight moved by a few per cent of its tensor's spread."""
    import torch

    from tunesmith.models.load import save_model

    plain = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for number, name in enumerate("abc"):
        torch.manual_seed(100 + number)
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape) * plain[key].float().std() * 0.05
            weight.data = (plain[key].float() + noise).to(weight.dtype)
        save_model(model, tokenizer, folder / name)


SETS = {
    "tiny-llama": (lambda folder: make_tiny("llama", folder), "float32"),
    "tiny-qwen2": (lambda folder: make_tiny("qwen2", folder), "float32"),
    "smollm2-135m": (make_smollm2, "float16"),
}


def compared(
    python: str, folder: Path, method: str, settings: dict[str, Any], out_dtype: str
) -> dict[str, Any]:
    """Both merges, how far apart they are, and what they took."""
    ours, theirs = folder / f"ours-{method}", folder / f"theirs-{method}"
    for place in (ours, theirs):
        shutil.rmtree(place, ignore_errors=True)
    job = {"folder": str(folder), "method": method, "settings": settings, "out": str(ours)}
    figures = {"tunesmith": asked_for([sys.executable, __file__, "--ours", json.dumps(job)])}
    config = folder / f"{method}.yaml"
    config.write_text(json.dumps(config_of(folder, method, settings, out_dtype)))
    child = [python, str(HERE / "mergekit_child.py"), "merge", str(config), str(theirs), str(SEED)]
    figures["mergekit"] = asked_for([*child, "stable"])
    found = difference(ours / "model", theirs)
    if method == "ties":
        shutil.rmtree(theirs)
        asked_for(child)
        found["with_its_own_sort"] = difference(ours / "model", theirs)
    for place in (ours, theirs):
        shutil.rmtree(place, ignore_errors=True)
    return found | figures


def config_of(
    folder: Path, method: str, settings: dict[str, Any], out_dtype: str
) -> dict[str, Any]:
    """The same merge in mergekit's words."""
    shared = {k: v for k, v in settings.items() if not isinstance(v, list)}
    each = {k: v for k, v in settings.items() if isinstance(v, list)}
    names = "ab" if method == "slerp" else "abc"
    models = [
        {
            "model": str(folder / name),
            "parameters": {key: values[i] for key, values in each.items()},
        }
        for i, name in enumerate(names)
    ]
    base = {} if method == "linear" else {"base_model": str(folder / "base")}
    if method == "slerp":
        base = {"base_model": str(folder / "a")}
    common = {"merge_method": method, "dtype": "float32", "out_dtype": out_dtype}
    return {"models": models, **base, "parameters": shared, **common}


def asked_for(command: list[str]) -> dict[str, float]:
    """Run a child that prints its figures as its last line."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return {key: round(value, 2) for key, value in figures.items()}


def merge_ours(job: dict[str, Any]) -> None:
    """tunesmith's merge of a job; hashing the parents and sealing the result are part of its time."""
    import torch

    from tunesmith.export.merge import Asked, run

    torch.set_num_threads(1)
    folder, settings, method = Path(job["folder"]), job["settings"], job["method"]
    names = "ab" if method == "slerp" else "abc"
    asked = Asked(
        models=tuple(str(folder / name) for name in names),
        out=Path(job["out"]),
        method=method,
        base=None if method in ("linear", "slerp") else str(folder / "base"),
        weights=tuple(settings["weight"]) if "weight" in settings else None,
        densities=tuple(settings["density"]) if "density" in settings else None,
        scale=settings.get("lambda"),
        t=settings.get("t"),
        seed=SEED if "dare" in method else 0,
    )
    run(asked)
    print(json.dumps(spent()))


def spent() -> dict[str, float]:
    """CPU seconds of this process since it began, and its own high-water mark.

    ru_maxrss would carry over that of the process that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {"cpu_seconds": time.process_time(), "peak_rss_mb": int(peak.split()[1]) / 1024}


def difference(ours: Path, theirs: Path) -> dict[str, Any]:
    """The largest difference of a weight, how many differ, and how many of the format's steps apart."""
    import torch
    from safetensors import safe_open

    files = {
        name: file
        for file in theirs.glob("*.safetensors")
        for name in safe_open(str(file), "pt").keys()  # noqa: SIM118
    }
    largest, steps, differ, total = 0.0, 0, 0, 0
    with safe_open(str(ours / "model.safetensors"), "pt") as mine:
        if set(mine.keys()) != set(files):
            raise SystemExit(f"other tensors: {sorted(set(mine.keys()) ^ set(files))[:5]}")
        for name in mine.keys():  # noqa: SIM118
            with safe_open(str(files[name]), "pt") as other:
                a, b = mine.get_tensor(name), other.get_tensor(name)
            if a.dtype != b.dtype:
                raise SystemExit(f"{name} is {a.dtype} and {b.dtype}")
            kind = torch.int32 if a.dtype == torch.float32 else torch.int16
            apart = (ordered(a.view(kind)) - ordered(b.view(kind))).abs()
            largest = max(largest, float((a.double() - b.double()).abs().max()))
            steps, differ = max(steps, int(apart.max())), differ + int((apart > 0).sum())
            total += a.numel()
    return {"max_abs_difference": largest, "steps": steps, "differ": differ, "weights": total}


def ordered(bits: Any) -> Any:
    """Integers in the order of the floats that they spell: neighbours are 1 apart."""
    import torch

    wide = bits.long()
    least = -(1 << (8 * bits.element_size() - 1))
    return torch.where(wide < 0, least - wide, wide)


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Merges: tunesmith against mergekit",
        "",
        "Made by `benchmarks/export/mergekit_parity.py` (which says how to repeat it) with mergekit 0.1.5,",
        "torch 2.13.0, one thread each, weights 0.5, 0.3, 0.4 and densities 0.5, 0.3, 0.7, lambda 0.8, t 0.3.",
        "A step is the distance of two neighbouring numbers of the output format: 0 is bit for bit the same,",
        "1 is one rounding. CPU seconds and memory are of the whole process, imports included; tunesmith's also of hashing the",
        "parents and of sealing the result.",
        "",
        "| models | format | method | max abs. difference | steps | differ | CPU s (tunesmith, mergekit) | peak MB (tunesmith, mergekit) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ours, theirs = r["tunesmith"], r["mergekit"]
        lines.append(
            f"| {r['models']} | {r['format']} | {r['method']} | {r['max_abs_difference']:.3g} | {r['steps']} | "
            f"{r['differ']} of {r['weights']:,} | {ours['cpu_seconds']:.1f}, {theirs['cpu_seconds']:.1f} | "
            f"{ours['peak_rss_mb']:.0f}, {theirs['peak_rss_mb']:.0f} |"
        )
    lines += [
        "",
        "TIES with mergekit's own, unstable sort, which leaves to the processor which of equal",
    ]
    lines += ["differences stay:", ""]
    for r in results:
        if "with_its_own_sort" in r:
            own = r["with_its_own_sort"]
            lines.append(
                f"- {r['models']}: {own['differ']} of {own['weights']:,} weights differ, by at most "
                f"{own['max_abs_difference']:.3g}"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:
        merge_ours(json.loads(sys.argv[2]))
    else:
        main()
