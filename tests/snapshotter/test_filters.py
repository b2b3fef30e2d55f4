"""containerd's filter language: what is understood, what is refused, and where."""

from __future__ import annotations

import pytest

from unionfs.snapshotter.filters import parse
from unionfs.snapshotter.values import Info, InvalidArgumentError, Kind

_INFO = Info("default/3/box", "default/2/sha256:ab", Kind.ACTIVE, 1, 2, {"my.key/x": "a,b", "colour": 'dark "red"\n'})
_ROOT = Info("default/1/base", "", Kind.COMMITTED, 1, 2, {})


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("", True),
        ("name", True),
        ("kind==active", True),
        ("kind==view", False),
        ("kind!=committed,parent~=sha256", True),
        ("kind==active,kind==view", False),
        ("name==default/3/box", True),
        ('name=="default/3/box"', True),
        ("name~=/box$/", True),
        ("name~=|^default/[0-9]+/b|", True),
        ("name~=^ox", False),
        (r"name~=/\d\/b/", True),
        (r"name~=/box\z/", True),
        ('labels."my.key/x"', True),
        ("labels.missing", False),
        ("labels.missing!=x", True),
        ("labels.missing==x", False),
        ("labels.missing~=.*", False),
        ('labels."my.key/x"=="a,b"', True),
        (r'labels.colour=="dark \"red\"\n"', True),
        (r'labels.colour~="\x64ark \u0022"', True),
        ("unheard.of", False),
        ("unheard.of!=x", True),
    ],
)
def test_a_filter_holds_or_not(text: str, passes: bool) -> None:
    assert parse([text])(_INFO) is passes


def test_one_of_several_filters_must_hold() -> None:
    assert parse([])(_INFO)
    assert parse(["kind==view", "kind==active"])(_INFO)
    assert not parse(["kind==view", "name==x"])(_INFO)
    assert parse(["parent==x", 'parent==""'])(_ROOT)


def test_labels_that_are_split_by_dots_are_one_label() -> None:
    dotted = Info("n", "", Kind.VIEW, 1, 1, {"containerd.io/x": "1", "a.b": "2"})
    assert parse(["labels.a.b==2"])(dotted)
    assert parse(['labels."containerd.io/x"==1'])(dotted)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (",", 1),
        ("name==", 7),
        ("name==a,", 9),
        ("name=x", 5),
        ("name == x", 5),
        ("name.", 6),
        ('name=="x', 7),
        ('name=="x\\"', 7),
        ("name~=(", 7),
        ("name~=/[[:alpha:]]/", 7),
        ("name==a b", 8),
        ("==x", 1),
    ],
)
def test_malformed_filters_are_refused_with_their_position(text: str, where: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"at character {where}:"):
        parse([text])
