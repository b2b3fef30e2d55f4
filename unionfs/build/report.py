"""The bytes that each step of an image has added, the part that later steps hide, and causes of a large image.

Preconditions: in a process with all ids of the files of layers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple

from layers import pieces
from layers.safe_open import Path
from layers.size_report import EQUAL, REMOVED, HiddenFile, SizeReport, measure
from layers.tree import LayerTrees
from unionfs.build.jobs import call
from unionfs.build.work import StageResult

_CACHES: Final[tuple[tuple[tuple[bytes, ...], str], ...]] = (
    ((b"var", b"lib", b"apt", b"lists"), "rm -rf /var/lib/apt/lists/*"),
    ((b"var", b"cache", b"apt"), "apt-get clean"),
    ((b"var", b"cache", b"apk"), "apk add --no-cache"),
    ((b"var", b"cache", b"dnf"), "dnf clean all"),
    ((b"var", b"cache", b"yum"), "yum clean all"),
    ((b"root", b".cache", b"pip"), "pip install --no-cache-dir"),
    ((b"root", b".npm"), "npm cache clean --force"),
)
"""Cache directories of package managers, and how to leave them out of a layer."""
_HINT_FROM: Final = 1 << 10  # bytes; smaller causes are not listed


class StepReport(NamedTuple):
    """One step."""

    stage: int  # its place in the file: the first is 1
    number: int  # of the step in its stage, as in the messages of the build; FROM is the first
    text: str
    is_cached: bool
    seconds: float
    has_layer: bool
    added: int = 0  # bytes of files in its layer
    files: int = 0
    blob: int = 0  # bytes of the compressed layer
    copied_for_metadata: int = 0  # of `added`, bytes that the layers beneath have, too: only owner, mode or time differ
    hidden_later: int = 0  # of `added`, bytes that a later step replaces or removes
    hints: tuple[str, ...] = ()


def of_image(results: Mapping[int, StageResult], stages: Sequence[int]) -> list[StepReport]:
    """The steps of an image that consists of these stages, by number, each built on the one before.

    Raises: ContainerError, OSError.
    """
    directories = [layer.directory for layer in results[stages[-1]].layers]
    notes = [(stage, note) for stage in stages for note in results[stage].notes]

    def look() -> bytes:
        with ExitStack() as stack:
            trees = stack.enter_context(LayerTrees(len(directories)))
            opened = [trees.open(directory) for directory in directories]
            measured = measure(pieces.of_directory(branch) for branch in opened)
        return json.dumps([_facts(measured, number) for number in range(len(directories))]).encode("ascii")

    facts = json.loads(call(look))
    first = len(directories) - sum(note.layer is not None for _, note in notes)
    found: list[StepReport] = []
    number = first
    for stage, note in notes:
        step = StepReport(stage + 1, note.number, note.text, note.is_cached, note.seconds, note.layer is not None)
        if note.layer is not None:
            added, files, equal, hidden, hints = facts[number]
            step = step._replace(added=added, files=files, blob=note.layer.descriptor.size)
            step = step._replace(copied_for_metadata=equal, hidden_later=hidden, hints=tuple(hints))
            number += 1
        found.append(step)
    return found


def _facts(measured: SizeReport, number: int) -> list[object]:
    layer = measured.layers[number]
    copied = sum(one.file.piece.stored for one in measured.hidden if one.by == number and one.how == EQUAL)
    return [layer.stored, layer.files, copied, layer.hidden, list(_hints(measured, number, copied))]


def _hints(measured: SizeReport, number: int, copied: int) -> Iterable[str]:
    if copied >= _HINT_FROM:
        yield f"{copied} bytes are here once more for another owner, mode or time: COPY --chown and --chmod copy once"
    removed = _bytes(measured.hidden, lambda one: one.by == number and one.how == REMOVED)
    if removed >= _HINT_FROM:
        yield f"{removed} bytes of earlier steps are removed, and travel with the image all the same: remove them there"
    for path, remedy in _CACHES:
        size = sum(one.piece.stored for one in measured.visible if one.layer == number and _is_below(one.path, path))
        if size >= _HINT_FROM:
            yield f"{size} bytes of a package cache: {remedy}"


def _bytes(hidden: Sequence[HiddenFile], wanted: Callable[[HiddenFile], bool]) -> int:
    return sum(one.file.piece.stored for one in hidden if wanted(one))


def _is_below(path: Path, directory: Path) -> bool:
    return path[: len(directory)] == directory
