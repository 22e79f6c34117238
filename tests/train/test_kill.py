"""`kill -9` at every failpoint and at random moments: the run goes on and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith import pipeline
from tunesmith.config import recipe_from
from tunesmith.store import Artifact
from tunesmith.store.failpoints import FAILPOINTS
from tunesmith.train.curve import read_curve

sys.path.insert(0, str(Path(__file__).parent))
from small_base import save_small_base, write_pairs, write_sums

pytestmark = pytest.mark.slow

SERVER = Path(__file__).with_name("kill_server.py")
KILLS = 50
LEAST_IN_TRAINING = 25
"""Of the random kills; the others fall into loading and sealing."""


PREPARED = {
    "max_steps": 3,
    "objective": {"kind": "dpo"},
    "method": {"kind": "lora", "rank": 2, "layers": 1},
    "trunk_cache": "disk",
}
"""A recipe that computes much before its first step."""


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prepared": PREPARED,
    "dpo": {"max_steps": 8, "objective": {"kind": "dpo"}},
    "qlora": {"max_steps": 8, "method": {"kind": "qlora", "rank": 2, "block_size": 32}},
    "trunk": {
        "max_steps": 8,
        "method": {"kind": "lora", "rank": 2, "layers": 1},
        "trunk_cache": "disk",
    },
}
"""Recipes that are killed, by what is different in them. A run's name begins with its kind."""
KILLS_OF_A_KIND = 6


def kind_of(name: str) -> str:
    if name.startswith(("references-", "trunk-batch", "trunk-states")):
        return "prepared"
    return next((kind for kind in KINDS if name.startswith(f"{kind}:")), "plain")


def straight_of(name: str) -> str:
    return f"{kind_of(name)}:straight"


class Server:
    """Runs recipes in forks of one process."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, base: Path) -> None:
        self.process = process
        self.folder = folder
        self.base = base

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, (self.folder / "server.err").read_text()
        return json.loads(line)

    def values(self, name: str) -> dict[str, Any]:
        """A recipe whose workspace is `name`, its dataset sealed already."""
        place = self.folder / name
        straight = self.folder / straight_of(name) / "kill"
        if not place.exists() and straight.exists():
            for data in straight.glob("data-*"):
                shutil.copytree(data, place / "kill" / data.name)
        changes = KINDS[kind_of(name)]
        rows = "pairs.jsonl" if "objective" in changes else "rows.jsonl"
        return {
            "name": "kill",
            "workspace": str(place),
            "model": {"base": str(self.base)},
            "data": {"source": {"kind": "files", "train": [str(self.folder / rows)]}},
            "train": {
                "epochs": 2,
                "max_steps": 20,
                "batch_tokens": 256,
                "micro_batch_tokens": 128,
                "precision": "fp32",
                "threads": 1,
                "sample_rows": 1,
                "sample_every_steps": 10,
                "validate_every_steps": 4,
                "checkpoint_every_steps": 3,
                "keep": "best",
                "method": {"kind": "lora", "rank": 2},
                **changes,
            },
        }

    def run(self, name: str, code: int = 0, **how: Any) -> dict[str, Any]:
        said = self.folder / f"{name}.err"
        found = self.ask(values=self.values(name), said=str(said), **how)
        if found["code"] != code and code != ANY:
            pytest.fail(f"exit code {found['code']}: {said.read_text()}")
        return found


ANY = 1000
FIRST = {"folder-aside": "checkpoint-named:2=term,"}
"""What else is armed: a stop right after a checkpoint saves the same step again."""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("kill")
    base = save_small_base(folder / "base")
    write_sums(folder / "rows.jsonl")
    write_pairs(folder / "pairs.jsonl")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (folder / "server.err").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        with process:
            found = Server(process, folder, base)
            first = found.ask(values=found.values(straight_of("plain:")))
            assert first["code"] == 0, (folder / "server.err").read_text()
            found.run(straight_of("prepared:"))
            yield found
    assert process.returncode == 0
    shutil.rmtree(folder)


def sealed(server: Server, name: str) -> Artifact:
    return pipeline.find(recipe_from(server.values(name)), "train")


def train_dir(server: Server, name: str) -> Path | None:
    return next((server.folder / name / "kill").glob("train-*"), None)


def assert_ends_like_the_straight_run(server: Server, name: str) -> None:
    straight, found = sealed(server, straight_of(name)), sealed(server, name)
    found.verify()
    for file in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert found.path(file).read_bytes() == straight.path(file).read_bytes()
    assert read_curve(found.path("events.jsonl")) == read_curve(straight.path("events.jsonl"))
    for fact in ("steps", "train_tokens", "validation_loss", "best_step", "sealed_step"):
        assert found.facts[fact] == straight.facts[fact]
    left = [p.name for p in found.dir.rglob("*") if "part" in p.name or p.name == "checkpoints"]
    assert left == []


@pytest.mark.parametrize(
    "name", [name for name in FAILPOINTS if not name.startswith(("data-", "export-"))]
)
def test_killed_at_a_failpoint_a_run_goes_on_and_ends_the_same(server, name):
    # Late, where it is reached that often: then something was saved before it.
    often = name.startswith(("step-", "event-"))
    first = FIRST.get(name, "")
    for nth in (9, 1) if often else (2, 1):
        place = f"{name}-{nth}"
        if server.run(place, code=ANY, failpoint=f"{first}{name}:{nth}")["code"] == -9:
            break
    else:
        pytest.fail("the run never reached it")
    server.run(place)
    assert_ends_like_the_straight_run(server, place)


def test_killed_at_random_moments_a_run_goes_on_and_ends_the_same(server):
    draw = random.Random(7)
    whole = server.run("measured")["cpu_seconds"]
    in_training = 0
    for kill in range(KILLS):
        name = f"random-{kill}"
        server.run(name, code=ANY, cpu_seconds=draw.uniform(0, whole))
        place = train_dir(server, name)
        log = None if place is None else place / "events.jsonl"
        unsealed = place is not None and not (place / "manifest.json").exists()
        in_training += bool(unsealed and log and log.is_file() and '"step"' in log.read_text())
        server.run(name)
        assert_ends_like_the_straight_run(server, name)
        shutil.rmtree(server.folder / name)
    assert in_training >= LEAST_IN_TRAINING


@pytest.mark.parametrize("kind", ["dpo", "qlora", "trunk"])
def test_killed_at_random_moments_every_kind_of_run_goes_on_and_ends_the_same(server, kind):
    draw = random.Random(11)
    whole = server.run(straight_of(f"{kind}:"))["cpu_seconds"]
    unsealed = 0
    for kill in range(KILLS_OF_A_KIND):
        name = f"{kind}:{kill}"
        # One in each part of the run, so that no part of it is left out.
        at = (kill + draw.random()) / KILLS_OF_A_KIND * whole
        server.run(name, code=ANY, cpu_seconds=at)
        place = train_dir(server, name)
        unsealed += place is not None and not (place / "manifest.json").exists()
        server.run(name)
        assert_ends_like_the_straight_run(server, name)
        shutil.rmtree(server.folder / name)
    assert unsealed >= KILLS_OF_A_KIND // 2
