"""A root filesystem of a few megabytes: a shell and what scripts need, with the libraries of this machine.

For tests that make many containers, each of which copies the whole root filesystem.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.support.timing import limit

_COMMANDS = (
    *("sh", "ls", "cat", "rm", "mkdir", "mv", "cp", "touch", "stat", "sleep", "ln", "id", "chmod", "chown", "readlink"),
    *("env", "true", "false", "test", "head", "find", "sort", "wc", "hostname", "rmdir", "dd", "grep", "kill", "tty"),
)
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\ngames:x:5:60:games:/usr/games:/bin/sh\n",
    "etc/group": "root:x:0:\ntty:x:5:\ngames:x:60:\n",
    "etc/motd": "welcome\n",
    "data/gone": "to be deleted\n",
    "data/dir/old": "old\n",
    "data/file": "a file\n",
    "data/kept/deep/down": "kept\n",
}
_DIRECTORIES = ("root", "tmp", "var", "usr/games", "empty")
_TIME = 1_700_000_000


def make(tar: Path) -> Path:
    """Write the root filesystem's tar. Returns `tar`."""
    with tarfile.open(tar, "w") as archive:
        made: set[str] = set()
        for name in _DIRECTORIES:
            _add_directory(archive, name, made)
        for name, text in _TEXTS.items():
            _add(archive, name, text.encode(), 0o644, made)
        _add_link(archive, "data/link", "data/file", tarfile.LNKTYPE)
        _add_link(archive, "data/symlink", "file", tarfile.SYMTYPE)
        for library in sorted({path for command in _COMMANDS for path in _libraries(_which(command))}):
            _add(archive, library.lstrip("/"), Path(library).read_bytes(), 0o755, made)
        for command in _COMMANDS:
            _add(archive, f"bin/{command}", _which(command).read_bytes(), 0o755, made)
    return tar


def _which(command: str) -> Path:
    found = shutil.which(command)
    assert found is not None, command
    return Path(found)


def _libraries(program: Path) -> list[str]:
    told = subprocess.run(["ldd", program], capture_output=True, text=True, check=False, timeout=limit(30)).stdout
    return re.findall(r"(?:=> |^\s+)(/\S+) \(0x", told, re.MULTILINE)


def _add_directory(archive: tarfile.TarFile, name: str, made: set[str]) -> None:
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        path = "/".join(parts[:depth])
        if path and path not in made:
            made.add(path)
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o1777 if path == "tmp" else 0o755, _TIME
            archive.addfile(entry)


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int, made: set[str]) -> None:
    _add_directory(archive, name.rpartition("/")[0], made)
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), mode, _TIME
    archive.addfile(entry, io.BytesIO(data))


def _add_link(archive: tarfile.TarFile, name: str, target: str, kind: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.mtime = kind, target, _TIME
    archive.addfile(entry)
