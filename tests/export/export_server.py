"""Exports on demand, each in a fork of one process that has imported the packages: `export_server.py BASE DATA TRAIN`.

A line of JSON in ({"place", "failpoint", "settings"}), a line of JSON out ({"code", "error"}).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

IMPORTED = (
    "peft",
    "torch",
    "transformers.generation",
    "transformers.models.llama.modeling_llama",
    "conversion.llama",
    "tunesmith.export.stage",
    "tunesmith.engine.backends.llama_cpp",
)


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # To look through all that is imported takes an export a second.
    for line in sys.stdin:
        asked = json.loads(line)
        log = Path(asked["place"] + ".log")
        child = os.fork()
        if child == 0:
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os._exit(export(asked))
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        text = log.read_text(errors="replace")
        sys.stdout.write(json.dumps({"code": code, "error": text[-3000:]}) + "\n")
        sys.stdout.flush()


def export(asked: dict) -> int:
    from tunesmith import export as room
    from tunesmith.config import recipe_from
    from tunesmith.errors import TunesmithError
    from tunesmith.store import Artifact, Run
    from tunesmith.store.failpoints import arm

    base, data, train = sys.argv[1:]
    recipe = recipe_from({"name": "tiny", "model": {"base": base}, "export": asked["settings"]})
    arm(asked["failpoint"])
    try:
        with Run.open(asked["place"], "export", inputs={}, resume=True) as at:
            room.run(recipe, at, Artifact.open(data), Artifact.open(train))
    except TunesmithError as error:
        traceback.print_exc()
        sys.stderr.write(f"\n{type(error).__name__}: {error}\n")
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


if __name__ == "__main__":
    main()
