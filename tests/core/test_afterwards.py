"""What a copy-up leaves for after its answer: nothing of it is lost or left behind, and nobody hears of its errors.

Test_copyup, test_crash, test_outside and test_against_model run with answers first, too; test_storms compares.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest

from tests.core.children import expect, in_child
from tests.core.conftest import MakeStack
from tests.core.faults import Faults
from tests.core.pair import Step
from tests.core.snapshots import differences, shape, snapshot
from tests.core.stack import Whiteout
from tests.core.storms import FILES, FIRST, is_ahead, layer, looked_at, prepare, storm
from tests.core.test_crash import Scenario, Trial, check_dying, check_errors, check_kills
from tests.core.trees import MTIME_NS
from unionfs.core import copyup
from unionfs.core.ledger import CopiedUp


@pytest.fixture
def answers_first() -> bool:
    return True


class Calls(Faults):
    """Also logs what only reads data."""

    def install(self) -> None:
        super().install()
        real_open, real_pread = os.open, copyup._pread

        def logged_open(path: bytes, flags: int, *args: int, **kwargs: int) -> int:
            if self._armed and not flags & os.O_CREAT:
                self.log.append("open to read")
            return real_open(path, flags, *args, **kwargs)

        def logged_pread(fd: int, size: int, offset: int) -> bytes:
            if self._armed:
                self.log.append("pread")
            return real_pread(fd, size, offset)

        os.open = logged_open  # type: ignore[assignment]
        copyup._pread = logged_pread  # type: ignore[misc]


COPYING = ["open to read", "open", "pread", "pwrite", "setxattr", "utime"]


class TestGuessing:
    """When a file is copied ahead."""

    @pytest.mark.parametrize(
        ("verb", "args", "own"), [("chmod", (0o600,), []), ("write", (0, b"X"), ["pwrite"])], ids=["chmod", "write"]
    )
    def test_what_was_guessed_needs_only_a_rename(
        self, verb: str, args: tuple[object, ...], own: list[str], make: MakeStack
    ) -> None:
        """Of a file that nobody guessed the bytes are copied between request and answer, of one that was guessed they
        were copied after the answer before."""
        stack = prepare(make)

        def counted() -> list[list[str]]:
            calls = Calls()
            calls.install()
            stack.u.settles = False
            logs = []
            for name in FILES[: FIRST + 2]:
                for part in (lambda name=name: getattr(stack.u, verb)(name, *args), stack.u.run_deferred):
                    calls.log.clear()
                    calls.arm("count", 0)
                    part()
                    calls.disarm()
                    logs.append(list(calls.log))
            return logs[2:]  # the first has its directory copied up as well

        logs = expect(in_child(counted))
        restored = ["utime"]
        assert logs == [
            [*COPYING, "rename", *own],
            restored,
            [*COPYING, "rename", *own],
            [*restored, *COPYING],
            ["rename", *own],
            [*restored, *COPYING],
            ["rename", *own],
            [*restored, *COPYING],
        ]

    def test_a_wrong_guess_doubles_what_is_needed_before_the_next(self, make: MakeStack) -> None:
        stack = prepare(make)
        storm(stack, FILES[:FIRST])
        assert is_ahead(stack)
        at, needed = FIRST + 1, 2
        for _ in range(2):  # another one than the next
            storm(stack, [FILES[at]])
            assert not is_ahead(stack), "made in vain and not removed"
            needed *= 2
            for name in FILES[at + 1 : at + needed]:
                storm(stack, [name])
                assert not is_ahead(stack)
            storm(stack, [FILES[at + needed]])
            assert is_ahead(stack)
            at += needed + 2

    def test_files_may_come_in_the_order_of_their_names(self, make: MakeStack) -> None:
        """As a shell's `*` has them, which is not that of the listing."""
        stack = prepare(make)
        by_name = sorted(FILES)
        assert by_name != FILES
        ahead = []
        for name in by_name:
            storm(stack, [name])
            ahead.append(is_ahead(stack))
        assert ahead[5:-1] == [True] * len(ahead[5:-1])

    def test_a_guess_that_comes_true_makes_good_for_wrong_ones(self, make: MakeStack) -> None:
        stack = prepare(make)
        storm(stack, FILES[:FIRST])
        stack.u.rest()
        storm(stack, FILES[FIRST : FIRST + 5])
        assert is_ahead(stack), "after four instead of two"
        storm(stack, FILES[FIRST + 5 : FIRST + 6])
        storm(stack, FILES[FIRST + 8 : FIRST + 9])
        assert not is_ahead(stack)

    def test_nothing_is_kept_while_nobody_asks(self, make: MakeStack) -> None:
        stack = prepare(make)
        storm(stack, FILES[:FIRST])
        assert is_ahead(stack)
        stack.u.rest()
        assert not is_ahead(stack)
        stack.u.rest()

    def test_nothing_is_kept_by_a_union_that_is_closed(self, make: MakeStack) -> None:
        """Neither a file nor a descriptor, which would keep the branch's filesystem from being unmounted."""
        stack = prepare(make)
        storm(stack, FILES[:FIRST])
        assert is_ahead(stack)
        union = stack.union
        stack.finish()
        del union

    def test_nothing_is_copied_ahead_with_strict_durability(self, make: MakeStack) -> None:
        stack = prepare(make, durability="strict")
        for name in FILES:
            storm(stack, [name])
            assert not is_ahead(stack)

    def test_nothing_is_copied_ahead_where_nobody_promised_to_settle(self, make: MakeStack) -> None:
        stack = prepare(make, answers_first=False)
        for name in FILES:
            storm(stack, [name])
            assert not is_ahead(stack)

    @pytest.mark.parametrize("kind", ["=z*100000", "->content", "<fifo>", "/"])
    def test_what_is_large_or_no_file_is_not_copied_ahead(self, kind: str, make: MakeStack) -> None:
        stack = prepare(make, *["=small"] * FIRST, kind)
        storm(stack, FILES[:FIRST])
        if kind.startswith("=z"):
            assert not is_ahead(stack)
        else:
            assert is_ahead(stack), "the one behind it"
            stack.u.write(FILES[FIRST + 1], 0, b"C")
            assert stack.u.read(FILES[FIRST + 1]) == b"Content"

    def test_a_name_of_several_is_not_copied_ahead(self, make: MakeStack) -> None:
        """The others could change meanwhile."""
        stack = prepare(make, *["=small"] * FIRST, "=linked", f"=={FILES[FIRST]}")
        storm(stack, FILES[:FIRST])
        assert not is_ahead(stack)

    def test_a_directory_that_nobody_has_listed(self, make: MakeStack) -> None:
        stack = make(layer(), caching=True)
        storm(stack, FILES)
        assert not is_ahead(stack)


class TestTimes:
    """The directory of what was copied up."""

    BEFORE = 77_000_000_007

    def test_they_are_as_before_once_it_has_settled(self, make: MakeStack) -> None:
        stack = prepare(make)
        stack.u.settles = False
        for name in FILES:
            stack.u.chmod(name, 0o600)
            stack.u.run_deferred()
            assert stack.u.stat("d").mtime_ns == self.BEFORE
        assert stack.u.stat("").mtime_ns == MTIME_NS

    def test_they_may_wait_until_the_storm_has_passed(self, make: MakeStack) -> None:
        """One directory gets them back once, not after each of its files; nothing else that a copy-up needs of them
        sees it before."""
        stack = prepare(make, *["=content"] * 12, "/")
        stack.u.settles = False
        upper = stack.upper
        assert upper is not None
        for name in FILES[:12]:
            stack.u.chmod(name, 0o600)
            stack.union.run_deferred(times=False)
            assert (upper / "d").stat().st_mtime_ns > MTIME_NS, "not yet"
        stack.u.create(f"{FILES[12]}/new")  # the directory is copied up into the one that waits
        stack.union.put_times_back()
        assert (upper / "d").stat().st_mtime_ns == self.BEFORE
        stack.u.chmod(FILES[13], 0o600)
        stack.union.run_deferred(times=False)
        stack.u.rest()
        assert (upper / "d").stat().st_mtime_ns == self.BEFORE
        stack.u.chmod(FILES[14], 0o600)
        stack.union.run_deferred(times=False)
        stack.u.utime("d", 5, 6)
        stack.u.rest()
        assert (upper / "d").stat().st_mtime_ns == 6

    def test_those_of_another_directory_do_not_wait(self, make: MakeStack) -> None:
        stack = make(f"{layer()} e/@88.0 e/f=content", caching=True)
        stack.u.settles = False
        upper = stack.upper
        assert upper is not None
        for name in (FILES[0], "e/f", FILES[1]):
            stack.u.chmod(name, 0o600)
            stack.union.run_deferred(times=False)
        assert (upper / "e").stat().st_mtime_ns == 88_000_000_000
        stack.union.put_times_back()
        assert (upper / "d").stat().st_mtime_ns == self.BEFORE

    def test_they_do_not_wait_while_others_are_watched(self, make: MakeStack) -> None:
        """Who may change them in the meantime."""
        stack = prepare(make)
        stack.union.watch(lambda _stale: None, lambda _errno: None)
        stack.u.settles = False
        stack.u.chmod(FILES[0], 0o600)
        stack.union.run_deferred(times=False)
        assert stack.upper is not None
        assert (stack.upper / "d").stat().st_mtime_ns == self.BEFORE

    def test_strict_durability_leaves_none(self, make: MakeStack) -> None:
        stack = prepare(make, durability="strict")
        stack.u.settles = False
        stack.u.chmod(FILES[0], 0o600)
        assert stack.upper is not None
        assert (stack.upper / "d").stat().st_mtime_ns == self.BEFORE

    @pytest.mark.parametrize("upto", [1, FIRST, FIRST + 2])
    def test_a_change_in_the_next_request_stays(self, upto: int, make: MakeStack) -> None:
        stack = prepare(make)
        storm(stack, FILES[:upto])
        stack.u.create("d/new")
        changed = stack.u.stat("d").mtime_ns
        assert changed > MTIME_NS
        stack.u.run_deferred()
        stack.u.rest()
        assert stack.u.stat("d").mtime_ns == changed
        storm(stack, FILES[upto:])
        assert stack.u.stat("d").mtime_ns == changed
        assert stack.remount().stat("d").mtime_ns == changed

    def test_times_that_are_set_in_the_next_request_stay(self, make: MakeStack) -> None:
        stack = prepare(make)
        storm(stack, FILES[:FIRST])
        stack.u.utime("d", 5, 6)
        storm(stack, FILES[FIRST:])
        assert stack.u.stat("d").mtime_ns == 6

    def test_a_union_that_ends_before_it_has_settled(self, make: MakeStack) -> None:
        """As when the mount is taken away between request and answer."""
        stack = prepare(make)
        stack.u.settles = False
        storm(stack, FILES[:2])
        assert stack.remount().stat("d").mtime_ns == self.BEFORE

    def test_two_directories_whose_storms_are_mixed(self, make: MakeStack) -> None:
        text = layer() + " " + layer().replace("d/", "e/").replace("@77", "@88")
        stack = looked_at(make(text, caching=True))
        stack.u.listing("e")
        for name in FILES:
            stack.u.stat(name.replace("d/", "e/"))
        for name in FILES:
            storm(stack, [name, name.replace("d/", "e/")])
            assert [stack.u.stat(path).mtime_ns for path in "de"] == [77_000_000_007, 88_000_000_007]
        stack.u.rest()
        assert not is_ahead(stack)


def test_a_sparse_file_copied_ahead_stays_sparse(make: MakeStack) -> None:
    stack = make(layer(), caching=True)
    with open(stack.lowers[0] / FILES[FIRST], "wb") as file:
        os.pwrite(file.fileno(), b"data", 40_960)
        os.truncate(file.fileno(), 64 << 10)
    stack.watch()
    looked_at(stack)
    storm(stack, FILES[:FIRST])
    assert is_ahead(stack)
    storm(stack, [FILES[FIRST]])
    assert stack.upper is not None
    with open(stack.upper / FILES[FIRST], "rb") as copied, open(stack.lowers[0] / FILES[FIRST], "rb") as original:
        assert os.lseek(copied.fileno(), 0, os.SEEK_DATA) == os.lseek(original.fileno(), 0, os.SEEK_DATA) > 0
        assert copied.read() == original.read()


@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize("mode", [0o644, 0o666, 0o444, 0o4755, 0o777])
def test_a_copy_has_its_permissions_whatever_the_umask(mode: int, umask: int, make: MakeStack) -> None:
    stack = prepare(make, *["=content:0640"] * 6, *[f"=content:{mode:04o}"] * 6)

    def modes() -> set[int]:
        os.umask(umask)
        storm(stack, FILES[:6], mode)
        for name in FILES[6:10]:
            stack.u.write(name, 0, b"C")
        assert stack.upper is not None
        return {stat.S_IMODE(os.stat(stack.upper / name).st_mode) for name in FILES[:10]}

    assert expect(in_child(modes)) == {mode}


GUESS = FILES[FIRST]


def _in_place(path: Path) -> None:
    path.write_bytes(b"CHANGED")  # as long as before


def _replaced(path: Path) -> None:
    (path.parent / "temporary").write_bytes(b"CHANGED")
    (path.parent / "temporary").rename(path)


OUTSIDE: dict[str, Callable[[Path], object]] = {
    "written": _in_place,
    "replaced": _replaced,
    "longer": lambda path: path.write_bytes(b"much longer"),
    "another mode": lambda path: path.chmod(0o751),
    "another attribute": lambda path: os.setxattr(path, "user.k", b"v"),
    "other times": lambda path: os.utime(path, ns=(8, 9)),
    "another name": lambda path: os.link(path, path.parent / "name"),
}


@pytest.mark.parametrize("outside", OUTSIDE)
def test_a_lower_file_that_others_change_is_copied_anew(outside: str, make: MakeStack) -> None:
    """What was copied before is not what the file is now."""
    stack = prepare(make)
    for name in FILES[:FIRST]:
        stack.u.setxattr(name, b"user.mine", b"1")
    assert is_ahead(stack)
    path = stack.lowers[0] / GUESS
    OUTSIDE[outside](path)
    stack.watch()
    stack.u.setxattr(GUESS, b"user.mine", b"1")
    assert stack.upper is not None
    copied, now = stack.upper / GUESS, path
    assert copied.read_bytes() == now.read_bytes()
    assert (copied.stat().st_mode, copied.stat().st_mtime_ns) == (now.stat().st_mode, now.stat().st_mtime_ns)
    assert {name for name in os.listxattr(copied) if name.startswith("user.k")} == {
        name for name in os.listxattr(now) if name.startswith("user.k")
    }
    assert stack.u.read(GUESS) == now.read_bytes()


@pytest.mark.parametrize("watches", [False, True], ids=["it is some time ago", "others are watched"])
def test_what_was_copied_a_moment_ago_is_believed_in(watches: bool, make: MakeStack) -> None:
    """By the first look at a request; what lies longer back, or may be changed by others, is looked at again."""
    stack = prepare(make)
    if watches:
        stack.union.watch(lambda _stale: None, lambda _errno: None)
    storm(stack, FILES[:FIRST])
    afterwards = stack.union._tree.afterwards
    assert afterwards is not None
    ready = afterwards.ready
    assert ready is not None
    ready.until = perf_counter() + 100
    assert afterwards.seen(ready.node) is ready.st
    assert afterwards.seen(stack.union._nodes.file(stack.u.node(FILES[FIRST + 1]))) is None
    if not watches:
        ready.until = perf_counter()
        assert afterwards.seen(ready.node) is None
    _in_place(stack.lowers[0] / GUESS)
    stack.watch()
    assert stack.union.copyup_begin(ready.node.nodeid) is None
    stack.u.chmod(GUESS, 0o600)
    assert stack.upper is not None
    assert (stack.upper / GUESS).read_bytes() == b"CHANGED"


def test_each_copy_up_is_counted_once_and_only_if_it_was_asked_for(make: MakeStack) -> None:
    stack = prepare(make, *["=x*5000"] * 6)
    told: list[CopiedUp] = []
    ledger = stack.union.ledger
    ledger.listeners = (told.append,)
    storm(stack, FILES[:FIRST])
    assert is_ahead(stack)
    assert (ledger.files, ledger.bytes) == (FIRST, FIRST * 5000)
    storm(stack, FILES[FIRST:8])
    assert is_ahead(stack)
    storm(stack, FILES[9:10])
    stack.u.rest()
    asked = FILES[:8] + FILES[9:10]
    assert [entry.path.decode() for entry in told if entry.kind == "file"] == asked
    assert {entry.path.decode(): entry.copied for entry in told if entry.kind == "file"} == {
        name: 5000 if name in FILES[:6] else len("content") for name in asked
    }
    assert (ledger.files, ledger.bytes) == (9, 6 * 5000 + 3 * len("content"))
    assert ledger.directories == 1


# -- errors and kills -------------------------------------------------------------------------------------------------

SMALL = [layer("=1", "=2", "=3", "=4{user.k=v}", "=x*5000") + " other/o=6"]
LOOKED: tuple[Step, ...] = (("listing", "d"), *(("stat", name) for name in FILES[:6]))
GUESSED: tuple[Step, ...] = (*LOOKED, *(("chmod", name, 0o600) for name in FILES[:FIRST]))

STORMS: dict[str, Scenario] = {
    "copying ahead": Scenario(("chmod", FILES[FIRST - 1], 0o600), GUESSED[:-1]),
    "using it": Scenario(("chmod", GUESS, 0o600), GUESSED),
    "using it for a write": Scenario(("write", GUESS, 0, b"C"), GUESSED),
    "using it with other permissions": Scenario(("chmod", GUESS, 0o640), GUESSED),
    "truncating it": Scenario(("truncate", GUESS, 0), GUESSED),
    "giving it up": Scenario(("chmod", FILES[FIRST + 2], 0o600), GUESSED),
    "removing it": Scenario(("unlink", GUESS), GUESSED),
    "removing it while it is open": Scenario(("unlink", GUESS), GUESSED, GUESS),
    "renaming it": Scenario(("rename", GUESS, "other/g"), GUESSED),
    "renaming another over it": Scenario(("rename", "other/o", GUESS), GUESSED),
    "linking it": Scenario(("link", GUESS, "other/g"), GUESSED),
    "renaming its directory": Scenario(("rename", "d", "other/d"), GUESSED),
}


def trial(base: Path, name: str, whiteout: Whiteout) -> Trial:
    return Trial(base, STORMS[name], whiteout, answers_first=True, lowers=SMALL, upper="")


every_storm = pytest.mark.parametrize("name", STORMS)


@every_storm
def test_killed_before_any_step(name: str, tmp_path: Path) -> None:
    """Of a verb or of what comes after its answer: the old tree or the new one, and the next mount sweeps."""
    check_kills(trial(tmp_path, name, "overlay"))


@every_storm
def test_an_error_at_any_step(name: str, tmp_path: Path) -> None:
    """Nobody hears of one after the answer, and nothing stays."""
    check_errors(trial(tmp_path, name, "aufs"), "fail")


@every_storm
def test_no_space_from_any_step_on(name: str, tmp_path: Path) -> None:
    check_errors(trial(tmp_path, name, "overlay"), "full")


@every_storm
def test_a_filesystem_that_fails_from_any_step_on(name: str, tmp_path: Path) -> None:
    check_dying(trial(tmp_path, name, "aufs"))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_of_copying_ahead_is_told_to_who_asks(
    code: int, make: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks for the file tries again, and hears what comes of that."""
    stack = prepare(make)
    storm(stack, FILES[: FIRST - 1])
    broken = []

    def read(fd: int, size: int, offset: int) -> bytes:
        if os.path.samestat(os.fstat(fd), os.stat(stack.lowers[0] / GUESS)):
            broken.append(fd)
            raise OSError(code, os.strerror(code))
        return os.pread(fd, size, offset)

    monkeypatch.setattr(copyup, "_pread", read)
    storm(stack, FILES[FIRST - 1 : FIRST])
    assert len(broken) == 1
    assert not is_ahead(stack)
    with pytest.raises(OSError, match=os.strerror(code)):
        stack.u.chmod(GUESS, 0o600)
    assert len(broken) == 2
    assert stack.u.stat(GUESS).mode == stat.S_IFREG | 0o644
    monkeypatch.setattr(copyup, "_pread", os.pread)
    storm(stack, FILES[FIRST:])
    assert {stack.u.stat(name).mode for name in FILES} == {stat.S_IFREG | 0o600}
    assert {stack.u.read(name) for name in FILES} == {b"content"}


def test_a_guess_that_cannot_be_placed_is_copied_by_the_next_try(
    make: MakeStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = prepare(make)
    storm(stack, FILES[:FIRST])
    before = shape(snapshot(stack.u))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(stack.union._tree.staging, "publish", refuse)
        with pytest.raises(OSError, match="quota"):
            stack.u.chmod(GUESS, 0o600)
    stack.u.rest()
    assert not is_ahead(stack)
    assert differences(before, shape(snapshot(stack.u))) == ""
    storm(stack, FILES[FIRST:])
    assert {stack.u.stat(name).mode for name in FILES} == {stat.S_IFREG | 0o600}
