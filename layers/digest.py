"""Digests, the names of blobs: parsing and computing. Pure.

OCI image specification, descriptor.md ("Digests"): `algorithm:encoded`. sha256 and sha512 are registered; we make
sha256 and verify both.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, NewType

from layers.errors import Malformed

if TYPE_CHECKING:
    from hashlib import _Hash

Digest = NewType("Digest", str)

_LENGTHS: Final = {"sha256": 64, "sha512": 128}
_SHAPE: Final = re.compile(r"(sha256|sha512):([0-9a-f]+)", re.ASCII)


def parse(text: object) -> Digest:
    """Parse `text` as a digest. Raises Malformed when it is no digest, or its algorithm cannot be verified here."""
    match = _SHAPE.fullmatch(text) if isinstance(text, str) else None
    if match is None or len(match[2]) != _LENGTHS[match[1]]:
        raise Malformed("reading a digest", str(text)[:100], "expected sha256: and 64 lower-case hexadecimal digits")
    return Digest(match[0])


def of(data: bytes) -> Digest:
    """The sha256 digest of `data`."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


def hasher(digest: Digest) -> _Hash:
    """A new hash object of the algorithm of `digest`."""
    return hashlib.new(algorithm(digest))


def finished(digest: Digest, hash_: _Hash) -> Digest:
    """The digest of the data fed to `hash_`, which `hasher(digest)` made."""
    return Digest(f"{algorithm(digest)}:{hash_.hexdigest()}")


def algorithm(digest: Digest) -> str:
    """The part before the colon."""
    return digest.partition(":")[0]


def encoded(digest: Digest) -> str:
    """The part behind the colon."""
    return digest.partition(":")[2]


def short(digest: Digest) -> str:
    """The first twelve hexadecimal digits, for display."""
    return encoded(digest)[:12]


def chain(below: Digest | None, diff_id: Digest) -> Digest:
    """The chain id of a stack: of the layer `diff_id` on top of the stack `below` (config.md, "Layer ChainID")."""
    return diff_id if below is None else of(f"{below} {diff_id}".encode())
