"""The kernel's overlayfs and the union agree: on layers that either may have written, on uppers that the other wrote.

Where they cannot agree, and why:

- AUFS marks (`.wh.`) and fuse-overlayfs's opaque attribute mean nothing to the kernel: only overlay marks are used.
- `redirect` and `metacopy` in the user.* form are not followed by the kernel (overlayfs.rst, "User xattr": it trusts no
  redirects then), so what an ordinary user renamed can be read by unions only.
- Of a hard link that was copied up, the kernel with index=off sees the names that are in the upper, and the lower's old
  content under the others: the index is our own, so hard links are left out here. A copied-up symlink, fifo or device
  has one link more for the kernel, its entry in our index.
- Inode numbers and the sizes of directories are each one's own affair.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.differential import steps
from tests.core.kernel_overlay import Overlay, why_not
from tests.core.layers_at_random import layers
from tests.core.native import Native
from tests.core.snapshots import Snapshot, differences, snapshot
from tests.core.stack import Stack
from tests.core.test_rename import SEQUENCES
from tests.core.trees import Item, parse, render

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def seen_by_kernel(lowers: list[Path], upper: Path | None = None, work: Path | None = None) -> Snapshot:
    """The kernel wants two lowers for a read-only mount; an empty one at the bottom changes nothing."""
    if upper is None:
        empty = lowers[0].parent / "empty"
        empty.mkdir(exist_ok=True)
        lowers = [*lowers, empty]
    return cast(Snapshot, Overlay(lowers, upper, work).run(snapshot))


def plain(found: Snapshot) -> Snapshot:
    """Without link counts and groups (see above)."""
    return {path: snap._replace(nlink=0, group=b"") for path, snap in found.items()}


LAYERS = {
    "merge": ["d/a=1 d/b=2 f=x", "d/b=3 d/c=4 g=y"],
    "whiteouts": ["a<c:0:0> d/x<c:0:0>", "a=1 d/x/y=2 d/z=3", "d/x/q=1"],
    "opaque": ["d/{trusted.overlay.opaque=y} d/a", "d/b", "d/c"],
    "opaque below opaque": [
        "d/e/{trusted.overlay.opaque=y} d/e/a",
        "d/e/b d/f",
        "d/{trusted.overlay.opaque=y} d/e/c",
        "d/g",
    ],
    "types over each other": ["a=1 b/c l->x", "a/b a/c b=2 l/d", "a/z b/y l/e"],
    "attribute whiteouts": [
        "./{trusted.overlay.opaque=x} d/{trusted.overlay.opaque=x} d/a{trusted.overlay.whiteout=}",
        "d/a=1 d/b=2",
    ],
    "absolute redirect": ["n/{trusted.overlay.redirect=/o/p} n/a o/p<c:0:0>", "o/p/b o/q", "o/p/c n/never"],
    "sibling redirect": ["o/n/{trusted.overlay.redirect=p} o/n/a o/p<c:0:0>", "o/p/b o/q", "o/p/c"],
    "redirect through a redirect": [
        "n/{trusted.overlay.redirect=/m} m<c:0:0>",
        "m/{trusted.overlay.redirect=/o} m/b o<c:0:0>",
        "o/c",
    ],
    "redirect past a branch": ["n/{trusted.overlay.redirect=/m} m<c:0:0>", "k", "m/b"],
    "redirect below a redirect": [
        "n/{trusted.overlay.redirect=/m} n/s/{trusted.overlay.redirect=/t} m<c:0:0> t<c:0:0>",
        "m/s/a m/b t/c",
    ],
    "redirect to nowhere": ["n/{trusted.overlay.redirect=/none} n/a", "n/b"],
    "redirect to a file": ["n/{trusted.overlay.redirect=/f} n/a", "n/b f=1"],
    "redirect and opaque": ["n/{trusted.overlay.redirect=/m,trusted.overlay.opaque=y} n/a", "m/b n/c"],
    "swapped": ["d/{trusted.overlay.redirect=/e} e/{trusted.overlay.redirect=/d}", "d/a e/b"],
    "opaque in the middle of a redirect": [
        "n/{trusted.overlay.redirect=/m}",
        "m/{trusted.overlay.opaque=y} m/a",
        "m/b",
    ],
    "whiteout in the middle of a redirect": ["n/{trusted.overlay.redirect=/m} n/a", "m<c:0:0>", "m/b"],
    "modes and owners": [
        "d/:2771,5,6 d/f=1:4711,7,8@5.000000001",
        "d/:0700 d/g:0600 s->t:,3,4 c<c:1:3>:0620 p<fifo>:0610",
    ],
    "attributes": ["d/{user.a=1,trusted.x=y} d/f{user.b=}", "d/{user.c=2} d/g{trusted.z=1}"],
}


@pytest.mark.parametrize("texts", LAYERS.values(), ids=LAYERS)
def test_the_same_view_of_layers(texts: list[str], tmp_path: Path) -> None:
    stack = Stack(tmp_path, *texts, upper=None)
    assert differences(seen_by_kernel(stack.lowers), snapshot(stack.u)) == ""
    stack.finish()


REFUSED_AS_UPPER = "opaque in the middle of a redirect"
"""The kernel answers ESTALE when an upper's redirect leads to an opaque directory above another one."""


@pytest.mark.parametrize("texts", [texts for name, texts in LAYERS.items() if name != REFUSED_AS_UPPER])
def test_the_same_view_with_the_first_layer_as_upper(texts: list[str], tmp_path: Path) -> None:
    stack = Stack(tmp_path, *texts[1:], upper=texts[0], whiteout="overlay")
    got = snapshot(stack.u)
    stack.close()
    assert stack.upper is not None
    assert differences(seen_by_kernel(stack.lowers, stack.upper, fresh_work(tmp_path)), got) == ""


def fresh_work(base: Path) -> Path:
    path = base / "kernel-work"
    path.mkdir()
    return path


def overlay_only(text: str) -> str:
    """The layer with overlay marks instead of what the kernel does not read, and without hard links."""
    chosen: dict[bytes, Item] = {}
    for item in parse(text):
        name = os.path.basename(item.path)
        if item.same is not None or name.startswith(b".wh."):
            continue
        pairs = {
            (b"trusted.overlay.opaque", value)
            if name in (b"user.overlay.opaque", b"user.fuseoverlayfs.opaque")
            else (name, value)
            for name, value in item.xattrs
        }
        chosen[item.path] = item._replace(xattrs=tuple(sorted(pairs)))
    return " ".join(render([item]) for item in chosen.values())


@settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(layers().map(overlay_only), min_size=1, max_size=4))
def test_the_same_view_of_layers_at_random(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    stack = Stack(tmp_path_factory.mktemp("layers"), *texts, upper=None)
    assert differences(seen_by_kernel(stack.lowers), snapshot(stack.u)) == ""
    stack.finish()


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (lowers, upper, _) in SEQUENCES.items()
        if "==" not in f"{lowers}{upper}" and ".wh." not in f"{lowers}{upper}"
    ],
)
def test_the_kernel_reads_what_renames_wrote(name: str, tmp_path: Path) -> None:
    """redirect_dir=on: our redirect marks and the kernel's are the same."""
    lowers, upper, text = SEQUENCES[name]
    stack = Stack(tmp_path, *lowers, upper=upper, whiteout="overlay")
    for verb, *args in steps(text):
        if verb in ("restack", "remount"):
            getattr(stack, str(verb))()
            continue
        try:
            getattr(stack.u, str(verb))(*args)
        except OSError:
            continue
    check_both_ways(stack)


def check_both_ways(stack: Stack) -> None:
    """What we wrote, the kernel shows; after the kernel wrote into it, we show what it does."""
    got = snapshot(stack.u)
    stack.close()
    assert stack.upper is not None
    overlay = Overlay(stack.lowers, stack.upper, fresh_work(stack.base))
    assert differences(plain(cast(Snapshot, overlay.run(snapshot))), plain(got)) == ""

    def change(seen: Native) -> Snapshot:
        for path, snap in snapshot(seen).items():
            if snap.kind == stat.S_IFREG:
                seen.chmod(path, 0o640)
        for number, name in enumerate(sorted(seen.names(""))):
            seen.rename(name, b"kernel-%d" % number)
        seen.mkdir("made-by-kernel")
        return snapshot(seen)

    want = cast(Snapshot, overlay.run(change))
    assert differences(plain(want), plain(snapshot(stack.u))) == ""
    stack.finish()


N255, M254 = "n" * 255, "m" * 254
CHANGES = {
    "removals": ("d/a d/b/c e f/g", "unlink d/a; unlink e; unlink f/g; rmdir f"),
    "made again": ("d/a f/g", "unlink f/g; rmdir f; mkdir f; put f/h 1; unlink d/a; mkdir d/a"),
    "copy-ups": (
        "d/a=1 d/l->x d/p<fifo>:0600 e/f=2{user.k=v}",
        "write d/a 0 2; chmod e/f 600; utime d/p 1 2; chown d/l 5 6",
    ),
    "file for directory": ("d/a e", "unlink d/a; rmdir d; put d x; unlink e; mkdir e"),
    "symlink for directory": ("d/a", "unlink d/a; rmdir d; symlink d e"),
    "long names": (f"{N255}/{M254}", f"unlink {N255}/{M254}; rename {N255} short"),
    "exchanged": ("d/a e/b f=1", "exchange d e; exchange f d"),
    "over an emptied directory": ("d/a e/b", "unlink d/a; rename e d"),
    "moved deep": ("d/s/t/a d/s/b e/", "rename d/s e/s; rename e/s/t t; put t/new 1; unlink t/a"),
    "renamed file over whiteout": ("a=1 b=2", "unlink b; rename a b"),
    "renamed upper directory onto a hidden name": ("d/a", "mkdir u; put u/x 1; unlink d/a; rmdir d; rename u d"),
}


@pytest.mark.parametrize(("lower", "text"), CHANGES.values(), ids=CHANGES)
def test_the_kernel_reads_what_changes_wrote(lower: str, text: str, tmp_path: Path) -> None:
    stack = Stack(tmp_path, lower, whiteout="overlay")
    for verb, *args in steps(text):
        getattr(stack.u, str(verb))(*args)
    check_both_ways(stack)


@pytest.mark.parametrize(("lower", "text"), CHANGES.values(), ids=CHANGES)
def test_we_read_what_the_kernel_wrote(lower: str, text: str, tmp_path: Path) -> None:
    stack = Stack(tmp_path, lower, whiteout="overlay")

    def change(seen: Native) -> Snapshot:
        for verb, *args in steps(text):
            getattr(seen, str(verb))(*args)
        return snapshot(seen)

    want = cast(Snapshot, Overlay(stack.lowers, stack.upper, fresh_work(tmp_path)).run(change))
    assert differences(want, snapshot(stack.u)) == ""
    stack.finish()


def test_we_read_metacopies_that_the_kernel_wrote(tmp_path: Path) -> None:
    stack = Stack(tmp_path, "d/f=content:0644 d/g=other e/h=third", whiteout="overlay")
    overlay = Overlay(stack.lowers, stack.upper, fresh_work(tmp_path))
    overlay.options = overlay.options.replace("metacopy=off", "metacopy=on")

    def change(seen: Native) -> Snapshot:
        seen.chmod("d/f", 0o600)
        seen.chown("d/g", 5, 6)
        seen.rename("d/g", "e/g")
        seen.rename("d", "moved")
        seen.chmod("e/h", 0o600)
        return snapshot(seen)

    want = cast(Snapshot, overlay.run(change))
    assert differences(want, snapshot(stack.u)) == ""
    stack.u.write("moved/f", 0, b"C")
    assert stack.remount().read("moved/f") == b"Content"
    stack.finish()
