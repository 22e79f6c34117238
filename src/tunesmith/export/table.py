"""Size, speed and memory of every form of a bundle, each measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.config import Form, ModelConfig
from tunesmith.errors import EngineError, ModelError
from tunesmith.export.forms import KINDS
from tunesmith.export.gguf_base import write_base
from tunesmith.export.timing import Spec, Timing
from tunesmith.export.versions import made_with
from tunesmith.store import Artifact, write_atomically
from tunesmith.telemetry import Bar

__all__ = ["form_bytes", "forms_of", "time_form"]

_LOG_LINES = 12


def forms_of(bundle: Artifact) -> dict[Form, str]:
    """Form -> its file or folder, of a sealed bundle."""
    return dict(bundle.facts["forms"])


def form_bytes(bundle: Artifact, form: Form) -> int:
    """Bytes of a form's files."""
    path = forms_of(bundle)[form]
    names = [name for name in bundle.files if name == path or name.startswith(f"{path}/")]
    return sum(bundle.files[name].bytes for name in names)


def time_form(
    bundle: Artifact,
    form: Form,
    base: ModelConfig,
    prompts: Mapping[int, Sequence[int]],
    max_tokens: int,
    scratch: Path,
    bar: Bar,
) -> Timing:
    """Load a form in a fresh process, time it, and have it answer all prompts.

    Args:
        base: the recipe's model.
        prompts: line -> token ids.
        max_tokens: longest answer.
        scratch: folder for the specification, the base as GGUF where the form needs it, and the result; what
            is there of the same specification is used again.
        bar: advanced by one an answer.

    Raises:
        ArtifactError: the form's files are not the ones that were sealed.
        ModelError, EngineError: the process failed; its last lines are in the message. Or the base is not
            the one that the form is put on.
        StorageError: the disk refuses.
    """
    path = bundle.dir / forms_of(bundle)[form]
    for name in bundle.files:
        if name == path.name or name.startswith(f"{path.name}/"):
            bundle.path(name)
    result = scratch / f"{form}.json"
    on = scratch / KINDS[form].on if KINDS[form].on else None
    opened = base if on is None else ModelConfig(base=str(on))
    spec = Spec(
        form=form,
        place=str(path),
        tokenizer=str(bundle.folder("tokenizer")),
        base=opened.model_dump(mode="json"),
        prompts=prompts,
        max_tokens=max_tokens,
        result=str(result),
        versions=made_with(),
    )
    wanted = json.dumps(asdict(spec), sort_keys=True)
    asked = scratch / f"{form}.spec.json"
    same = asked.is_file() and asked.read_text(encoding="utf-8") == wanted
    if not (same and result.is_file()):
        result.unlink(missing_ok=True)
        if on is not None and not (same and on.is_file()):
            bar.advance(0, f"{form}: its base as GGUF")
            write_base(bundle, base, on)
        write_atomically(asked, wanted)
        _run(form, asked, bar)
    else:
        bar.advance(len(prompts))
    found = json.loads(result.read_text(encoding="utf-8"))
    return Timing(**found | {"answers": {int(k): v for k, v in found["answers"].items()}})


def _run(form: Form, spec: Path, bar: Bar) -> None:
    log = spec.with_suffix(".log")
    # -P: a file called json.py in the user's folder must not be imported instead of Python's.
    command = [sys.executable, "-P", "-m", "tunesmith.export.timing", str(spec)]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as child,
    ):
        done = 0
        try:
            for line in child.stdout or ():
                if line.strip().isdecimal():
                    bar.advance(int(line) - done)
                    done = int(line)
            child.wait()
        finally:
            if child.poll() is None:
                child.kill()
    if child.returncode:
        tail = "\n".join(
            log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        )
        error: type[Any] = EngineError if child.returncode < 0 else ModelError
        raise error(
            f"the form {form} could not be measured: its process ended with {child.returncode}",
            why=f"its last lines are:\n{tail or '(none)'}",
            fix="free some memory and measure it alone: --form NAME",
        )
