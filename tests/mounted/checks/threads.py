"""Many threads and processes at once: nothing is lost, mixed up or stuck."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable

from tests.mounted.checking import check, exists, names, opened, read, same, write
from tests.mounted.trees import pattern

_THREADS = 20


def _together(work: Callable[[int], None], count: int = _THREADS) -> None:
    """Run work(0), work(1) ... at once; the first exception is raised."""
    failures: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as failure:  # noqa: BLE001 - raised again by the thread that waits
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _shared_files() -> None:
    for number in range(_THREADS):
        write(f"old{number}", pattern(f"old{number}", 50_000))


@check("common=x", prepare=_shared_files, timeout_s=60)
def twenty_threads_with_files_of_their_own() -> None:
    """Every thread creates, writes, reads, renames, lists and removes; what it reads is what it wrote."""

    def work(number: int) -> None:
        dice = random.Random(number)
        os.mkdir(f"d{number}")
        same(read(f"old{number}"), pattern(f"old{number}", 50_000))
        for turn in range(15):
            name = f"d{number}/f{turn}"
            data = dice.randbytes(dice.randrange(1, 20_000))
            write(name, data)
            same(read(name), data)
            os.rename(name, name + "x")
            write(f"old{number}", data, os.O_APPEND)
            same(read("common"), b"x")
            if turn % 3 == 0:
                os.unlink(name + "x")
        same(len(names(f"d{number}")), 10)

    _together(work)
    same(len(names()), 2 * _THREADS + 1)


@check("f=0", timeout_s=60)
def twenty_threads_append_to_one_file() -> None:
    """open(2), O_APPEND: the appends of all threads are there, each whole."""

    def work(number: int) -> None:
        with opened("f", os.O_WRONLY | os.O_APPEND) as fd:
            for turn in range(20):
                os.write(fd, b"[%02d-%02d]" % (number, turn))

    _together(work)
    records = read("f")[1:].replace(b"[", b"").split(b"]")[:-1]
    same(sorted(records), sorted(b"%02d-%02d" % (n, t) for n in range(_THREADS) for t in range(20)))


@check(f"f~{3 << 20}", timeout_s=60)
def twenty_threads_change_one_file_first() -> None:
    """pwrite(2): the first changes of a large file, all at once, are all there."""

    def work(number: int) -> None:
        with opened("f", os.O_RDWR) as fd:
            os.pwrite(fd, b"%02d" % number, number * 100_000)
            same(os.pread(fd, 2, number * 100_000), b"%02d" % number)

    _together(work)
    want = bytearray(pattern("f", 3 << 20))
    for number in range(_THREADS):
        want[number * 100_000 : number * 100_000 + 2] = b"%02d" % number
    assert read("f") == want


@check(f"f~{3 << 20}", timeout_s=60)
def readers_during_the_first_change() -> None:
    """read(2): while a large file is changed for the first time, readers see the old bytes or the new ones."""
    content = pattern("f", 3 << 20)

    def work(number: int) -> None:
        if number == 0:
            with opened("f", os.O_WRONLY) as fd:
                os.pwrite(fd, b"N", 2_000_000)
            return
        with opened("f") as fd:
            for _ in range(10):
                same(os.pread(fd, 100, 1_000_000), content[1_000_000:1_000_100])
                assert os.pread(fd, 1, 2_000_000) in (b"N", content[2_000_000:2_000_001])

    _together(work, 8)
    same(read("f")[2_000_000:2_000_001], b"N")


@check("d/f=1", timeout_s=60)
def twenty_threads_in_one_directory() -> None:
    """mkdir(2), rename(2), unlink(2): of several who do the same exactly one succeeds."""
    won = {"mkdir": 0, "rename": 0, "unlink": 0, "rmdir": 0}
    lock = threading.Lock()

    def attempt(what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except (FileExistsError, FileNotFoundError):
            return
        with lock:
            won[what] += 1

    def work(_number: int) -> None:
        attempt("mkdir", lambda: os.mkdir("d/made"))
        attempt("rename", lambda: os.rename("d/f", "d/g"))

    def undo(_number: int) -> None:
        attempt("unlink", lambda: os.unlink("d/g"))
        attempt("rmdir", lambda: os.rmdir("d/made"))

    _together(work)
    _together(undo)
    same(won, {"mkdir": 1, "rename": 1, "unlink": 1, "rmdir": 1})
    same(names("d"), [])


@check("d/old=1", timeout_s=60)
def listing_while_others_change() -> None:
    """readdir(3): listings taken while others create and remove show what stays, once."""
    stop = threading.Event()

    def work(number: int) -> None:
        if number < 4:
            try:
                for _ in range(60):
                    listed = os.listdir("d")
                    same(listed.count("old"), 1)
                    same(len(listed), len(set(listed)))
            finally:
                stop.set()
            return
        turn = 0
        while not stop.is_set():
            name = f"d/{number}-{turn % 5}"
            write(name, b"x")
            os.unlink(name)
            turn += 1

    _together(work, 8)
    same(names("d"), ["old"])


@check("d/a=1 e/", timeout_s=60)
def directories_move_while_they_are_used() -> None:
    """rename(2): paths through a directory that moves back and forth find the file or ENOENT, never something else."""
    stop = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            for _ in range(60):
                os.rename("d", "e/d")
                os.rename("e/d", "d")
            stop.set()
            return
        while not stop.is_set():
            for path in ("d/a", "e/d/a"):
                try:
                    same(read(path), b"1")
                except FileNotFoundError:
                    continue

    _together(work, 6)
    assert exists("d/a")
    same(names("e"), [])


@check("f=0", timeout_s=60)
def renames_replace_atomically() -> None:
    """rename(2): there is no moment at which the replaced name is missing or half written."""
    stop = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            for turn in range(150):
                write("new", b"%d" % turn * 100)
                os.rename("new", "f")
            stop.set()
            return
        while not stop.is_set():
            got = read("f")
            assert got == b"0" or got == got[: len(got) // 100] * 100, got[:50]

    _together(work, 5)
    same(read("f"), b"149" * 100)


@check("a/b/c/d/e/f=deep x/y/z/", timeout_s=60)
def deep_trees_move_while_others_look_up() -> None:
    """rename(2), path_resolution(7): who walks down, or up by `..`, meets the directories of some moment, or ENOENT.

    Every path leads to one file; a descriptor held in the deep is never without a way up.
    """
    stop = threading.Event()
    moves = (("a/b", "x/y/b"), ("x/y/b/c", "c"), ("c", "x/y/b/c"), ("x/y/b", "a/b"), ("x/y/z", "a/z"), ("a/z", "x/y/z"))
    paths = ("a/b/c/d/e/f", "x/y/b/c/d/e/f", "c/d/e/f")
    inside = os.open("a/b/c/d/e", os.O_RDONLY | os.O_DIRECTORY)
    number = os.fstat(inside).st_ino

    def work(who: int) -> None:
        if who == 0:
            for _ in range(40):
                for old, new in moves:
                    os.rename(old, new)
            stop.set()
            return
        dice = random.Random(who)
        while not stop.is_set():
            try:
                if who % 2:
                    same(read(dice.choice(paths)), b"deep")
                    same(os.stat(dice.choice(paths) + "/..").st_ino, number)
                else:
                    same(os.stat("f", dir_fd=inside).st_size, 4)
                    os.stat("../../../..", dir_fd=inside)
                    os.listdir("x")
            except (FileNotFoundError, NotADirectoryError):
                continue

    _together(work, 6)
    same(read("a/b/c/d/e/f"), b"deep")
    os.close(inside)


@check("d/", timeout_s=60)
def links_and_names_of_one_file_at_once() -> None:
    """link(2), unlink(2), rename(2): the link count is right when many give and take names of one file."""
    write("d/f", b"one")

    def work(who: int) -> None:
        for turn in range(20):
            os.link("d/f", f"d/{who}-{turn}")
            os.rename(f"d/{who}-{turn}", f"d/{who}")
            same(read(f"d/{who}"), b"one")
            os.unlink(f"d/{who}")

    _together(work, 8)
    same((names("d"), os.stat("d/f").st_nlink), (["f"], 1))
