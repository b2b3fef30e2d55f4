"""Request bytes to arguments: golden bytes, and everything a kernel would not send."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuse.kernel import wire
from unionfs.core.attrs import NOW, AttrChange, Caller
from unionfs.fuse.kernel import abi, decode
from unionfs.fuse.kernel.decode import MalformedError

ME = Caller(uid=7, gid=8, pid=9, umask=0)


def decoded(decoder: Callable[..., Any], body: bytes) -> Any:
    """What `decoder` makes of a request with this body, in a buffer that goes on with an older request's bytes."""
    data = wire.request(1, 5, body, uid=7, gid=8, pid=9)
    head = abi.IN_HEADER.unpack_from(data)
    return decoder(head, memoryview(data + b"left/over\0" * 100), len(data))


@pytest.mark.parametrize(
    ("decoder", "body", "arguments"),
    [
        (decode.nothing, b"", ()),
        (decode.name, b"a\xff\0", (b"a\xff",)),
        (decode.name, b"n" * 255 + b"\0", (b"n" * 255,)),
        (decode.forget, struct.pack("=Q", 3), (3,)),
        (decode.symlink, b"link\0../to/it\0", (b"link", b"../to/it", ME)),
        (decode.symlink, b"link\0\0", (b"link", b"", ME)),
        (
            decode.mknod,
            struct.pack("=IIII", 0o100644, 0x103, 0o22, 0) + b"f\0",
            (b"f", 0o100644, 0x103, ME._replace(umask=0o22)),
        ),
        (decode.mkdir, struct.pack("=II", 0o755, 0o27) + b"d\0", (b"d", 0o755, ME._replace(umask=0o27))),
        (
            decode.tmpfile,
            struct.pack("=IIII", 2, 0o100600, 0o77, 0) + b"#12\0",
            (0o100600, ME._replace(umask=0o77)),
        ),
        (decode.rename, struct.pack("=Q", 12) + b"old\0new\0", (b"old", 12, b"new")),
        (decode.rename2, struct.pack("=QII", 12, 2, 0) + b"old\0new\0", (b"old", 12, b"new", 2)),
        (decode.link, struct.pack("=Q", 12) + b"new\0", (12, b"new")),
        (decode.fsync, struct.pack("=QII", 0, 1, 0), (True,)),
        (decode.fsync, struct.pack("=QII", 0, 0, 0), (False,)),
        (decode.removexattr, b"user.a/b\0", (b"user.a/b",)),
        (decode.fallocate, struct.pack("=QQQII", 0, 4096, 100, 3, 0), (3, 4096, 100)),
        (decode.lseek, struct.pack("=QQII", 0, 1 << 40, 4, 0), (1 << 40, 4)),
        (decode.copy_file_range, struct.pack("=QQQQQQQ", 0, 1, 12, 0, 3, 1 << 33, 0), (1, 12, 3, 1 << 33)),
    ],
)
def test_golden(decoder: Callable[..., Any], body: bytes, arguments: tuple[Any, ...]) -> None:
    assert decoded(decoder, body) == arguments


SECONDS = struct.Struct("=IIQQQqqqIIIIIIII")


@pytest.mark.parametrize(
    ("valid", "change"),
    [
        (0, AttrChange(kill_priv=True)),
        (1 << 0, AttrChange(mode=0o4755)),
        (1 << 1, AttrChange(uid=11)),
        (1 << 2, AttrChange(gid=12)),
        (1 << 3, AttrChange(size=1 << 41)),
        (1 << 4, AttrChange(atime_ns=5_000_000_006)),
        (1 << 5, AttrChange(mtime_ns=-1_999_999_999)),
        (1 << 4 | 1 << 7, AttrChange(atime_ns=NOW)),
        (1 << 5 | 1 << 8, AttrChange(mtime_ns=NOW)),
        (1 << 6 | 1 << 9 | 1 << 10, AttrChange(kill_priv=True)),
        (1 << 3 | 1 << 11, AttrChange(size=1 << 41, kill_priv=True)),
    ],
)
def test_setattr(valid: int, change: AttrChange) -> None:
    """Only what `valid` names counts, whatever stands in the other fields."""
    body = SECONDS.pack(valid, 0, 1, 1 << 41, 2, 5, -2, 7, 6, 1, 8, 0o104755, 0, 11, 12, 0)
    assert decoded(decode.setattr_, body) == (change,)


def test_setxattr_both_forms() -> None:
    short = wire.request(21, 5, struct.pack("=II", 3, 1) + b"user.k\0" + b"v\0w")
    assert decode.setxattr(memoryview(short), len(short), extended=False) == (b"user.k", b"v\0w", 1, False)
    long = wire.request(21, 5, struct.pack("=IIII", 0, 2, 1, 0) + b"user.k\0")
    assert decode.setxattr(memoryview(long), len(long), extended=True) == (b"user.k", b"", 2, True)


def test_getxattr() -> None:
    data = wire.request(22, 5, struct.pack("=II", 100, 0) + b"security.capability\0")
    assert decode.getxattr(memoryview(data), len(data)) == (100, b"security.capability")


def test_batch_forget() -> None:
    data = wire.request(42, 0, struct.pack("=IIQQQQ", 2, 0, 10, 1, 11, 5))
    assert decode.batch_forget(memoryview(data), len(data)) == [(10, 1), (11, 5)]
    with pytest.raises(MalformedError):
        decode.batch_forget(memoryview(data), len(data) - 1)


@pytest.mark.parametrize(
    "body", [b"", b"\0", b"no end", b"a\0b\0", b"a/b\0", b"/\0", b".\0", b"..\0", b"a\0\0"], ids=repr
)
def test_names_that_no_kernel_sends(body: bytes) -> None:
    with pytest.raises(MalformedError):
        decoded(decode.name, body)


@pytest.mark.parametrize("body", [b"", b"a\0", b"a\0b", b"a\0b\0c\0", b"\0b\0", b"../x\0b\0"], ids=repr)
def test_pairs_that_no_kernel_sends(body: bytes) -> None:
    with pytest.raises(MalformedError):
        decoded(decode.symlink, body)


@pytest.mark.parametrize("body", [b"", b"\0", b"no end", b"a\0b\0"], ids=repr)
def test_attribute_names_that_no_kernel_sends(body: bytes) -> None:
    with pytest.raises(MalformedError):
        decoded(decode.removexattr, body)


def test_names_too_long() -> None:
    """Linux 6.18 lets names of up to 1023 bytes through to the daemon."""
    for decoder, body in [
        (decode.name, b"n" * 256 + b"\0"),
        (decode.symlink, b"n" * 1023 + b"\0t\0"),
        (decode.mkdir, struct.pack("=II", 0, 0) + b"n" * 256 + b"\0"),
        (decode.rename, struct.pack("=Q", 1) + b"a\0" + b"n" * 256 + b"\0"),
        (decode.rename2, struct.pack("=QII", 1, 0, 0) + b"n" * 256 + b"\0a\0"),
        (decode.link, struct.pack("=Q", 1) + b"n" * 256 + b"\0"),
    ]:
        with pytest.raises(OSError) as caught:
            decoded(decoder, body)
        assert caught.value.errno == errno.ENAMETOOLONG
    with pytest.raises(OSError) as caught:
        decoded(decode.removexattr, b"n" * 256 + b"\0")
    assert caught.value.errno == errno.ERANGE


NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"\0" not in name and b"/" not in name and name not in (b".", b"..")
)


@given(NAMES, NAMES)
def test_any_name_survives(old: bytes, new: bytes) -> None:
    assert decoded(decode.name, old + b"\0") == (old,)
    assert decoded(decode.rename, struct.pack("=Q", 9) + old + b"\0" + new + b"\0") == (old, 9, new)


DECODERS = [
    decode.name, decode.symlink, decode.mknod, decode.mkdir, decode.rename, decode.rename2, decode.link,
    decode.removexattr,
]  # fmt: skip


@given(st.sampled_from(DECODERS), st.binary(min_size=16, max_size=300))
def test_bytes_at_random_are_arguments_or_refused(decoder: Callable[..., Any], body: bytes) -> None:
    """Nothing but the three documented outcomes, and no name that could lead elsewhere."""
    try:
        arguments = decoded(decoder, body)
    except MalformedError:
        return
    except OSError as refused:
        error = refused.errno
        arguments = ()
    else:
        error = 0
    assert error in (0, errno.ENAMETOOLONG, errno.ERANGE)
    if error:
        return
    names = [argument for argument in arguments if isinstance(argument, bytes)]
    assert names
    for name in names[:1]:
        assert 0 < len(name) <= 255
        assert decoder is decode.removexattr or b"/" not in name
