"""Files to raw rows: any form, streamed, with every problem at its file and line.

A row stays JSON text: each field keeps the exact characters of its value beside the parsed value,
so what is written out is what was read in.
"""

from tunesmith.data.read.bar import reading
from tunesmith.data.read.chunk import Chunk
from tunesmith.data.read.limits import Limits
from tunesmith.data.read.places import Places, expand, survey
from tunesmith.data.read.source import (
    AUTO,
    FORMS,
    Source,
    open_source,
    parse_chunk,
    parse_each,
    parse_rows,
)
from tunesmith.data.read.stream import STDIN

__all__ = [
    "AUTO",
    "FORMS",
    "STDIN",
    "Chunk",
    "Limits",
    "Places",
    "Source",
    "expand",
    "open_source",
    "parse_chunk",
    "parse_each",
    "parse_rows",
    "reading",
    "survey",
]
