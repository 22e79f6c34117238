"""A dataset's report as a page to read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunesmith.data.samples import text_to_sql

__all__ = ["card"]


def card(report: Mapping[str, Any]) -> str:
    """The card of a sealed dataset, in Markdown, from its report alone."""
    lines = ["# Dataset", "", f"Source: {report['source']}. Seed: {report['seed']}.", ""]
    lines += ["| split | rows | repeated prompts |", "|---|---|---|"]
    for split, n_rows in report["rows"].items():
        lines.append(f"| {split} | {n_rows} | {report['repeated_prompts'][split]} |")
    lines += [
        "",
        "No prompt of the test or validation rows occurs in the training rows (checked).",
        "",
    ]
    lines += ["| file | split | schema | rows | SHA-256 |", "|---|---|---|---|---|"]
    for file in report["files"]:
        name = Path(file["path"]).name.replace("|", "\\|")
        digest = file["sha256"][:16]
        lines.append(f"| {name} | {file['split']} | {file['schema']} | {file['rows']} | {digest} |")
    left_out = report["left_out"]
    if left_out["by_require"]:
        lines += ["", f"{left_out['by_require']} rows were left out by data.require."]
    for split, n_rows in left_out["by_overlap"].items():
        lines += [
            "",
            f"{n_rows} rows of {split} were left out because they repeat held-out prompts.",
        ]
    if report["databases"]:
        lines += ["", f"Databases: {', '.join(report['databases'])}."]
    if report["source"] != "files":
        lines += ["", text_to_sql.CARD.read_text(encoding="utf-8").replace("\n# ", "\n## ").strip()]
    return "\n".join(lines) + "\n"
