"""Storms (see storms) on a union and on a plain directory: nobody may see a difference, whatever was copied ahead."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.drivers import RENAME_EXCHANGE
from tests.core.pair import Pair, Step
from tests.core.stack import Whiteout
from tests.core.storms import CHANGES, FILES, FIRST, KINDS, NAMES, is_ahead, layer, pair_of
from tests.core.test_against_model import MODEL_SETTINGS


@pytest.mark.parametrize("overrides", ["", "user"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_storm_over_files_of_every_kind(change: str, overrides: str, whiteout: Whiteout, tmp_path: Path) -> None:
    """Each file is after it what it is in a plain directory, whichever was copied before it was asked for."""
    kinds = KINDS
    if change in ("append", "truncate", "empty", "extend"):
        # Capabilities are cleared when the kernel says that they are to be, which this driver does not.
        kinds = [kind for kind in KINDS if "capability" not in kind]
    pair = pair_of(tmp_path, whiteout, *kinds, overrides=overrides)
    for name in FILES:
        pair.do(*CHANGES[change](name))  # type: ignore[arg-type]
    pair.check()
    pair.do("rest")
    pair.finish()


def test_a_storm_of_changes_by_turns(whiteout: Whiteout, tmp_path: Path) -> None:
    """A copy made with the permissions that a chmod is expected to ask for is of no use for another change."""
    pair = pair_of(tmp_path, whiteout, *["=content"] * 6, *KINDS[: len(FILES) - 6])
    for number, name in enumerate(FILES):
        pair.do("chmod", name, 0o600) if number % 4 < 3 else pair.do("write", name, 0, b"X")
    pair.check()
    pair.finish()


# -- between the guess and its use ------------------------------------------------------------------------------------

GUESS, THEN = FILES[FIRST], FILES[FIRST + 1]
BETWEEN: dict[str, list[Step]] = {
    "nothing": [],
    "the guess is removed": [("unlink", GUESS)],
    "removed and made anew": [("unlink", GUESS), ("create", GUESS, 0o644), ("write", GUESS, 0, b"anew")],
    "a directory takes its place": [("unlink", GUESS), ("mkdir", GUESS, 0o700)],
    "renamed": [("rename", GUESS, "other/g")],
    "renamed and back": [("rename", GUESS, "other/g"), ("rename", "other/g", GUESS)],
    "another renamed over it": [("rename", THEN, GUESS)],
    "exchanged": [("rename", GUESS, THEN, RENAME_EXCHANGE)],
    "linked": [("link", GUESS, "other/g"), ("write", "other/g", 0, b"linked")],
    "written": [("write", GUESS, 2, b"!")],
    "cut off": [("truncate", GUESS, 2)],
    "given other permissions": [("chmod", GUESS, 0o4711)],
    "given times": [("utime", GUESS, 5, 6)],
    "read": [("read", GUESS), ("read", THEN)],
    "its directory renamed": [("rename", "d", "moved"), ("write", GUESS.replace("d/", "moved/"), 0, b"M")],
    "its directory renamed and back": [("rename", "d", "moved"), ("rename", "moved", "d")],
    "its directory's permissions": [("chmod", "d", 0o700)],
    "its directory's times": [("utime", "d", 5, 6)],
    "forgotten": [("forget",)],
    "sleep": [("rest",)],
    "a new file in the directory": [("create", "d/new", 0o600)],
    "another directory": [("write", "other/o", 0, b"other")],
    "remount": [("remount",)],
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("change", ["chmod", "append", "empty", "unlink"])
def test_what_happens_between_a_guess_and_its_use(
    between: str, change: str, whiteout: Whiteout, tmp_path: Path
) -> None:
    pair = pair_of(tmp_path, whiteout, others="other/o=other")
    for name in FILES[:FIRST]:
        pair.do(*CHANGES[change](name))  # type: ignore[arg-type]
    assert is_ahead(pair.stack) or change in ("unlink", "empty")
    for verb, *args in BETWEEN[between]:
        pair.check()  # the plain directory's filesystem may give a new file a number that it knew before
        pair.do(str(verb), *args)
    for name in FILES[FIRST:]:
        pair.do(*CHANGES[change](name))  # type: ignore[arg-type]
    pair.check()
    pair.do("rest")
    pair.check()
    pair.finish()


@pytest.mark.parametrize("verb", ["pwrite", "ftruncate"])
def test_the_guess_is_open_and_removed(verb: str, whiteout: Whiteout, tmp_path: Path) -> None:
    """The copy made ahead is that of the open file, and comes to no name."""
    pair = pair_of(tmp_path, whiteout)
    pair.do("open", GUESS)
    for name in FILES[:FIRST]:
        pair.do("chmod", name, 0o600)
    assert is_ahead(pair.stack)
    pair.do("unlink", GUESS)
    pair.do("on_handle", 0, verb, *((0, b"X") if verb == "pwrite" else (3,)))
    pair.do("on_handle", 0, "pread", 0, 100)
    for name in FILES[FIRST + 1 :]:
        pair.do("chmod", name, 0o600)
    pair.check()
    pair.do("rest")
    pair.do("close", 0)
    pair.finish()


# -- at random --------------------------------------------------------------------------------------------------------

_DIRECTORIES = ("d", "e", "e/deep")
_layer_kinds = st.lists(
    st.sampled_from((*["=content"] * 12, *(kind for kind in KINDS if "==" not in kind and "capability" not in kind))),
    max_size=len(FILES),
)


class OneAfterTheOther(NamedTuple):
    """`change` is made to at most `most` files of a directory in the order of its listing, from the one at `start` on.
    Before the one at `at` something else happens to it."""

    directory: str
    start: int
    most: int
    change: str
    at: int
    between: str

    def run(self, pair: Pair) -> None:
        directory = self.directory.encode()
        paths = [os.path.join(directory, name) for name in pair.union.listing(directory)]
        for number, path in enumerate(paths[self.start :][: self.most]):
            if number == self.at:
                self.interfere(pair, path, paths[(self.start + number + 1) % len(paths)])
            pair.do(*CHANGES[self.change](os.fsdecode(path)))  # type: ignore[arg-type]

    def interfere(self, pair: Pair, following: bytes, other: bytes) -> None:
        what = self.between
        if what in CHANGES:
            pair.do(*CHANGES[what](os.fsdecode(following)))  # type: ignore[arg-type]
        elif what == "directory moves":
            directory = os.path.dirname(following)
            pair.do("rename", directory, b"moved")
            pair.do("write", b"moved/" + os.path.basename(following), 0, b"moved")
            pair.do("rename", b"moved", directory)
        elif what == "over":
            pair.do("rename", other, following)
        elif what == "exchange":
            pair.do("rename", following, other, RENAME_EXCHANGE)
        elif what == "anew":
            pair.do("unlink", following)
            pair.check()  # the plain directory's filesystem may give the new file a number that it knew before
            pair.do("create", following, 0o604)
        elif what == "open, unlink, write":
            count = len(pair.handles)
            pair.do("open", following)
            pair.do("unlink", following)
            if len(pair.handles) > count:
                pair.do("on_handle", count, "pwrite", 1, b"unlinked")
        elif what != "nothing":
            pair.do(what)


_BETWEEN = (
    "nothing",
    "directory moves",
    "over",
    "exchange",
    "anew",
    "open, unlink, write",
    "forget",
    "rest",
    "remount",
)
_storms = st.builds(
    OneAfterTheOther,
    directory=st.sampled_from(_DIRECTORIES),
    start=st.sampled_from((0, 0, 5, 10)),
    most=st.sampled_from((24, 12, 6)),
    change=st.sampled_from(sorted(CHANGES)),
    at=st.integers(0, 8),
    between=st.sampled_from((*_BETWEEN, *CHANGES)),
)


@settings(MODEL_SETTINGS)
@given(
    kinds=_layer_kinds,
    upper=st.sampled_from(("", f"{FILES[4]}=up {FILES[9]}=up")),
    whiteout=st.sampled_from(("aufs", "overlay")),
    storms=st.lists(_storms, min_size=1, max_size=6),
)
def test_storms_at_random(kinds: list[str], upper: str, whiteout: Whiteout, storms: list[OneAfterTheOther]) -> None:
    """The union shows what a plain directory does, and keeps nothing when it sleeps."""
    linked = "e/a=linked e/b==e/a e/c=3 e/d==e/a e/f=5 e/g=6 e/h=7 e/i=8"
    plain = " ".join(f"e/deep/{name}=plain" for name in NAMES[:16])
    with tempfile.TemporaryDirectory(prefix="storms") as base:
        lowers = [f"{layer(*kinds)} {linked} {plain} other/"]
        pair = Pair(Path(base), lowers, upper, whiteout, caching=True, answers_first=True)
        for each in storms:
            each.run(pair)
            pair.check()
        pair.do("rest")
        pair.finish()
