"""Bytes of a file: hashed as they pass, watched for changes, expanded within limits."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import zlib
from pathlib import Path
from typing import BinaryIO

from tunesmith.data.read.chunk import Stream, Unreadable
from tunesmith.data.read.limits import Limits, in_words
from tunesmith.errors import DataError, EnvironmentProblem, MissingError

__all__ = ["GZIP", "STDIN", "ZSTD", "Disk", "changed", "expanded", "full_read"]

STDIN = "-"
GZIP, ZSTD = "gzip", "zstd"
_BLOCK_BYTES = 2**16


def changed(path: Path) -> DataError:
    """The error for a file that another program writes while it is read."""
    return DataError(
        f"{path} changed while it was read",
        why="its size, time or content is no longer what it was when reading began",
        fix="close the program that writes it, and run again",
    )


class Disk:
    """A file's bytes as they stand on the disk, or those of stdin, read once from begin to end.

    Attributes:
        n_bytes: read so far.
        is_once: it cannot be opened a second time: stdin or a pipe.

    Raises:
        MissingError: it is not there, no file, or may not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_bytes = 0
        self._digest = hashlib.sha256()
        self._ahead = b""
        if str(path) == STDIN:
            self.stream: BinaryIO = sys.stdin.buffer
            self.is_once = True
        else:
            self.stream, self.is_once = _opened(path)
        self._before = None if self.is_once else _state(self.stream)

    def peek(self, n_bytes: int) -> bytes:
        """The next bytes, which `read` still gives."""
        while len(self._ahead) < n_bytes and (data := self._read(n_bytes - len(self._ahead))):
            self._ahead += data
        return self._ahead[:n_bytes]

    def read(self, n_bytes: int) -> bytes:
        """At most `n_bytes`; nothing at the end."""
        if self._ahead:
            data, self._ahead = self._ahead[:n_bytes], self._ahead[n_bytes:]
        else:
            data = self._read(n_bytes)
        self._digest.update(data)
        self.n_bytes += len(data)
        return data

    def _read(self, n_bytes: int) -> bytes:
        try:
            return self.stream.read(n_bytes)
        except OSError as error:
            raise _missing(self.path, error) from error

    def at_random(self) -> BinaryIO | None:
        """The open file, for forms that are not read from begin to end; None for a pipe.

        `finish` reads the whole file after that.
        """
        return None if self.is_once else self.stream

    def finish(self) -> str:
        """SHA-256 of the whole file; what was not read yet is read for it.

        Raises:
            DataError: the file changed since it was opened.
        """
        if self._before is not None and not self._ahead:
            self.stream.seek(self.n_bytes)
        while self.read(_BLOCK_BYTES):
            pass
        self.refuse_changed()
        if self._before is not None and self._before[0] != self.n_bytes:
            raise changed(self.path)
        return self._digest.hexdigest()

    def refuse_changed(self) -> None:
        """Stop where the file is not what it was.

        Raises:
            DataError: its size or time changed since it was opened.
        """
        if self._before is not None and _state(self.stream) != self._before:
            raise changed(self.path)

    def close(self) -> None:
        """Stdin stays open: it is not ours."""
        if self.stream is not sys.stdin.buffer:
            self.stream.close()


def _opened(path: Path) -> tuple[BinaryIO, bool]:
    """The open file, and whether it is a pipe."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISFIFO(mode):
            return path.open("rb"), stat.S_ISFIFO(mode)
    except OSError as error:
        raise _missing(path, error) from error
    raise MissingError(
        f"{path}: {'a folder, not a file' if stat.S_ISDIR(mode) else 'no file but a device'}",
        fix="name a file",
    )


def _missing(path: Path, error: OSError) -> MissingError:
    return MissingError(
        f"{path} cannot be read: {error.strerror or error}", fix="correct the path or its rights"
    )


def _state(stream: BinaryIO) -> tuple[int, int]:
    """Size and time of the last change."""
    found = os.fstat(stream.fileno())
    return found.st_size, found.st_mtime_ns


def full_read(stream: Stream, n_bytes: int) -> bytes:
    """Exactly `n_bytes`, fewer only at the end: where a pipe pauses must not change the result.

    Raises:
        Unreadable: the stream breaks off and nothing was left before that.
    """
    parts: list[bytes] = []
    n_missing = n_bytes
    try:
        while n_missing and (data := stream.read(n_missing)):
            parts.append(data)
            n_missing -= len(data)
    except Unreadable:
        if not parts:
            raise  # else the next call meets it again: a broken stream stays broken
    return parts[0] if len(parts) == 1 else b"".join(parts)


def expanded(source: Stream, compression: str, limits: Limits) -> Stream:
    """The stream's content without its compression.

    Raises:
        EnvironmentProblem: zstd is asked for and the package for it is not installed.
    """
    if compression == GZIP:
        return _Gunzipped(source, limits)
    if compression == ZSTD:
        return _Unzstd(source, limits)
    return source


class _Expander:
    """What both compressions share: members one after the other, and a bomb is refused."""

    name = ""

    def __init__(self, source: Stream, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._n_in = self._n_out = 0
        self._broken: Unreadable | None = None

    def read(self, n_bytes: int) -> bytes:
        """At most `n_bytes`; nothing at the end."""
        if self._broken is None:
            try:
                return self._next(n_bytes)
            except Unreadable as error:
                self._broken = error
        raise self._broken

    def _next(self, n_bytes: int) -> bytes:
        raise NotImplementedError

    def _take(self, n_bytes: int) -> bytes:
        data = self._source.read(n_bytes)
        self._n_in += len(data)
        return data

    def _counted(self, data: bytes) -> bytes:
        """The data, unless there is by now too much of it."""
        limits = self._limits
        self._n_out += len(data)
        if self._n_out > limits.max_expanded_bytes:
            most = in_words(limits.max_expanded_bytes)
            raise Unreadable(f"the {self.name} data expands to more than {most}")
        if self._n_out > limits.free_bytes and self._n_out > limits.max_ratio * self._n_in:
            raise Unreadable(
                f"the {self.name} data expands to more than {limits.max_ratio:g} times its size "
                f"({in_words(self._n_out)} from {in_words(self._n_in)}): it looks like a bomb"
            )
        return data

    def _cut(self) -> Unreadable:
        return Unreadable(f"the {self.name} data is cut off after byte {self._n_in}")

    def _damaged(self, error: Exception) -> Unreadable:
        return Unreadable(f"damaged {self.name} data before byte {self._n_in}: {error}")


class _Gunzipped(_Expander):
    name = GZIP

    def __init__(self, source: Stream, limits: Limits) -> None:
        super().__init__(source, limits)
        self._member = zlib.decompressobj(31)
        self._tail = b""

    def _next(self, n_bytes: int) -> bytes:
        while True:
            if self._member.eof and not self._next_member():
                return b""
            data = self._tail or self._take(_BLOCK_BYTES)
            if not data:
                raise self._cut()
            try:
                found = self._member.decompress(data, n_bytes)
            except zlib.error as error:
                raise self._damaged(error) from error
            self._tail = self._member.unconsumed_tail
            if found:
                return self._counted(found)

    def _next_member(self) -> bool:
        """Whether another one follows; zeros that fill up a block are none."""
        rest = self._member.unused_data
        while not (rest := rest.lstrip(b"\0")):
            if not (rest := self._take(_BLOCK_BYTES)):
                return False
        self._member = zlib.decompressobj(31)
        self._tail = rest
        return True


class _Unzstd(_Expander):
    """zstd. A block of four bytes may stand for 128 KiB: small steps keep what one yields small."""

    name = ZSTD
    STEP_BYTES = 2**9

    def __init__(self, source: Stream, limits: Limits) -> None:
        super().__init__(source, limits)
        try:
            import zstandard
        except ModuleNotFoundError as error:
            raise EnvironmentProblem(
                "a zstd file needs the package 'zstandard', which is not installed",
                fix="pip install 'tunesmith[data]'",
            ) from error
        self._error = zstandard.ZstdError
        self._maker = zstandard.ZstdDecompressor(max_window_size=2**27)
        self._frame = self._maker.decompressobj()
        self._has_frame = False
        self._tail = b""
        self._ready, self._at = b"", 0

    def _next(self, n_bytes: int) -> bytes:
        while self._at >= len(self._ready):
            if self._frame.eof:
                self._tail = self._frame.unused_data + self._tail
                self._frame, self._has_frame = self._maker.decompressobj(), False
            data = self._tail[: self.STEP_BYTES] or self._take(self.STEP_BYTES)
            self._tail = self._tail[self.STEP_BYTES :]
            if not data:
                if self._has_frame:
                    raise self._cut()
                return b""
            self._has_frame = True
            try:
                self._ready, self._at = self._counted(self._frame.decompress(data)), 0
            except self._error as error:
                raise self._damaged(error) from error
        found = self._ready[self._at : self._at + n_bytes]
        self._at += len(found)
        return found
