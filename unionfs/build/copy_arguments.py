"""The arguments of COPY and ADD, with their variables replaced. Pure."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from unionfs.build.copy_layer import Destination, Owner
from unionfs.build.copy_sources import TextSource
from unionfs.build.instructions import Instruction
from unionfs.build.lines import Heredoc, announces
from unionfs.build.patterns import PatternError, Patterns
from unionfs.build.source import ContainerfileError
from unionfs.build.words import WordError, replace, split_words

_URL: Final = ("http://", "https://")
_GIT: Final = re.compile(r"git@|git://|https?://[^#]*\.git(?:#|$)")


class Arguments(NamedTuple):
    """The parsed arguments of one COPY or ADD."""

    names: tuple[str, ...]  # of files and directories; perhaps patterns
    urls: tuple[str, ...]
    texts: tuple[TextSource, ...]  # heredocs
    path: str  # of the destination, absolute; with a slash at its end it is a directory
    chown: str
    mode: int | None  # of --chmod
    from_: str  # a stage or an image; empty: the context
    excluded: tuple[str, ...]
    link: bool
    checksum: str
    unpacks: bool  # archives

    def destination(self, owner: Owner | None, count: int) -> Destination:
        """The destination of `count` sources."""
        return Destination(self.path, owner, self.mode, must_be_directory=count > 1)


def read(made: Instruction, variables: Mapping[str, str], escape: str, workdir: str) -> Arguments:
    """Raises: ContainerfileError."""
    flags = made.flags
    try:
        if made.words is not None:
            words = [replace(word, variables, escape) for word in made.words]
        else:
            words = split_words(made.rest, variables, escape)
        chown, chmod, checksum = (
            replace(flags.value(name), variables, escape) for name in ("chown", "chmod", "checksum")
        )
        excluded = tuple(replace(pattern, variables, escape) for pattern in flags.all("exclude"))
        texts = {one.name: _text(one, variables, escape) for one in made.heredocs}
    except WordError as error:
        raise ContainerfileError(made.place, str(error)) from None
    if len(words) < 2:
        raise ContainerfileError(made.place, f"{made.keyword} needs a source and a destination")
    names, urls, heredocs = [], [], []
    for word in words[:-1]:
        announced = announces(word)
        if announced is not None and announced[0] in texts:
            heredocs.append(texts[announced[0]])
        elif made.keyword == "ADD" and _GIT.match(word):
            hint = "clone it beside the Containerfile, and COPY the directory"
            raise ContainerfileError(made.place, f"ADD of a git repository is not supported: {word}", hint=hint)
        elif made.keyword == "ADD" and word.startswith(_URL):
            urls.append(word)
        else:
            names.append(word)
    if chmod and not re.fullmatch("[0-7]{3,4}", chmod):
        raise ContainerfileError(made.place, f"--chmod={chmod}", hint="expected an octal mode, such as 755")
    if checksum and (not re.fullmatch("sha256:[0-9a-f]{64}", checksum) or len(urls) != 1 or names or heredocs):
        hint = "expected sha256: and 64 hexadecimal digits, and one URL"
        raise ContainerfileError(made.place, f"--checksum={checksum}", hint=hint)
    return Arguments(
        tuple(names),
        tuple(urls),
        tuple(heredocs),
        _absolute(workdir, words[-1]),
        chown,
        int(chmod, 8) if chmod else None,
        flags.value("from"),
        excluded,
        flags.switch("link"),
        checksum,
        made.keyword == "ADD" and flags.switch("unpack", default=not urls),
    )


def patterns(made: Instruction, texts: tuple[str, ...]) -> Patterns:
    """The patterns of --exclude. Raises: ContainerfileError."""
    try:
        return Patterns(texts)
    except PatternError as error:
        raise ContainerfileError(made.place, str(error)) from None


def _text(heredoc: Heredoc, variables: Mapping[str, str], escape: str) -> TextSource:
    text = replace(heredoc.text, variables, escape, quotes=False) if heredoc.expand else heredoc.text
    return TextSource(os.fsencode(heredoc.name), text.encode(errors="surrogateescape"))


def _absolute(directory: str, path: str) -> str:
    """The destination; a slash, /. or /.. at its end marks a directory, and becomes a slash."""
    is_directory = path.endswith("/") or posixpath.basename(path) in (".", "..")
    whole = "/" + posixpath.normpath(posixpath.join(directory, path)).strip("/")
    return whole + "/" if is_directory and whole != "/" else whole
