"""Export a model tuned on GeoQuery in every GGUF form, time it, and measure each form's execution accuracy.

    python benchmarks/export/geoquery.py --project runs/geoquery --out FOLDER [--forms a,b,c]

`--project` is what `make bench-geoquery` leaves: a sealed dataset, run and report. Writes `results.md` and
`forms.json` beside this file when `--write` is given.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from tunesmith import export
from tunesmith.config import recipe_from
from tunesmith.pipeline.forms import measure_made
from tunesmith.store import Artifact, Run

HERE = Path(__file__).parent
GGUF = "gguf-f16 gguf-bf16 gguf-q8_0 gguf-q6_k gguf-q5_k_m gguf-q4_k_m gguf-q4_0"


def newest(project: Path, stage: str) -> Artifact:
    """The newest sealed artifact of a stage."""
    places = sorted(
        project.glob(f"{stage}-*/manifest.json"), key=lambda place: place.stat().st_mtime
    )
    return Artifact.open(places[-1].parent, stage)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--forms", default=f"adapter merged {GGUF}".replace(" ", ","))
    parser.add_argument("--rows", type=int, help="test rows; all when not given")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    made = {stage: newest(options.project, stage) for stage in ("data", "train", "evaluate")}
    recipe = recipe_from(
        {
            "name": "geoquery",
            "export": {"forms": options.forms.split(",")},
            "evaluate": {
                "task": {"kind": "sql_execution"},
                "max_answer_tokens": 160,
                **({"max_rows": options.rows} if options.rows else {}),
            },
        }
    )
    place = options.out / "export"
    began = time.monotonic()
    with Run.open(place, "export", inputs={}, resume=True) as at:
        result = export.run(recipe, at, made["data"], made["train"], made["evaluate"])
    seconds = time.monotonic() - began
    print(f"export and certificates: {seconds:.1f} s for {', '.join(result.parity)}")
    for form, parity in result.parity.items():
        print(form, json.dumps({k: v for k, v in parity.as_dict().items() if k != "sha256"}))
    made["export"] = result.artifact
    table = measure_made(recipe, made, options.out)
    for row in table.rows:
        print(json.dumps(vars(row)))
    if options.write:
        (HERE / "geoquery.json").write_text(
            json.dumps({"export_seconds": seconds, **table.artifact.facts}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
