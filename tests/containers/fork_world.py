"""Containers and their forks, beside plain directories with the same content, and the results of merges."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.timing import limit
from unionfs import Union
from unionfs.containers import forks, record
from unionfs.containers.config import ContainerConfig, RootFilesystem
from unionfs.containers.record import Container
from unionfs.containers.store import ContainerStore
from unionfs.launcher.spec import Process

Plain = dict[str, tuple[str, int, str]]
"""A tree: kind, mode and content or target by path."""


class World:
    """A store with containers, and a plain directory for each."""

    def __init__(self, tmp_path: Path, root: Path | None = None) -> None:
        self.top = tmp_path
        self.base = tmp_path / "base"
        self.store = ContainerStore(str(root or tmp_path / "root"))
        self.count = 0

    def make(self, name: str, *lines: str) -> Container:
        self.base.mkdir()
        edit(self.base, *lines)
        config = ContainerConfig(Process(("true",)), RootFilesystem((str(self.base),)))
        shutil.copytree(self.base, self.plain(name), symlinks=True)
        return self.store.add(record.new(self.store.root, config, name))

    def plain(self, name: str) -> Path:
        return self.top / "plain" / name

    def find(self, name: str) -> Container:
        return self.store.find(name)

    def fork(self, name: str, new: str) -> Container:
        made = forks.fork(self.find(name), new)
        copy(self.plain(name), self.plain(new))
        return made

    def edit(self, name: str, *lines: str) -> None:
        """Make changes in a container and its plain directory."""
        one = self.find(name)
        with Union(one.config.rootfs.lowers, upper=one.upper, work=one.work) as union:
            edit(union, *lines)
        edit(self.plain(name), *lines)

    def shown(self, name: str) -> Plain:
        one = self.find(name)
        with Union((one.upper, *one.config.rootfs.lowers)) as union:
            return dict(walk(union, ""))

    def check(self, *names: str) -> None:
        for name in names:
            assert self.shown(name) == look(self.plain(name)), name


def edit(tree: Union | Path, *lines: str) -> None:
    """Make changes: `+PATH=TEXT`, `/PATH` (a directory), `-PATH`, `A>B` (renamed), `PATH:MODE`, `A&B` (linked)."""
    at = (lambda path: path) if isinstance(tree, Union) else (lambda path: os.path.join(tree, path))
    os_ = tree if isinstance(tree, Union) else os
    for line in lines:
        if line.startswith("+"):
            path, _, text = line[1:].partition("=")
            with tree.open(path, "w") if isinstance(tree, Union) else open(at(path), "w") as file:
                file.write(text)
        elif line.startswith("/"):
            os_.mkdir(at(line[1:]))
        elif line.startswith("-"):
            path = at(line[1:])
            if stat.S_ISDIR(os_.lstat(path).st_mode):
                (tree.rmtree if isinstance(tree, Union) else shutil.rmtree)(path)
            else:
                os_.remove(path)
        elif ">" in line:
            os_.rename(*map(at, line.split(">")))
        elif "&" in line:
            os_.link(*map(at, line.split("&")))
        else:
            path, _, mode = line.partition(":")
            os_.chmod(at(path), int(mode, 8))


def walk(tree: Union | Path, path: str) -> Iterator[tuple[str, tuple[str, int, str]]]:
    os_, top = (tree, "") if isinstance(tree, Union) else (os, f"{tree}/")
    for name in os_.listdir(top + path or "."):
        here = f"{path}/{name}" if path else name
        st = os_.lstat(top + here)
        if stat.S_ISDIR(st.st_mode):
            yield here, ("dir", st.st_mode & 0o7777, "")
            yield from walk(tree, here)
        else:
            with tree.open(here) if isinstance(tree, Union) else open(top + here) as file:
                yield here, ("file", st.st_mode & 0o7777, file.read())


def look(tree: Path) -> Plain:
    return dict(walk(tree, ""))


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True, timeout=limit(60))


def changed(new: Plain, old: Plain) -> dict[str, tuple[str, int, str] | None]:
    return {path: new.get(path) for path in {*new, *old} if new.get(path) != old.get(path)}


def _above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def conflict(fork: Plain, parent: Plain, base: Plain) -> bool:
    """Whether two trees conflict, by the table of docs/forks.md."""
    theirs, ours = changed(fork, base), changed(parent, base)
    for path, new in theirs.items():
        if path in ours and ours[path] != new:
            return True
        is_dir = new is not None and new[0] == "dir"
        if not is_dir and any(ours[there] is not None for there in ours if there.startswith(path + "/")):
            return True
        if new is not None and any(there in ours and (ours[there] or ("",))[0] != "dir" for there in _above(path)):
            return True
    return False


def merged(fork: Plain, parent: Plain, base: Plain) -> Plain:
    result = dict(parent)
    for path, new in changed(fork, base).items():
        result.pop(path, None)
        if new is not None:
            result[path] = new
    return result


def taken(fork: Plain, parent: Plain, base: Plain) -> Plain:
    """The result of a merge that takes the fork's state where the changes conflict."""
    result = dict(parent)
    for path, new in sorted(changed(fork, base).items()):
        if new is None or new[0] != "dir":
            result = {there: line for there, line in result.items() if not there.startswith(path + "/")}
        result.pop(path, None)
        if new is not None:
            result |= {there: fork[there] for there in _above(path) if result.get(there, ("",))[0] != "dir"}
            result[path] = new
    return result


def write(tree: Plain, target: Path) -> None:
    """Make a plain directory of a tree."""
    shutil.rmtree(target)
    target.mkdir()
    for path, (kind, mode, text) in sorted(tree.items()):
        (target / path).mkdir() if kind == "dir" else (target / path).write_text(text)
        (target / path).chmod(mode)
