"""Markdown: a row for each section, with the headings above it. Source: CommonMark 0.31, ATX headings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tunesmith.data.read.cells import parse
from tunesmith.data.read.chunk import Chunk, Faults, Form, Job, Record, Stream, gathered
from tunesmith.data.read.lines import TextLines
from tunesmith.data.read.paragraphs import Gathering

__all__ = ["FORM", "SEPARATOR", "heading_of"]

HEADING = ("text", "heading")
SEPARATOR = " > "
"""Between a section's heading and those above it."""
_FRONT_MATTER_LINES = 500
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)", re.DOTALL)


def divide(stream: Stream, job: Job) -> Iterator[Chunk]:
    """Sections, some at a time. A front matter is left out, and so is a heading without text.

    Raises:
        Unreadable: the stream breaks off.
    """
    faults = Faults()
    lines = TextLines(stream, job, faults)
    return gathered(_sections(lines, Gathering(job, faults)), job, HEADING, faults)


def _sections(lines: TextLines, held: Gathering) -> Iterator[Record]:
    path: dict[int, str] = {}
    fence = ""
    has_text = False
    for line in _after_front_matter(lines):
        fence = _fence_after(line, fence)
        heading = None if fence else heading_of(line)
        if heading is None:
            has_text = has_text or bool(line.strip())
            if held or line.strip():
                held.add(lines.number, line)
            continue
        yield from _section(held, path, has_text=has_text)
        level, title = heading
        path = {depth: above for depth, above in path.items() if depth < level}
        path[level] = title
        has_text = False
        held.add(lines.number, line)
    yield from _section(held, path, has_text=has_text)


def _section(held: Gathering, path: dict[int, str], *, has_text: bool) -> Iterator[Record]:
    text = held.taken() if held else None
    if has_text and text is not None:
        yield held.begins_at, (text.rstrip(), SEPARATOR.join(path.values()))


def heading_of(line: str) -> tuple[int, str] | None:
    """Level and title of a heading's line; None for every other line."""
    text = line.rstrip("\r\n")
    marked = text.lstrip(" ")
    level = len(marked) - len(marked.lstrip("#"))
    rest = marked[level:]
    if not 1 <= level <= 6 or len(text) - len(marked) > 3 or rest[:1] not in ("", " ", "\t"):
        return None
    title = rest.strip(" \t")
    closed = title.rstrip("#")
    return level, closed.rstrip() if closed[-1:] in ("", " ", "\t") else title


def _fence_after(line: str, fence: str) -> str:
    """The fence that code stands in after this line; "" outside of code."""
    found = _FENCE.fullmatch(line)
    if found is None:
        return fence
    if not fence:
        # A back-tick in what follows makes it code within a line.
        return "" if found[1][0] == "`" and "`" in found[2] else found[1]
    ends = found[1].startswith(fence) and not found[2].strip()
    return "" if ends else fence


def _after_front_matter(lines: TextLines) -> Iterator[str]:
    """The lines below a YAML block between `---` at the top; all of them when it has no end."""
    following = iter(lines)
    first = next(following, None)
    if first is None:
        return
    if first.rstrip() != "---":
        yield first
        yield from following
        return
    held = [first]
    for line in following:
        held.append(line)
        if line.rstrip() in ("---", "..."):
            held = []
            break
        if lines.number > _FRONT_MATTER_LINES:
            break
    yield from held
    yield from following


FORM = Form(divide, parse)
