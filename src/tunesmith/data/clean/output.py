"""What a cleaning leaves: the clean rows, two side files and a report, written whole or not at all."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, BinaryIO

from tunesmith.data.clean.keeping import Kept, Ruling
from tunesmith.data.read import expand
from tunesmith.errors import UsedDirectoryError
from tunesmith.store import flush_to_disk, storage_errors, writing_folder

__all__ = ["OUT_FILES", "put_out", "refuse_foreign_folder", "side_line"]

ROWS, DROPPED, CHANGED, REPORT = "rows.jsonl", "dropped.jsonl", "changed.jsonl", "report.json"
OUT_FILES = (ROWS, DROPPED, CHANGED, REPORT)


def refuse_foreign_folder(folder: Path, files: Sequence[Path | str] = ()) -> None:
    """Stop before a folder is replaced that holds anything but an earlier cleaning of these files.

    Args:
        files: what is read.

    Raises:
        UsedDirectoryError: it does.
        StorageError: the disk refuses to say what is there.
    """
    with storage_errors(folder):
        _refuse_foreign(folder, files)


def _refuse_foreign(folder: Path, files: Sequence[Path | str]) -> None:
    own = folder.resolve()
    read = [file for file in map(Path, files) if own in (file.resolve(), file.resolve().parent)]
    if read:
        raise UsedDirectoryError(
            f"{read[0]} is read, and {folder} would be replaced with it",
            why="the rows that the cleaning before dropped would be lost",
            fix="name another folder with --out",
        )
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    if REPORT in names and set(names) <= set(OUT_FILES):
        cleaned = _cleaned(folder / REPORT)
        if cleaned is not None:
            _refuse_other(folder, cleaned, files)
            return
    other = next((name for name in names if name not in OUT_FILES), names[0] if names else "")
    raise UsedDirectoryError(
        f"{folder} holds {other!r}, which no cleaning wrote" if names else f"{folder} is a file",
        why="the folder is replaced as a whole, and what it holds would be lost",
        fix="name another folder with --out",
    )


def _refuse_other(folder: Path, cleaned: Sequence[str], files: Sequence[Path | str]) -> None:
    """Stop before the result of other files is lost; that of the same files, by other rules, may go."""
    before, now = ([os.path.realpath(file) for file in some] for some in (cleaned, expand(files)))
    if before != now:
        raise UsedDirectoryError(
            f"{folder} holds what was cleaned of {', '.join(cleaned) or 'no file'}",
            why="the rows that were dropped and changed there would be lost",
            fix="name another folder with --out, or delete that one",
        )


def _cleaned(report: Path) -> list[str] | None:
    """The files of an earlier cleaning; None where the report is no report of one."""
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not {"rows_in", "rows_out", "files"} <= found.keys():
        return None
    files = found["files"] if isinstance(found["files"], list) else []
    return [str(file["path"]) for file in files if isinstance(file, dict) and "path" in file]


def side_line(ruling: Ruling) -> str:
    """A row's line in a side file: `where`, `rule`, `reason`, the row as it came, and `to` as it is now.

    A row that several rules changed names them all.
    """
    dropped = ruling.dropped_by
    if dropped is not None:
        rule, reason = dropped
    else:
        rule = ", ".join(dict.fromkeys(rule for _, rule, _ in ruling.steps))
        reason = "; ".join(reason for _, _, reason in ruling.steps)
    head = json.dumps({"where": ruling.where, "rule": rule, "reason": reason}, ensure_ascii=False)
    after = f', "to": {ruling.now}' if dropped is None else ""
    return f'{head[:-1]}, "row": {ruling.text}{after}}}'


def put_out(
    kept: Kept, out: Path | BinaryIO, sides: Path | None, report: Mapping[str, Any]
) -> None:
    """Write everything.

    Args:
        out: folder for all files, or a stream for the rows.
        sides: folder for the other files when `out` is a stream; None for none.

    Raises:
        StorageError: the disk refuses; then the folder is as it was before.
    """
    place = out if isinstance(out, Path) else _name_of(out)
    folder = out if isinstance(out, Path) else sides
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        if folder is not None:
            half = stack.enter_context(writing_folder(folder))
            names = OUT_FILES if isinstance(out, Path) else OUT_FILES[1:]
            files = {name: stack.enter_context((half / name).open("wb")) for name in names}
        rows = out if not isinstance(out, Path) else files[ROWS]
        for ruling in kept.rulings():
            if ruling.dropped_by is None:
                with storage_errors(place):
                    rows.write(_bytes(ruling.now or ruling.text))
                if ruling.steps and CHANGED in files:
                    files[CHANGED].write(_bytes(side_line(ruling)))
            elif DROPPED in files:
                files[DROPPED].write(_bytes(side_line(ruling)))
        if REPORT in files:
            files[REPORT].write(_bytes(json.dumps(report, indent=2, ensure_ascii=False)))
        for name, stream in files.items():
            stream.flush()
            flush_to_disk(half / name)
        with storage_errors(place):
            rows.flush()


def _name_of(stream: BinaryIO) -> Path:
    """What an error calls a stream."""
    is_stdout = stream is getattr(sys.stdout, "buffer", None)
    return Path("stdout" if is_stdout else str(getattr(stream, "name", "the stream of rows")))


def _bytes(line: str) -> bytes:
    # Half of a surrogate pair has no UTF-8; this is its escape in JSON.
    return f"{line}\n".encode("utf-8", "backslashreplace")
