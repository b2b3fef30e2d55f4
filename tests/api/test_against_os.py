"""The same random calls on a library's union and, by `os`, on a plain copy of the merged tree: the results are equal,
and a union that is opened anew shows the same tree."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.api.native import Native, answer, picture
from tests.core.flatten import flatten
from tests.core.layers_at_random import layers
from tests.core.snapshots import fingerprint
from tests.core.trees import tree
from unionfs import Union

_EXAMPLES = 1000 if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else 60

_FIXED = "a/ a/b/ a/f=one l->a m->l/f dangling->nowhere loop->loop f=x"
"""Beneath the random layers, so that most paths lead somewhere."""

_paths = st.sampled_from((
    "a", "b", "c", "f", "l", "m", "loop", "dangling", "a/b", "a/f", "a/b/c", "a/c", "b/a", "b/a/c", "l/b", "l/b/new",
    "l/f", "m/x", "loop/x", "dangling/x", "f/x", "a/", "f/", "l/", "new", "new/", "a/new", "a/./b", "a/../f", "a/b/..",
    "a/b/.", "l/../a", "f/..", "nowhere", "a//b", "", "e" * 256, "c/\udcff",
))  # fmt: skip
_modes = st.sampled_from((0o644, 0o755, 0o700, 0o4711))
_one = st.sampled_from(("stat", "lstat", "listdir", "readlink", "read", "remove", "rmdir", "rmtree", "listxattr"))
_steps = st.one_of(
    st.tuples(_one, _paths),
    st.tuples(st.sampled_from(("rename", "link")), _paths, _paths),
    st.tuples(st.just("symlink"), st.sampled_from(("a", "../f", "", "new")), _paths),
    st.tuples(st.just("mkdir"), _paths),
    st.tuples(st.just("mkdir"), _paths, _modes),
    st.tuples(st.just("mknod"), _paths, st.sampled_from((0o100644, 0o010600))),
    st.tuples(st.just("write"), _paths, st.sampled_from(("wb", "xb", "ab", "r+b")), st.sampled_from((b"", b"data"))),
    st.tuples(st.just("chmod"), _paths, _modes),
    st.tuples(st.just("truncate"), _paths, st.sampled_from((0, 2, 9000, -1))),
    st.tuples(st.just("utime"), _paths, st.just((17.5, 23.25))),
    st.tuples(st.just("chown"), _paths, st.sampled_from((-1, os.geteuid())), st.just(-1)),
    st.tuples(st.just("setxattr"), _paths, st.just("user.a"), st.just(b"1"), st.sampled_from((0, 1, 2))),
    st.tuples(st.just("removexattr"), _paths, st.sampled_from(("user.a", "user.none"))),
    st.tuples(st.just("getxattr"), _paths, st.just("user.a")),
)


@settings(max_examples=_EXAMPLES, deadline=None)
@given(above=st.lists(layers(), max_size=2), upper=layers(), steps=st.lists(_steps, max_size=25))
def test_a_union_answers_as_a_directory_does(above: list[str], upper: str, steps: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory(prefix="library") as scratch:
        base = Path(scratch)
        texts = [*above, _FIXED]
        native = Native(flatten(base / "plain", [*reversed(texts), upper]))
        lowers = [tree(base / f"lower{number}", text) for number, text in enumerate(texts)]
        before = [fingerprint(lower) for lower in lowers]
        tree(base / "changes", upper)
        with Union(lowers, upper=base / "changes") as union:
            for verb, *args in steps:
                if verb in ("read", "write") and _is_special(native, str(args[0])):
                    continue  # opening a fifo or a device acts on the machine; the union refuses it
                want, got = answer(native, str(verb), *args), answer(union, str(verb), *args)
                assert got == want, f"{verb}{args}"
            assert picture(union) == picture(native)
            assert union._guard._core.node_count == 1
        with Union(lowers, upper=base / "changes") as union:
            assert picture(union) == picture(native)
        assert [fingerprint(lower) for lower in lowers] == before
        assert sorted(os.listdir(base / "changes.work")) == ["index", "spare"]


def _is_special(native: Native, path: str) -> bool:
    return os.path.exists(native.at(path)) and not (os.path.isfile(native.at(path)) or os.path.isdir(native.at(path)))
