"""The supervised child: crashes, bad files, and who outlives whom."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import time

import psutil
import pytest

from tunesmith.engine import Sampling
from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings
from tunesmith.errors import EngineError, MissingError, ModelError, StorageError

pytestmark = pytest.mark.timeout(300)

PROMPT = [1, 4093, 198, 57, 2, 198, 1, 520, 9531, 198]
SMALL = LlamaSettings(context_tokens=256, slots=1)


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until_gone(pid):
    while not is_gone(pid):
        time.sleep(0.05)


def wait_until_noticed(backend, pid):
    """Until the supervision knows that this child is dead, all its threads and sockets with it."""
    while backend.pid == pid:
        time.sleep(0.02)


@pytest.mark.slow
def test_after_a_kill_running_requests_fail_and_the_next_ones_work(gguf, greedy):
    with LlamaBackend(gguf, SMALL) as backend:
        before = backend.generate([PROMPT], greedy)
        first = backend.pid

        async def killed_in_the_middle():
            try:
                async for chunk in backend.astream(PROMPT, Sampling(max_tokens=240, top_k=9)):
                    if chunk.answer_tokens == 2:
                        os.kill(first, signal.SIGKILL)
            finally:
                await backend.aclose_session()

        with pytest.raises(EngineError, match="stopped while it answered"):
            asyncio.run(killed_in_the_middle())
        wait_until_noticed(backend, first)
        assert backend.generate([PROMPT], greedy) == before
        assert backend.pid != first
        assert backend.restarts == 1


@pytest.mark.slow
def test_a_child_that_dies_idle_is_replaced_before_the_next_request(gguf, greedy):
    with LlamaBackend(gguf, SMALL) as backend:
        first = backend.pid
        os.kill(first, signal.SIGKILL)
        wait_until_noticed(backend, first)
        assert backend.generate([PROMPT], greedy)[0].text


@pytest.mark.slow
def test_it_gives_up_with_the_reason_when_no_start_works(gguf, tmp_path, greedy):
    copy = tmp_path / "model.gguf"
    copy.write_bytes(gguf.read_bytes())
    with LlamaBackend(copy, SMALL) as backend:
        copy.unlink()
        first = backend.pid
        os.kill(first, signal.SIGKILL)
        wait_until_noticed(backend, first)
        with pytest.raises(ModelError, match="cannot load"):
            backend.generate([PROMPT], greedy)


@pytest.mark.slow
def test_an_answer_ends_where_the_context_ends(gguf):
    with LlamaBackend(gguf, LlamaSettings(context_tokens=64, slots=2)) as backend:
        answer = backend.generate([[5] * 61], Sampling(max_tokens=100))[0]
    assert len(answer.token_ids) == 3
    assert answer.finish_reason == "length"


def test_closing_leaves_no_process_and_may_be_done_twice(gguf, greedy):
    backend = LlamaBackend(gguf, SMALL)
    pid = backend.pid
    backend.close()
    assert is_gone(pid)
    backend.close()
    with pytest.raises(EngineError, match="closed"):
        backend.generate([PROMPT], greedy)


def test_the_child_dies_with_its_parent(gguf):
    code = (
        "import sys, os, signal\n"
        "from pathlib import Path\n"
        "from tunesmith.engine.backends.llama_cpp import LlamaBackend, LlamaSettings\n"
        "backend = LlamaBackend(Path(sys.argv[1]), LlamaSettings(context_tokens=256, slots=1))\n"
        "print(backend.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run([sys.executable, "-c", code, str(gguf)], capture_output=True, text=True)
    assert parent.returncode == -signal.SIGKILL, parent.stderr
    wait_until_gone(int(parent.stdout))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingError, match="no model file at"):
        LlamaBackend(tmp_path / "none.gguf")


def test_a_file_that_is_no_gguf_is_refused_before_a_child_starts(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ModelError, match="is not a GGUF file") as error:
        LlamaBackend(path)
    assert "PK" in error.value.why
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        LlamaBackend(path)


@pytest.mark.parametrize("share", [0.00005, 0.5])
def test_a_truncated_file_is_refused_before_llama_cpp_reads_it(gguf, tmp_path, share):
    data = gguf.read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match="is no readable GGUF file") as error:
        LlamaBackend(path)
    assert "llama.cpp" not in error.value.what


def test_a_number_that_ends_llama_cpp_is_refused_before_it_reads_it(gguf, tmp_path):
    """llama.cpp allocates by the count of layers: its process ends by a signal."""
    key, pair = b"llama.block_count", struct.pack("<QI", 17, 4)
    named = struct.pack("<Q", len(b"general.architecture")) + b"general.architecture"
    named += struct.pack("<IQ", 8, 5) + b"llama"
    path = tmp_path / "model.gguf"
    layers = pair[:8] + key + pair[8:] + struct.pack("<I", 1 << 31)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + named + layers)
    for settings in (LlamaSettings(), LlamaSettings(lora_path=path)):
        model = gguf if settings.lora_path else path
        with pytest.raises(ModelError, match=r"llama\.block_count: it is 2147483648"):
            LlamaBackend(model, settings)


def test_a_sound_file_of_no_model_is_refused_with_llama_cpps_reason(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(ModelError, match="cannot load it") as error:
        LlamaBackend(path)
    assert "failed to load model" in error.value.why


def test_a_start_that_takes_too_long_is_given_up(gguf):
    with pytest.raises(EngineError, match="not ready after"):
        LlamaBackend(gguf, LlamaSettings(start_seconds=0.01))


def test_the_log_goes_to_the_given_file_and_stays_at_hand(gguf, tmp_path):
    log_path = tmp_path / "logs" / "llama.log"
    with LlamaBackend(gguf, LlamaSettings(context_tokens=256, log_path=log_path)) as backend:
        tail = backend.log_tail()
    assert tail
    assert tail in log_path.read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_is_an_error_at_the_start(gguf, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        LlamaBackend(gguf, LlamaSettings(log_path=tmp_path / "file" / "llama.log"))
