"""rename(2) of everything over everything, wherever it lies: never EXDEV, and the same when mounted again."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.core.conftest import MakeStack
from tests.core.differential import Pair, steps
from tests.core.drivers import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.core.snapshots import inos_of, merged, snapshot
from tests.core.stack import Whiteout
from tests.support import share
from unionfs.core.attrs import ROOT

FORMATS: tuple[Whiteout, Whiteout] = ("aufs", "overlay")
LOWERS = ["lf=1 ld/a=1 ld/s/b=2 le/ mf=1 md/a=1 md/b=2 me/ ml->x", "ld/c=3 md/s/d=4 lp<fifo>:0600"]
UPPER = "uf=9 ud/a=9 ud/s/z ue/ mf=8 md/a=7 md/t/x md/.wh.b me/ wf=1 .wh.gone"
SOURCES = ["lf", "ld", "le", "mf", "md", "me", "uf", "ud", "ue", "ml", "lp", "ld/s", "md/s", "ld/a", "md/a", "ud/s"]
TARGETS = [
    "new",
    "gone",
    "lf",
    "ld",
    "le",
    "mf",
    "md",
    "me",
    "uf",
    "ud",
    "ue",
    "ld/new",
    "md/new",
    "ud/new",
    "md/b",
    "ld/s",
    "le/new",
]


@pytest.mark.parametrize("flags", [0, RENAME_NOREPLACE, RENAME_EXCHANGE], ids=["plain", "noreplace", "exchange"])
@pytest.mark.parametrize("source", SOURCES)
def test_everything_over_everything(source: str, flags: int, tmp_path: Path) -> None:
    """Results, errnos and trees as natively; again after a remount, and as a lower. A refused rename leaves the pair as
    it was, so the next target uses it too; formats of marks and ways of using node ids take turns, and the targets."""
    pair: Pair | None = None
    for number, target in enumerate(TARGETS):
        if not share.has(number + SOURCES.index(source)):
            continue
        if pair is None:
            pair = Pair(tmp_path / str(number), LOWERS, UPPER, FORMATS[number % 2], caching=bool(number & 2))
        before = pair.check()
        pair.do("rename", source, target, flags)
        if pair.check() != before:
            pair.finish()
            pair = None
    if pair is not None:
        pair.finish()


N255, M254 = "n" * 255, "m" * 254
SEQUENCES: dict[str, tuple[list[str], str, str]] = {
    "directory, then its old name again": (
        ["d/a=1 d/s/b=2"],
        "",
        "rename d e; mkdir d; create d/new; rename d f",
    ),
    "file, then its old name again": (
        ["f=1"],
        "",
        "rename f g; create f; rename f h; mkdir f",
    ),
    "twice": (
        ["d/a=1"],
        "",
        "rename d e; rename e f; rename f g",
    ),
    "there and back": (
        ["d/a=1 d/s/b"],
        "",
        "rename d e; rename e d; unlink d/a; rename d e",
    ),
    "into a renamed directory": (
        ["d/a=1 e/b=2 f=3"],
        "",
        "rename d x; rename e x/e; rename f x/e/f; rename x/e e",
    ),
    "out of a renamed directory": (
        ["d/s/a=1 d/f=2"],
        "",
        "rename d e; rename e/s s; rename e/f f",
    ),
    "changes below a renamed directory": (
        ["d/s/a=1 d/s/b=2 d/c=3"],
        "",
        (
            "rename d e; unlink e/s/a; write e/s/b 0 X; create e/s/new; remount; rename e/s e/t; unlink e/t/b; "
            "remount; rmdir e/t; unlink e/t/new; rmdir e/t"
        ),
    ),
    "swap two directories": (
        ["d/a=1 e/b=2"],
        "",
        "exchange d e; create d/x; unlink e/a; exchange d e",
    ),
    "swap three directories": (
        ["d/a=1 e/b=2 f/c=3"],
        "",
        "rename d t; rename e d; rename f e; rename t f",
    ),
    "swap a file and a directory": (
        ["d/a=1 f=2"],
        "",
        "exchange d f; write d 0 X; unlink f/a",
    ),
    "swap parent-child's cousins": (
        ["p/d/a=1 q/e/b=2"],
        "",
        "exchange p/d q/e; exchange p q; remount; exchange p/e q/d",
    ),
    "over a merged directory emptied by whiteouts": (
        ["d/a e/x=1 e/y", "d/b"],
        "d/c",
        "unlink d/a; unlink d/b; rename e d; unlink d/c; rename e d; unlink d/x",
    ),
    "over an empty lower directory": (
        ["d/ e/x=1"],
        "",
        "rename e d; remount; rename d e",
    ),
    "an upper directory over a hidden lower one": (
        ["d/a=1"],
        "e/x=2",
        "unlink d/a; rmdir d; rename e d; remount; create d/a; rename d f",
    ),
    "a directory whose parent is renamed first": (
        ["p/d/a=1"],
        "",
        "rename p q; rename q/d d; rename q d/q",
    ),
    "a chain of redirects": (
        ["a/b/c/f=1"],
        "",
        "rename a/b x; rename x/c y; rename a z; rename y z/y; rename z a; write a/y/f 0 2",
    ),
    "rename, restack, rename": (
        ["d/s/a=1 d/b=2"],
        "",
        (
            "rename d e; restack; rename e/s s; restack; rename s e/s; unlink e/b; restack; rename e d; "
            "unlink d/s/a; restack"
        ),
    ),
    "onto itself": (
        ["f d/"],
        "",
        "rename f f; rename d d; exchange f f",
    ),
    "onto another name of the same file": (
        ["a=1 b==a"],
        "c=2 d==c",
        "rename a b; rename c d; write a 0 X; rename a b",
    ),
    "exchange two names of the same file": (
        ["a=1 b==a"],
        "",
        "exchange a b; write a 0 X",
    ),
    "into its own subtree": (
        ["d/s/t/"],
        "u/v/",
        "rename d d/x; rename d d/s/t/x; rename u u/v/x; exchange d d/s; exchange d/s d; rename d/s d",
    ),
    "over what is opaque": (
        ["d/a"],
        "d/.wh..wh..opq e/.wh..wh..opq e/b",
        "rename e d; rename d f; create f/a",
    ),
    "long names": (
        [f"{N255}/a=1 {M254}=2"],
        "",
        f"rename {N255} d; rename {M254} {N255}; rename d {M254}",
    ),
    "a hidden name reappears below": (
        ["d/a=1", "d/a=2 d/b"],
        "d/.wh.a",
        "rename d e; create e/a; rename e/a e/c; remount; rename e/b e/a",
    ),
    "files between renamed directories": (
        ["p/f=1 q/g=2"],
        "",
        "rename p r; rename q p; rename r/f p/f; rename p/g r/f; rename r q",
    ),
    "symlink to a directory": (
        ["d/a l->d"],
        "",
        "rename l m; rename m d/a; rename d l",
    ),
}


@pytest.mark.parametrize("remounting", [False, True], ids=["", "remounting"])
@pytest.mark.parametrize("caching", [False, True], ids=["", "caching"])
@pytest.mark.parametrize(("lowers", "upper", "text"), SEQUENCES.values(), ids=SEQUENCES)
def test_sequences(
    lowers: list[str],
    upper: str,
    text: str,
    caching: bool,
    remounting: bool,
    whiteout: Whiteout,
    tmp_path: Path,
) -> None:
    pair = Pair(tmp_path, lowers, upper, whiteout, caching=caching)
    for verb, *args in steps(text):
        pair.do(str(verb), *args)
        pair.check()
        if remounting:
            pair.do("remount")
    pair.finish()


def test_nodes_follow_their_files(make: MakeStack) -> None:
    """A node id is the file, not the path: what the kernel knows stays right through renames above and beside it."""
    stack = make("p/d/f=1 q/g=2", caching=True)
    f, g = stack.u.node("p/d/f"), stack.u.node("q/g")
    handle = stack.u.open("p/d/f")
    stack.u.rename("p", "r")
    stack.u.rename("q/g", "r/d/f")
    assert stack.union.read(f, 0, 9) == b"1"
    assert stack.union.read(g, 0, 9) == b"2"
    stack.union.write(g, 0, b"3")
    assert stack.u.read("r/d/f") == b"3"
    stack.u.rename("r/d", "q/e")
    stack.union.write(g, 0, b"4")
    assert stack.u.read("q/e/f") == b"4"
    stack.u.close(handle)


def test_inode_numbers_move_along(make: MakeStack) -> None:
    stack = make("p/d/f=1 p/d/l->x", "p/d/g p/h/", upper="p/u")
    before = inos_of(stack.u)
    stack.u.rename("p", "q")
    stack.u.rename("q/d", "d")
    stack.remount()
    after = inos_of(stack.u)
    assert after == {path.replace(b"p/d", b"d").replace(b"p", b"q"): ino for path, ino in before.items()}


def test_a_renamed_lower_directory_is_not_copied(make: MakeStack) -> None:
    """The point of the redirect mark: no file below is touched."""
    stack = make(" ".join(f"d/s{i}/f{j}=x" for i in range(5) for j in range(5)))
    stack.u.rename("d", "e")
    stack.close()
    assert stack.upper is not None
    assert [path for path in stack.upper.rglob("f*") if path.is_file()] == []
    assert len(snapshot(stack.u)) == 1 + 1 + 5 + 25


@pytest.mark.parametrize("new", [".wh.x", ".wh.", ".wh..wh..opq", "d/.wh.x"])
def test_to_the_name_of_a_mark(new: str, make: MakeStack) -> None:
    stack = make("f d/")
    for flags in (0, RENAME_NOREPLACE):
        with pytest.raises(OSError) as caught:
            stack.u.rename("f", new, flags)
        assert caught.value.errno == errno.EINVAL
    assert merged(stack.u) == "d/ f"


@pytest.mark.parametrize("flags", [RENAME_NOREPLACE | RENAME_EXCHANGE, 4, 8, 1 << 20])
def test_flags_that_are_not_supported(flags: int, make: MakeStack) -> None:
    """RENAME_WHITEOUT (4) and unknown flags: EINVAL (rename(2))."""
    stack = make("a b")
    with pytest.raises(OSError) as caught:
        stack.u.rename("a", "b", flags)
    assert caught.value.errno == errno.EINVAL
    assert merged(stack.u) == "a b"


def test_into_a_removed_directory(make: MakeStack) -> None:
    stack = make("f d/", caching=True)
    d = stack.union.lookup(ROOT, b"d").nodeid
    stack.u.rmdir("d")
    with pytest.raises(FileNotFoundError):
        stack.union.rename(ROOT, b"f", d, b"g")
    stack.union.forget(d)
    assert merged(stack.u) == "f"
