"""A sealed dataset's card: `README.md`, from the report and what the recipe says of the data, nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith.config import Recipe, SampleSource
from tunesmith.data.samples import load_sample
from tunesmith.errors import ConfigError, EnvironmentProblem, counted
from tunesmith.telemetry import visible

__all__ = ["CARD", "card", "card_facts"]

CARD = "README.md"
"""The card's file: hubs read the front matter of the file of this name."""

# The Hugging Face Hub's own names of licences (its docs, "Licenses"): SPDX in lower case, and these.
_ON_HUB = frozenset(
    [
        *(
            "apache-2.0",
            "mit",
            "afl-3.0",
            "artistic-2.0",
            "bsl-1.0",
            "bsd-2-clause",
            "bsd-3-clause",
        ),
        *(
            "cc0-1.0",
            "cc-by-2.0",
            "cc-by-2.5",
            "cc-by-3.0",
            "cc-by-4.0",
            "cc-by-sa-3.0",
            "cc-by-sa-4.0",
        ),
        *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0"),
        *("cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
        *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "ecl-2.0", "epl-1.0"),
        *(
            "epl-2.0",
            "etalab-2.0",
            "eupl-1.1",
            "eupl-1.2",
            "isc",
            "mpl-2.0",
            "ms-pl",
            "ncsa",
            "ofl-1.1",
        ),
        *("osl-3.0", "postgresql", "unlicense", "wtfpl", "zlib", "agpl-3.0", "gpl-2.0", "gpl-3.0"),
        *("lgpl-2.1", "lgpl-3.0", "odc-by", "odbl", "pddl"),
    ]
)
_HUB_NAMES = {"odc-by-1.0": "odc-by", "odbl-1.0": "odbl", "pddl-1.0": "pddl"}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
_FIELDS: Mapping[str, str] = {
    "chat": "`messages`: turns with `role` and `content`; `tools` and `tool_calls` where there are any",
    "pair": "`prompt`: turns; `chosen` and `rejected`: one turn each",
    "feedback": "`prompt`: turns; `completion`: one turn; `label`: whether it is good",
    "problem": "`prompt`: turns; `answer`: what an answer is held against",
    "text": "`text`",
}


def card_facts(recipe: Recipe) -> dict[str, Any]:
    """What the recipe says of its data, for the report; only what is said there.

    Raises:
        ConfigError: the licence is no SPDX expression.
        EnvironmentProblem: a licence is named and the package that knows them is not installed.
    """
    config = recipe.data.card
    licence = spdx(config.license) if config.license is not None else None
    if licence is None and isinstance(recipe.data.source, SampleSource):
        licence = "Apache-2.0"  # each sample's own card says so
    return {
        # One without a name is titled by its files.
        "title": config.title or ("" if recipe.origin("name") == "default" else recipe.name),
        "license": licence,
        "description": config.description,
        "sources": list(config.sources),
        "languages": list(config.languages),
    }


def spdx(licence: str) -> str:
    """An SPDX licence expression in its usual spelling: "cc-by-4.0" gives "CC-BY-4.0".

    Raises:
        ConfigError: it is none; names of licences that are on no list begin with `LicenseRef-`.
        EnvironmentProblem: the package with the list is not installed.
    """
    try:
        from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            "data.card.license needs the package 'packaging' from version 24.2 on",
            fix="pip install 'tunesmith[data]'",
        ) from error
    try:
        return str(canonicalize_license_expression(licence))
    except InvalidLicenseExpression as error:
        raise ConfigError(
            f"data.card.license={licence!r} is no SPDX licence expression",
            why=str(error),
            fix="use an identifier of the SPDX list such as CC-BY-4.0, CC0-1.0 or MIT, or "
            "LicenseRef-NAME for a licence of your own",
        ) from error


def card(report: Mapping[str, Any]) -> str:
    """The card in Markdown with the front matter that hubs read, from a dataset's report alone.

    Text of the user is one line each and is no markup. What is not known has no line.
    """
    about = report["card"]
    parts = [
        _front_matter(report),
        f"# {_plain(about['title'])}",
        "\n\n".join(_paragraphs(about["description"] or "")),
        _section("Licence", _licence(about)),
        _section("Sources", [f"- {_plain(source)}" for source in about["sources"]]),
        _section("Rows", _rows(report)),
        _section("Splits", _splits(report)),
        _section("Cleaning", _cleaning(report)),
        _section("Checks", _checks(report)),
        _section("Files", _files(report)),
    ]
    if report["source"] not in ("files", "mix"):
        text: str = load_sample(report["source"]).CARD.read_text(encoding="utf-8")
        parts.append(f"\n{text}".replace("\n# ", "\n## ").strip())
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, lines: Sequence[str] | Iterator[str]) -> str:
    body = "\n".join(lines).strip()
    return f"## {title}\n\n{body}" if body else ""


def _front_matter(report: Mapping[str, Any]) -> str:
    about, n_rows = report["card"], sum(report["rows"].values())
    lines = ["---"]
    if about["license"]:
        lines += _hub_licence(about["license"])
    if about["languages"]:
        lines += ["language:", *(f"- {_yaml(code)}" for code in about["languages"])]
    size = next((name for most, name in _SIZES if n_rows < most), "1M<n<10M")
    lines += [
        f"pretty_name: {_yaml(about['title'])}",
        "size_categories:",
        f"- {size if n_rows < 10**7 else 'n>10M'}",
        "tags:",
        "- tunesmith",
        f"- {report['kind']}",
        "configs:",
        "- config_name: default",
        "  data_files:",
    ]
    for split in report["rows"]:
        lines += [f"  - split: {split}", f"    path: {split}.jsonl"]
    return "\n".join([*lines, "---"])


def _hub_licence(licence: str) -> list[str]:
    name = licence.lower().removesuffix("-only").removesuffix("-or-later")
    name = _HUB_NAMES.get(name, name)
    if name in _ON_HUB:
        return [f"license: {name}"]
    return ["license: other", f"license_name: {_yaml(licence)}"]


def _yaml(text: str) -> str:
    """A double-quoted YAML string in ASCII: no text of a user can end the front matter."""
    return '"' + "".join(map(_yaml_char, text)) + '"'


def _yaml_char(char: str) -> str:
    plain = char.isascii() and char.isprintable() and char not in '"\\'
    return char if plain else f"\\U{ord(char):08x}"


def _plain(text: object) -> str:
    """Text of the user in Markdown: one line, nothing in it is markup or steers a terminal."""
    flat = visible(" ".join(str(text).split()))
    escaped = "".join(f"\\{char}" if char in "\\`*_{}[]<>#|~&" else char for char in flat)
    return re.sub(r"^(\d*)([-+=.)])(?!\d)", r"\1\\\2", escaped)


def _paragraphs(text: str) -> Iterator[str]:
    for part in re.split(r"\n\s*\n", text):
        if part.strip():
            yield _plain(part)


def _licence(about: Mapping[str, Any]) -> Iterator[str]:
    if about["license"]:
        yield f"`{about['license']}` (SPDX)."


def _rows(report: Mapping[str, Any]) -> Iterator[str]:
    yield "| split | rows | repeated prompts |"
    yield "|---|---|---|"
    for split, n_rows in report["rows"].items():
        yield f"| {split} | {n_rows} | {report['repeated_prompts'][split]} |"
    yield ""
    fields = ", ".join(f"`{name}`" for name in map(_plain, report["meta_fields"]))
    yield f"One JSON object a line, kind `{report['kind']}`. {_FIELDS[report['kind']]}. `meta`: {fields or 'empty'}."
    if report["databases"]:
        yield f"\nDatabases: {', '.join(map(_plain, report['databases']))}."


def _splits(report: Mapping[str, Any]) -> Iterator[str]:
    yield "No prompt of the test or validation rows occurs in the training rows (checked)."
    near = report.get("near_overlaps", {})
    looked_for = ["nearly equal prompts"] if near.get("checked") else []
    if n_words := near.get("passages_of_words"):
        looked_for.append(f"shared passages of {n_words} words")
    if looked_for:
        yield f"{' and '.join(looked_for).capitalize()} in two splits: {near['found']}."
    held_out = report.get("held_out") or {}
    if held_out:
        yield f"Held out of the training rows: {', '.join(held_out['splits'])}, with seed {report['seed']}."
        by = {"stratified by": held_out.get("stratified_by"), "by time": held_out.get("by_time")}
        yield from (f"{how.capitalize()} `{_plain(name)}`." for how, name in by.items() if name)
        if held_out.get("kept_together"):
            yield f"Rows are on one side of a split by {_plain(held_out['kept_together'])}."


def _cleaning(report: Mapping[str, Any]) -> Iterator[str]:
    left_out = report["left_out"]
    counts = dict(left_out.get("by_rule", {}))
    if counts or report.get("changed"):
        yield "| rule | rows dropped | rows changed |"
        yield "|---|---|---|"
        changed = report.get("changed", {})
        for rule in sorted({*counts, *changed}):
            yield f"| {_plain(rule)} | {counts.get(rule, 0)} | {changed.get(rule, 0)} |"
        yield "\nEach of these rows is in `dropped.jsonl` or `changed.jsonl` with its reason."
    if left_out["by_require"]:
        yield f"\nLeft out by data.require: {counted(left_out['by_require'], 'row')}."
    for split, n_rows in left_out["by_overlap"].items():
        yield f"\nLeft out of {split} for repeating held-out prompts: {counted(n_rows, 'row')}."


def _checks(report: Mapping[str, Any]) -> Iterator[str]:
    score = report.get("score")
    if not score:
        return
    yield (
        f"Score: {score['points']} of 100 ({score['colour']}), from the {counted(score['n_rows'], 'row')} that are "
        "sealed."
    )
    tokens = report.get("tokens", {})
    if tokens.get("measured"):
        rows = counted(tokens["measured"], "conversation")
        yield f"Measured in tokens of `{_plain(tokens['model'])}`: {rows}."
    else:
        why = tokens.get("why_not") or "the recipe names no `model.base`"
        yield f"Lengths in tokens and the stop token were not checked: {_plain(why)}."
    if score["reasons"]:
        yield "\n| check | severity | findings | rows | points lost |\n|---|---|---|---|---|"
    for reason in score["reasons"]:
        cells = (reason[name] for name in ("check", "severity", "findings", "rows", "points"))
        yield f"| {' | '.join(map(_plain, cells))} |"


def _files(report: Mapping[str, Any]) -> Iterator[str]:
    yield "| made from | split | schema | rows | SHA-256 |"
    yield "|---|---|---|---|---|"
    for file in report["files"]:
        name = _plain(Path(file["path"]).name)
        yield f"| {name} | {file['split']} | {file['schema']} | {file['rows']} | `{file['sha256'][:16]}` |"
    yield "\n`manifest.json` has the size and SHA-256 of every file of this dataset, `report.json` every count."
