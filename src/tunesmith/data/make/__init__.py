"""Builders: the user's own material to rows, each with its origin, each claim checked.

from pathlib import Path
from tunesmith.data.make import make_sql, write
write(make_sql(Path("shop.sqlite")), Path("rows.jsonl"))
"""

from tunesmith.data.make.classify import ClassifyOptions, make_classify
from tunesmith.data.make.code_docs import CodeDocsOptions, make_code_docs
from tunesmith.data.make.extract import ExtractOptions, make_extract
from tunesmith.data.make.rows import Dropped, Made, lines_of, write
from tunesmith.data.make.sql import SqlOptions, make_sql, read_names, words_used
from tunesmith.data.make.support import SupportOptions, make_support

__all__ = [
    "ClassifyOptions",
    "CodeDocsOptions",
    "Dropped",
    "ExtractOptions",
    "Made",
    "SqlOptions",
    "SupportOptions",
    "lines_of",
    "make_classify",
    "make_code_docs",
    "make_extract",
    "make_sql",
    "make_support",
    "read_names",
    "words_used",
    "write",
]
