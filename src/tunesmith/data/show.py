"""A row as the model sees it: every token with its role, and whether the loss counts it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.config import DataConfig, Recipe
from tunesmith.data.rows import Row
from tunesmith.data.stage import read_files
from tunesmith.errors import MissingError
from tunesmith.registry import nearest
from tunesmith.store import MANIFEST, Artifact

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

    from tunesmith.models.chat import ChatRenderer

__all__ = ["ShownRow", "ShownToken", "find_row", "show"]

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
    """

    where: str
    tokens: tuple[ShownToken, ...]
    meta: Mapping[str, Any]
    rejected: ShownRow | None = None

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
            "meta": dict(self.meta),
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

        text = Text(f"{self.where}\n\n", style="dim")
        for token in self.tokens:
            trained = f" {TRAINED_STYLE}" if token.trained else ""
            text.append(token.text.translate(_VISIBLE), f"not dim {_style(token.role)}{trained}")
        text.append("\n\n")
        for role in dict.fromkeys(token.role for token in self.tokens):
            text.append(f"{role} ", f"not dim {_style(role)}")
        text.append("trained", f"not dim {TRAINED_STYLE}")
        text.append(f"\n{self._counts()}", "not dim")
        if self.rejected:
            text.append("\n\n").append(self.rejected.rich())
        return text

    def plain(self) -> str:
        """Without colour: one line for each stretch of a role, `*` before trained ones."""
        lines = [self.where, ""]
        for (role, trained), run in groupby(self.tokens, lambda token: (token.role, token.trained)):
            text = "".join(token.text for token in run).translate(_VISIBLE).rstrip("\n")
            for part in text.split("\n"):
                lines.append(f"{'*' if trained else ' '} {role:<9} | {part}")
        other = ["", self.rejected.plain()] if self.rejected else []
        return "\n".join([*lines, "", "* = trained", self._counts(), *other])

    def _counts(self) -> str:
        roles = Counter(token.role for token in self.tokens)
        by_role = ", ".join(f"{n} {role}" for role, n in roles.items())
        return f"{len(self.tokens)} tokens ({by_role}); {self.n_trained} trained"


def _style(role: str) -> str:
    return STYLES.get(role, "magenta")


def find_row(
    place: str | Path, recipe: Recipe | None = None, *, split: str = "train", number: int = 1
) -> Row:
    """A row of a sealed dataset's folder, or of a raw file.

    Args:
        place: folder or file.
        recipe: its `data.fields` and `data.system` hold for a raw file; unused for a folder.
        split: which rows of a folder.
        number: which row, from 1.

    Raises:
        MissingError: no such file, split or row.
        DataError: the file's rows are wrong.
        ArtifactError: the folder is no sealed dataset, or damaged.
    """
    path = Path(place)
    if path.is_dir():
        file, rows = _sealed_rows(path, split)
    elif path.is_file():
        config = recipe.data if recipe else DataConfig()
        named = config.fields
        fields = (named.prompt, named.completion) if named else None
        file, rows = path, read_files([path], fields, config.system)
    else:
        raise MissingError(
            f"no dataset at {str(place)!r}",
            why="there is no such file or folder",
            fix="name a sealed dataset's folder or a JSONL file",
        )
    if not 1 <= number <= len(rows):
        raise MissingError(
            f"{file} has no row {number}",
            why=f"it has {len(rows)} rows",
            fix=f"choose a row from 1 to {len(rows)}",
        )
    return rows[number - 1]


def _sealed_rows(folder: Path, split: str) -> tuple[Path, Sequence[Row]]:
    if not (folder / MANIFEST).is_file():
        raise MissingError(
            f"{folder} is not a sealed dataset",
            why=f"it has no {MANIFEST}",
            fix="name the folder of a finished data stage, or one JSONL file",
        )
    artifact = Artifact.open(folder, "data")
    splits = [name.removesuffix(".jsonl") for name in artifact.files if name.endswith(".jsonl")]
    if split not in splits:
        raise MissingError(
            f"{folder} has no split {split!r}{nearest(split, splits)}",
            fix=f"use one of: {', '.join(sorted(splits))}",
        )
    file = artifact.path(f"{split}.jsonl")
    return file, read_files([file])


def show(row: Row, renderer: ChatRenderer) -> ShownRow:
    """Tokens of a row, as training and evaluation render it.

    Raises:
        ModelError: the model's template refuses the conversation.
    """
    if not row.rejected:
        return _shown(row.where, row, row.messages, renderer)
    rejected = _shown(f"{row.where}, rejected", row, [*row.messages[:-1], *row.rejected], renderer)
    chosen = _shown(f"{row.where}, chosen", row, row.messages, renderer)
    return replace(_last_only(chosen), rejected=_last_only(rejected))


def _shown(
    where: str, row: Row, messages: Sequence[Mapping[str, Any]], renderer: ChatRenderer
) -> ShownRow:
    rendered = renderer.render(messages)
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
    return ShownRow(where, tokens, row.meta)


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
