"""The forms `torchao-*`, written, read again and certified beside the environment.

Where torchao is installed, every start of transformers imports it. So `make setup` puts it into a folder
of its own, and the only process that sees it is this test's child.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunesmith.models.files import stored_tensors

APART = Path(sys.prefix) / "apart"
CHILD = """
import json
import sys
from pathlib import Path
from tunesmith import export
from tunesmith.config import recipe_from
from tunesmith.store import Artifact, Run
recipe, dataset, trained, place = json.loads(sys.argv[1]), *sys.argv[2:]
with Run.open(Path(place), "export", inputs={}) as at:
    export.run(recipe_from(recipe), at, Artifact.open(dataset), Artifact.open(trained))
"""


@pytest.mark.slow
def test_torchao_folders_are_written_read_again_and_certified(bench, tmp_path):
    if importlib.util.find_spec("torchao") is None and not (APART / "torchao").is_dir():
        pytest.skip(f"torchao is neither installed nor in {APART}: make setup puts it there")
    # Of random weights each one counts: four bits of them are far off.
    most = {"torchao-int8": 0.15, "torchao-int4": 6.0}
    settings = {
        "forms": list(most),
        "limits": {
            form: {"greedy_agreement": 0.1, "mean_kl": kl, "perplexity_ratio": 100.0}
            for form, kl in most.items()
        },
        "parity_prompts": 4,
        "parity_tokens": 6,
    }
    recipe = {"name": "tiny", "model": {"base": str(bench.base.dir)}, "export": settings}
    places = [str(place) for place in (bench.dataset.dir, bench.trained.dir, tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(recipe), *places],
        env=os.environ | {"PYTHONPATH": str(APART)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    forms = json.loads((tmp_path / "out/parity.json").read_text())["forms"]
    assert list(forms) == list(most)
    assert forms["torchao-int8"]["greedy_agreement"] > 0.8
    for form, found in forms.items():
        assert found["mean_kl"] > 0
        assert "torchao" in found["engine"]
        tensors = stored_tensors(tmp_path / "out" / form)
        assert "I8" in {tensor.dtype for name, tensor in tensors.items() if "up_proj" in name}
        assert tensors["model.embed_tokens.weight"].dtype == "float16"
        assert not any(name.startswith("lm_head") for name in tensors)
