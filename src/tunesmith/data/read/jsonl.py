"""JSON lines: one object a line."""

from __future__ import annotations

from collections.abc import Iterator

from tunesmith.data.read.chunk import Chunk, Form, Job, Stream
from tunesmith.data.read.lines import BOM, Block, blocks, decoded, too_long
from tunesmith.data.read.objects import Refused, fields_of
from tunesmith.data.rows import BadRow, RawRow, bad_text

__all__ = ["FORM"]

_BLANK = " \t\r\v\f"


def divide(stream: Stream, job: Job) -> Iterator[Chunk]:
    """Blocks of whole lines, without those that are blank throughout."""
    for block in blocks(stream, job.limits):
        data = block.data.removeprefix(BOM) if block.offset == 0 else block.data
        if not data or data.isspace():
            continue
        if block.is_cut:
            fault = (f"{job.file}:{block.first_line}", too_long(job.limits))
            yield Chunk(job.file, job.form, block.first_line, limits=job.limits, problems=(fault,))
        else:
            yield Chunk(
                job.file,
                job.form,
                block.first_line,
                block.data,
                block.offset,
                limits=job.limits,
            )


def parse(chunk: Chunk) -> Iterator[RawRow | BadRow]:
    """A row for each line that holds a JSON object; every other line that is not blank is bad."""
    data, file, limits = chunk.data, chunk.file, chunk.limits
    block = Block(chunk.first_line, chunk.offset, data)
    last = chunk.first_line + data.count(b"\n")
    no_texts: list[BadRow] = []

    def no_text(number: int, what: str, line: bytes) -> None:
        is_long = len(line) > limits.max_row_bytes
        shown = "" if is_long else bad_text(line.decode("utf-8", "backslashreplace"))
        no_texts.append(BadRow(file, number, (what,), shown))

    for number, text in decoded(block, limits, no_text):
        if no_texts:
            yield from no_texts
            no_texts.clear()
        if not text.strip(_BLANK):
            continue
        try:
            fields = fields_of(text.rstrip("\r"), limits.max_depth)
        except Refused as error:
            # Only the last line of a file has no line feed.
            cut = number == last and error.is_cut
            what = f"{'the last line is cut off: ' if cut else ''}{error}"
            yield BadRow(file, number, (what,), bad_text(text.rstrip("\r")))
        else:
            yield RawRow(file, number, fields)
    yield from no_texts


FORM = Form(divide, parse)
