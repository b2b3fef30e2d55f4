"""A union in process: properties without an equivalent in `os`, of branches, of roots and of the union itself."""

from __future__ import annotations

import errno
import gc
import io
import os
import shutil
import signal
import stat
import sys
import tarfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.core.drivers import errno_of
from tests.core.snapshots import fingerprint
from tests.core.stack import open_below
from tests.core.trees import tree
from tests.support.users import User
from unionfs import OptionError, Union

_TOP = "etc/motd=top etc/.wh.gone absolute->/etc/motd up->../../../../etc/motd loop->loop d->/etc dangling->/new"
_BOTTOM = "etc/motd=bottom etc/gone=x etc/hosts=hosts big=x*300000 etc/\\xff=odd s<sock> p<fifo> deep/a/b/c/d=1"


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory: two lowers, which nobody changes, and an empty upper. No descriptor is left open."""
    tree(tmp_path / "top", _TOP)
    tree(tmp_path / "bottom", _BOTTOM)
    (tmp_path / "changes").mkdir()
    monkeypatch.chdir(tmp_path)
    before = fingerprint(tmp_path / "top"), fingerprint(tmp_path / "bottom")
    yield tmp_path
    gc.collect()
    assert open_below(tmp_path) == []
    assert (fingerprint(tmp_path / "top"), fingerprint(tmp_path / "bottom")) == before


@pytest.fixture
def union(base: Path) -> Iterator[Union]:
    with Union(["top", "bottom"], upper="changes") as opened:
        yield opened
        assert opened._guard._core.node_count == 1, "nodes are left"


def test_paths_of_every_kind_lead_to_the_same_file(union: Union) -> None:
    for path in ("etc/motd", "/etc/motd", b"etc/motd", Path("etc/motd"), "absolute", "up", "d/motd", "../../etc/motd"):
        assert union.read_text(path) == "top", path
    assert union.read_text("etc/\udcff") == "odd"
    assert sorted(union.listdir("d")) == ["hosts", "motd", "\udcff"]
    assert union.lstat("absolute").st_size == len("/etc/motd")
    assert errno_of(lambda: union.read_bytes("loop")) == errno.ELOOP
    assert not union.exists("loop")
    with pytest.raises(ValueError, match="null"):
        union.stat("a\0b")


def test_no_symlink_leads_out_of_the_union(union: Union, base: Path) -> None:
    (base / "outside").write_text("secret")
    union.symlink(os.fspath(base / "outside"), "leak")
    union.symlink("../" * 20 + os.fspath(base / "outside"), "leak2")
    for name in ("leak", "leak2"):
        assert not union.exists(name)
        assert errno_of(lambda name=name: union.write_bytes(name, b"x")) == errno.ENOENT  # type: ignore[misc]
    union.write_bytes("dangling", b"made in the union")
    assert union.read_bytes("new") == b"made in the union"
    assert (base / "outside").read_text() == "secret"
    assert not os.path.exists("/new")


def test_which_branch_shows_a_path(union: Union, base: Path) -> None:
    places = {path: union.which(path) for path in ("etc/motd", "etc/hosts", "etc", "big")}
    assert places == {
        "etc/motd": os.fspath(base / "top"), "etc/hosts": os.fspath(base / "bottom"), "etc": os.fspath(base / "top"),
        "big": os.fspath(base / "bottom"),
    }  # fmt: skip
    union.chmod("big", 0o600)
    assert union.which("big") == os.fspath(base / "changes")
    assert errno_of(lambda: union.which("etc/gone")) == errno.ENOENT


def test_open_files_behave_as_those_of_the_builtin(union: Union) -> None:
    with union.open("etc/hosts") as text, union.open("big", "rb") as reader, union.open("n", "w+b") as both:
        assert (type(text), type(reader), type(both)) == (io.TextIOWrapper, io.BufferedReader, io.BufferedRandom)
        assert (text.read(), text.mode, reader.name) == ("hosts", "r", "big")
        reader.seek(-3, os.SEEK_END)
        assert reader.read() == b"xxx"
        shutil.copyfileobj(union.open("big", "rb", 0), both)
        assert both.tell() == 300_000
        with pytest.raises(io.UnsupportedOperation):
            reader.fileno()
    with union.open("t.tar", "wb") as sink, tarfile.open(fileobj=sink, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("member"))
    with union.open("t.tar", "rb") as source, tarfile.open(fileobj=source) as tar:
        assert tar.getnames() == ["member"]
    for mode in ("", "rw", "rr", "rbt", "U"):
        with pytest.raises(ValueError, match="invalid mode"):
            union.open("big", mode)
    for path in ("s", "p"):
        assert errno_of(lambda path=path: union.read_bytes(path)) == errno.ENXIO  # type: ignore[misc]


def test_a_reader_sees_later_writes_and_removed_files(union: Union, base: Path) -> None:
    with union.open("etc/motd", "rb", 0) as reader:
        with union.open("etc/motd", "ab") as writer:
            writer.write(b" and more")
        assert reader.readall() == b"top and more"
        union.remove("etc/motd")
        assert not union.exists("etc/motd")
        reader.seek(0)
        assert reader.readall() == b"top and more"
    assert (base / "changes" / "etc" / ".wh.motd").exists()
    assert [name for name in os.listdir("changes.work") if name != "index"] == [
        name for name in os.listdir("changes.work") if name.startswith("live-")
    ]


def test_files_open_for_writing_are_closed_with_the_union(base: Path) -> None:
    with Union(["bottom"], upper="changes") as union:
        forgotten = union.open("late", "w")
        forgotten.write("not flushed yet")
        union.open("thrown away", "w").write("by whoever opened it")
    assert (base / "changes" / "late").read_text() == "not flushed yet"
    assert (base / "changes" / "thrown away").read_text() == "by whoever opened it"
    with pytest.raises(ValueError, match="closed"):
        union.listdir()
    union.close()


def test_unclosed_files_are_forgotten_when_collected(union: Union) -> None:
    for _ in range(50):
        union.open("etc/hosts").read(1)
    gc.collect()
    union.exists("etc")
    assert union._guard._core.node_count == 1


def test_without_an_upper_nothing_changes(base: Path) -> None:
    with Union(["top", "bottom"]) as union:
        assert (union.upper, union.work) == (None, None)
        for act in (
            lambda: union.mkdir("new"), lambda: union.write_bytes("big", b""), lambda: union.remove("big"),
            lambda: union.rename("big", "b"), lambda: union.chmod("big", 0), lambda: union.rmtree("deep"),
            lambda: union.link("big", "b"), lambda: union.setxattr("big", "user.a", b""), union.changes,
        ):  # fmt: skip
            assert errno_of(act) == errno.EROFS
        assert errno_of(lambda: union.mkdir("etc")) == errno.EEXIST
        assert union.which("big") == os.fspath(base / "bottom")
    assert sorted(os.listdir(base)) == ["bottom", "changes", "top"]


def test_a_tree_deeper_than_a_path_is_removed(union: Union) -> None:
    union.makedirs("/".join(["d" * 200] * 30))
    union.symlink("/etc", "deep/link")
    union.rmtree("d" * 200)
    union.rmtree("deep")
    assert not union.exists("deep")
    assert union.exists("etc/motd")
    assert errno_of(lambda: union.rmtree("/")) == errno.EBUSY
    assert errno_of(lambda: union.rmtree("d")) == errno.ENOTDIR
    assert [(one.kind, one.path) for one in union.changes()] == [("deleted", "/deep")]


def test_walking_prunes_and_goes_bottom_up(union: Union) -> None:
    down = union.walk("deep")
    assert next(down) == ("deep", ["a"], [])
    assert [directory for directory, _, _ in union.walk("deep", topdown=False)] == [
        "deep/a/b/c", "deep/a/b", "deep/a", "deep",
    ]  # fmt: skip
    pruned = []
    for directory, inner, _ in union.walk("deep"):
        pruned.append(directory)
        inner.clear()
    assert pruned == ["deep"]
    failed: list[OSError] = []
    assert list(union.walk("nowhere", onerror=failed.append)) == []
    assert [(one.errno, one.filename) for one in failed] == [(errno.ENOENT, "nowhere")]
    kinds = {one.name: (one.is_dir(), one.is_file(), one.is_symlink()) for one in union.scandir()}
    assert (kinds["d"], kinds["big"], kinds["loop"]) == (
        (True, False, True),
        (False, True, False),
        (False, False, True),
    )


def test_errors_name_the_paths_that_were_given(union: Union) -> None:
    with pytest.raises(FileNotFoundError) as one:
        union.stat(b"etc/none")
    assert one.value.filename == b"etc/none"
    with pytest.raises(FileNotFoundError) as two:
        union.rename("none", "other")
    assert (two.value.filename, two.value.filename2) == ("none", "other")


def test_the_umask_of_the_process_counts_and_stays(union: Union, base: Path) -> None:
    os.umask(0o027)
    union.mkdir("private")
    union.write_bytes("private/file", b"")
    union.makedirs("etc/new")
    union.write_bytes("etc/gone", b"")  # over a whiteout: built aside
    union.write_bytes("etc/hosts", b"copied up")
    assert os.umask(0o022) == 0o027
    modes = {path: stat.S_IMODE(os.stat(base / "changes" / path).st_mode) for path in ("private", "private/file")}
    assert modes == {"private": 0o750, "private/file": 0o640}
    assert stat.S_IMODE(union.stat("etc/gone").st_mode) == 0o640
    assert stat.S_IMODE(union.stat("etc/hosts").st_mode) == 0o644
    assert stat.S_IMODE(union.stat("etc").st_mode) == 0o755


def test_an_upper_has_one_union_at_a_time(union: Union, base: Path) -> None:
    with pytest.raises(OptionError) as caught:
        Union(["bottom"], upper="changes")
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(OptionError) as other_work:
        Union(["bottom"], upper="changes", work="other.work")
    assert other_work.value.errno == errno.ENOENT
    with Union([base / "bottom"]) as reader:
        assert reader.exists("big")


@pytest.mark.parametrize("lowers", ["bottom", b"bottom", Path("bottom")])
def test_one_path_is_no_list_of_lowers(base: Path, lowers: str) -> None:
    with pytest.raises(TypeError, match="a list"):
        Union(lowers)


def test_impossible_branches_are_refused_and_nothing_is_left(base: Path) -> None:
    for lowers, upper, code in (([], None, errno.EINVAL), (["none"], "changes", errno.ENOENT)):
        with pytest.raises(OptionError) as caught:
            Union(lowers, upper=upper)
        assert caught.value.errno == code
    assert sorted(os.listdir(base)) == ["bottom", "changes", "top"]


def test_threads_may_share_a_union(union: Union) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_ in range(20):
                union.makedirs(f"shared/{number}", exist_ok=True)
                union.write_text(f"shared/{number}/{round_}", str(round_))
                assert union.read_text(f"shared/{number}/{round_}") == str(round_)
                union.rename(f"shared/{number}/{round_}", f"shared/{number}-{round_}")
        except BaseException as error:  # noqa: BLE001 - told by the thread that may
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(union.listdir("shared")) == 4 + 80


def test_a_forked_child_cannot_use_the_union_and_removes_nothing(union: Union, base: Path) -> None:
    union.write_bytes("file", b"data")
    with union.open("file", "rb", 0) as held:
        union.remove("file")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                union.listdir()
            except RuntimeError:
                union.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert held.readall() == b"data"
        assert [name for name in os.listdir("changes.work") if name.startswith("live-")] != []


def test_a_call_from_within_a_call_is_refused(union: Union) -> None:
    with union._guard, pytest.raises(RuntimeError, match="within"):
        union.exists("etc")


def test_an_interrupted_call_ends_the_union_and_damages_no_file(base: Path) -> None:
    with Union(["bottom"], upper="changes") as union:
        union.write_bytes("before", b"1")
        with pytest.raises(KeyboardInterrupt), union._guard:
            signal.raise_signal(signal.SIGINT)
        assert errno_of(lambda: union.exists("before")) == errno.EIO
    with Union(["bottom"], upper="changes") as union:
        assert union.read_bytes("before") == b"1"


def test_a_union_that_is_not_closed_says_so(base: Path) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Union(["bottom"], upper="changes").exists("big")
        gc.collect()
    assert [one.category for one in heard] == [ResourceWarning]
    assert sorted(os.listdir("changes.work")) == ["index", "spare"]


def test_rights_are_those_of_the_process(ordinary_user: User, scratch: Path) -> None:
    """As on a mount: what a mode forbids is refused, whoever owns the branches."""
    tree(scratch / "lower", "root=secret:0600 readable=ours closed/:0711 closed/file=x drop/:1777 drop/theirs=x own/")
    ordinary_user.own(scratch / "lower" / "own")
    for name in ("upper", "work"):
        (scratch / name).mkdir()
        ordinary_user.own(scratch / name)
    code = """if True:
        import sys, unionfs
        with unionfs.Union([sys.argv[1] + "/lower"], upper=sys.argv[1] + "/upper", work=sys.argv[1] + "/work") as union:
            def say(act, *args):
                try:
                    print(act.__name__, *args, act(*args))
                except OSError as error:
                    print(act.__name__, *args, error.strerror)
            say(union.read_text, "readable")
            say(union.read_text, "root")
            say(union.listdir, "closed")
            say(union.read_text, "closed/file")
            say(union.write_text, "readable", "x")
            say(union.mkdir, "closed/new")
            say(union.remove, "drop/theirs")
            say(union.chmod, "readable", 0o777)
            say(union.write_text, "own/file", "mine")
            union.chmod("own/file", 0)
            say(union.read_text, "own/file")
            say(union.remove, "own/file")
    """
    done = ordinary_user.run([sys.executable, "-c", code, scratch])
    assert done.stdout.splitlines() == [
        "read_text readable ours",
        "read_text root Permission denied",
        "listdir closed Permission denied",
        "read_text closed/file x",
        "write_text readable x Permission denied",
        "mkdir closed/new Permission denied",
        "remove drop/theirs Operation not permitted",
        "chmod readable 511 Operation not permitted",
        "write_text own/file mine 4",
        "read_text own/file Permission denied",
        "remove own/file None",
    ]


def test_memory_does_not_grow_with_accessed_files(base: Path) -> None:
    tree(base / "many", " ".join(f"d{number % 40}/f{number}=x" for number in range(400)))
    with Union(["many"], upper="changes") as union:
        for directory, _, names in union.walk():
            for name in names:
                union.read_bytes(os.path.join(directory, name))
                union.chmod(os.path.join(directory, name), 0o600)
        assert union._guard._core.node_count == 1
