"""Serialise a list of changes as JSON, to send it to another process or to compare it with a later list.

Pure. JSON; names that are not UTF-8 are lone surrogates, which JSON escapes.
"""

from __future__ import annotations

import json
import os
from typing import Any

from unionfs.changes.listing import Change, Changes
from unionfs.changes.objects import BranchPath, Object


def dump(found: Changes) -> bytes:
    """The changes as bytes."""
    rows = [
        (change.kind, os.fsdecode(change.path), change.what, _plain(change.new), _plain(change.old))
        for change in found.changes
    ]
    links = [(*key, os.fsdecode(path)) for key, path in found.unchanged_links.items()]
    return json.dumps({"changes": rows, "unchanged_links": links}).encode()


def load(data: bytes) -> Changes:
    """Convert the result of dump() back. Raises: ValueError, KeyError or TypeError for other bytes."""
    saved = json.loads(data)
    return Changes(
        [
            Change(kind, os.fsencode(path), tuple(what), _object(new), _object(old))
            for kind, path, what, new, old in saved["changes"]
        ],
        {(dev, ino): os.fsencode(path) for dev, ino, path in saved["unchanged_links"]},
    )


def still_there(then: Changes, now: Changes) -> Changes:
    """The changes of `then` that `now` still has. Those only in `now` are changes of the target, not of the upper."""
    paths = {change.path for change in now.changes}
    return Changes([change for change in then.changes if change.path in paths], then.unchanged_links)


def _plain(one: Object | None) -> list[Any] | None:
    if one is None:
        return None
    place, *others, data = one
    return [_plain_place(place), *others, _plain_place(data)]


def _plain_place(place: BranchPath) -> list[Any]:
    return [place.branch, os.fsdecode(place.rel)]


def _object(values: list[Any] | None) -> Object | None:
    if values is None:
        return None
    place, *others, data = values
    return Object._make([_place(place), *others, _place(data)])


def _place(values: Any) -> BranchPath:
    branch, rel = values
    return BranchPath(int(branch), os.fsencode(rel))
