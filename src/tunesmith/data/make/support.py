"""Questions and answers of Markdown FAQs and manuals; links and code stay as they are written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunesmith.data.make.rows import Made, chat, existing, read_text
from tunesmith.errors import ConfigError, DataError

__all__ = ["SupportOptions", "make_support"]

MAX_LINE_CHARS = 2_000
"""Longest line that is looked at as a heading or a question."""
MAX_LINKED_CHARS = 100_000
"""Longest answer whose links are followed."""
_ENDINGS = (".md", ".markdown", ".mdx")
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*")
_UNDERLINE = re.compile(r" {0,3}(=+|-{2,})[ \t]*")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ASKS = re.compile(
    r"\s*(?:[-*+]\s+|\d+[.)]\s+)?(?:\*\*|__)?(?:Q|Question)\s*\d*\s*[:.)](?:\*\*|__)?\s*(.+)", re.I
)
_ANSWERS = re.compile(
    r"\s*(?:[-*+]\s+)?(?:\*\*|__)?(?:A|Answer)\s*\d*\s*[:.)](?:\*\*|__)?\s*(.*)", re.I
)
_BOLD = re.compile(r"\s*(?:[-*+]\s+|\d+[.)]\s+)?(?:\*\*|__)(.+?\?)(?:\*\*|__)\s*(.*)")
_SUMMARY = re.compile(r"\s*(?:<details[^>]*>\s*)?<summary[^>]*>(.*?)(?:(</summary>)\s*(.*))?", re.I)
"""A question that folds; its end may stand on a later line."""
_SUMMARY_ENDS = re.compile(r"(.*?)</summary>\s*(.*)", re.I)
_DETAILS_END = re.compile(r"\s*</details\s*>\s*$", re.I)
_DEFINITION = re.compile(r" {0,3}\[([^\]^][^\]]*)\]:[ \t]+\S+.*")
_REFERENCE = re.compile(r"\[([^\[\]]+)\](?:\[([^\[\]]*)\])?(?![(:])")
_MARKS = re.compile(r"(\*\*|__|[*_`])(?=\S)(.+?)(?<=\S)\1")


@dataclass(frozen=True)
class SupportOptions:
    """What is taken, and how.

    Attributes:
        system: system message of every row, if any.
        templates: questions for headings that are none, with {heading} and {path} (all headings above, joined
            by " > "). Without them, such sections make no row.
        max_chars: longest answer.
        min_chars: shortest answer.
    """

    system: str | None = None
    templates: tuple[str, ...] = ()
    max_chars: int = 6_000
    min_chars: int = 2


@dataclass
class _Section:
    """A heading, or a question in another form, with the lines below it."""

    line: int
    level: int
    heading: str
    form: str
    above: tuple[str, ...]
    lines: list[str] = field(default_factory=list)

    @property
    def asks(self) -> bool:
        """Whether it is a question as it stands."""
        return self.form != "heading" or self.heading.endswith("?")


def make_support(path: Path, options: SupportOptions | None = None) -> Made:
    """Rows of questions with the sections that answer them.

    Args:
        path: a Markdown file, or a folder that is searched for them.

    Raises:
        MissingError: nothing is there.
        ConfigError: a template names an unknown slot.
        DataError: no Markdown file, or no question with an answer, is there; or a file is not text.
    """
    options = options or SupportOptions()
    for template in options.templates:
        _refuse_template(template)
    existing(path)
    files = [path] if path.is_file() else sorted(_markdown_files(path))
    if not files:
        raise DataError(
            f"{path}: no Markdown file in it", fix=f"name files that end in {', '.join(_ENDINGS)}"
        )
    made = Made("support")
    seen: dict[str, str] = {}
    for file in files:
        name = file.name if file == path else str(file.relative_to(path))
        if path.is_dir():
            try:
                text = read_text(file)
            except DataError as error:
                made.drop(name, name, error.what.partition(": ")[2])
                continue
        else:
            text = read_text(file)
        _add(text, name, made, options, seen)
    made.facts = {"files": len(files)}
    made.refuse_empty(
        f"{path}: no question with an answer in it",
        fix="headings must end in a question mark, or give --template 'Tell me about {heading}.'",
    )
    return made


def _refuse_template(template: str) -> None:
    try:
        said = template.format(heading="x", path="y")
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"--template {template!r}: {error}", fix="its slots are {heading} and {path}"
        ) from error
    if said == template:
        raise ConfigError(
            f"--template {template!r} asks the same of every section",
            fix="use {heading} or {path} in it",
        )


def _markdown_files(root: Path) -> Iterator[Path]:
    for folder, inner, names in os.walk(root):
        inner[:] = sorted(
            name for name in inner if not name.startswith(".") and name != "node_modules"
        )
        yield from (Path(folder) / name for name in names if name.lower().endswith(_ENDINGS))


def _add(text: str, name: str, made: Made, options: SupportOptions, seen: dict[str, str]) -> None:
    """The rows of one file."""
    definitions, sections = _sections(text)
    for index, section in enumerate(sections):
        where = f"{name}:{section.line}"
        if not section.asks and not options.templates:
            if not _is_part(sections, index):
                made.drop(
                    where, section.heading, "its heading is no question, and no template was given"
                )
            continue
        answer = _answer(
            section, _parts(sections, index) if not options.templates else [], definitions
        )
        has_question = bool(section.heading) or not section.asks
        reason = _unfit(answer, options) if has_question else "its question is empty"
        if reason:
            made.drop(where, section.heading, reason)
            continue
        for question in _asked(section, options):
            key = " ".join(question.casefold().split())
            if key in seen:
                made.drop(where, question, f"a duplicate: the question of {seen[key]}")
                continue
            seen[key] = where
            path = [*section.above, section.heading]
            meta = {
                "source": name,
                "where": where,
                "section": " > ".join(path),
                "form": section.form,
            }
            made.rows.append(chat(question, answer, meta, options.system))


def _asked(section: _Section, options: SupportOptions) -> list[str]:
    if section.asks:
        return [section.heading]
    path = " > ".join([*section.above, section.heading])
    return [template.format(heading=section.heading, path=path) for template in options.templates]


def _unfit(answer: str, options: SupportOptions) -> str:
    if not answer:
        return "there is no text below it"
    if len(answer) < options.min_chars:
        return f"an answer of fewer than {options.min_chars} characters"
    if len(answer) > options.max_chars:
        return f"an answer of more than {options.max_chars} characters"
    return ""


def _is_part(sections: Sequence[_Section], index: int) -> bool:
    """Whether a section belongs to the answer of a question above it."""
    level = sections[index].level
    for at in range(index - 1, -1, -1):
        above = sections[at]
        if level == 1:
            break
        if above.level < level:
            if above.asks:
                return True
            level = above.level
    return False


def _parts(sections: Sequence[_Section], index: int) -> list[_Section]:
    """The sections below a question that are part of its answer: deeper ones, up to the next question."""
    found: list[_Section] = []
    for below in sections[index + 1 :]:
        if below.level <= sections[index].level or below.asks or sections[index].form != "heading":
            break
        found.append(below)
    return found


def _answer(section: _Section, parts: Sequence[_Section], definitions: dict[str, str]) -> str:
    """The text as it stands, with the definitions of the links that it refers to."""
    pieces = ["\n".join(section.lines)]
    for part in parts:
        pieces += [f"{'#' * part.level} {part.heading}", "\n".join(part.lines)]
    text = "\n\n".join(piece.strip("\n").rstrip() for piece in pieces if piece.strip())
    text = text if section.form == "heading" else _dedented(text)
    if not definitions or len(text) > MAX_LINKED_CHARS:
        return text
    used = {(m[2] or m[1]).casefold() for m in _REFERENCE.finditer(text)}
    needed = [line for name, line in definitions.items() if name in used]
    return "\n\n".join([text, "\n".join(needed)]) if needed and text else text


def _dedented(text: str) -> str:
    """Without the indent of two or three blanks of the list item that an answer stood in; four are code."""
    lines = text.split("\n")
    rest = [len(line) - len(line.lstrip()) for line in lines[1:] if line.strip()]
    cut = min(rest, default=0) if len(lines) > 1 and not lines[0].startswith((" ", "\t")) else 0
    if 2 <= cut <= 3 and not lines[0].lstrip().startswith(("- ", "* ", "+ ", "1.")):
        lines[1:] = [line[cut:] for line in lines[1:]]
    return "\n".join(lines)


class _State:
    """What the lines above say about the next one."""

    def __init__(self) -> None:
        self.sections: list[_Section] = []
        self.definitions: dict[str, str] = {}
        self.headings: list[tuple[int, str]] = []
        self.fence = ""
        self.in_summary = False

    def open(self, line: int, level: int, heading: str, form: str, first: str = "") -> None:
        if form == "heading":
            self.headings = [(lv, text) for lv, text in self.headings if lv < level]
        above = tuple(text for _, text in self.headings)
        self.sections.append(_Section(line, level, heading, form, above, [first] if first else []))
        if form == "heading":
            self.headings.append((level, heading))

    @property
    def last(self) -> _Section | None:
        return self.sections[-1] if self.sections else None


def _sections(text: str) -> tuple[dict[str, str], list[_Section]]:
    """Definitions of links, and all sections in the order of the file."""
    state = _State()
    lines = text.split("\n")
    skip_to = _after_front_matter(lines)
    for number, line in enumerate(lines, 1):
        if number <= skip_to:
            continue
        before = lines[number - 2] if number > 1 else ""
        _take(state, number, line, before)
    return state.definitions, state.sections


def _after_front_matter(lines: Sequence[str]) -> int:
    if lines[0].strip() != "---":
        return 0
    end = next((at for at, line in enumerate(lines[1:60], 2) if line.strip() == "---"), 0)
    return end


def _take(state: _State, number: int, line: str, before: str) -> None:
    """Put one line where it belongs. A very long one is text, whatever it looks like: no heading is."""
    if len(line) > MAX_LINE_CHARS:
        _keep(state, line)
    elif state.in_summary:
        _end_summary(state, line)
    elif state.fence:
        _keep(state, line)
        mark = _FENCE.match(line)
        if mark and mark[1].startswith(state.fence) and not line[mark.end() :].strip():
            state.fence = ""
    elif mark := _FENCE.match(line):
        state.fence = mark[1]
        _keep(state, line)
    elif heading := _HEADING.fullmatch(line):
        state.open(number, len(heading[1]), _plain(heading[2]), "heading")
    elif _is_underline(state, line, before):
        _underlined(state, number, line, before)
    elif not _question_in_text(state, number, line):
        if definition := _DEFINITION.fullmatch(line):
            state.definitions[definition[1].casefold()] = line.strip()
        else:
            _keep(state, line)


def _is_underline(state: _State, line: str, before: str) -> bool:
    return len(before) <= MAX_LINE_CHARS and bool(
        _UNDERLINE.fullmatch(line)
        and before.strip()
        and not before.startswith(("#", "|", ">", "-", "*"))
    )


def _underlined(state: _State, number: int, line: str, before: str) -> None:
    """A heading whose text is the line above."""
    if state.last is not None and state.last.lines and state.last.lines[-1] == before:
        state.last.lines.pop()
    state.open(number - 1, 1 if line.strip().startswith("=") else 2, _plain(before), "heading")


def _question_in_text(state: _State, number: int, line: str) -> bool:
    """Whether the line begins a question of another form, or its answer."""
    last = state.last
    level = (state.headings[-1][0] if state.headings else 0) + 1
    if asked := _ASKS.fullmatch(line):
        state.open(number, level, _plain(asked[1]), "Q:")
        return True
    waits = last is not None and last.form == "Q:" and not any(t.strip() for t in last.lines)
    if last is not None and waits and (answered := _ANSWERS.fullmatch(line)):
        last.lines = [answered[1]]
        return True
    if folded := _SUMMARY.fullmatch(line):
        state.in_summary = not folded[2]
        answer = _DETAILS_END.sub("", folded[3] or "")
        state.open(number, level, _plain(folded[1]), "details", answer)
        return True
    if asked := _BOLD.fullmatch(line):
        state.open(number, level, _plain(asked[1]), "bold", asked[2])
        return True
    if last is not None and last.form == "details" and (ends := _DETAILS_END.search(line)):
        last.lines.append(line[: ends.start()])
        return True
    return bool(re.fullmatch(r"\s*</?details[^>]*>\s*", line, re.I))


def _end_summary(state: _State, line: str) -> None:
    """A further line of a question that folds; one that is never closed ends with its paragraph."""
    asked, ended = state.sections[-1], _SUMMARY_ENDS.fullmatch(line)
    more = _plain(ended[1] if ended else line)
    asked.heading = f"{asked.heading} {more}".strip()
    if ended:
        asked.lines = [_DETAILS_END.sub("", ended[2])]
    state.in_summary = not ended and bool(more) and len(asked.heading) < MAX_LINE_CHARS


def _keep(state: _State, line: str) -> None:
    if state.last is not None:
        state.last.lines.append(line)


def _plain(text: str) -> str:
    """A heading's text without marks of emphasis, links and anchors."""
    text = re.sub(r"\s*\{#[\w-]+\}\s*$|</?(?:a|b|i|em|strong|h[1-6])(?: [^>]*)?>", "", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return _MARKS.sub(r"\2", text).strip()
