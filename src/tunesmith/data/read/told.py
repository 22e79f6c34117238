"""What a file is, told from its first bytes; its name only settles what the content leaves open."""

from __future__ import annotations

import codecs
import json
import re
from dataclasses import dataclass, replace
from pathlib import PurePath

from tunesmith.data.read.chunk import Unreadable
from tunesmith.data.read.delimited import DELIMITERS, dialect_of
from tunesmith.data.read.document import TURN_LISTS
from tunesmith.data.read.limits import Limits
from tunesmith.data.read.lines import BOM
from tunesmith.data.read.markdown import heading_of
from tunesmith.data.read.stream import GZIP, ZSTD, expanded

__all__ = ["HEAD_BYTES", "SUFFIXES", "Told", "promised", "tell"]

HEAD_BYTES = 2**16
UTF8, UTF8_BOM, NOT_UTF8 = "UTF-8", "UTF-8 with a byte order mark", "not UTF-8"
SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".txt": "txt",
    ".text": "txt",
    ".md": "markdown",
    ".markdown": "markdown",
}
"""What a name promises. `.gz` and `.zst` may follow."""
PACKED_SUFFIXES = (".gz", ".zst", ".zstd")
# zstd has 16 magics of frames that readers skip (RFC 8878, 3.1.2); pzstd puts one before each of its frames.
_MAGIC = {b"\x1f\x8b": GZIP, b"\x28\xb5\x2f\xfd": ZSTD} | {
    bytes([number]) + b"\x2a\x4d\x18": ZSTD for number in range(0x50, 0x60)
}
_ROW_LISTS = frozenset(
    ["data", "rows", "train", "examples", "items", "records", "samples", "instances", "entries"]
).union(["results", "dataset", "questions"])
"""Names that a list of rows has in an object on one line; over several lines any name may be one."""
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or an Excel file: unpack it, or save the sheet as CSV",
    b"SQLite format 3\0": "an SQLite database: name it under data.databases, or export a table as CSV",
    b"%PDF": "a PDF: convert it to text or Markdown first",
    b"BZh": "bzip2 data: unpack it, or pack it with gzip or zstd",
    b"\xfd7zXZ\0": "xz data: unpack it, or pack it with gzip or zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"ARROW1": "an Arrow file: save it as Parquet",
    b"\xff\xff\xff\xff": "an Arrow file: save it as Parquet",
    b"Obj\x01": "an Avro file: save it as Parquet or JSON lines",
    b"version https:": "a pointer of Git LFS, not the file: fetch it with `git lfs pull`",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"GIF8": "an image",
    b"\x7fELF": "a program",
    b"\x80\x04\x95": "a pickle, which could run code: save it as JSON lines",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file: save it as CSV or text",
}
_UTF16 = "not UTF-8: it looks like UTF-16; save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)"


@dataclass(frozen=True, slots=True)
class Told:
    """What a file is.

    Attributes:
        form: a name of `FORMS`; empty where the file cannot be read.
        compression: "", "gzip" or "zstd".
        encoding: of the text; empty for Parquet.
        why: what the form was told from.
        delimiter, quote: between and around the cells of a table.
        container: name of the list of rows in a JSON object.
        refused: why the file cannot be read; empty when it can.
    """

    form: str = ""
    compression: str = ""
    encoding: str = ""
    why: str = ""
    delimiter: str = ","
    quote: str = '"'
    container: str = ""
    refused: str = ""


def tell(head: bytes, name: str, *, form: str, limits: Limits) -> Told:
    """What a file is.

    Args:
        head: its first bytes, `HEAD_BYTES` of them where it has so many.
        name: its name or path.
        form: what the user said that it is, or "auto".
    """
    compression = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "")
    is_whole = len(head) < HEAD_BYTES
    if compression:
        head, is_whole, damage = _expanded(head, compression, limits)
        if damage and not head:
            return Told(compression=compression, refused=damage)
    told = _form(head, PurePath(name), form, is_whole=is_whole)
    return replace(told, compression=compression)


def _expanded(head: bytes, compression: str, limits: Limits) -> tuple[bytes, bool, str]:
    """The begin of what was compressed, whether that is all, and what is wrong with it."""
    source = expanded(_Bytes(head), compression, limits)
    parts: list[bytes] = []
    n_missing = HEAD_BYTES
    try:
        while n_missing and (data := source.read(n_missing)):
            parts.append(data)
            n_missing -= len(data)
    except Unreadable as error:
        # That the head is cut off is what a head is. What else is wrong is met again by reading.
        return b"".join(parts), False, str(error)
    return b"".join(parts), bool(n_missing), ""


class _Bytes:
    """Bytes at hand, as a stream."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, n_bytes: int) -> bytes:
        found, self._data = self._data[:n_bytes], self._data[n_bytes:]
        return found


def _form(head: bytes, name: PurePath, form: str, *, is_whole: bool) -> Told:
    suffix = promised(str(name))
    if form == "parquet" or (form == "auto" and head.startswith(b"PAR1")):
        return Told("parquet", why="its first bytes" if form == "auto" else "form: parquet")
    if form == "auto" and (refused := _foreign(head)):
        return Told(refused=refused)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _has_many_nuls(head):
        return Told(refused=_UTF16 if _looks_utf16(head) else "binary data, not text")
    encoding, text = _decoded(head, is_whole=is_whole)
    told = _asked(text, form, is_whole=is_whole) if form != "auto" else None
    told = told or _as_json(text, suffix, is_whole=is_whole)
    is_bare = not _unpacked(name).suffix
    told = told or _as_text(text, suffix, is_whole=is_whole, is_bare=is_bare)
    if suffix == "parquet" and told.form in ("txt", "markdown"):
        return Told(refused="not Parquet, as its name says: its first bytes are not PAR1")
    return replace(told, encoding=encoding)


def _decoded(head: bytes, *, is_whole: bool) -> tuple[str, str]:
    """The encoding, and the text in it; what is wrong is named when the rows are read."""
    content = head.removeprefix(BOM)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=is_whole)
    except UnicodeDecodeError:
        return NOT_UTF8, content.decode("utf-8", "replace")
    return (UTF8 if len(content) == len(head) else UTF8_BOM), text


def promised(name: str) -> str:
    """The form that a file's name promises; "" for none."""
    return SUFFIXES.get(_unpacked(PurePath(name)).suffix.lower(), "")


def _unpacked(name: PurePath) -> PurePath:
    """The name without what says that it is compressed."""
    return name.with_suffix("") if name.suffix.lower() in PACKED_SUFFIXES else name


def _foreign(head: bytes) -> str:
    """What a file of a kind that is not read is; "" for others."""
    for magic in _MAGIC:
        if head.startswith(magic):
            return "compressed twice: unpack it once"
    return next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), "")


def _has_many_nuls(head: bytes) -> bool:
    return head.count(b"\0") > len(head) // 4


def _looks_utf16(head: bytes) -> bool:
    """A byte order mark, or NULs at every other place alone."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    even, odd = head[::2].count(0), head[1::2].count(0)
    return min(even, odd) < max(even, odd) // 8


def _asked(text: str, form: str, *, is_whole: bool) -> Told:
    """The form that the user named, with what else has to be known for it."""
    why = f"form: {form}"
    if form in ("csv", "tsv"):
        (delimiter, quote), _ = dialect_of(text, is_whole=is_whole, wanted=_wanted(form))
        return Told(form, why=why, delimiter=delimiter, quote=quote)
    return Told(form, why=why, container=_container(text) if form == "json" else "")


def _wanted(form: str) -> str:
    return "\t" if form == "tsv" else ","


def _as_json(text: str, suffix: str, *, is_whole: bool) -> Told | None:
    """JSON in one of its forms; None where the content says something else."""
    begin = text.lstrip(" \t\r\n")
    second = begin[1:].lstrip(" \t\r\n")[:1]
    if begin.startswith("[") and (suffix in ("json", "jsonl") or second == "{"):
        return Told("json", why="one list of rows")
    if not begin.startswith("{") or second not in ('"', "}", ""):
        return Told(suffix, why="its name") if suffix in ("json", "jsonl") and begin else None
    first, _, rest = begin.partition("\n")
    is_line = bool(_parses(first))
    if is_line and (rest.strip() or suffix == "jsonl"):
        return Told("jsonl", why="an object a line")
    container = _container(begin)
    if container and (not is_line or suffix == "json" or container in _ROW_LISTS):
        return Told(
            "json", why=f"an object that holds rows under {container!r}", container=container
        )
    if suffix == "jsonl" or is_line or ("\n" not in begin and not is_whole):
        return Told("jsonl", why="an object a line")
    if suffix in ("", "json"):
        return Told("json", why="an object over several lines")
    return None


def _parses(line: str) -> bool:
    try:
        return isinstance(json.loads(line, parse_int=str, parse_float=str), dict)
    except (ValueError, RecursionError):
        return False


_SCAN = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
_KEY_END = re.compile(r"[ \t\r\n]*:[ \t\r\n]*")
_NEXT_KEY = re.compile(r"[ \t\r\n]*,[ \t\r\n]*")
_OPENS_LIST = re.compile(r"\[[ \t\r\n]*\{")


def _container(text: str) -> str:
    """Name of the first list of objects in the object that begins here; "" for none in sight."""
    begin = text.lstrip(" \t\r\n")
    at = len(begin) - len(begin[1:].lstrip(" \t\r\n")) if begin.startswith("{") else len(begin)
    while at < len(begin):
        try:
            name, at = _SCAN.raw_decode(begin, at)
            colon = _KEY_END.match(begin, at)
            if not isinstance(name, str) or colon is None:
                return ""
            if _OPENS_LIST.match(begin, colon.end()) and name not in TURN_LISTS:
                return name
            _, at = _SCAN.raw_decode(begin, colon.end())
        except (ValueError, RecursionError):
            return ""
        comma = _NEXT_KEY.match(begin, at)
        if comma is None:
            return ""
        at = comma.end()
    return ""


def _as_text(text: str, suffix: str, *, is_whole: bool, is_bare: bool) -> Told:
    """A table, Markdown or plain text. In code and settings `#` begins a comment: only a name that
    says nothing at all (`is_bare`) leaves Markdown to the content."""
    if suffix in ("csv", "tsv") or (not suffix and text.strip()):
        (delimiter, quote), n_cells = dialect_of(text, is_whole=is_whole, wanted=_wanted(suffix))
        if suffix or n_cells > 1:
            form = "tsv" if delimiter == "\t" else "csv"
            why = f"{n_cells} cells a line" if n_cells > 1 else "its name"
            why += f", with a {DELIMITERS[delimiter]} between them" if n_cells > 1 else ""
            return Told(form, why=why, delimiter=delimiter, quote=quote)
    if suffix == "markdown":
        return Told("markdown", why="its name")
    if is_bare and any(heading_of(line) for line in text.split("\n")):
        return Told("markdown", why="a line that is a heading")
    if suffix in ("json", "jsonl"):
        return Told(suffix, why="its name")
    why = "its name" if suffix == "txt" else "text that is none of the other forms"
    return Told("txt", why=why)
