"""A list of changes as bytes and back: for another process, and to know later how the target was when they were listed.

Pure. JSON; names that are not UTF-8 are lone surrogates, which JSON escapes.
"""

from __future__ import annotations

import json
import os
from typing import Any

from unionfs.changes.listing import Change, Changes
from unionfs.changes.objects import Object, Place


def dump(found: Changes) -> bytes:
    """The changes as bytes."""
    rows = [
        (change.kind, os.fsdecode(change.path), change.what, _plain(change.new), _plain(change.old))
        for change in found.changes
    ]
    links = [(*key, os.fsdecode(path)) for key, path in found.unchanged_links.items()]
    return json.dumps({"changes": rows, "unchanged_links": links}).encode()


def load(data: bytes) -> Changes:
    """What dump() was given. Raises ValueError, KeyError or TypeError for anything else."""
    saved = json.loads(data)
    return Changes(
        [
            Change(kind, os.fsencode(path), tuple(what), _object(new), _object(old))
            for kind, path, what, new, old in saved["changes"]
        ],
        {(dev, ino): os.fsencode(path) for dev, ino, path in saved["unchanged_links"]},
    )


def still_there(then: Changes, now: Changes) -> Changes:
    """What of `then` is a change still. What only the target's own life has added since is not the upper's doing."""
    paths = {change.path for change in now.changes}
    return Changes([change for change in then.changes if change.path in paths], then.unchanged_links)


def _plain(one: Object | None) -> list[Any] | None:
    if one is None:
        return None
    return [_plain_place(value) if isinstance(value, Place) else value for value in one]


def _plain_place(place: Place) -> list[Any]:
    return [place.branch, os.fsdecode(place.rel)]


def _object(values: list[Any] | None) -> Object | None:
    if values is None:
        return None
    saved = Object(*values)
    return saved._replace(place=_place(saved.place), data=_place(saved.data))


def _place(values: Any) -> Place:
    branch, rel = values
    return Place(int(branch), os.fsencode(rel))
