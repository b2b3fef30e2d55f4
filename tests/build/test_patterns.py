"""Patterns of .dockerignore and of COPY, case by case as Docker's own tests and documents have them."""

from __future__ import annotations

import pytest

from unionfs.build.patterns import PatternError, Patterns, name_pattern


@pytest.mark.parametrize(
    ("patterns", "path", "fits"),
    [
        (["a"], "a", True),
        (["a"], "a/b/c", True),
        (["a"], "b/a", False),  # gitignore says True
        (["/a"], "a", True),
        (["a/"], "a", True),
        (["./a/../b"], "b", True),
        (["*"], "a", True),
        (["*"], "a/b", True),
        (["*.go"], "a.go", True),
        (["*.go"], "d/a.go", False),
        (["*/temp*"], "somedir/temporary.txt", True),
        (["*/temp*"], "somedir/temp", True),
        (["*/temp*"], "temp", False),
        (["*/*/temp*"], "somedir/subdir/temporary.txt", True),
        (["temp?"], "tempa", True),
        (["temp?"], "temp", False),
        (["**"], "a/b", True),
        (["**/*.go"], "a.go", True),
        (["**/*.go"], "x/y/a.go", True),
        (["**/foo"], "foo", True),
        (["**/foo"], "a/b/foo/c", True),
        (["a/**"], "a", False),
        (["a/**"], "a/b/c", True),
        (["a/**/b"], "a/b", True),
        (["a/**/b"], "a/x/y/b", True),
        (["a**"], "abc/d", True),
        (["[a-c]x"], "bx", True),
        (["[^a-c]x"], "bx", False),
        (["[^a-c]x"], "dx", True),
        ([r"a\*"], "a*", True),
        ([r"a\*"], "ab", False),
        (["a.b"], "axb", False),
        (["a(b"], "a(b", True),
        (["*.md", "!README.md"], "README.md", False),
        (["*.md", "!README.md"], "x.md", True),
        (["*.md", "!README*.md", "README-secret.md"], "README-secret.md", True),
        (["*.md", "README-secret.md", "!README*.md"], "README-secret.md", False),
        (["a", "!a/b"], "a/b", False),  # gitignore says True
        (["a", "!a/b"], "a/c", True),
        (["*", "!src", "src/tmp"], "src/x", False),
        (["*", "!src", "src/tmp"], "src/tmp/y", True),
        (["!x"], "x", False),
        ([" a "], "a", True),
        (["", "a"], "a", True),
        (["."], "a", False),
    ],
)  # fmt: skip
def test_ignored(patterns: list[str], path: str, fits: bool) -> None:
    assert Patterns(patterns).fits(path) is fits


@pytest.mark.parametrize("pattern", ["[", "[]", "[a", "[a-", "[b-a]", "a\\", "!", "[-x]", "[x-]"])
def test_patterns_that_cannot_be_read(pattern: str) -> None:
    with pytest.raises(PatternError):
        Patterns([pattern])


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [("hom*", "home.txt", True), ("hom?.txt", "home.txt", True), ("hom?.txt", "hoome.txt", False), ("**", "a", True),
     ("arr[[]0].txt", "arr[0].txt", True), ("[!a]", "!", True), ("*", "", True), ("a*b*c", "axxbyyc", True)],
)  # fmt: skip
def test_names(pattern: str, name: str, fits: bool) -> None:
    assert bool(name_pattern(pattern).fullmatch(name)) is fits
