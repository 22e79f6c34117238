"""A row as the model sees it: every token with its role, and whether the loss counts it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import DataConfig, Recipe
from tunesmith.data.look.places import RAW, Place, open_place
from tunesmith.data.rows import Row
from tunesmith.data.schemas import options_of
from tunesmith.errors import MissingError, counted
from tunesmith.registry import nearest
from tunesmith.store import MANIFEST
from tunesmith.telemetry import visible

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from tunesmith.models.chat import ChatRenderer

__all__ = ["ShownRow", "ShownToken", "draw_rows", "find_row", "find_rows", "show"]

STYLES: Mapping[str, str] = {
    "template": "bright_black",
    "system": "blue",
    "user": "cyan",
    "assistant": "green",
    "tool": "yellow",
}
TRAINED_STYLE = "bold underline"
_VISIBLE = str.maketrans({"\n": "⏎\n", "\t": "⇥\t", "\r": "␍"})


@dataclass(frozen=True)
class ShownToken:
    """One token; a character of several tokens is the text of its last, the others have none."""

    id: int
    text: str
    role: str
    trained: bool


@dataclass(frozen=True)
class ShownRow:
    """A row with its tokens, for consoles (`on`) and programs (`as_dict`).

    Attributes:
        where: "file:line" of the row.
        meta: the row's other fields.
        rejected: of a pair the conversation with the rejected answer; `tokens` are the chosen one's.
        kind: of the row.
        notes: lines below the tokens: the label of feedback, the answer of a problem, tools.
    """

    where: str
    tokens: tuple[ShownToken, ...]
    meta: Mapping[str, Any]
    rejected: ShownRow | None = None
    kind: str = "chat"
    notes: tuple[str, ...] = ()

    @property
    def n_trained(self) -> int:
        """Tokens that the loss counts."""
        return sum(token.trained for token in self.tokens)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values, for `--json`."""
        roles = Counter(token.role for token in self.tokens)
        return {
            "row": self.where,
            "tokens": [asdict(token) for token in self.tokens],
            "counts": {
                "tokens": len(self.tokens),
                "trained": self.n_trained,
                "by_role": dict(roles),
            },
            "kind": self.kind,
            "meta": dict(self.meta),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"rejected": self.rejected.as_dict()} if self.rejected else {}),
        }

    def on(self, console: Console) -> RenderableType:
        """What to print there: with colour where it shows, else with marks."""
        from rich.text import Text

        has_colour = console.color_system is not None and not console.no_color
        return self.rich() if has_colour else Text(self.plain())

    def rich(self) -> Text:
        """For terminals with colour: one colour a role, trained tokens bold and underlined."""
        from rich.text import Text

        text = Text(f"{visible(self.where)}\n\n", style="dim")
        for token in self.tokens:
            trained = f" {TRAINED_STYLE}" if token.trained else ""
            text.append(_seen(token.text), f"not dim {_style(token.role)}{trained}")
        text.append("\n\n")
        for role in dict.fromkeys(token.role for token in self.tokens):
            text.append(f"{role} ", f"not dim {_style(role)}")
        text.append("trained", f"not dim {TRAINED_STYLE}")
        text.append(f"\n{self._counts()}", "not dim")
        for note in self.notes:
            text.append(f"\n{visible(note)}", "not dim")
        if self.rejected:
            text.append("\n\n").append(self.rejected.rich())
        return text

    def plain(self) -> str:
        """Without colour: one line for each stretch of a role, `*` before trained ones."""
        lines = [visible(self.where), ""]
        for (role, trained), run in groupby(self.tokens, lambda token: (token.role, token.trained)):
            text = _seen("".join(token.text for token in run)).rstrip("\n")
            for part in text.split("\n"):
                lines.append(f"{'*' if trained else ' '} {role:<9} | {part}")
        other = ["", self.rejected.plain()] if self.rejected else []
        notes = map(visible, self.notes)
        return "\n".join([*lines, "", "* = trained", self._counts(), *notes, *other])

    def _counts(self) -> str:
        roles = Counter(token.role for token in self.tokens)
        by_role = ", ".join(f"{n} {role}" for role, n in roles.items())
        if not self.tokens:
            return "no tokens"
        return f"{counted(len(self.tokens), 'token')} ({by_role}); {self.n_trained} trained"


def _style(role: str) -> str:
    return STYLES.get(role, "magenta")


def _seen(text: str) -> str:
    """Text of a row for a terminal: line ends and tabs are marked, what would steer it is spelled out."""
    return visible(text.translate(_VISIBLE))


def find_row(
    place: str | Path, recipe: Recipe | None = None, *, split: str = "train", number: int = 1
) -> Row:
    """A row of a sealed dataset's folder, or of a raw file.

    Args:
        place: folder or file.
        recipe: its `data.fields`, `data.rows` and `data.system` hold for a raw file; unused for a folder.
        split: which rows of a folder.
        number: which row, from 1.

    Raises:
        MissingError: no such file, split or row.
        DataError: the file's rows are wrong.
        ArtifactError: the folder is no sealed dataset, or damaged.
    """
    return find_rows(place, recipe, split=split, numbers=[number])[0]


def find_rows(
    place: str | Path, recipe: Recipe | None, *, split: str, numbers: Sequence[int]
) -> list[Row]:
    """Several rows, in the order of their numbers; the file is read once.

    Raises:
        MissingError: no such file, split or row.
        DataError: the file's rows are wrong.
        ArtifactError: the folder is no sealed dataset, or damaged.
    """
    opened, wanted = _opened(place, recipe, split), set(numbers)
    n_rows, found = 0, {}
    for n_rows, row in enumerate(opened.rows(split), start=1):
        if n_rows in wanted:
            found[n_rows] = row
    opened.problems.raise_any("mend the lines named; `tunesmith data check` says more about them")
    if missing := sorted(wanted - found.keys()):
        raise MissingError(
            f"{place} has no row {missing[0]}",
            why=f"it has {counted(n_rows, 'row')}",
            fix=f"choose a row from 1 to {n_rows}",
        )
    return [found[number] for number in numbers]


def draw_rows(
    place: str | Path, recipe: Recipe | None, *, split: str, count: int, seed: int
) -> list[Row]:
    """Rows drawn at random, in the order of the file; all of them when there are fewer.

    Raises:
        MissingError: no such file or split, or it has no rows.
        DataError: the file's rows are wrong.
        ArtifactError: the folder is no sealed dataset, or damaged.
    """
    opened, draw = _opened(place, recipe, split), random.Random(seed)
    kept: list[tuple[int, Row]] = []
    for number, row in enumerate(opened.rows(split)):
        if len(kept) < count:
            kept.append((number, row))
        elif (at := draw.randrange(number + 1)) < count:
            kept[at] = (number, row)
    opened.problems.raise_any("mend the lines named; `tunesmith data check` says more about them")
    if not kept:
        raise MissingError(f"{place} has no rows", fix="name a file or split that has some")
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])]


def _opened(place: str | Path, recipe: Recipe | None, split: str) -> Place:
    """The place, and that it has this split; files that are not split have every one."""
    path = Path(place)
    if path.is_dir() and not (path / MANIFEST).is_file():
        raise MissingError(
            f"{path} is not a sealed dataset",
            why=f"it has no {MANIFEST}",
            fix="name the folder of a finished data stage, or one file with rows",
        )
    data = recipe.data if recipe else DataConfig()
    opened = open_place(place, options_of(data), data.form)
    if opened.splits != (RAW,) and split not in opened.splits:
        raise MissingError(
            f"{path} has no split {split!r}{nearest(split, opened.splits)}",
            fix=f"use one of: {', '.join(sorted(opened.splits))}",
        )
    return opened


def show(row: Row, renderer: ChatRenderer) -> ShownRow:
    """Tokens of a row, as training and evaluation render it.

    Text is shown as its tokens alone. Of rows with tools the template's own rendering is shown, with
    roles told from where the contents stand in it; what would be trained is not known there.

    Raises:
        ModelError: the model's template refuses the conversation.
    """
    kind, where = row.kind, row.where
    if row.tools or any(turn.get("tool_calls") for turn in row.messages):
        return _with_tools(row, renderer)
    if kind == "pair":
        rejected = _shown(f"{where}, rejected", row, [*row.messages[:-1], *row.rejected], renderer)
        chosen = _shown(f"{where}, chosen", row, row.messages, renderer)
        return replace(_last_only(chosen), rejected=_last_only(rejected))
    if kind == "feedback":
        label = "good" if row.value["label"] else "bad"
        shown = _last_only(_shown(where, row, row.messages, renderer))
        return replace(shown, notes=(f"label: {label}",))
    if kind == "problem":
        answer = json.dumps(row.value["answer"], ensure_ascii=False)
        shown = _shown(where, row, row.messages, renderer, for_answer=True)
        return replace(shown, notes=(f"answer to check: {answer}",))
    if kind == "text":
        return _plain_text(row, renderer)
    return _shown(where, row, row.messages, renderer)


def _shown(
    where: str,
    row: Row,
    messages: Sequence[Mapping[str, Any]],
    renderer: ChatRenderer,
    *,
    for_answer: bool = False,
) -> ShownRow:
    rendered = renderer.render(messages, for_answer=for_answer)
    tokens = tuple(
        ShownToken(token_id, text, role, trained)
        for token_id, text, role, trained in zip(
            rendered.token_ids,
            _texts(rendered.token_ids, renderer),
            rendered.roles,
            rendered.trained,
            strict=True,
        )
    )
    return ShownRow(where, tokens, row.meta, kind=row.kind)


def _plain_text(row: Row, renderer: ChatRenderer) -> ShownRow:
    """Text, every token of which a loss would count."""
    ids = renderer.tokenizer(str(row.value["text"]), add_special_tokens=False)["input_ids"]
    tokens = tuple(
        ShownToken(token_id, text, "assistant", True)
        for token_id, text in zip(ids, _texts(ids, renderer), strict=True)
    )
    return ShownRow(row.where, tokens, row.meta, kind=row.kind, notes=("plain text, no template",))


def _with_tools(row: Row, renderer: ChatRenderer) -> ShownRow:
    """The template's rendering of a conversation with tools, each token with the role it stands in."""
    from jinja2.exceptions import TemplateError

    try:
        text = renderer.tokenizer.apply_chat_template(
            [dict(turn) for turn in row.messages], tools=list(row.tools) or None, tokenize=False
        )
    except (TemplateError, TypeError) as error:
        refused = f"not rendered: this model's template refuses the conversation ({error})"
        fix = "choose a model whose template knows tools: --set model.base=NAME"
        return ShownRow(row.where, (), row.meta, kind=row.kind, notes=(refused, fix, *_turns(row)))
    encoded = renderer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = list(_stretches(text, row.messages))
    ids = list(encoded["input_ids"])
    tokens = tuple(
        ShownToken(token_id, piece, _role_at(spans, *place), False)
        for token_id, piece, place in zip(
            ids, _texts(ids, renderer), encoded["offset_mapping"], strict=True
        )
    )
    calls = sum(len(turn.get("tool_calls") or ()) for turn in row.messages)
    notes = [f"tools: {len(row.tools)} described, {calls} calls"]
    if not all(_tool_name(tool) in text for tool in row.tools):
        notes.append("the template leaves out descriptions of tools: the model would not see them")
    notes.append("training does not render tools yet, so no token is marked as trained")
    return ShownRow(row.where, tokens, row.meta, kind=row.kind, notes=tuple(notes))


def _turns(row: Row) -> Iterator[str]:
    """The conversation as the row has it, one line a turn and a call."""
    for turn in row.messages:
        if isinstance(turn.get("content"), str):
            yield f"{turn['role']}: {turn['content']}"
        for call in turn.get("tool_calls") or ():
            yield f"{turn['role']} calls {json.dumps(call, ensure_ascii=False)}"


def _tool_name(tool: object) -> str:
    function = tool.get("function", tool) if isinstance(tool, dict) else {}
    return str(function.get("name", "")) if isinstance(function, dict) else ""


def _stretches(text: str, messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int, str]]:
    """Where the contents of the turns, and the names that they call, stand in a rendered text."""
    position = 0
    for turn in messages:
        content = turn.get("content")
        called = [_tool_name(call) for call in turn.get("tool_calls") or ()]
        for part in (content if isinstance(content, str) else "", *called):
            found = text.find(part.strip(), position) if part.strip() else -1
            if found >= 0:
                position = found + len(part.strip())
                yield found, position, str(turn["role"])


def _role_at(spans: Sequence[tuple[int, int, str]], start: int, end: int) -> str:
    return next((role for first, last, role in spans if first < end and start < last), "template")


def _last_only(shown: ShownRow) -> ShownRow:
    """Trained tokens of the last stretch alone: earlier turns of the assistant are a pair's prompt."""
    tokens, ended, learning = list(shown.tokens), False, False
    for place in range(len(tokens) - 1, -1, -1):
        ended = ended or (learning and not tokens[place].trained)
        learning = learning or tokens[place].trained
        if ended:
            tokens[place] = replace(tokens[place], trained=False)
    return replace(shown, tokens=tuple(tokens))


def _texts(token_ids: Sequence[int], renderer: ChatRenderer) -> Iterator[str]:
    """The text of each token; empty until the bytes of a split character are together."""
    pending: list[int] = []
    for token_id in token_ids:
        pending.append(token_id)
        text = renderer.decode(pending, special=True)
        if text.endswith("\ufffd") and len(pending) < 4:
            yield ""
        else:
            pending = []
            yield text
