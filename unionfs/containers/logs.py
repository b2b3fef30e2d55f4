"""The log of a container (Container.log): the output of its command, as JSON lines like those of docker's json-file.

    {"log": "text of one line\\n", "stream": "stdout", "time": "2026-01-31T12:00:00.000000Z"}

Bytes that are not UTF-8 are stored as lone surrogates, which JSON escapes. One process at a time may write.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from unionfs import store_files
from unionfs.write_all import write_all

_LONGEST: Final = 16 << 10  # bytes of one entry; a longer line continues in the next


class Entry(NamedTuple):
    """One line, or a part of a line without a newline at its end."""

    stream: str  # stdout or stderr
    time: str  # RFC 3339
    text: bytes


class Writer:
    """Appends to the file. Closed with the process."""

    def __init__(self, path: str) -> None:
        self._fd: Final = store_files.open_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def keep(self, stream: str, data: bytes) -> None:
        """Append output of `stream`. Raises: OSError."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        lines = []
        for line in _lines(data):
            for start in range(0, len(line), _LONGEST):
                text = line[start : start + _LONGEST].decode(errors="surrogateescape")
                lines.append(json.dumps({"log": text, "stream": stream, "time": now}) + "\n")
        written = "".join(lines).encode("ascii")
        size = os.fstat(self._fd).st_size
        try:
            write_all(self._fd, written)
        except OSError:
            os.ftruncate(self._fd, size)  # removes a half-written line, to which the next one would be appended
            raise


def _lines(data: bytes) -> list[bytes]:
    """Split after newlines only."""
    lines = data.split(b"\n")
    return [line + b"\n" for line in lines[:-1]] + [line for line in lines[-1:] if line]


class Reader:
    """Reads the file from its beginning, and entries that are appended later."""

    def __init__(self, path: str) -> None:
        self._file: Final = open(store_files.open_file(path, os.O_RDONLY), "rb")  # noqa: SIM115 - closed by `close`
        self._rest = b""  # of an entry that is not completely written yet

    def close(self) -> None:
        self._file.close()

    def entries(self) -> Iterator[Entry]:
        """The entries that were not read before. Damaged lines are left out."""
        while data := self._file.read(1 << 20):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                entry = _entry(line)
                if entry is not None:
                    yield entry


def _entry(line: bytes) -> Entry | None:
    try:
        value = json.loads(line)
        return Entry(value["stream"], value["time"], value["log"].encode(errors="surrogateescape"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
