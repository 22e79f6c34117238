"""The child process: llama.cpp's own HTTP server on a loopback port, until the parent goes away.

Started as `python -m tunesmith.engine.backends.llama_child` by `llama_process`. The first line of
stdin is a JSON object (model_path, lora_path, exact, api_key, threads, slots, context_tokens); it
comes that way because other users of the machine can read a command line. One JSON line on stdout
answers: `url`, or `error`. llama.cpp's log goes to stderr. The end of stdin is the order to stop,
and comes by itself when the parent dies.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

__all__ = ["main"]

PARENT_CHECK_SECONDS = 1.0


def main() -> None:
    """Serve until stdin ends or the parent dies."""
    # Native code may print to stdout: only the report may go there.
    report_fd = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    options = json.loads(sys.stdin.readline())
    parent = int(options["parent_pid"])
    threading.Thread(target=_stop_with_parent, args=(parent,), daemon=True).start()
    threading.Thread(target=_stop_at_end_of_stdin, daemon=True).start()
    server, report = _serve(options)
    with os.fdopen(report_fd, "w") as out:
        out.write(json.dumps(report) + "\n")
    if server is None:
        # Not os._exit: llama.cpp writes its log in a thread of its own, and the reason is in it.
        sys.exit(1)
    while True:
        time.sleep(3600)


def _serve(options: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options["model_path"]
    if options["lora_path"] is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(options["lora_path"], 1.0)]
    if options["exact"]:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        kinds = xllamacpp.llama_flash_attn_type
        params.flash_attn_type = kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [options["api_key"]]
    params.ui = False
    params.endpoint_metrics = True
    params.endpoint_slots = True
    params.cpuparams.n_threads = options["threads"]
    params.cpuparams_batch.n_threads = options["threads"]
    params.n_parallel = options["slots"]
    params.n_ctx = options["context_tokens"] * options["slots"]
    # Each slot keeps its last prompt. Copies of older ones would take up to 8 GiB beside the model.
    params.cache_ram_mib = 0
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError, OSError) as error:
        return None, {"error": str(error)}
    return server, {"url": server.listening_address}


def _stop_with_parent(parent: int) -> None:
    """The parent's pipe stays open when a process that it forked holds a copy: so ask, too."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(0)


def _stop_at_end_of_stdin() -> None:
    # Not sys.stdin: a thread that holds its lock would abort an ordinary exit.
    while os.read(0, 1024):
        continue
    os._exit(0)


if __name__ == "__main__":
    main()
