"""Layers whose marks contradict each other or lead astray: mounted in fuse-overlayfs's place, by hand and by podman.

What each mark means is tests/core/test_lookup.py's matter; here it is that such a layer is mounted, that everything in
it can be looked at and removed, and that nothing outside of the layers is reached or changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fuse.daemons import daemon_of
from tests.layers.registries import need
from tests.support.podmans import BASE, Podman, debian_store
from tests.support.users import User
from unionfs.fuse.options import DEFAULT_TRANSPORT

pytestmark = pytest.mark.transport(DEFAULT_TRANSPORT)

_MAKE: Final = r"""
umask 022
both() { mkdir $1 "$2/$1"; echo low > "$2/$1/in"; }
set_all() {
    setfattr -n trusted.overlay.$2 -v "$3" "$1" 2>/dev/null || true  # which only root may
    setfattr -n user.overlay.$2 -v "$3" "$1"
}
contradict() {  # TOP LOW OUTSIDE
    cd "$1"
    echo top > file; echo > .wh.file; echo low > "$2/file"
    mknod device c 0 0; echo > .wh.device; echo low > "$2/device"
    echo > .wh.; echo > .wh..; echo > .wh...; echo > .wh..wh.plnk
    mknod hidden c 0 0; mkdir -p "$2/hidden/in"
    mkdir .wh.by-directory; echo low > "$2/by-directory"
    ln -s "$3/secret" .wh.by-link; echo low > "$2/by-link"
    for value in x Y n yes; do
        both value-$value "$2"; set_all value-$value opaque $value
        setfattr -n user.fuseoverlayfs.opaque -v $value value-$value
    done
    both file-says-so "$2"; echo > file-says-so/.wh..wh..opq; set_all file-says-so opaque n
    both opaque-by-directory "$2"; mkdir opaque-by-directory/.wh..wh..opq
    both opaque-by-link "$2"; ln -s "$3/secret" opaque-by-link/.wh..wh..opq
    number=0
    for target in ../../outside /../../outside "../outside" . .. / a/../b "//" ".wh.file"; do
        number=$((number + 1)); both redirect-$number "$2"; set_all redirect-$number redirect "$target"
    done
    mkdir redirect-away "$2/redirect-away"; echo low > "$2/redirect-away/in"; set_all redirect-away redirect "$3"
    echo top > file-on-directory; both_low file-on-directory "$2"
    mkdir directory-on-file; echo top > directory-on-file/in; echo low > "$2/directory-on-file"
    setfattr -n user.containers.override_stat -v 0:0:0755 .
    for value in "" garbage 0:0 0:0:99999999 4294967295:0:0644 -5:0:0644 0:0:0644:disk-1 0:0:0100644:dir; do
        number=$((number + 1)); echo top > owner-$number
        setfattr -n user.containers.override_stat -v "$value" owner-$number
    done
}
both_low() { mkdir "$2/$1"; echo low > "$2/$1/in"; }
"""
_SEEN: Final = frozenset(
    {f"value-{value}/in low" for value in ("x", "Y", "n", "yes")}
    | {f"redirect-{number}/in low" for number in range(1, 10)}
    | {f"owner-{number} top" for number in range(10, 18)}
    | {"file top", "file-on-directory top", "directory-on-file/in top"}
)
"""Every file that shows: an entry wins over a whiteout beside it, what is no value of an attribute says nothing."""

_LOOK: Final = 'cd "$0"; find . -type f | while read f; do echo "${f#./} $(cat "$f")"; done'


def _prepared(scratch: Path) -> dict[str, Path]:
    made = {name: scratch / name for name in ("top", "low", "outside", "up", "work", "mnt")}
    for directory in made.values():
        directory.mkdir()
    (made["outside"] / "secret").write_text("secret\n")
    return made


def _tree(top: Path) -> list[str]:
    return sorted(os.fspath(path.relative_to(top)) for path in top.rglob("*"))


@pytest.mark.parametrize("permissions", ["", ",xattr_permissions=2"])
def test_mounted_by_root(permissions: str, root_user: User, scratch: Path, fuse_device: Path) -> None:
    del fuse_device
    made = _prepared(scratch)
    contradict = f"{_MAKE}\ncontradict {made['top']} {made['low']} {made['outside']}"
    root_user.run(["bash", "-ec", contradict])
    before = [_tree(made[name]) for name in ("top", "low", "outside")]
    options = f"lowerdir={made['top']}:{made['low']},upperdir={made['up']},workdir={made['work']}{permissions}"
    root_user.run([*root_user.unionfs_cmd, "-o", options, made["mnt"]])
    with daemon_of(made["mnt"]) as daemon:
        assert set(root_user.run(["sh", "-ec", _LOOK, made["mnt"]]).stdout.splitlines()) == _SEEN
        root_user.run(
            ["sh", "-ec", 'cd "$0"; echo more >> file; mv value-x moved; rm -r ./*; [ -z "$(ls -A)" ]', made["mnt"]]
        )
        root_user.run(
            ["sh", "-ec", 'cd "$0"; echo > hidden; mkdir device value-x; [ -z "$(ls -A value-x)" ]', made["mnt"]]
        )
        root_user.unionfs("umount", made["mnt"])
        assert daemon.has_ended(0)
    assert [_tree(made[name]) for name in ("top", "low", "outside")] == before
    assert (made["outside"] / "secret").read_text() == "secret\n"


_AS_USER: Final = r"""
contradict $PWD/top $PWD/low $PWD/outside
cd "$PWD/.."
"$@" -o lowerdir=top:low,upperdir=up,workdir=work mnt
sh -ec '{look}' mnt
cd mnt; rm -r ./*; [ -z "$(ls -A)" ] && cd .. && umount mnt
"""


def test_mounted_by_a_user(ordinary_user: User, scratch: Path, fuse_device: Path) -> None:
    """In a user namespace, as podman does."""
    del fuse_device
    made = _prepared(scratch)
    ordinary_user.own(scratch, *made.values())
    script = _MAKE + _AS_USER.replace("{look}", _LOOK)
    argv = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "bash",
        "-ec",
        script,
        "bash",
        *ordinary_user.unionfs_cmd,
    ]
    said = ordinary_user.run(argv, cwd=scratch).stdout
    assert set(said.splitlines()) == _SEEN


@pytest.fixture(scope="module")
def podman(ordinary_user: User, run_dir: Path, debian_tar: Path, fuse_device: Path) -> Iterator[Podman]:
    """A store with an image of two layers."""
    del fuse_device
    need("setfattr")
    where = run_dir / "contra"
    with debian_store(ordinary_user, where, debian_tar) as made:
        (where / "Containerfile").write_text(f"FROM {BASE}\nRUN mkdir /c\n")
        made("build", "-q", "--network=none", "-t", "localhost/two:1", where)
        yield made


def _diffs(podman: Podman) -> tuple[str, str]:
    """Where the store has the topmost layer, and the one beneath."""
    format_ = "{{.GraphDriver.Data.UpperDir}} {{.GraphDriver.Data.LowerDir}}"
    top, low = podman("image", "inspect", "--format", format_, "localhost/two:1").split()
    return top, low.split(":")[0]


@pytest.mark.runs_as("ordinary")
def test_in_a_layer_of_podmans(podman: Podman) -> None:
    """The layers of an image in its store have such contents: run, changed, compared, committed."""
    top, low = _diffs(podman)
    outside = podman.where / "outside"
    podman("unshare", "sh", "-ec", f"mkdir {outside} {low}/c; echo secret > {outside}/secret")
    podman("unshare", "bash", "-ec", f"{_MAKE}\ncontradict {top}/c {low}/c {outside}")
    run = ("run", "--network=none")
    assert set(podman(*run, "--rm", "localhost/two:1", "sh", "-ec", _LOOK, "/c").splitlines()) == _SEEN
    podman(*run, "--name", "changed", "localhost/two:1", "sh", "-ec", "cd /c; rm -r redirect* value*; echo > device")
    assert {"D /c/redirect-1", "D /c/value-x", "A /c/device"} <= set(podman("diff", "changed").splitlines())
    podman("commit", "-q", "changed", "localhost/three:1")
    podman("rm", "changed")
    seen = set(podman(*run, "--rm", "localhost/three:1", "sh", "-ec", _LOOK, "/c").splitlines())
    assert seen == {line for line in _SEEN if not line.startswith(("redirect", "value"))} | {"device "}
    podman("rmi", "localhost/three:1")
    assert podman("unshare", "cat", outside / "secret") == "secret"


@pytest.mark.runs_as("ordinary")
def test_podman_reports_a_layer_that_is_not_a_directory(podman: Podman) -> None:
    top, _ = _diffs(podman)
    podman("unshare", "sh", "-ec", f"mv {top} {top}.away; echo > {top}")
    try:
        status, said = podman.refused("run", "--rm", "--network=none", "localhost/two:1", "true")
    finally:
        podman("unshare", "sh", "-ec", f"rm -r {top}; mv {top}.away {top}")
    assert status in (125, 126, 127)
    assert "unionfs: mount failed: " in said
    assert "Not a directory" in said
