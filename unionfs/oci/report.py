"""The runtime's log: the file of --log, as text or as JSON, a line for each message.

The form is that of runc; engines show the last line of level `error` to their users.
"""

from __future__ import annotations

import json
import os
from typing import Final

from unionfs.printable import printable_line


class Report:
    """A log file, or standard error. A message that cannot be written is lost."""

    def __init__(self, path: str = "", *, as_json: bool = False, debug: bool = False) -> None:
        """Raises: OSError when the file at `path` cannot be opened; empty: standard error."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
        self._fd: Final = os.open(path, flags, 0o644) if path else 2
        self._as_json: Final = as_json
        self._debug: Final = debug
        self.is_file: Final = bool(path)

    def fileno(self) -> int:
        return self._fd

    def error(self, message: str) -> None:
        self._write("error", message)

    def warning(self, message: str) -> None:
        self._write("warning", message)

    def debug(self, message: str) -> None:
        if self._debug:
            self._write("debug", message)

    def _write(self, level: str, message: str) -> None:
        import datetime as dt

        time = dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        if self._as_json:
            line = json.dumps({"level": level, "msg": message, "time": time})
        else:
            line = f"time={json.dumps(time)} level={level} msg={json.dumps(printable_line(message))}"
        try:
            os.write(self._fd, line.encode(errors="replace") + b"\n")
        except OSError:
            return
