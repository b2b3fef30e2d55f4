"""Who a command runs as: docker's rules, on files as a container may have them."""

from __future__ import annotations

import pytest

from unionfs.launcher.errors import LaunchError
from unionfs.launcher.users import Account, resolve

PASSWD = """\
root:x:0:0:root:/root:/bin/bash
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
broken
:x:44:44::/:
noid:x:abc:1::/:
huge:x:4294967295:1::/:
homeless:x:50:51::
123:x:777:778::/number:
alice:x:1000:1000:Alice,,,:/home/alice
"""
GROUP = """\
root:x:0:
tty:x:5:alice
staff:x:50:alice,www-data
users:x:100:www-data
bad:x:none:alice
alice:x:1000:
"""


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ("", (0, 0, (), "/root")),
        ("root", (0, 0, (), "/root")),
        ("www-data", (33, 33, (50, 100), "/var/www")),
        ("33", (33, 33, (50, 100), "/var/www")),
        ("alice", (1000, 1000, (5, 50), "/home/alice")),
        # A group that is asked for replaces the supplementary ones.
        ("alice:staff", (1000, 50, (), "/home/alice")),
        ("alice:4711", (1000, 4711, (), "/home/alice")),
        ("0:33", (0, 33, (), "/root")),
        # A number need not be in the file.
        ("4711", (4711, 0, (), "/")),
        ("4711:4712", (4711, 4712, (), "/")),
        (":staff", (0, 50, (), "/")),
        # A name of digits is a name first.
        ("123", (777, 778, (), "/number")),
        ("homeless", (50, 51, (), "/")),
        ("4294967294", (4294967294, 0, (), "/")),
    ],
)
def test_wishes(wish: str, expected: tuple[int, int, tuple[int, ...], str]) -> None:
    assert resolve(wish, PASSWD, GROUP) == Account(*expected)


@pytest.mark.parametrize("wish", ["nobody", "noid", "huge", "4294967295", "-1", "1e3", "\u0663"])
def test_unknown_users(wish: str) -> None:
    with pytest.raises(LaunchError, match="no such user in the container") as caught:
        resolve(wish, PASSWD, GROUP)
    assert caught.value.status == 125


@pytest.mark.parametrize("wish", ["root:nogroup", "root:bad", "33:-1"])
def test_unknown_groups(wish: str) -> None:
    with pytest.raises(LaunchError, match="no such group in the container"):
        resolve(wish, PASSWD, GROUP)


def test_without_the_files_numbers_work_and_root_is_zero() -> None:
    assert resolve("", "", "") == Account(0, 0, (), "/")
    assert resolve("5:6", "", "") == Account(5, 6, (), "/")
