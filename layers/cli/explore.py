"""`layers explore`: show the layers of an image, a container or a union, on a terminal or as one HTML page."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final, NamedTuple

from layers import archive
from layers.cli import stacks, subjects
from layers.cli.command import Parser
from layers.cli.stacks import Stack
from layers.cli.subjects import DIRECTORY, Subject
from layers.errors import LayerError, Malformed
from layers.explore.indexes import open_tree
from layers.explore.tree_index import TreeIndex
from layers.store import Store, StoredImage
from unionfs.output_file import OutputFile
from unionfs.printable import printable
from unionfs.write_all import write_all

_DESCRIPTION: Final = """\
Explore layers: the changes of each layer, the tree at any layer, hidden files with the mark that hides them,
and wasted bytes with their build step. WHAT is an image, its archive or OCI layout, a tar, a directory, a
container, or the mountpoint of a union (the prefixes `container:` and `union:` resolve ambiguous names); two of them
are shown beside each other. `?` lists the keys.

Layers are read once: indexes of an image's layers are stored. If standard output is not a terminal, or one that cannot
move its cursor, a summary is printed instead."""

_DUMB: Final = ("", "dumb", "unknown")

Unions = Callable[[str, str], Sequence[str] | None]
"""(argument, root of the store) -> the directories, top first, of a union or container; None: it is none."""


class _Opened(NamedTuple):
    title: str
    stack: Stack
    tree: TreeIndex
    subjects: Sequence[Subject]  # that directories are made of for a shell


def main(argv: list[str], unions: Unions = lambda text, root: None) -> int:
    """Run `layers explore ARGV`."""
    parser = Parser("explore", _DESCRIPTION)
    parser.add_argument("what", metavar="WHAT", nargs="+", help="one, or two to compare")
    parser.add_argument("--stack", action="store_true", help="all WHATs are one stack of layers, the first on top")
    parser.add_argument("--html", metavar="FILE", help="write a page that needs no network instead; - for stdout")
    subjects.add_root(parser)
    arguments = parser.parse_args(argv)
    named: list[str] = arguments.what
    if len(named) > 2 and not arguments.stack:
        raise Malformed("explore", "", f"{len(named)} are too many", hint="--stack makes one stack of them")
    if arguments.html and len(named) > 1 and not arguments.stack:
        raise Malformed("explore", "", "a page shows one image or stack", hint="--stack makes one stack of several")
    with ExitStack() as keep:
        wanted = [named] if arguments.stack else [[text] for text in named]
        opened = [_open(one, arguments, unions, keep) for one in wanted]
        if arguments.html:
            write_page(arguments.html, opened[0].tree, opened[0].stack, opened[0].title)
        elif not sys.stdout.isatty() or not sys.stdin.isatty() or os.environ.get("TERM", "") in _DUMB:
            _print(opened)
        else:
            return _run(opened, arguments)
    return 0


def write_page(path: str, tree: TreeIndex, stack: Stack, title: str) -> None:
    """Write the page of a stack to a file, or to standard output for `-`. Raises: OSError."""
    from layers.screen.page import page

    data = page(tree, stack.layers, title).encode()
    if path == "-":
        write_all(sys.stdout.fileno(), data)
        return
    with OutputFile(path) as output:
        output.file.write(data)


def _open(texts: Sequence[str], arguments: Namespace, unions: Unions, keep: ExitStack) -> _Opened:
    found: list[Subject] = []
    stack: Stack | None = None
    store: Store | None = None
    for text in texts:
        directories = unions(text, arguments.root)
        if directories is not None:
            found += [Subject(DIRECTORY, directory) for directory in directories]
        elif _is_layout(text) and len(texts) == 1:
            store, image = _open_layout(text, keep)
            stack = stacks.of_image(store, image)
            found.append(Subject(subjects.IMAGE, image.name or image.descriptor.digest))
        else:
            found.append(subjects.parse(text))
    if stack is None:
        stack = stacks.of_subjects(found, arguments, keep)
        store = store_of(stack)
    title = str(stack.about.get("name") or ", ".join(texts))
    with _Progress() as progress:
        tree = open_tree(stack.layers, store, keep, progress.show)
    return _Opened(title, stack, tree, found)


def store_of(stack: Stack) -> Store | None:
    """The store that all images of a stack are in; None where there is none, or are several."""
    stores = {layer.store.root: layer.store for layer in stack.layers if layer.store is not None}
    return next(iter(stores.values())) if len(stores) == 1 else None


def _is_layout(text: str) -> bool:
    return all(os.path.isfile(os.path.join(text, name)) for name in ("oci-layout", "index.json"))


def _open_layout(path: str, keep: ExitStack) -> tuple[Store, StoredImage]:
    """The only image of an OCI layout, through a temporary store that has the layout as its images."""
    root = keep.enter_context(tempfile.TemporaryDirectory(prefix="layers-"))
    os.symlink(os.path.realpath(path), os.path.join(root, "images"))
    store = Store(root)
    return store, archive.only_image(store.list_images(), path)


class _Progress:
    """Shows on a terminal how many layers have been read."""

    def __enter__(self) -> _Progress:
        self._is_shown = False
        return self

    def show(self, done: int, of: int) -> None:
        if sys.stderr.isatty():
            self._is_shown = True
            print(f"\rreading layers: {done} of {of} ", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _print(opened: Sequence[_Opened]) -> None:
    from layers.screen import words

    for number, one in enumerate(opened):
        if len(opened) > 1:
            print(("\n" if number else "") + printable(one.title))
        print("\n".join(words.summary(one.tree, one.stack.layers)))


def set_frame_rate() -> None:
    """Have textual draw up to 240 times a second, unless the user has chosen a rate. It must not be imported yet.

    The effect of a key is drawn in two steps. At textual's own rate of 60 the second one waits for 17 ms.
    """
    os.environ.setdefault("TEXTUAL_FPS", "240")


def _run(opened: Sequence[_Opened], arguments: Namespace) -> int:
    set_frame_rate()
    try:
        from layers.screen.app import TERMINATED, ExplorerApp, Side
    except ModuleNotFoundError as error:
        hint = "pip install 'unionfs[explore]'; without it: layers explore ... | cat, or --html FILE"
        raise LayerError("explore", "", f"the Python package {error.name} is missing", hint=hint) from None
    sides = [
        Side(one.title, one.tree, one.stack.layers, partial(_shell, one, arguments)) for one in opened
    ]  # fmt: skip
    app = ExplorerApp(sides)
    app.run()
    if app.return_code == TERMINATED:
        return TERMINATED
    if app.return_code:
        raise LayerError("explore", "", "the screen has ended with an error")
    return 0


def _shell(opened: _Opened, arguments: Namespace, level: int) -> None:
    """Run a shell in a read-only union of the layers up to a level. Raises: LayerError, OSError, CalledProcessError."""
    with ExitStack() as keep:
        directories: list[str] = []
        for subject in opened.subjects:
            directories += keep.enter_context(subjects.directories(subject, arguments))
        mountpoint = keep.enter_context(tempfile.TemporaryDirectory(prefix="layers-view-"))
        lowers = [f"--lower={directory}" for directory in directories[len(directories) - 1 - level :]]
        subprocess.run([sys.executable, "-m", "unionfs", "mount", *lowers, mountpoint], check=True)
        try:
            print(
                f"a read-only view of {printable(opened.title)}, layers 0 to {level}; exit ends the shell", flush=True
            )
            subprocess.run([os.environ.get("SHELL") or "/bin/sh"], cwd=mountpoint, check=False)
        finally:
            subprocess.run([sys.executable, "-m", "unionfs", "umount", mountpoint], check=True)
