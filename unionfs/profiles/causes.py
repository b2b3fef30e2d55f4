"""The causes of a job's time on a union, and remedies. Pure.

Each cause is counted from the recording. The savings of its remedy are counted or measured, never estimated: the
requests that would not be sent, the bytes that would not be copied, and the seconds that programs waited for them.
Requests may belong to several causes, so the savings cannot be added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from unionfs.profiles.recording import Recording, Row

LEAST_SHARE: Final = 0.02
"""A cause of a smaller part of the time and of the requests is not listed."""
LEAST_REQUESTS: Final = 20
LEAST_S: Final = 0.01
"""Nor is a cause of fewer requests that took less time."""
_ONE_FILE: Final = 0.2
"""A file, or a directory, with at least this part of all requests is a cause of its own."""
_SMALL: Final = 65536
"""Writes smaller than this on average gain by `--writeback`, which sends up to one MiB at once."""
_MOST_AT_ONCE: Final = 1 << 20
_CHANGES: Final = frozenset(
    ("MKNOD", "MKDIR", "SYMLINK", "LINK", "UNLINK", "RMDIR", "RENAME", "RENAME2", "WRITE", "SETATTR")
)
_IN_LAYER: Final = "Change owners and modes in the layer that brings the files, when it is made."


class Cause(NamedTuple):
    """One cause, and its remedy."""

    name: str  # a word for scripts
    what: str  # a sentence
    remedy: str  # a sentence; "" where there is none
    requests: int  # that the remedy saves
    size: int  # bytes that are not copied then
    seconds: float  # that programs waited for these requests and copies
    program: str  # which caused most of it; "" if unknown
    directory: str  # where most of it was


def causes(recording: Recording) -> list[Cause]:
    """The causes that matter, those first that took longest."""
    total, cost = recording.messages, recording.cost
    found = []
    for rule in _RULES:
        for cause in rule(recording):
            is_large = cause.seconds >= LEAST_SHARE * cost or cause.requests >= LEAST_SHARE * total
            if is_large and (cause.requests >= LEAST_REQUESTS or cause.seconds >= LEAST_S):
                found.append(cause)
    return sorted(found, key=lambda cause: (-cause.seconds, -cause.requests, cause.name))


def saved(cause: Cause, human: Callable[[int], str]) -> str:
    """A sentence with the savings of the remedy; "" if they were not counted. `human` formats bytes."""
    parts = [f"{cause.requests} requests"] if cause.requests else []
    parts += [f"{human(cause.size)} of copies"] if cause.size else []
    return f"That saves {' and '.join(parts)}." if parts else ""


def _cause_of(name: str, rows: Sequence[Row], what: str, remedy: str, saved: int | None = None) -> Cause:
    """A cause that consists of requests."""
    main = max(_places(rows), key=lambda row: (row.cost, row), default=Row("", "", "", ""))
    requests = sum(row.requests for row in rows)
    seconds = sum(row.cost for row in rows)
    return Cause(
        name, what, remedy, requests if saved is None else saved, 0, seconds, main.program, main.directory
    )  # fmt: skip


def _places(rows: Sequence[Row]) -> list[Row]:
    """The sums of rows by program and directory."""
    sums: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = (row.program, row.directory)
        known = sums.get(key, Row("", "", *key))
        sums[key] = known._replace(requests=known.requests + row.requests, seconds=known.seconds + row.cost)
    return list(sums.values())


def _those(recording: Recording, wanted: Callable[[Row], bool]) -> tuple[list[Row], int]:
    rows = [row for row in recording.rows if wanted(row)]
    return rows, sum(row.requests for row in rows)


def _missing(recording: Recording) -> Iterator[Cause]:
    rows, count = _those(recording, lambda row: row.reason in ("missing", "missing again"))
    if not count:
        return
    again = sum(row.requests for row in rows if row.reason == "missing again")
    what = f"{count} lookups were of names that do not exist, {count - again} different ones."
    remedy = (
        "Shorten the search path of the program, or create what it looks for: the kernel remembers a missing name, but "
        "has to ask once for each."
    )
    if again * 2 > count:
        remedy = "Mount with a longer --timeout, or without --watch: the kernel asked again for names it knew."
    yield _cause_of("missing-names", rows, what, remedy)


def _expired(recording: Recording) -> Iterator[Cause]:
    rows, count = _those(recording, lambda row: row.reason == "expired")
    timeout = recording.settings["timeout_s"]
    what = f"{count} requests repeated earlier ones, whose answers the kernel caches for --timeout={timeout:g} only."
    if count:
        yield _cause_of("timeout", rows, what, "Mount without --timeout: the kernel then keeps its cache.")


def _atime(recording: Recording) -> Iterator[Cause]:
    rows, count = _those(recording, lambda row: row.reason == "atime")
    if not count:
        return
    what = f"{count} requests asked for attributes again because a read had changed the access time."
    has_changes = any(row.kind in _CHANGES for row in recording.rows)
    remedy = "Mount with --read-only: the kernel then keeps the attributes. The job changed nothing."
    if has_changes:
        remedy = "Put the files that are read onto a read-only volume: the kernel keeps attributes there."
    yield _cause_of("access-times", rows, what, remedy)


def _xattrs(recording: Recording) -> Iterator[Cause]:
    rows, count = _those(recording, lambda row: row.reason == "xattr")
    what = f"{count} requests asked for extended attributes, which the kernel does not cache."
    remedy = "Mount with `mount -t unionfs -o noxattrs=1` if the job needs none (ACLs and file capabilities included)."
    if count:
        yield _cause_of("xattrs", rows, what, remedy)


def _first(recording: Recording) -> Iterator[Cause]:
    rows, count = _those(recording, lambda row: row.reason == "first" or row.kind in ("READDIRPLUS", "READDIR"))
    reads, read = _those(recording, lambda row: row.kind == "READ")
    if not count + read:
        return
    what = f"{count} requests asked for names and attributes for the first time, and {read} for data."
    remedy = (
        "Keep the union mounted between jobs: the answers are in the kernel's cache then. These requests were "
        "the first since the recording began."
    )
    yield _cause_of("cold-cache", [*rows, *reads], what, remedy)


def _copies(recording: Recording) -> Iterator[Cause]:
    for use, name, what, remedy in (
        ("unchanged", "copied-for-nothing", "{} files were copied up by changes of owner or mode that changed nothing.",
         "Leave those changes out, for example with `chown --from` or `find ! -user`."),
        ("attributes", "copied-for-attributes",
         "{} files were copied up, but only their attributes or names were changed.",
         "Mount with --partial-from=16M: files of at least 64 KiB are then copied up without their data."),
        ("removed", "copied-and-removed", "{} files were copied up and removed or replaced later.",
         "Put their directory onto a volume, or let the job write to another place."),
    ):  # fmt: skip
        copies = [each for each in recording.copy_ups if each["use"] == use]
        is_partial = use == "attributes" and recording.settings["partial"]
        if copies:
            yield _of_copies(name, what, _IN_LAYER if is_partial else remedy, copies)


def _of_copies(name: str, what: str, remedy: str, copies: list[dict[str, Any]]) -> Cause:
    count, size = sum(each["count"] for each in copies), sum(each["size"] for each in copies)
    main = max(copies, key=lambda each: (each["seconds"], each["directory"]))
    seconds = sum(each["seconds"] for each in copies)
    requests = count if name == "copied-for-nothing" else 0
    return Cause(name, what.format(count), remedy, requests, size, seconds, main["program"], main["directory"])


def _one_file(recording: Recording) -> Iterator[Cause]:
    if not recording.files:
        return
    file = max(recording.files, key=lambda each: each["requests"])
    if file["requests"] < _ONE_FILE * recording.messages:
        return
    writes, written = file["writes"], file["written"]
    what = f"{file['requests']} of {recording.messages} requests were about {file['path']}"
    saved = file["requests"]
    if writes * 2 > saved and written < _SMALL * writes and not recording.settings["writeback"]:
        saved = writes - -(-written // _MOST_AT_ONCE)
        what += f": {writes} writes of {written / writes:.0f} bytes on average."
        remedy = "Mount with --writeback: the kernel then gathers writes; but each open is a request."
    else:
        what += "."
        remedy = "Put its directory onto a volume: no request for it reaches the union then."
    directory = file["path"].rpartition("/")[0] or "/"
    rows = [row for row in recording.rows if row.directory in (directory, file["path"])]
    cause = _cause_of("one-file", rows, what, remedy, saved)
    yield cause._replace(seconds=file["seconds"], directory=directory)


def _rewritten(recording: Recording) -> Iterator[Cause]:
    for place in recording.by("directory"):
        rows = [row for row in recording.rows if row.directory == place.directory and row.kind in _CHANGES]
        changes, count = sum(row.requests for row in rows), place.requests
        made = sum(row.requests for row in rows if row.kind in ("MKNOD", "UNLINK", "RENAME", "RENAME2"))
        if place.directory and changes >= _ONE_FILE * recording.messages and made * 4 > changes:
            what = f"{changes} requests made, wrote and removed files in {place.directory}."
            remedy = "Put this directory onto a volume: no request for it reaches the union then."
            whole = [row for row in recording.rows if row.directory == place.directory]
            yield _cause_of("rewritten-directory", whole, what, remedy, count)


def _small_writes(recording: Recording) -> Iterator[Cause]:
    rows, count = _those(recording, lambda row: row.kind == "WRITE")
    size = sum(row.size for row in rows)
    if not count or size >= _SMALL * count or recording.settings["writeback"]:
        return
    what = f"{count} writes had {size / count:.0f} bytes on average."
    remedy = "Mount with --writeback: the kernel then gathers writes of a file; but each open is a request."
    places = len({row.directory for row in rows})
    yield _cause_of("small-writes", rows, what, remedy, max(0, count - -(-size // _MOST_AT_ONCE) - places))


def _data(recording: Recording) -> Iterator[Cause]:
    rows, count = _those(recording, lambda row: row.kind in ("READ", "WRITE") and row.size >= _SMALL * row.requests)
    if not count or recording.settings["passthrough"]:
        return
    size = sum(row.size for row in rows)
    what = f"{count} requests read and wrote data, {size / count / 1024:.0f} KiB each on average."
    remedy = (
        "Mount with --passthrough (as root): the kernel reads and writes by itself, but each open is a request then."
    )
    yield _cause_of("large-data", rows, what, remedy)


def _blocked(recording: Recording) -> Iterator[Cause]:
    rows, count = _those(recording, lambda row: row.blocked > 0)
    if not count:
        return
    seconds = sum(row.blocked for row in rows)
    what = f"Requests waited {seconds * 1000:.0f} ms for copy-ups that other programs had caused."
    yield _cause_of("blocked", rows, what, "", 0)._replace(seconds=seconds)


_RULES: Final[tuple[Callable[[Recording], Iterator[Cause]], ...]] = (
    *(_missing, _expired, _atime, _xattrs, _first, _copies, _one_file, _rewritten, _small_writes, _data, _blocked),
)
