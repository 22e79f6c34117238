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
    own = [p for p in group.params if isinstance(p, click.Option)]
    options = {opt for p in own for opt in (*p.opts, *p.secondary_opts)}
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


FOLDERS = {"bin", "data", "dev", "etc", "path", "proc", "sys", "tmp", "usr"}
"""First parts of absolute paths that are the same on many machines, or plainly an example."""
ROUTES = {"components", "healthz", "metrics", "readyz", "v1"}
"""First parts of the gateway's routes and of pointers into its API's description."""
HOSTS = {"127.0.0.1", "localhost", "github.com", "json-schema.org"}
ABSOLUTE = re.compile(r"(?<![\w.:/~$}@\])\[>*%<?{-])/([a-zA-Z][\w-]*)")
HOST = re.compile(r"https?://([\w.-]+)|\b((?:[\w-]+\.)+(?:com|org|net|io))\b")


def strangers(text: str) -> list[str]:
    """Absolute paths and hosts that belong to one machine or network."""
    paths = [found[0] for found in ABSOLUTE.finditer(text) if found[1] not in FOLDERS | ROUTES]
    hosts = [found[1] or found[2] for found in HOST.finditer(text)]
    return paths + [host for host in hosts if host not in HOSTS]


def test_nothing_committed_names_a_place_that_only_one_machine_has():
    written = (".cfg", ".json", ".jsonl", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml")
    others = ("CHANGELOG.md", "Makefile", "pyproject.toml", "constraints.txt")
    pages = [*PAGES, *(ROOT / name for name in others), *ROOT.glob("src/**/*.py")]
    pages += [page for page in ROOT.glob("benchmarks/**/*") if page.suffix in written]
    found = {
        f"{page.relative_to(ROOT)}: {name}"
        for page in pages
        for name in strangers(page.read_text(encoding="utf-8"))
    }
    assert sorted(found) == []


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("see `/somewhere/models`", ["/somewhere"]),
        ("--data=/mnt/big and /tmp/x", ["/mnt"]),
        ("pip --index-url https://mirror.example/simple", ["mirror.example"]),
        ("from packages.example.org", ["packages.example.org"]),
        ("a/b, 3 /4, [/bold], ~/models, DIR/x, /v1/models, http://127.0.0.1:80/metrics", []),
    ],
)
def test_the_rule_on_places_sees_paths_and_hosts(text, named):
    assert strangers(text) == named
