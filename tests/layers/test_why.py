"""Why a union shows a path: the reason in terms of the branches, always equal to what the union shows."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from layers import lint, why
from layers.tree import LayerTrees
from layers.why import HIDDEN, HIDES, MERGES, PROVIDES
from unionfs import partial_record


def _stack(scratch: Path, *branches: str) -> list[str]:
    """Layers out of words: `a/` a directory, `a` a file; top first."""
    made = []
    for number, words in enumerate(branches):
        top = scratch / str(number)
        top.mkdir()
        for word in words.split():
            place = top / word.rstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir(exist_ok=True) if word.endswith("/") else place.touch()
        made.append(os.fspath(top))
    return made


def _told(stack: list[str], path: str) -> list[tuple[str, str]]:
    with LayerTrees() as branches:
        verdicts = why.explain(branches.view(stack), tuple(path.encode().split(b"/")) if path else ())
    return [(verdict.shows, verdict.holds) for verdict in verdicts]


@pytest.mark.parametrize(
    ("branches", "path", "told"),
    [
        (("", "d/f", "d/f"), "d/f", [("absent", ""), (PROVIDES, "file"), (HIDDEN, "file")]),
        (("d/", "d/f", "d/g"), "d", [(PROVIDES, "directory"), (MERGES, "directory"), (MERGES, "directory")]),
        (("d/.wh.f", "d/f"), "d/f", [(HIDES, ""), (HIDDEN, "file")]),
        (("d/.wh..wh..opq", "d/f"), "d/f", [("absent", ""), (HIDDEN, "file")]),
        ((".wh.d", "d/f"), "d/f", [("absent", ""), (HIDDEN, "file")]),
        (("d", "d/f"), "d", [(PROVIDES, "file"), (HIDDEN, "directory")]),
        (("d", "d/f"), "d/f", [("absent", ""), (HIDDEN, "file")]),
        (("d/", "d", "d/f"), "d/f", [("absent", ""), ("absent", ""), (HIDDEN, "file")]),
        ((".wh..wh..opq", "f"), "f", [("absent", ""), (HIDDEN, "file")]),
        ((".wh.f f", "f"), "f", [(PROVIDES, "file"), (HIDDEN, "file")]),
    ],
)
def test_verdicts(scratch: Path, branches: tuple[str, ...], path: str, told: list[tuple[str, str]]) -> None:
    assert _told(_stack(scratch, *branches), path) == told


def test_marks_and_reasons(scratch: Path) -> None:
    stack = _stack(scratch, "d/.wh.f", "d/f")
    with LayerTrees() as branches:
        top, bottom = why.explain(branches.view(stack), (b"d", b"f"))
    assert top.marks == [("whiteout", "AUFS", "/d/.wh.f")]
    assert bottom.because == "branch 0 has a whiteout of /d/f"


def test_redirects_lead_elsewhere(scratch: Path) -> None:
    stack = _stack(scratch, "new/", "old/f")
    os.setxattr(f"{stack[0]}/new", "user.overlay.redirect", b"/old")
    with LayerTrees() as branches:
        top, bottom = why.explain(branches.view(stack), (b"new", b"f"))
    assert (top.shows, bottom.shows, bottom.place) == ("absent", PROVIDES, "/old/f")
    assert [mark.kind for mark in top.marks] == ["redirect"]


def test_answers_equal_the_union_of_random_stacks(scratch: Path) -> None:
    """Random stacks: who provides and who merges is what the view says."""
    dice = random.Random(7)
    names, words = "abc", ("{}/", "{}", ".wh.{}", "{}/{}", "{}/.wh.{}", "{}/.wh..wh..opq", "{}/{}/{}", "{}/{}/.wh.{}")
    for round_ in range(40):
        top = scratch / str(round_)
        top.mkdir()
        stack = []
        for number in range(4):
            branch = top / str(number)
            branch.mkdir()
            for word in dice.sample(words, 4):
                _put(branch, word.format(*dice.choices(names, k=3)))
            stack.append(os.fspath(branch))
        with LayerTrees() as branches:
            view = branches.view(stack)
            for path in [(a,) for a in names] + [(a, b) for a in names for b in names]:
                raw = tuple(name.encode() for name in path)
                node = view.find(raw)
                expected = [] if node is None else [stack.index(place.branch.path) for place in node.sources]
                verdicts = why.explain(view, raw)
                assert [one.branch for one in verdicts if one.shows in (PROVIDES, MERGES)] == expected, (stack, path)


def _put(branch: Path, word: str) -> None:
    place = branch / word.rstrip("/")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir() if word.endswith("/") else place.touch()
    except (FileExistsError, NotADirectoryError):
        pass


@pytest.mark.parametrize("fault", ["", "missing", "changed"])
def test_data_of_a_file_in_several_branches(scratch: Path, fault: str) -> None:
    stack = _stack(scratch, "", "", "d/old")
    top, lower = Path(stack[0]) / "new", Path(stack[2]) / "d/old"
    lower.write_bytes(b"l" * 300_000)
    st = lower.stat()
    with top.open("wb") as file:
        file.write(b"own." * 1024)
        file.truncate(300_000)
    record = partial_record.Record(300_000, st.st_size, st.st_mtime_ns + (fault == "changed"), st.st_ino)
    for name, value in (
        ("user.overlay.metacopy", b"\x01"),
        ("user.overlay.redirect", b"/d/gone" if fault == "missing" else b"/d/old"),
        ("user.unionfs.partial", partial_record.encode(record)),
    ):
        os.setxattr(top, name, value)
    with LayerTrees() as branches:
        view = branches.view(stack)
        verdict = why.explain(view, (b"new",))[0]
        found = list(lint.of_directory(branches.open(stack[0]), view.below(1), None))
    assert verdict.data is not None
    assert (verdict.shows, verdict.data.size, verdict.data.own, verdict.data.fault) == (PROVIDES, 300_000, 4096, fault)
    assert verdict.lower == (None if fault == "missing" else 2)
    words = {"missing": "are missing", "changed": "has changed since", "": "only a part of its data"}
    assert [(one.path, words[fault] in one.what) for one in found] == [(b"new", True)]
    os.setxattr(top, "user.unionfs.partial", b"9 strange")
    with LayerTrees() as branches:
        (strange,) = lint.of_directory(branches.open(stack[0]), branches.view(stack[1:]), None)
    assert ("cannot be read" in strange.what) == (fault != "missing")
