"""The gRPC service: each request becomes a call of the store, and its result or error a response or status.

Each change is logged in one line. An unexpected exception is a bug: the client gets INTERNAL, the log a traceback, and
the service goes on.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import grpc

from unionfs.snapshotter.store import SnapshotStore
from unionfs.snapshotter.values import Info, Mount, SnapshotError
from unionfs.snapshotter.wire import METHODS, SERVICE, message

log = logging.getLogger(__name__)

_BATCH: Final = 100  # infos in one message of a list: far below gRPC's 4 MiB, as labels have at most 4 KiB each

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_CHANGES: Final = ("Prepare", "View", "Commit", "Remove", "Update", "Cleanup")

_Info: Final = message("Info")
_Mount: Final = message("Mount")
_Timestamp: Final = message("Timestamp")


class Service:
    """The calls of one store; each method takes a request and returns its response."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store  # immutable

    def Prepare(self, request: Any) -> Any:
        mounts = self._store.prepare(request.key, request.parent, dict(request.labels))
        return message("PrepareSnapshotResponse")(mounts=map(_mount_message, mounts))

    def View(self, request: Any) -> Any:
        mounts = self._store.view(request.key, request.parent, dict(request.labels))
        return message("ViewSnapshotResponse")(mounts=map(_mount_message, mounts))

    def Mounts(self, request: Any) -> Any:
        return message("MountsResponse")(mounts=map(_mount_message, self._store.mounts(request.key)))

    def Commit(self, request: Any) -> Any:
        self._store.commit(request.name, request.key, dict(request.labels))
        return message("Empty")()

    def Remove(self, request: Any) -> Any:
        self._store.remove(request.key)
        return message("Empty")()

    def Stat(self, request: Any) -> Any:
        return message("StatSnapshotResponse")(info=_info_message(self._store.stat(request.key)))

    def Update(self, request: Any) -> Any:
        info = self._store.update(request.info.name, dict(request.info.labels), list(request.update_mask.paths))
        return message("UpdateSnapshotResponse")(info=_info_message(info))

    def List(self, request: Any) -> Iterator[Any]:
        found = [_info_message(info) for info in self._store.walk(request.filters)]
        return (message("ListSnapshotsResponse")(info=batch) for batch in _batches(found))

    def Usage(self, request: Any) -> Any:
        usage = self._store.usage(request.key)
        return message("UsageResponse")(size=usage.size, inodes=usage.inodes)

    def Cleanup(self, request: Any) -> Any:
        del request
        self._store.cleanup()
        return message("Empty")()


def handler_of(store: SnapshotStore) -> Any:
    """Return the gRPC handler that serves `store`."""
    service = Service(store)
    handlers = {}
    for name, method in METHODS.items():
        kind = grpc.unary_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
        handlers[name] = kind(
            _with_status(name, getattr(service, name)),
            request_deserializer=message(method.request).FromString,
            response_serializer=message(method.response).SerializeToString,
        )
    return grpc.method_handlers_generic_handler(SERVICE, handlers)


def _with_status(name: str, call: Callable[[Any], Any]) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Wrap `call` so that its exceptions become gRPC statuses."""

    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        subject = _subject(request)
        try:
            response = call(request)
        except (SnapshotError, OSError, sqlite3.Error) as error:
            code, why = _status(error)
            level = logging.INFO if isinstance(error, SnapshotError) else logging.ERROR
            log.log(level, "%s %s: %s: %s", name, subject, code.name, why)
        except Exception as bug:
            log.exception("bug while serving %s %s", name, subject)
            code, why = grpc.StatusCode.INTERNAL, f"{type(bug).__name__}: {bug}"
        else:
            log.log(logging.INFO if name in _CHANGES else logging.DEBUG, "%s %s", name, subject)
            return response
        return context.abort(code, why)

    return answer


def _status(error: SnapshotError | OSError | sqlite3.Error) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, SnapshotError):
        return grpc.StatusCode[error.code], str(error)
    if isinstance(error, OSError):
        full = error.errno in _FULL
    else:
        full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.INTERNAL, str(error)


def _subject(request: Any) -> str:
    """Return the names in a request, for the log."""
    names = (getattr(request, field, "") for field in ("name", "key", "parent"))
    own = request.info.name if "info" in request.DESCRIPTOR.fields_by_name else ""
    return " ".join(filter(None, (own, *names)))


def _mount_message(mount: Mount) -> Any:
    return _Mount(type=mount.type, source=mount.source, options=mount.options)


def _info_message(info: Info) -> Any:
    return _Info(
        name=info.name,
        parent=info.parent,
        kind=int(info.kind),
        created_at=_timestamp(info.created_ns),
        updated_at=_timestamp(info.updated_ns),
        labels=dict(info.labels),
    )


def _timestamp(time_ns: int) -> Any:
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return _Timestamp(seconds=seconds, nanos=nanos)


def _batches(found: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (found[start : start + _BATCH] for start in range(0, len(found), _BATCH))
