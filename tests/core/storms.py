"""Storms: files of a directory changed one after the other in the order of its listing, so that from some moment on
each is copied before it is asked for. What the files are, and what is done to them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.core.acl import acl
from tests.core.conftest import MakeStack
from tests.core.pair import Pair, Step
from tests.core.stack import Stack, Whiteout, staged
from tests.core.trees import quote
from unionfs.core.listing import cookie_of

FIRST = 3
"""So many copy-ups in order make the next one worth copying ahead: the second and the third were guessed."""

NAMES = sorted((f"f{number}" for number in range(24)), key=lambda name: cookie_of(name.encode()))
"""In the order of a listing."""

FILES = [f"d/{name}" for name in NAMES]


def layer(*kinds: str) -> str:
    """`d/` with a file of each kind, in the order of the listing; then ordinary ones."""
    kinds += ("=content",) * (len(FILES) - len(kinds))
    return "d/@77.000000007 " + " ".join(path + kind for path, kind in zip(FILES, kinds, strict=True))


def looked_at(stack: Stack) -> Stack:
    """Somebody has listed the directory and looked at all that is in it, as every storm begins."""
    assert [os.fsdecode(name) for name in stack.u.listing("d") if name.decode() in NAMES] == NAMES
    for name in FILES:
        stack.u.stat(name)
    return stack


def prepare(make: MakeStack, *kinds: str, **options: object) -> Stack:
    return looked_at(make(layer(*kinds), caching=True, **options))


def storm(stack: Stack, files: list[str], mode: int = 0o600) -> None:
    for name in files:
        stack.u.chmod(name, mode)


def is_ahead(stack: Stack) -> bool:
    """Whether a file has been copied that nobody has asked for."""
    found = staged(stack.work)
    assert len(found) < 2, "never more than one"
    return bool(found)


CAPABILITY = quote(b"\x01\x00\x00\x02\x00\x20\x00\x00" + b"\0" * 12)
RIGHTS = quote(acl("u::rwx,u:1234:r--,g::r-x,m::rwx,o::---"))

KINDS = (
    [
        *("=plain",) * FIRST,
        "=next",
        "",
        "=owned:0644,5,6@9",
        "=x*5000",
        "=x*60000",
        "=x*100000",
        "=k:0640{user.k=v,user.z=}",
        "=suid:4755,7,8",
        "=sgid:2711",
        "=hidden:0000",
        "=readonly:0444",
        "->content",
        "=target",
        "/",
        "<fifo>",
        "=again",
        "=linked",
        f"=={FILES[19]}",
        "=last",
    ]
    if os.geteuid() == 0
    else ["=plain"] * FIRST + ["=next", "", "=x*5000", "=x*100000", "=k:0640{user.k=v}", "->content"]
)
if os.geteuid() == 0:
    KINDS += [f"=acl:0750{{system.posix_acl_access={RIGHTS}}}", f"=capable:0755{{security.capability={CAPABILITY}}}"]

CHANGES: dict[str, Callable[[str], Step]] = {
    "chmod": lambda name: ("chmod", name, 0o640),
    "chmod to what most have": lambda name: ("chmod", name, 0o644),
    "append": lambda name: ("write", name, 6, b"appended"),
    "truncate": lambda name: ("truncate", name, 3),
    "empty": lambda name: ("truncate", name, 0),
    "extend": lambda name: ("truncate", name, 9000),
    "chown": lambda name: ("chown", name, 5 if os.geteuid() == 0 else os.geteuid(), os.getegid()),
    "utime": lambda name: ("utime", name, 5, 6),
    "setxattr": lambda name: ("setxattr", name, b"user.new", b"1", 0),
    "rename": lambda name: ("rename", name, name.replace("d/", "other/")),
    "link": lambda name: ("link", name, name.replace("d/", "other/")),
    "unlink": lambda name: ("unlink", name),
}


def pair_of(base: Path, whiteout: Whiteout, *kinds: str, overrides: str = "", others: str = "other/") -> Pair:
    pair = Pair(
        base, [f"{layer(*kinds)} {others}"], "", whiteout, caching=True, overrides=overrides, answers_first=True
    )
    looked_at(pair.stack)
    return pair
