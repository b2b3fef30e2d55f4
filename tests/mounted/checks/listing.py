"""readdir(3), getdents(2), telldir(3), seekdir(3): complete, without doubles, stable while the directory changes."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter

from tests.mounted.checking import check, fails, names, opened, same, write
from tests.mounted.libc import DirStream, dir_stream, getdents

_MANY = 2_000
_LARGE = 400
_SOME = 150


def _many_files() -> None:
    os.mkdir("many")
    for number in range(_MANY):
        os.close(os.open(f"many/file-{number:06}", os.O_WRONLY | os.O_CREAT))


def _large_directory() -> None:
    os.mkdir("large")
    for number in range(_LARGE):
        os.close(os.open(f"large/file-{number:06}", os.O_WRONLY | os.O_CREAT))


def _some_files() -> None:
    os.mkdir("some")
    for number in range(_SOME):
        write(f"some/name {number}", b"x")


@check("d/f=1 d/e/ d/l->f d/p| d/g==d/f")
def entries_agree_with_stat() -> None:
    """readdir(3): d_ino is st_ino and d_type the kind, of every entry, before and after changes."""
    write("d/new", b"x")
    os.chmod("d/f", 0o600)
    os.rename("d/e", "d/e2")
    with dir_stream("d") as stream:
        entries = {entry.name: entry for entry in stream}
    same(sorted(entries), [b".", b"..", b"e2", b"f", b"g", b"l", b"new", b"p"])
    for name, entry in entries.items():
        status = os.lstat(b"d/" + name)
        same(entry.ino, status.st_ino, name)
        same(entry.kind, stat.S_IFMT(status.st_mode) >> 12, name)
    same(entries[b"f"].ino, entries[b"g"].ino)


@check("d/e/f=1")
def dot_and_dot_dot() -> None:
    """readdir(3): . and .. are listed once, with the numbers that stat gives for them."""
    for name in ("d", "d/e"):
        with dir_stream(name) as stream:
            entries = list(stream)
        numbers = {entry.name: entry.ino for entry in entries}
        same(len(numbers), len(entries), "no doubles")
        same(numbers[b"."], os.stat(name).st_ino)
        same(numbers[b".."], os.stat(f"{name}/..").st_ino)


@check(prepare=_large_directory)
def a_large_directory_is_listed_whole() -> None:
    """getdents(2): every entry exactly once, with small buffers and with large ones."""
    want = Counter([b".", b"..", *(b"file-%06d" % number for number in range(_LARGE))])
    for size in (512, 32_768, 1 << 20):
        with opened("large") as fd:
            got: Counter[bytes] = Counter()
            while entries := getdents(fd, size):
                got.update(entry.name for entry in entries)
        assert got == want, f"buffer of {size}: {list((got - want) + (want - got))[:5]}"


@check(prepare=_many_files, timeout_s=120)
def emptied_while_it_is_read() -> None:
    """readdir(3), POSIX: entries removed while reading may or may not come; all others come exactly once (rm -rf)."""
    seen: Counter[str] = Counter()
    with os.scandir("many") as entries:
        for entry in entries:
            seen[entry.name] += 1
            os.unlink(f"many/{entry.name}")
    same(len(seen), _MANY)
    same(max(seen.values()), 1)
    same(names("many"), [])
    os.rmdir("many")


@emptied_while_it_is_read.then
def emptied_while_it_is_read_after_a_remount(_state: object) -> None:
    same(names(), [])


@check(prepare=_some_files)
def filled_while_it_is_read() -> None:
    """readdir(3), POSIX: entries that are there all the time come exactly once, whatever is added meanwhile."""
    with opened("some") as fd:
        seen: Counter[bytes] = Counter()
        number = 0
        while entries := getdents(fd, 1024):
            for entry in entries:
                seen[entry.name] += 1
                if number < 100:
                    write(f"some/added {number}", b"")
                    os.rename(f"some/added {number}", f"some/renamed {number}")
                    number += 1
    for name in range(_SOME):
        same(seen[b"name %d" % name], 1, name)
    assert max(seen.values()) == 1
    same(len(names("some")), _SOME + 100)


def _places(stream: DirStream) -> list[tuple[int, bytes]]:
    """Read the stream to its end. Returns the position and the name of each entry."""
    places: list[tuple[int, bytes]] = []
    while True:
        position = stream.tell()
        entry = stream.read()
        if entry is None:
            return places
        places.append((position, entry.name))


@check(prepare=_some_files)
def positions_can_be_found_again() -> None:
    """telldir(3), seekdir(3): a position leads back to the same entry."""
    with dir_stream("some") as stream:
        places = _places(stream)
        same(len(places), _SOME + 2)
        for position, name in (*places[::17], *places[::-23]):
            stream.seek(position)
            entry = stream.read()
            assert entry is not None
            same(entry.name, name)
            same(stream.tell(), entry.offset)
        stream.rewind()
        same(len(list(stream)), _SOME + 2)


@check(prepare=_some_files)
def positions_survive_removals() -> None:
    """seekdir(3): a position still leads to its entry when others before and after it were removed."""
    with dir_stream("some") as stream:
        places = _places(stream)
        for index, (_, name) in enumerate(places):
            if index % 3 and name not in (b".", b".."):
                os.unlink(b"some/" + name)
        for position, name in places[::3]:
            if name not in (b".", b".."):
                stream.seek(position)
                entry = stream.read()
                assert entry is not None
                same(entry.name, name)


@check(prepare=_some_files)
def two_readers_do_not_disturb_each_other() -> None:
    """readdir(3): every open directory has a position of its own."""
    with dir_stream("some") as one, dir_stream("some") as two:
        first = [entry.name for _, entry in zip(range(50), one, strict=False)]
        all_of_two = [entry.name for entry in two]
        rest = [entry.name for entry in one]
    same(sorted(first + rest), sorted(all_of_two))


@check("d/f=1")
def rewinding_shows_what_is_new() -> None:
    """rewinddir(3): afterwards the stream shows the directory as it is now."""
    with dir_stream("d") as stream:
        same(sorted(entry.name for entry in stream), [b".", b"..", b"f"])
        write("d/new", b"x")
        os.unlink("d/f")
        stream.rewind()
        same(sorted(entry.name for entry in stream), [b".", b"..", b"new"])


@check("f=hello d/ gone/")
def what_cannot_be_listed() -> None:
    """opendir(3): ENOTDIR, ENOENT; a removed directory that is still open lists nothing."""
    fails(errno.ENOTDIR, os.listdir, "f")
    fails(errno.ENOENT, os.listdir, "nothing")
    with opened("gone") as fd:
        os.rmdir("gone")
        same(os.listdir(fd), [])


@check("d/a=1 d/b=2 d/c=3 d/e/x=1")
def listings_follow_every_change() -> None:
    """readdir(3): a listing begun after a change shows it, each of them, many times over."""
    for number in range(40):
        name = f"d/n{number}"
        write(name, b"x")
        same(names("d"), sorted(["a", "b", "c", "e", *(f"n{i}" for i in range(number + 1))]))
    for number in range(40):
        os.unlink(f"d/n{number}")
        assert f"n{number}" not in names("d")
    os.unlink("d/a")
    same(names("d"), ["b", "c", "e"])
    os.mkdir("d/a")
    same(names("d"), ["a", "b", "c", "e"])
    os.rename("d/b", "d/e/b")
    same((names("d"), names("d/e")), (["a", "c", "e"], ["b", "x"]))
