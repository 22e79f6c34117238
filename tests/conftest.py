"""What all tests need: how the process behaves, how far hypothesis searches, the shared tokenizers."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A shell that starts a job in the background lets it ignore SIGINT, and children inherit that: the
# tests that send Ctrl-C to a child would wait for ever. A handler here is reset to the default there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Always the same examples, and none is timed: a busy machine must not turn a test red. `make test`
# takes the second; to search where nobody looked, `--hypothesis-profile default --hypothesis-seed N`.
STEADY = settings(derandomize=True, deadline=None, database=None)
settings.register_profile("quick", STEADY, max_examples=12)
settings.register_profile("thorough", STEADY, max_examples=100)
settings.load_profile("quick")

SHORT_VOCABULARY = 2_048

# Last, so that its folders hide nothing: what tests of several rooms share is imported from here.
sys.path.append(str(Path(__file__).parent))


class Imported:
    """How many modules there were when the collector was last told to leave them alone."""

    modules = 0


def pytest_collection_finish() -> None:
    """The imported libraries stay: the collector need not look through them again and again."""
    gc.collect()
    gc.freeze()
    Imported.modules = len(sys.modules)


def pytest_runtest_setup() -> None:
    """What a test imported stays as well: an export, for one, calls the collector several times."""
    if len(sys.modules) > Imported.modules + 200:
        pytest_collection_finish()


@pytest.fixture(autouse=True)
def tokens_apart(request, tmp_path_factory, monkeypatch) -> None:
    """No test finds the tokens that another one made, or the user: some plant a fault in what makes them."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    monkeypatch.setenv("TUNESMITH_TOKENS", str(tmp_path_factory.getbasetemp() / f"tokens-{name}"))


@pytest.fixture(scope="session")
def embedded_base() -> Any:
    """The embedded model; to find it is to hash 270 MB, so that it is found once."""
    from tunesmith.config import ModelConfig
    from tunesmith.models.load import resolve_base

    return resolve_base(ModelConfig())


@pytest.fixture(scope="session")
def embedded_tokenizer(embedded_base: Any) -> Any:
    from tunesmith.models.load import load_tokenizer

    return load_tokenizer(embedded_base)


@pytest.fixture(scope="session")
def short_tokenizer(embedded_base: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The embedded model's tokenizer with its first 2,048 tokens: loaded fast, and a small head.

    Tokens are numbered in the order of their merges, so that a beginning of the vocabulary is whole.
    Not for GGUF: the converter knows a tokenizer by what it does with the whole vocabulary.
    """
    from tunesmith.models.load import load_tokenizer

    folder = tmp_path_factory.mktemp("short")
    for file in Path(embedded_base.dir).iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            shutil.copy(file, folder)
    path = folder / "tokenizer.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    kept = {word: n for word, n in words["model"]["vocab"].items() if n < SHORT_VOCABULARY}
    words["model"]["vocab"] = kept
    words["model"]["merges"] = [two for two in words["model"]["merges"] if "".join(two) in kept]
    path.write_text(json.dumps(words), encoding="utf-8")
    return load_tokenizer(folder)
