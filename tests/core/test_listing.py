"""Reading directories while they change: a cookie belongs to an entry, so nothing is lost and nothing comes twice."""

from __future__ import annotations

import itertools
import os
import random
import stat
from pathlib import Path

import pytest

from tests.core.conftest import MakeStack
from tests.core.stack import Stack
from unionfs.core.attrs import ROOT, Caller, DirEntry
from unionfs.core.union import Union

ME = Caller(os.geteuid(), os.getegid())


def take(union: Union, nodeid: int, cookie: int, count: int) -> list[DirEntry]:
    """The next entries after a cookie, as a transport takes what fits into one reply."""
    entries = union.readdir(nodeid, cookie)
    try:
        return list(itertools.islice(entries, count))
    finally:
        entries.close()  # type: ignore[attr-defined]


def read_all(union: Union, nodeid: int, step: int) -> list[bytes]:
    names, cookie = [], 0
    while chunk := take(union, nodeid, cookie, step):
        names += [entry.name for entry in chunk]
        cookie = chunk[-1].cookie
    return names


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_listing_in_steps_is_the_whole_listing(step: int, make: MakeStack) -> None:
    union = make("a b c .wh.e", "c d e f/", upper="g ,wh.x h .wh.b").union
    assert sorted(read_all(union, ROOT, step)) == sorted([b".", b"..", b"a", b"c", b"d", b"f", b"g", b",wh.x", b"h"])


def test_dot_entries_come_first_with_their_numbers(make: MakeStack) -> None:
    stack = make("d/e/f")
    union = stack.union
    d = union.lookup(ROOT, b"d")
    entries = list(union.readdir(d.nodeid, 0))
    assert [(entry.name, entry.cookie, stat.S_IFMT(entry.kind)) for entry in entries[:2]] == [
        (b".", 1, stat.S_IFDIR), (b"..", 2, stat.S_IFDIR),
    ]  # fmt: skip
    assert entries[0].ino == d.attrs.ino
    assert entries[1].ino == union.getattr(ROOT).ino
    assert list(union.readdir(d.nodeid, 1)) == entries[1:]
    assert list(union.readdir(d.nodeid, entries[-1].cookie)) == []
    union.forget(d.nodeid)


def test_looking_into_a_directory_is_no_access(make: MakeStack) -> None:
    stack = make("d/e", upper="d/f")
    assert stack.upper is not None
    places = [stack.lowers[0] / "d", stack.upper / "d"]
    for place in places:
        os.utime(place, ns=(5, 1 << 62))  # older than its mtime: every reading would move it (mount(8), relatime)
    stack.watch()
    before = [place.stat().st_atime_ns for place in places]
    assert stack.u.listing(b"d").keys() == {b"e", b"f"}
    assert [place.stat().st_atime_ns for place in places] == before


def test_listing_a_file(make: MakeStack) -> None:
    union = make("a").union
    a = union.lookup(ROOT, b"a")
    with pytest.raises(NotADirectoryError):
        list(union.readdir(a.nodeid, 0))
    union.forget(a.nodeid)


def test_kinds_are_listed_without_a_lookup(make: MakeStack) -> None:
    union = make("f d/ l->x p<fifo> s<sock>", upper="g e/").union
    kinds = {entry.name: entry.kind for entry in union.readdir(ROOT, 2)}
    assert kinds == {
        b"f": stat.S_IFREG, b"d": stat.S_IFDIR, b"l": stat.S_IFLNK, b"p": stat.S_IFIFO, b"s": stat.S_IFSOCK,
        b"g": stat.S_IFREG, b"e": stat.S_IFDIR,
    }  # fmt: skip


LAYOUTS = {
    "upper only": ([""], [f"n{i:03}" for i in range(200)]),
    "lower only": ([" ".join(f"n{i:03}" for i in range(200))], []),
    "both": ([" ".join(f"n{i:03}" for i in range(0, 200, 2))], [f"n{i:03}" for i in range(1, 200, 2)]),
    "three": (
        [" ".join(f"n{i:03}" for i in range(90)), " ".join(f"n{i:03}" for i in range(60, 150))],
        [f"n{i:03}" for i in range(140, 200)],
    ),
}


@pytest.fixture(params=LAYOUTS)
def two_hundred(request: pytest.FixtureRequest, make: MakeStack) -> Stack:
    lowers, upper = LAYOUTS[request.param]
    return make(*lowers, upper=" ".join(upper))


def test_read_half_delete_all_that_was_read_go_on(two_hundred: Stack) -> None:
    union = two_hundred.union
    first = take(union, ROOT, 0, 102)
    for entry in first[2:]:
        union.unlink(ROOT, entry.name)
    rest = take(union, ROOT, first[-1].cookie, 1000)
    assert sorted(entry.name for entry in first[2:] + rest) == [b"n%03d" % i for i in range(200)]


def test_delete_what_was_not_read_yet(two_hundred: Stack) -> None:
    union = two_hundred.union
    first = take(union, ROOT, 0, 52)
    read = {entry.name for entry in first}
    unread = [b"n%03d" % i for i in range(200) if b"n%03d" % i not in read]
    for name in unread[::2]:
        union.unlink(ROOT, name)
    rest = [entry.name for entry in take(union, ROOT, first[-1].cookie, 1000)]
    assert sorted(rest) == sorted(unread[1::2])


def test_delete_the_entry_of_the_cookie_itself(two_hundred: Stack) -> None:
    union = two_hundred.union
    names, cookie = [], 2
    while chunk := take(union, ROOT, cookie, 1):
        names.append(chunk[0].name)
        cookie = chunk[0].cookie
        union.unlink(ROOT, chunk[0].name)
    assert sorted(names) == [b"n%03d" % i for i in range(200)]
    assert read_all(union, ROOT, 10) == [b".", b".."]


def test_entries_added_meanwhile_do_not_disturb_a_listing(two_hundred: Stack) -> None:
    union = two_hundred.union
    names, cookie, added = [], 2, 0
    while chunk := take(union, ROOT, cookie, 5):
        names += [entry.name for entry in chunk]
        cookie = chunk[-1].cookie
        if added < 300:
            for number in range(added, added + 20):
                union.forget(union.mknod(ROOT, b"new%03d" % number, stat.S_IFREG | 0o600, 0, ME).nodeid)
            added += 20
    assert len(names) == len(set(names))
    assert {b"n%03d" % i for i in range(200)} <= set(names)


def test_rename_and_copy_up_meanwhile(two_hundred: Stack) -> None:
    """Names that stay are seen once, whatever happens to the files behind them."""
    union = two_hundred.union
    names, cookie = [], 2
    untouched = {b"n%03d" % i for i in range(200) if i % 3}
    todo = [b"n%03d" % i for i in range(200)]
    while chunk := take(union, ROOT, cookie, 7):
        names += [entry.name for entry in chunk]
        cookie = chunk[-1].cookie
        for name in todo[:10]:
            if name in untouched:
                entry = union.lookup(ROOT, name)
                union.write(entry.nodeid, 0, b"x")
                union.forget(entry.nodeid)
            else:
                union.rename(ROOT, name, ROOT, b"renamed-" + name)
        del todo[:10]
    assert len(names) == len(set(names))
    assert untouched <= set(names)


@pytest.mark.parametrize("forgetting", [False, True])
def test_random_changes_under_three_readers(two_hundred: Stack, forgetting: bool) -> None:
    """What was there all the time is seen exactly once; what never was is never seen."""
    random_ = random.Random(7)
    union = two_hundred.union
    now = {b"n%03d" % i for i in range(200)}
    ever, always = set(now), [set(now) for _ in range(3)]
    cookies, seen, done = [0, 0, 0], [[], [], []], [False, False, False]  # type: ignore[var-annotated]
    while not all(done):
        for _ in range(random_.randrange(12)):
            name = b"n%03d" % random_.randrange(260)
            if name in now:
                union.unlink(ROOT, name)
                now.discard(name)
                for one in always:
                    one.discard(name)
            else:
                union.forget(union.mknod(ROOT, name, stat.S_IFREG | 0o600, 0, ME).nodeid)
                now.add(name)
                ever.add(name)
        reader = random_.randrange(3)
        if done[reader]:
            continue
        chunk = take(union, ROOT, cookies[reader], random_.randrange(1, 30))
        seen[reader] += [entry.name for entry in chunk]
        cookies[reader] = chunk[-1].cookie if chunk else 0
        done[reader] = not chunk
        if forgetting and random_.random() < 0.2:
            two_hundred.u.forget_all()
    for one, names in zip(always, seen, strict=True):
        assert {name for name in one if names.count(name) != 1} == set()
        assert set(names) - {b".", b".."} <= ever
    assert sorted(read_all(union, ROOT, 50)[2:]) == sorted(now)


def test_cookies_outlive_a_remount(two_hundred: Stack) -> None:
    """A daemon may be replaced under a reader (DESIGN.md, section 4)."""
    first = take(two_hundred.union, ROOT, 0, 77)
    two_hundred.remount()
    rest = take(two_hundred.union, ROOT, first[-1].cookie, 1000)
    assert sorted(entry.name for entry in first[2:] + rest) == [b"n%03d" % i for i in range(200)]


def test_the_whiteout_of_one_entry_does_not_read_the_others(make: MakeStack) -> None:
    """Whiteouts come and go with their names; listings show neither."""
    stack = make("a b c")
    for name in ("a", "b"):
        stack.u.unlink(name)
    assert set(stack.u.names("")) == {b"c"}
    stack.u.create("a")
    assert set(stack.u.names("")) == {b"a", b"c"}
    assert set(stack.remount().names("")) == {b"a", b"c"}


def fill(directory: Path, numbers: range) -> None:
    """Empty files, quickly."""
    directory.mkdir(parents=True, exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for number in numbers:
        os.mknod(b"file-%06d" % number, stat.S_IFREG | 0o644, dir_fd=fd)
    os.close(fd)


def test_100_000_entries_emptied_while_they_are_read(tmp_path: Path) -> None:
    """As rm -r does: read some, remove them, read on; then the directory itself goes. Half of it is in a lower."""
    base = tmp_path / "s"
    fill(base / "lower0" / "big", range(50_000))
    fill(base / "upper" / "big", range(50_000, 100_000))
    stack = Stack(base, "", upper="", whiteout="overlay")
    union = stack.union
    big = union.lookup(ROOT, b"big").nodeid
    cookie, removed = 2, 0
    while chunk := take(union, big, cookie, 700):
        cookie = chunk[-1].cookie
        for entry in chunk:
            union.unlink(big, entry.name)
        removed += len(chunk)
    assert removed == 100_000
    assert read_all(union, big, 10) == [b".", b".."]
    union.rmdir(ROOT, b"big")
    union.forget(big)
    assert read_all(union, ROOT, 10) == [b".", b".."]
    stack.finish()


def test_a_single_lookup_in_a_big_directory_does_not_scan_it(tmp_path: Path) -> None:
    """Told by what is opened for reading: a scan opens the directory, a lookup needs only its O_PATH descriptor."""
    base = tmp_path / "s"
    fill(base / "lower0" / "big", range(20_000))
    stack = Stack(base, "", upper="")
    union = stack.union
    big = union.lookup(ROOT, b"big").nodeid
    scans = 0
    scandir = os.scandir

    def counting(where: int) -> object:
        nonlocal scans
        scans += 1
        return scandir(where)

    os.scandir = counting  # type: ignore[assignment]
    try:
        file = union.lookup(big, b"file-012345")
        with pytest.raises(FileNotFoundError):
            union.lookup(big, b"missing")
    finally:
        os.scandir = scandir
    assert scans == 0
    union.forget(file.nodeid)
    union.forget(big)
    stack.finish()
