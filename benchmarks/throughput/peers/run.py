"""Run other tools by their own command lines, each in its own environment (see install.sh), and tunesmith by its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from harness import Contestant, Task

HERE = Path(__file__).parent
BATCH_ROWS = 8


@dataclass(frozen=True)
class Peer:
    """How a tool is called: its package, its config file here, and its command."""

    package: str
    config: str
    command: tuple[str, ...]
    note: str


PEERS = {
    "llamafactory": Peer(
        "llamafactory",
        "llamafactory.yaml",
        ("llamafactory-cli", "train", "{config}"),
        "llamafactory-cli train",
    ),
    "axolotl": Peer("axolotl", "axolotl.yaml", ("axolotl", "train", "{config}"), "axolotl train"),
    "soup": Peer(
        "soup-cli", "soup.yaml", ("soup", "train", "--config", "{config}", "--yes"), "soup train"
    ),
    "unsloth": Peer("unsloth", "unsloth_run.py", ("python", "{config}"), "FastLanguageModel"),
    "tunesmith": Peer(
        "tunesmith",
        "tunesmith.yaml",
        ("tunesmith", "run", "{config}", "--until", "train"),
        "tunesmith run --until train, all choices its own",
    ),
}
OURS = "tunesmith"


def contestants() -> list[Contestant]:
    return [Contestant(name, "command", {}, note=peer.note) for name, peer in PEERS.items()]


def run(task: Task, files: dict[str, Path], place: Path, *, allow_load: bool) -> dict[str, Any]:
    """One run of a peer, or its own error, as a record."""
    name = task.contestant.name
    peer, home = PEERS[name], Path(sys.prefix) if name == OURS else place / name
    record = harness.opening(task, allow_load)
    if name != OURS and not (home / ".ready").is_file():
        record["machine"].pop("versions")
        return record | {
            "error": f"not installed under {place.name}/{name}: `make bench-peers` installs it",
            "wall_seconds": 0.0,
        }
    if name != OURS:
        record["machine"]["versions"] = versions(home)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        values = prepare(Path(folder), files, task.size)
        config = Path(folder) / peer.config
        config.write_text(filled((HERE / peer.config).read_text(encoding="utf-8"), values))
        command = [part.replace("{config}", str(config)) for part in peer.command]
        env = harness.environment(
            {
                "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "VIRTUAL_ENV": str(home),
                "HOME": folder,
                "NO_COLOR": "1",
                "PYTHONPATH": "",
                "CUDA_VISIBLE_DEVICES": "",
                "WANDB_DISABLED": "true",
                "AXOLOTL_DO_NOT_TRACK": "1",
            }
        )
        log = Path(folder) / "log.txt"
        shell = f"cd {folder} && exec {' '.join(command)} >{log} 2>&1"
        found = harness.launch(["sh", "-c", shell], env, task.timeout_seconds)
        said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        record |= found | figures(said, Path(folder), values)
        if "error" in found or "train_seconds" not in record:
            said = said.replace(folder, "JOB").replace(str(place), "PEERS")
            record["error"] = f"{found.get('error', 'no figures').split(':')[0]}: {tail(said)}"
    record["wall_seconds"] = round(time.perf_counter() - began, 1)
    return record


def versions(home: Path) -> dict[str, str]:
    wanted = {"torch", "transformers", "peft", "trl", *(p.package for p in PEERS.values())}
    lines = (home / ".ready").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {pair[0]: pair[1] for pair in pairs if pair[0].lower().replace("_", "-") in wanted}


def prepare(folder: Path, files: dict[str, Path], size: int) -> dict[str, str]:
    """Model and rows where every peer finds them; what the config files are filled with."""
    from tunesmith.config import ModelConfig
    from tunesmith.models.load import resolve_base

    data = folder / "data"
    data.mkdir()
    shutil.copy(files["train"], data / "train.jsonl")
    chats = [json.loads(line)["messages"] for line in files["train"].open(encoding="utf-8")]
    plain = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
    (data / "train.jsonl").write_text(plain, encoding="utf-8")
    columns = {"messages": "messages"}
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    info = {"formatting": "sharegpt", "columns": columns, "tags": tags, "file_name": "train.jsonl"}
    (data / "dataset_info.json").write_text(json.dumps({"geoquery": info}), encoding="utf-8")
    return {
        "MODEL": str(resolve_base(ModelConfig()).dir),
        "DATA": str(data),
        "OUT": str(folder / "out"),
        "STEPS": str(max(1, size // BATCH_ROWS)),
        "BATCH": str(BATCH_ROWS),
    }


def filled(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def figures(said: str, folder: Path, values: dict[str, str]) -> dict[str, Any]:
    """Seconds of training as the trainer under every one of these tools reports them."""
    runtimes = re.findall(r"['\"]?train_runtime['\"]?\s*[:=]\s*['\"]?([\d.]+)", said)
    for state in folder.glob("out/**/train_results.json"):
        runtimes.append(str(json.loads(state.read_text(encoding="utf-8"))["train_runtime"]))
    for sealed in folder.glob("out/**/manifest.json"):
        facts = json.loads(sealed.read_text(encoding="utf-8"))["facts"]
        if "trained_tokens" in facts:
            return _ours(facts)
    if not runtimes:
        return {}
    seconds, steps = float(runtimes[-1]), int(values["STEPS"])
    rows = steps * BATCH_ROWS
    tokens = rows * mean_tokens(Path(values["DATA"]) / "train.jsonl")
    return {
        "steps": steps,
        "rows_seen": rows,
        "train_seconds": seconds,
        "rows_per_second": rows / seconds,
        "tokens_per_second": tokens / seconds,
        "tokens_seen": round(tokens),
    }


def _ours(facts: dict[str, Any]) -> dict[str, Any]:
    """The same figures from a sealed run of tunesmith; each row once."""
    seconds, rows = facts["seconds"], facts["rows"]
    return {
        "steps": facts["steps"],
        "rows_seen": rows,
        "train_seconds": seconds,
        "rows_per_second": rows / seconds,
        "tokens_per_second": facts["tokens_per_second"],
        "tokens_seen": facts["train_tokens"],
    }


def mean_tokens(path: Path) -> float:
    """Tokens of a row in the model's own chat template."""
    from tunesmith.config import ModelConfig
    from tunesmith.models.load import load_tokenizer, resolve_base

    tokenizer = load_tokenizer(resolve_base(ModelConfig()))
    sizes = [
        len(tokenizer.apply_chat_template(json.loads(line)["messages"])["input_ids"])
        for line in path.open(encoding="utf-8")
    ]
    return sum(sizes) / len(sizes)


def tail(said: str) -> str:
    """The error that a tool ended with: its last exception that is not its launcher's, and the last lines."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [
        line
        for line in lines
        if re.match(r"[\w.]*(Error|Exception|Refused)\b.*", line) and "CalledProcess" not in line
    ]
    return " | ".join([*named[-1:], *lines[-3:]])[:1200]
