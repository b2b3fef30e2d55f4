"""What an upper changed, from the upper alone: every dialect of marks, and beside it the comparison of whole trees."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.changes.views import compared, listed
from tests.core.flatten import flatten
from tests.core.layers_at_random import layers
from tests.core.trees import MTIME_NS, Item, parse, render, tree
from tests.support import process
from tests.support.timing import limit
from unionfs.changes import listing
from unionfs.changes.objects import Branches, BranchPath

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="trusted attributes and devices need root")

CASES = {
    # name: (lowers top first, upper, expected)
    "nothing": (["a=1"], "", ""),
    "added": (["a=1"], "b=2", "A /b"),
    "added below a new directory": (["a=1"], "d/e/f=2", "A /d, A /d/e, A /d/e/f"),
    "added below an old directory": (["d/a=1"], "d/b=2", "C /d, A /d/b"),
    "changed content": (["a=1"], "a=2", "C /a"),
    "changed content of the same size and time": (["a=abc"], "a=abd", "C /a"),
    "changed mode": (["a=1"], "a=1:0600", "C /a"),
    "changed time": (["a=1"], "a=1@5", "C /a"),
    "changed attribute": (["a=1"], "a=1{user.x=1}", "C /a"),
    "copied up and equal": (["d/a=1 l->x d/p<fifo>"], "d/a=1 l->x d/p<fifo>", ""),
    "a directory copied up and equal": (["d/e/a=1"], "d/e/", ""),
    "a directory's mode": (["d/e/a=1"], "d/e/:0700", "C /d, C /d/e"),
    "a directory's mode says nothing of its content": (["d/a=1 d/b=2"], "d/:0700", "C /d"),
    "file to directory": (["a=1"], "a/b=2", "C /a, A /a/b"),
    "directory to file": (["a/b=1"], "a=2", "C /a"),
    "link to another target": (["l->a"], "l->b", "C /l"),
    "link to file": (["l->a"], "l=a", "C /l"),
    "whiteout, aufs": (["a=1 b=2"], ".wh.a", "D /a"),
    "whiteout, device": (["a=1 b=2"], "a<c:0:0>", "D /a"),
    "whiteout, attribute": (["d/a=1 d/b=2"], "d/{user.overlay.opaque=x} d/a{user.overlay.whiteout=}", "C /d, D /d/a"),
    "whiteout by attribute in a directory that has none": (["d/a=1"], "d/a{user.overlay.whiteout=}", "C /d, C /d/a"),
    "whiteout of a directory": (["d/a=1 d/e/f=2"], ".wh.d", "D /d"),
    "whiteout of what is not there": (["a=1"], ".wh.b c<c:0:0>", ""),
    "whiteout beside the name": (["a=1"], ".wh.a a=2", "C /a"),
    "whiteout beside a directory": (["d/a=1 d/b=2"], ".wh.d d/b=2", "C /d, D /d/a"),
    "nameless whiteout": (["a=1"], ".wh.", ""),
    "names of aufs itself": (["a=1"], ".wh..wh.plnk/ .wh..wh.aufs", ""),
    "opaque, aufs": (["d/a=1 d/b=2"], "d/.wh..wh..opq d/b=2 d/c=3", "C /d, D /d/a, A /d/c"),
    "opaque, overlay": (["d/a=1 d/b=2"], "d/{user.overlay.opaque=y} d/b=2", "C /d, D /d/a"),
    "opaque, fuse-overlayfs": (["d/a=1 d/b=2"], "d/{user.fuseoverlayfs.opaque=y} d/b=x", "C /d, D /d/a, C /d/b"),
    "opaque and empty": (["d/a=1 d/e/f=2"], "d/.wh..wh..opq", "C /d, D /d/a, D /d/e"),
    "opaque over nothing": (["a=1"], "d/.wh..wh..opq d/x=1", "A /d, A /d/x"),
    "opaque over a file": (["d=1"], "d/.wh..wh..opq d/x=1", "C /d, A /d/x"),
    "opaque, one directory down": (["d/e/a=1"], "d/.wh..wh..opq d/e/a=1 d/e/b=2", "C /d, C /d/e, A /d/e/b"),
    "redirect": (
        ["old/a=1 old/e/f=2"],
        ".wh.old new/{user.overlay.redirect=/old}",
        "A /new, A /new/a, A /new/e, A /new/e/f, D /old",
    ),
    "redirect to a sibling": (
        ["d/old/a=1"],
        "d/.wh.old d/new/{user.overlay.redirect=old}",
        "C /d, A /d/new, A /d/new/a, D /d/old",
    ),
    "redirect and more": (
        ["old/a=1 old/b=2"],
        ".wh.old new/{user.overlay.redirect=/old} new/.wh.a new/b=3 new/c=4",
        "A /new, A /new/b, A /new/c, D /old",
    ),
    "redirect within a redirect": (
        ["p/q/r=1"],
        ".wh.p n/{user.overlay.redirect=/p} n/.wh.q n/m/{user.overlay.redirect=/p/q}",
        "A /n, A /n/m, A /n/m/r, D /p",
    ),
    "exchanged": (
        ["a/x=1 a/y=2 b/x=1 b/z=3"],
        "a/{user.overlay.redirect=/b} b/{user.overlay.redirect=/a}",
        "C /a, D /a/y, A /a/z, C /b, A /b/y, D /b/z",
    ),
    "redirect over what was deleted": (
        ["a/x=1 a/same=1 b/same=1"],
        "b/{user.overlay.redirect=/a} .wh.a",
        "D /a, C /b, A /b/x",
    ),
    "redirect that leads nowhere": (["a=1"], "d/{user.overlay.redirect=/gone}", "A /d"),
    "redirect that leads out": (["a=1"], "d/{user.overlay.redirect=../../etc}", "A /d"),
    "several lowers, the upper one counts": (["a=2", "a=1"], "a=2", ""),
    "several lowers, merged directories": (["d/a=1", "d/b=2"], "d/a=1 d/b=2 d/c=3", "C /d, A /d/c"),
    "several lowers, hidden in between": ([".wh.a", "a=1"], "a=1", "A /a"),
    "several lowers, whiteout of what is hidden": ([".wh.a", "a=1"], ".wh.a", ""),
    "several lowers, opaque in between": (["d/.wh..wh..opq d/x=1", "d/y=2"], "d/.wh.y d/x=1", ""),
    "several lowers, file over directory": (["d=1", "d/a=2"], "d/a=2", "C /d, A /d/a"),
    "several lowers, redirect in between": (
        ["n/{user.overlay.redirect=/o} .wh.o", "o/a=1 o/b=2"],
        "n/a=1 n/.wh.b",
        "C /n, D /n/b",
    ),
    "metacopy": (["a=12345"], "a=12345:0600{user.overlay.metacopy=}", "C /a"),
    "private attributes": (["a=1 d/"], "a=1{user.unionfs.origin=x} d/{user.unionfs.y=1,user.overlay.origin=1}", ""),
    "a name that is not UTF-8": (["a=1"], r"\xff\xfe=1 .wh.a", "D /a, A /\udcff\udcfe"),
    "a name too long for its whiteout": (
        ["d/" + "n" * 255 + "=1"],
        "d/" + "n" * 255 + "<c:0:0>",
        "C /d, D /d/" + "n" * 255,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_an_upper_says(case: str, tmp_path: Path) -> None:
    lowers, upper, expected = CASES[case]
    if os.geteuid() != 0 and "<c:" in upper:
        pytest.skip("device nodes need root")
    roots = [tree(tmp_path / f"lower{index}", "./ " + text) for index, text in enumerate(lowers)]
    top = tree(tmp_path / "upper", "./ " + upper)
    assert listed(top, *roots) == (expected.split(", ") if expected else [])


@NEEDS_ROOT
@pytest.mark.parametrize("case", [name for name in CASES if "user.overlay." in CASES[name][1]])
def test_trusted_attributes_say_the_same(case: str, tmp_path: Path) -> None:
    lowers, upper, expected = CASES[case]
    roots = [
        tree(tmp_path / f"lower{index}", "./ " + text.replace("user.overlay", "trusted.overlay"))
        for index, text in enumerate(lowers)
    ]
    top = tree(tmp_path / "upper", "./ " + upper.replace("user.overlay", "trusted.overlay"))
    assert listed(top, *roots) == (expected.split(", ") if expected else [])


@pytest.mark.parametrize(
    ("lower", "upper", "what"),
    [
        ("a=1", "a=22", ("content",)),
        ("a=1", "a=1:0600", ("mode",)),
        ("a=1", "a=1{user.x=1}", ("xattrs",)),
        ("a=1", "a=1@7", ("mtime",)),
        ("a=1", "a->1", ("type",)),
        ("a=1{user.x=1}", "a=2:0600@7", ("content", "mode", "xattrs", "mtime")),
        pytest.param("a=1", "a=1:,5,6", ("owner",), marks=NEEDS_ROOT),
        pytest.param("a<c:1:3>", "a<c:1:5>", ("content",), marks=NEEDS_ROOT),
    ],
)
def test_the_kinds_of_differences(lower: str, upper: str, what: tuple[str, ...], tmp_path: Path) -> None:
    root, top = tree(tmp_path / "lower", lower), tree(tmp_path / "upper", upper)
    with Branches(str(top), [str(root)]) as branches:
        (change,) = listing.changes(branches).changes
    assert (change.kind, change.what) == ("C", what)


def test_mode_of_the_root_is_listed_but_not_how_the_upper_was_made(tmp_path: Path) -> None:
    root, top = tree(tmp_path / "lower", "./:0755"), tree(tmp_path / "upper", "./:0755@5{user.x=1}")
    assert listed(top, root) == []
    top.chmod(0o700)
    assert listed(top, root) == ["C /"]


def test_holes_are_not_read(tmp_path: Path) -> None:
    root, top = tree(tmp_path / "lower", "./"), tree(tmp_path / "upper", "./")
    for directory in (root, top):
        with open(directory / "sparse", "wb") as file:
            file.truncate(1 << 42)  # would take hours
            file.seek(1 << 41)
            file.write(b"data")
        os.utime(directory / "sparse", ns=(MTIME_NS, MTIME_NS))
    assert listed(top, root) == []
    with open(top / "sparse", "r+b") as file:
        file.seek((1 << 41) + 2)
        file.write(b"T")
    os.utime(top / "sparse", ns=(MTIME_NS, MTIME_NS))
    assert listed(top, root) == ["C /sparse"]


def test_a_symlink_in_a_branch_leads_nowhere(tmp_path: Path) -> None:
    """The lower's `d` is a link to a directory that has the upper's file: the walk must not go there."""
    outside = tree(tmp_path / "outside", "a=1")
    root, top = tree(tmp_path / "lower", f"d->{outside}"), tree(tmp_path / "upper", "d/a=1")
    assert listed(top, root) == ["C /d", "A /d/a"]
    root, top = tree(tmp_path / "lower2", "d/a=1"), tree(tmp_path / "upper2", f"d->{outside}")
    assert listed(top, root) == ["C /d"]


def test_deeper_than_path_max(tmp_path: Path) -> None:
    depth, name = 120, "n" * 100
    for branch in ("lower", "upper"):
        here = os.open(tree(tmp_path / branch, "./"), os.O_RDONLY)
        for _ in range(depth):
            os.mkdir(name, 0o755, dir_fd=here)
            deeper = os.open(name, os.O_RDONLY, dir_fd=here)
            os.utime(here, ns=(MTIME_NS, MTIME_NS))
            os.close(here)
            here = deeper
        if branch == "upper":
            os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=here))
        os.utime(here, ns=(MTIME_NS, MTIME_NS))
        os.close(here)
    try:
        lines = listed(tmp_path / "upper", tmp_path / "lower")
        assert len(lines) == depth + 1
        assert lines[-1] == "A " + ("/" + name) * depth + "/new"
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "upper", tmp_path / "lower"], check=True)


def test_hundreds_of_lowers(tmp_path: Path) -> None:
    roots = [tree(tmp_path / f"lower{index}", f"d/f{index}=1 d/same={index}") for index in range(300)]
    top = tree(tmp_path / "upper", "d/.wh.f299 d/f7=1 d/same=0")
    assert listed(top, *roots) == ["C /d", "D /d/f299"]


def test_links_of_unchanged_files_are_known(tmp_path: Path) -> None:
    """`ln a b` copies `a` up; b is a link to the lower's a, and the listing says to which."""
    root, top = tree(tmp_path / "lower", "a=1"), tree(tmp_path / "upper", "a=1 b==a")
    with Branches(str(top), [str(root)]) as branches:
        found = listing.changes(branches)
    assert [change.path for change in found.changes] == [b"/b"]
    st_a = os.lstat(top / "a")
    assert found.unchanged_links == {(st_a.st_dev, st_a.st_ino): b"/a"}


def test_hidden_directories_are_empty(tmp_path: Path) -> None:
    root = tree(tmp_path / "lower", "secret/a=1 d/a=1")
    top = tree(tmp_path / "upper", "secret/a=1 d/a=1")
    assert listed(top, root, hidden=[root / "secret"]) == ["C /secret", "A /secret/a"]


@NEEDS_ROOT
def test_what_is_mounted_in_a_lower_is_not_looked_into(tmp_path: Path) -> None:
    root, top = tree(tmp_path / "lower", "d/"), tree(tmp_path / "upper", "d/a=1")
    script = f"mount -t tmpfs none {root}/d && touch {root}/d/a && exec {sys.executable} -c '{_LIST}' {top} {root}"
    done = process.run(["unshare", "--mount", "sh", "-c", script], check=False)
    assert done.stdout.splitlines() == ["C /d", "A /d/a"], done.stderr


_LIST = """
import sys
from unionfs.changes import listing
from unionfs.changes.objects import Branches
for change in listing.changes(Branches(sys.argv[1], sys.argv[2:])).changes:
    print(change.kind, change.path.decode())
"""


def test_unreadable_lowers_are_skipped_only_if_asked(tmp_path: Path) -> None:
    root, top = tree(tmp_path / "lower", "d/a=1"), tree(tmp_path / "upper", "d/a=1")
    (root / "d").chmod(0)
    try:
        assert as_anybody(_LIST, top, root) == "PermissionError"
        assert as_anybody(_LIST.replace("sys.argv[2:]", "sys.argv[2:], skip_unreadable=True"), top, root) == (
            "C /d\nA /d/a"
        )
    finally:
        (root / "d").chmod(0o755)


def test_an_error_names_the_directory(tmp_path: Path) -> None:
    with Branches(str(tmp_path), []) as branches, pytest.raises(FileNotFoundError) as failed:
        branches.names(BranchPath(0, b"gone"))
    assert failed.value.filename == str(tmp_path / "gone")


def as_anybody(script: str, *arguments: Path) -> str:
    """What `script` prints, or the name of the exception that ends it, where rights count for root, too."""
    without = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = process.run([*without, sys.executable, "-c", script, *arguments], check=False)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.splitlines()[-1].partition(":")[0]


def with_parents(text: str) -> str:
    """The same layer with every directory that its paths imply written out, as flatten() wants it."""
    items = parse(text)
    named = {item.path for item in items if item.kind == stat.S_IFDIR}
    implied = {parent for item in items for parent in parents(item.path)} - named
    return render([Item(path, stat.S_IFDIR) for path in implied]) + " " + text if implied else text


def parents(path: bytes) -> Iterator[bytes]:
    while path := os.path.dirname(path):
        yield path


@settings(max_examples=300, deadline=None)
@given(texts=st.lists(layers(), min_size=1, max_size=4))
def test_agrees_with_comparing_the_whole_trees(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Layers at random: the upper alone says what a walk over both merged trees finds."""
    base = tmp_path_factory.mktemp("random")
    texts = [with_parents(text) for text in texts]
    roots = [tree(base / f"layer{index}", "./ " + text) for index, text in enumerate(texts)]
    old, new = flatten(base / "old", texts[:-1]), flatten(base / "new", texts)
    lines = listed(roots[-1], *reversed(roots[:-1] or [tree(base / "empty", "./")]))
    assert lines == compared(old, new)
    subprocess.run(["rm", "-rf", base], check=True)


@NEEDS_ROOT
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_agrees_with_the_kernels_own_overlay(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The kernel changes files at random on an overlay with redirects and metacopy; its upper is read by us."""
    base = tmp_path_factory.mktemp("kernel")
    script = r"""
set -e
cd "$1"
mount -t tmpfs none . ; cd "$1"
mkdir l1 l2 u w m old new
for i in 1 2 3 4 5; do
    mkdir -p l1/d$i/s l2/d$i/t
    echo one$i > l1/d$i/f; echo two$i > l2/d$i/g; echo $i > l2/d$i/t/h
    ln -s x l1/l$i
done
mount -t overlay o -o lowerdir=l1:l2,upperdir=u,workdir=w,redirect_dir=on,metacopy=on,index=on m
cp -a m/. old
"$3" -c "$4" m "$2"
cp -a m/. new
umount m
exec "$3" -c "$5" "$1"
"""
    change = r"""
import os, random, sys
top, pick = sys.argv[1], random.Random(int(sys.argv[2]))
def paths(want_dirs):
    found = []
    for directory, dirs, files in os.walk(top):
        found += [os.path.join(directory, n) for n in (dirs if want_dirs else files)]
    return sorted(found)
for step in range(14):
    verb = pick.choice(["write", "chmod", "rm", "rmdir", "mkdir", "mvdir", "mvfile", "ln", "touch", "swap"])
    files, dirs = paths(False), paths(True)
    try:
        if verb == "write": open(pick.choice(dirs) + "/new%d" % pick.randrange(3), "a").write("x")
        elif verb == "chmod": os.chmod(pick.choice(files + dirs), pick.choice([0o700, 0o755]), follow_symlinks=True)
        elif verb == "rm": os.unlink(pick.choice(files))
        elif verb == "rmdir": import shutil; shutil.rmtree(pick.choice(dirs))
        elif verb == "mkdir": os.mkdir(pick.choice(dirs) + "/m%d" % pick.randrange(3))
        elif verb == "mvdir": os.rename(pick.choice(dirs), pick.choice(dirs) + "/r%d" % pick.randrange(3))
        elif verb == "mvfile": os.rename(pick.choice(files), pick.choice(dirs) + "/q%d" % pick.randrange(3))
        elif verb == "ln": os.link(pick.choice(files), pick.choice(dirs) + "/k", follow_symlinks=False)
        elif verb == "touch": os.utime(pick.choice(files), ns=(7, 7), follow_symlinks=False)
        elif verb == "swap":
            a, b = pick.sample(dirs, 2)
            os.rename(a, a + ".x"); os.rename(b, a); os.rename(a + ".x", b)
    except OSError:
        pass
"""
    report = r"""
import sys
from pathlib import Path
from tests.changes.views import compared, listed
base = Path(sys.argv[1])
mine, both = listed(base / "u", base / "l1", base / "l2"), compared(base / "old", base / "new")
print("equal" if mine == both else "listed %r\ncompared %r" % (mine, both))
"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(base), str(seed), sys.executable, change, report],
        capture_output=True,
        text=True,
        timeout=limit(120),
        check=False,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert done.stdout.strip() == "equal", done.stdout + done.stderr
