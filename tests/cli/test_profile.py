"""`unionfs profile`: jobs whose cost is known by construction, each named first and counted exactly."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.layers.explore.test_page import in_browser
from tests.support.mounts import mounted
from tests.support.users import User
from unionfs.profiles import causes
from unionfs.profiles.page import page
from unionfs.profiles.recording import SLOTS_MAX, Recording

FILES = 200
SIZE = 2000
SETTINGS = {"timeout_s": 1e9, "writeback": False, "passthrough": False, "read_only": False, "partial": False}


@contextmanager
def union(user: User, where: Path, *options: str, transport: str = "kernel") -> Iterator[Path]:
    """A fresh mount of FILES files in ten directories, of which the kernel knows nothing yet."""
    for number in range(FILES):
        path = where / f"lower/d{number % 10}/f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * SIZE)
    for name in ("upper", "mnt"):
        (where / name).mkdir()
    user.own(where)
    with mounted(
        [where / "lower"], where / "mnt", user=user, transport=transport, upper=where / "upper", options=options
    ) as mnt:
        yield mnt


def recorded(user: User, mnt: Path, *command: str | Path) -> dict[str, Any]:
    """The one object of `profile --json` for a command."""
    report = mnt.parent / "report.json"
    user.unionfs("profile", mnt, "--json", "-o", report, "--", *command)
    (found,) = json.loads(report.read_text())
    assert found["complete"]
    assert not found["forgot"]
    assert isinstance(found, dict)
    return found


def count(found: dict[str, Any], **wanted: str) -> int:
    rows = [row for row in found["rows"] if all(row[key] == value for key, value in wanted.items())]
    return sum(row["requests"] for row in rows)


def missing(user: User, mnt: Path) -> None:
    script = f"import os\nfor n in range(10000): os.path.exists(f'{mnt}/d1/no{{n}}')"
    found = recorded(user, mnt, sys.executable, "-c", script)
    assert count(found, kind="LOOKUP", reason="missing", directory="/d1") == 10000
    first = found["causes"][0]
    assert (first["name"], first["requests"], first["directory"]) == ("missing-names", 10000, "/d1")
    assert first["program"].startswith("python")
    assert "10000 different ones" in first["what"]


def chown(user: User, mnt: Path) -> None:
    found = recorded(user, mnt, "chown", "-R", str((mnt.parent / "lower/d1").stat().st_uid), mnt)
    first = found["causes"][0]
    assert (first["name"], first["requests"], first["program"]) == ("copied-for-nothing", FILES, "chown")
    assert sum(each["count"] for each in found["copy_ups"]) == FILES
    assert first["size"] == sum(each["size"] for each in found["copy_ups"])


def chmod(user: User, mnt: Path) -> None:
    """One file is written afterwards and one is removed: these copies were for something else."""
    script = f"chmod -R u+w,o-rwx {mnt}; echo more >> {mnt}/d0/f0; rm {mnt}/d1/f1"
    found = recorded(user, mnt, "sh", "-c", script)
    first = found["causes"][0]
    assert (first["name"], first["program"]) == ("copied-for-attributes", "chmod")
    uses = {use: sum(each["count"] for each in found["copy_ups"] if each["use"] == use) for use in ("data", "removed")}
    assert uses == {"data": 1, "removed": 1}
    assert sum(each["count"] for each in found["copy_ups"] if each["use"] == "attributes") == FILES - 2


def hot(user: User, mnt: Path) -> None:
    script = f"f = open('{mnt}/log', 'ab', 0)\nfor n in range(3000): f.write(b'a line of a log ')"
    found = recorded(user, mnt, sys.executable, "-c", script)
    first = found["causes"][0]
    assert (first["name"], first["directory"]) == ("one-file", "/")
    assert first["requests"] == 2999, "one of 3000 writes remains with --writeback"
    assert "/log: 3000 writes of 16 bytes" in first["what"]
    assert found["files"][0]["writes"] == count(found, kind="WRITE") == 3000


def cold(user: User, mnt: Path) -> None:
    found = recorded(user, mnt, "sh", "-c", f"cat {mnt}/d*/f* > /dev/null")
    assert found["causes"][0]["name"] == "cold-cache"
    assert count(found, kind="READ") == FILES
    again = recorded(user, mnt, "sh", "-c", f"cat {mnt}/d*/f* > /dev/null")
    assert count(again, kind="READ") == count(again, kind="LOOKUP") == 0, "as the remedy says"


@pytest.mark.parametrize("job", [missing, chown, chmod, hot, cold])
def test_the_cause_of_a_job_is_named_first(
    job: Callable[[User, Path], None], ordinary_user: User, scratch: Path, fuse_device: Path
) -> None:
    del fuse_device
    with union(ordinary_user, scratch) as mnt:
        job(ordinary_user, mnt)


def test_reasons_for_which_the_kernel_asked(ordinary_user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    script = """
import os, sys
os.chdir(sys.argv[1])
for n in range(30):
    open("d0/f0").read(); os.stat("d0/f0")            # a READ only once: the pages stay
    os.pread(os.open("d0/f10", os.O_RDONLY), 1, 0)
for n in range(30):
    try: os.getxattr("d0/f0", "user.none")
    except OSError: pass
    open("d1/new", "ab", 0).write(b"x"); os.stat("d1/new")
    os.mkdir(f"d2/{n}"); os.stat("d2")
"""
    with union(ordinary_user, scratch) as mnt:
        found = recorded(ordinary_user, mnt, sys.executable, "-c", script, mnt)
    assert count(found, reason="atime") == 1
    assert count(found, kind="GETXATTR", reason="xattr", directory="/d0") == 30
    assert count(found, reason="written") == 30
    assert count(found, reason="changed", directory="/d2") == 30


def test_a_timeout_makes_the_kernel_ask_again(ordinary_user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    script = f"import os\nfor n in range(50): os.stat('{scratch}/mnt/d0/f0')"
    with union(ordinary_user, scratch, "--timeout", "0") as mnt:
        found = recorded(ordinary_user, mnt, sys.executable, "-c", script)
    first = found["causes"][0]
    assert (first["name"], first["requests"]) == ("timeout", count(found, reason="expired"))
    assert count(found, kind="LOOKUP", reason="expired", directory="/d0") == 49


def test_words_a_page_and_exit_codes(ordinary_user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    user = ordinary_user
    with union(user, scratch) as mnt:
        evil = "a<b>\x1b[31m"
        done = user.unionfs(
            "profile", "--html", scratch / "page.html", "--", "sh", "-c",
            f"mkdir '{mnt}/{evil}'; for n in $(seq 50); do [ -e '{mnt}/{evil}/'$n ]; done; exit 7", check=False,
        )  # fmt: skip
        assert done.returncode == 7
        assert done.stdout == ""
        assert "51 lookups were of names that do not exist" in done.stderr
        assert "a<b>\\x1b[31m" in done.stderr
        assert "\x1b" not in done.stderr
        assert user.unionfs("profile", mnt, "--for", "0.1s").stdout.startswith(f"{mnt}: 0 requests")
        assert user.unionfs("profile", mnt, "--", "no-such-command", check=False).returncode == 127
    shown = in_browser(
        (scratch / "page.html").read_text(),
        "return [page.querySelectorAll('svg g').length, page.querySelector('li').textContent, page.scripts.length,"
        "page.body.textContent.includes('a<b>\\\\x1b[31m')]",
    )
    assert shown[0] >= 1, "a time line"
    assert "51 lookups" in shown[1]
    assert shown[2:] == [0, True]


def test_what_cannot_be_profiled_is_refused(ordinary_user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    user = ordinary_user
    with union(user, scratch, transport="pyfuse3") as mnt:
        refused: list[tuple[Sequence[str | Path], int, str]] = [
            ([mnt, "--for", "1"], 125, "its transport does not record the files and processes of its requests"),
            ([mnt], 125, "give either"),
            ([mnt, "--for", "1", "--", "true"], 125, "give either"),
            ([mnt, "true"], 125, "before COMMAND"),
            (["--for", "1"], 125, "--for needs a MOUNTPOINT"),
        ]
        for words, code, why in refused:
            done = user.unionfs("profile", *words, check=False)
            assert (done.returncode, why in done.stderr) == (code, True), done.stderr


# -- what is made of a recording ---------------------------------------------------------------------------------------


def line(at: float, *rows: tuple[str, str, str, int, float], files: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """What a daemon tells: rows of kind, reason, directory, requests and seconds."""
    told = [
        {"kind": kind, "reason": reason, "program": "job", "directory": directory, "requests": requests,
         "size": 10 * requests, "seconds": seconds, "copying": 0.0, "blocked": 0.5 if kind == "WRITE" else 0.0,
         "disk": 0.0}
        for kind, reason, directory, requests, seconds in rows
    ]  # fmt: skip
    return {"rows": told, "files": list(files), "copy_ups": [], "forgot": False, "at": at}


def test_lines_are_summed_and_the_time_line_stays_short() -> None:
    recording = Recording("u", SETTINGS, 10.0)
    for number in range(2 * SLOTS_MAX + 1):
        recording.add(line(11.0 + number, ("LOOKUP", "first", "/a", 2, 0.25), ("READ", "", "/b", 1, 0.125)))
    slots = 2 * SLOTS_MAX + 1
    assert (recording.messages, recording.seconds) == (3 * slots, float(slots))
    assert [(row.directory, row.requests) for row in recording.by("directory")] == [("/a", 2 * slots), ("/b", slots)]
    assert len(recording.slots) == SLOTS_MAX + 1
    first = recording.slots[0]
    assert (first.begin, first.end, first.messages) == (0.0, 2.0, {"LOOKUP": 4, "READ": 2})
    assert sum(sum(slot.messages.values()) for slot in recording.slots) == 3 * slots


def test_each_reason_has_its_remedy() -> None:
    recording = Recording("u", SETTINGS, 0.0)
    rows = [("GETATTR", "atime", "/a", 60, 0.5), ("GETXATTR", "xattr", "/a", 50, 0.25), ("WRITE", "", "/w", 40, 1.0)]
    recording.add(line(1.0, *rows))
    found = {cause.name: cause for cause in causes.causes(recording)}
    assert (found["access-times"].requests, found["access-times"].directory) == (60, "/a")
    assert "read-only volume" in found["access-times"].remedy, "--read-only is no remedy for a job that writes"
    assert found["xattrs"].seconds == 0.25
    assert found["blocked"].seconds == 0.5
    assert next(iter(found)) == "small-writes", "it took longest"
    assert "<li>" in page([recording], "t")
