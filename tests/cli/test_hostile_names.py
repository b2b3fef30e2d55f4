"""Names of strangers on a terminal: no verb lets one move the cursor, begin a line or turn the text around."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
import tarfile
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from layers.cli import command as layers_command
from unionfs.cli import entry as unionfs_command
from unionfs.containers import record
from unionfs.containers.config import ContainerConfig, RootFilesystem
from unionfs.containers.store import ContainerStore
from unionfs.launcher.spec import Process
from unionfs.printable import printable, printable_line

HOSTILE: Final = "a\x1b[2J\x1b]0;t\x07\r\nunionfs: pwned\u202e\u2028\x9b\\\udcff"
"""Escape sequences, a new line that poses as ours, an override of direction, a separator of lines, C1, no UTF-8."""

_SHOWN: Final = re.compile(r"a\\x1b\[2J\\x1b]0;t\\x07\\x0d\\x0aunionfs: pwned\\xe2\\x80\\xae\\xe2\\x80\\xa8\\xc2\\x9b")
_SERVING: Final = {"snapshotter", "bench", "doctor", "trace", "man", "completion"}  # take no name, or do not end
_BOX: Final = "box"


def _on_terminal(main: Callable[[list[str]], int], argv: list[str], root: Path) -> str:
    """What a command writes to a terminal, which is its stdout and stderr."""
    pid, master = pty.fork()
    if pid == 0:
        status = 99
        try:
            tty.setraw(1)  # the terminal adds and changes nothing
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # no question waits for an answer
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")  # not pytest's
            os.environ |= {"UNIONFS_ROOT": str(root), "HOME": str(root), "TERM": "dumb", "NO_COLOR": "1"}
            os.chdir(root)
            status = main(argv)
        finally:
            os._exit(status)
    written = b""
    try:
        while part := os.read(master, 65536):
            written += part
    except OSError:  # EIO: nobody has the terminal any more
        pass
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 99, written.decode(errors="replace")
    return written.decode("utf-8", "surrogateescape")


def _check(written: str) -> None:
    for line in written.split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.startswith("unionfs: pwned")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with a container whose record, lower and upper are full of such names."""
    lower = os.fsencode(tmp_path / "lower") + os.fsencode(HOSTILE)
    os.makedirs(lower)
    store = ContainerStore(str(tmp_path / "store"))
    rootfs = RootFilesystem((os.fsdecode(lower),))
    config = ContainerConfig(Process((HOSTILE,)), rootfs, labels=((HOSTILE, HOSTILE),))
    box = store.add(record.new(store.root, config, _BOX))
    for name in (HOSTILE, f"d/{HOSTILE}"):
        inner = os.path.join(os.fsencode(box.upper), os.fsencode(name))
        os.makedirs(os.path.dirname(inner), exist_ok=True)
        with open(inner, "wb") as file:
            file.write(b"x")
    other = store.add(record.new(store.root, config, "other"))
    path = Path(other.directory, "container.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": HOSTILE}))
    return tmp_path / "store"


@pytest.mark.parametrize("verb", sorted(set(unionfs_command.VERBS) - _SERVING))
def test_arguments_are_printed_printable(root: Path, verb: str) -> None:
    for argv in ([verb, HOSTILE], [verb, f"--{HOSTILE}"]):
        if verb not in ("run", "try", "create"):
            written = _on_terminal(unionfs_command.main, argv, root)
            _check(written)
    if verb in ("run", "try", "create"):
        _check(_on_terminal(unionfs_command.main, [verb, f"--{HOSTILE}"], root))
        _check(_on_terminal(unionfs_command.main, [verb, "--lower", HOSTILE, "/true"], root))


@pytest.mark.parametrize(
    "argv",
    [
        ["ps", "-a"],
        ["ps", "-a", "--no-trunc"],
        ["ps", "-a", "--format", "{{.Names}} {{.Image}} {{.Command}} {{.Labels}}"],
        ["ps", "-a", "--json"],
        ["inspect", _BOX],
        ["diff", _BOX],
        ["diff", "--cost", _BOX],
        ["logs", _BOX],
        ["why", f"{_BOX}:/{HOSTILE}"],
        ["start", "-a", _BOX],
        ["apply", _BOX],
        ["commit", _BOX, HOSTILE],
        ["cp", f"{_BOX}:/{HOSTILE}", HOSTILE],
        ["export", "-o", HOSTILE, _BOX],
        ["rename", _BOX, HOSTILE],
        ["volume", "create", HOSTILE],
        ["rm", HOSTILE],
        ["container", "prune", "-f"],
    ],
    ids=" ".join,
)
def test_what_records_and_uppers_hold_is_shown_printable(root: Path, argv: list[str]) -> None:
    written = _on_terminal(unionfs_command.main, argv, root)
    _check(written)
    if argv[0] == "why" or argv == ["diff", _BOX]:
        assert _SHOWN.search(written), written


def test_the_layers_verbs_show_names_printable(tmp_path: Path) -> None:
    for number, content in enumerate((b"x", b"yy")):
        with tarfile.open(tmp_path / f"{number}.tar", "w", errors="surrogateescape") as tar:
            member = tarfile.TarInfo(HOSTILE.replace("\\", ""))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    for argv in (
        ["inspect", "0.tar"],
        ["inspect", "--stack", "0.tar", "1.tar"],
        ["diff", "0.tar", "1.tar"],
        ["why", "0.tar", f"/{HOSTILE}"],
        ["check", "0.tar"],
        ["verify", HOSTILE],
        ["unpack", "0.tar", HOSTILE],
        ["pack", HOSTILE, "-o", HOSTILE],
        ["convert", "--to", "overlay", "0.tar", HOSTILE],
        ["squash", HOSTILE],
        ["gc", f"--{HOSTILE}"],
        [HOSTILE],
    ):
        written = _on_terminal(layers_command.main, argv, tmp_path)
        _check(written)
        if argv[0] == "diff":
            assert r"a\x1b[2J" in written


def test_names_look_different_where_they_are_and_messages_can_be_made_printable_twice() -> None:
    assert printable("\\x1b") == r"\\x1b"
    assert printable("\x1b") == printable(b"\x1b") == r"\x1b"
    assert printable("é\u202e\udcff\ud800") == r"é\xe2\x80\xae\xff\xed\xa0\x80"
    assert printable_line(printable(HOSTILE)) == printable(HOSTILE)
    assert printable_line("C:\\x") == "C:\\x"
