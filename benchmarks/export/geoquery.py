"""Export a model tuned on GeoQuery in every GGUF form, time it, and measure each form's execution accuracy.

    python benchmarks/export/geoquery.py --project runs/geoquery --out FOLDER [--forms a,b,c] [--write]
    python benchmarks/export/geoquery.py --project runs/geoquery --out FOLDER --three [--write]

`--project` is what `make bench-geoquery` leaves: a sealed dataset, run and report. `--write` writes `geoquery.json`
and `geoquery.md` beside this file; `--three` only times the export of F16, Q8_0 and Q4_K_M with their
certificates, into `export_time.json`, which the page quotes.
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
THREE = ["gguf-f16", "gguf-q8_0", "gguf-q4_k_m"]
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
    parser.add_argument("--three", action="store_true", help="time the export of three forms alone")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    made = {stage: newest(options.project, stage) for stage in ("data", "train", "evaluate")}
    recipe = recipe_from(
        {
            "name": "geoquery",
            "export": {"forms": THREE if options.three else options.forms.split(",")},
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
    if options.three:
        proofs = {form: parity.seconds for form, parity in result.parity.items()}
        if options.write:
            kept = {"seconds": round(seconds, 1), "certificates": proofs}
            (HERE / "export_time.json").write_text(json.dumps(kept, indent=1) + "\n")
        return
    made["export"] = result.artifact
    table = measure_made(recipe, made, options.out)
    for row in table.rows:
        print(json.dumps(vars(row)))
    if options.write:
        command = (
            "python benchmarks/export/geoquery.py --project runs/geoquery --out FOLDER --write"
        )
        facts = {**table.artifact.facts, "export_seconds": round(seconds, 1), "command": command}
        (HERE / "geoquery.json").write_text(json.dumps(facts, indent=1) + "\n")
        (HERE / "geoquery.md").write_text(page(facts, made["evaluate"].facts))


def page(facts: dict, report: dict) -> str:
    """The table for people."""
    rows = facts["forms"]
    lines = [
        "# Every form of a model tuned on GeoQuery",
        "",
        "SmolLM2-135M-Instruct (the embedded base, dequantised from Q4_1), tuned by `make bench-geoquery`; made by",
        "`benchmarks/export/geoquery.py` (`make bench-export`). Timed one request at a time in a process of its own;",
        "llama.cpp keeps what prompts share. Right: answers whose rows are those of the reference query,",
        f"n = {rows[0]['n']}, {100 * facts['confidence']:g} % intervals; the trained model itself has "
        f"{report['tuned']['correct']} of {report['n']} right in the sealed report.",
        f"Export with certificates: {facts['export_seconds']} s for {len(rows)} forms together{three()}.",
        "Machine: {device}, {processor}, {cores} cores, {memory_gib} GiB, {system}.".format(
            **facts["hardware"]
        ),
        "",
        "| form | MB | load s | first token ms | tokens/s | memory MB | same tokens | KL nats | perplexity | right | "
        "against the trained model |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        parity, points = row["parity"], row["points"]
        against = ""
        if points is not None:
            first, last = row["points_interval"]
            against = f"{points:+.1f} points [{first:+.1f}, {last:+.1f}]"
        lines.append(
            f"| {row['form']} | {row['bytes'] / 1e6:.1f} | {row['load_seconds']:.2f} | "
            f"{1000 * row['first_token_seconds']:.0f} | {row['tokens_per_second']:.0f} | "
            f"{row['peak_rss_bytes'] / 1e6:.0f} | {100 * parity['greedy_agreement']:.1f} % | "
            f"{parity['mean_kl']:.2g} | {100 * (parity['perplexity_ratio'] - 1):+.1f} % | "
            f"{100 * row['accuracy']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] | {against} |"
        )
    lines += [
        "",
        "Every form is within its certificate's limits: they say that the file is the model as far as its number format can be it.",
        "What the format costs the task is the last column's matter, and is more than equal next tokens suggest.",
    ]
    return "\n".join(lines) + "\n"


def three() -> str:
    """What `--three` measured."""
    place = HERE / "export_time.json"
    if not place.is_file():
        return ""
    found = json.loads(place.read_text())
    proofs = ", ".join(f"{seconds:.0f}" for seconds in found["certificates"].values())
    return f"; F16, Q8_0 and Q4_K_M alone {found['seconds']} s, of it their certificates {proofs} s"


if __name__ == "__main__":
    main()
