"""Docs speak of commands, files and words that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from tunesmith.cli.main import commands

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/**/*.md"),
    ]
)
MAKE = (ROOT / "Makefile").read_text(encoding="utf-8")


def command_lines(page: Path) -> list[str]:
    """Lines of code blocks, and inline code, that call tunesmith or make."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^(?: {4}|\t)(.+)$", text, re.M)
    blocks += [
        line for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    blocks += re.findall(r"`([^`\n]+)`", text)
    lines = [block.strip().removeprefix("$ ").split("  #")[0].strip() for block in blocks]
    lines = [line.removeprefix(".venv/bin/") for line in lines]
    return [line for line in lines if re.match(r"(tunesmith|make) ", line) and "…" not in line]


def cases() -> list[tuple[str, str]]:
    return [(str(page.relative_to(ROOT)), line) for page in PAGES for line in command_lines(page)]


@pytest.mark.parametrize(("page", "line"), cases())
def test_a_command_in_the_docs_is_one_that_the_parser_takes(page, line):
    words = shlex.split(re.sub(r"\[[^\]]*\]", "", line).split("|")[0].replace("&", ""))
    if words[0] == "make":
        assert re.search(rf"^{re.escape(words[1])}:", MAKE, re.M), f"{page}: no target {words[1]}"
        return
    context: click.Context = click.Context(commands)
    group: click.Command = commands
    rest = words[1:]
    while isinstance(group, click.Group) and rest and not rest[0].startswith("-"):
        found = group.get_command(context, rest[0])
        assert found is not None, f"{page}: {line!r} names no command"
        group, rest = found, rest[1:]
    options = {opt for p in group.params if isinstance(p, click.Option) for opt in p.opts}
    unknown = [
        w for w in rest if w.startswith("-") and w.split("=")[0] not in {*options, "--help", "-h"}
    ]
    assert unknown == [], f"{page}: {line!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
    for name in re.findall(r"`((?:docs|src|benchmarks|examples|tests)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_readme_has_the_two_commands():
    lines = command_lines(ROOT / "README.md")
    assert "make demo" in lines
    assert "make test" in lines
    assert "tunesmith run recipe.yaml" in lines


def test_nothing_committed_names_this_workplace_or_a_registry_host():
    banned = re.compile(r"/(work|farm)/|files\.pythonhosted|pypi\.org/simple|registry\.npmjs")
    for page in [
        *PAGES,
        *ROOT.glob("src/**/*.py"),
        ROOT / "pyproject.toml",
        ROOT / "constraints.txt",
    ]:
        assert not banned.search(page.read_text(encoding="utf-8")), page
