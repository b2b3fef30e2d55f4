"""The server of the control socket: statistics, copy-up traces, branches, upgrades.

Each daemon listens on a socket named after its FUSE connection (control.listening). A request is one line of JSON:
`{"ask": "stats"}`, `{"ask": "trace"}`, `{"ask": "activity"}` (see control.activity_server), `{"ask": "upgrade"}`,
`{"ask": "branches"}`, or `{"ask": "change"}` with what control.branch_server takes and, beside its bytes, the
descriptor of a directory (SCM_RIGHTS in unix(7)). The answer is one line, or for `trace` one for each copy-up until the
client closes. Only the daemon's own user and root get answers.

The answering threads read counters while the union's thread changes them: the numbers of one answer may differ by a
request. Knows sockets and JSON. Does not know the transport's protocol or how numbers are displayed.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from unionfs import compiled
from unionfs.control import activity_server, listening
from unionfs.control.branch_server import BranchControl, RefusedError
from unionfs.core.ledger import CopiedUp
from unionfs.core.union import Union
from unionfs.fuse.daemon_history import DaemonHistory
from unionfs.fuse.traffic import Traffic
from unionfs.syscalls import peers

_CLIENTS: Final = 16
"""Connections of the daemon's user and root at once; more have to wait."""

_STRANGERS: Final = 4
"""Connections of other users at once, which get an error only; more are closed."""

_QUESTION_MAX: Final = 65536
_BACKLOG_MAX: Final = 100_000
"""Copy-ups queued for a slow reader of a trace; further ones are dropped and counted."""

_TRACE_CHECK_S: Final = 0.2
"""How often a trace checks whether its reader has gone while nothing happens."""

_QUESTION_TIMEOUT_S: Final = 3.0
"""Seconds to wait for a client's question."""

_TIMEOUT_S: Final = 30.0
"""Seconds to wait for a slow reader, and for a name that another daemon still has."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """Answers the requests of the control socket for one mount."""

    union: Union
    traffic: Traffic
    transport: str
    mountpoint: str
    started_by: str  # for people
    since: float  # time.monotonic of the mount
    version: str = ""  # of the daemon
    no_view: str = ""  # why the union is not a view
    history: DaemonHistory | None = None  # None: without a keeper
    branches: BranchControl | None = None  # None: they cannot be changed
    no_upgrade: str = ""  # why no other version can continue
    leave: Callable[[], None] | None = None  # leaves the mount to the daemon of another version
    has_ended: Callable[[], bool] = lambda: False  # returns whether the mount has ended
    upgrading: threading.Lock = field(default_factory=threading.Lock)  # held while one is tried

    def stats(self) -> dict[str, Any]:
        """Return the object that `unionfs stats --json` prints."""
        ledger, options = self.union.ledger, self.union.options
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "mountpoint": _text(os.fsencode(self.mountpoint)),
            "pid": os.getpid(),
            "started_by": self.started_by,
            "transport": self.transport,
            "protocol": self.traffic.protocol,
            "version": self.version,
            "compiled": compiled.is_in_use(),
            "code": compiled.code_in_use(),
            "uptime_s": round(time.monotonic() - self.since, 3),
            "lowers": [_text(os.fsencode(lower)) for lower in options.lowers],
            "upper": None if options.upper is None else _text(os.fsencode(options.upper)),
            "messages": dict(sorted(self.traffic.messages.items())),
            "copy_ups": {
                "files": ledger.files,
                "directories": ledger.directories,
                "others": ledger.others,
                "reflinked": ledger.reflinked,
                "bytes": ledger.bytes,
                "saved": max(0, ledger.saved),
                "seconds": round(ledger.seconds, 6),
            },
            "nodes": self.union.node_count,
            "views": self._views(),
            "watch": self._watch(),
            "keeper": self._keeper(),
            "passthrough": self.traffic.passthrough,
            "memory_bytes": _memory(),
            "cpu_s": round(used.ru_utime + used.ru_stime, 6),
            "descriptors": {
                "open": len(os.listdir("/proc/self/fd")) - 1,  # without that of the listing
                "most": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            },
        }

    def _views(self) -> dict[str, Any]:
        """Describe the views of this union's lowers, or why this read-only union is not a view itself."""
        offer = self.traffic.view_offer
        view = offer.view if offer is not None else None
        return {
            "offered": offer is not None,
            "nodes": view.node_count if view is not None else 0,
            "no_view": self.no_view,
        }

    def _keeper(self) -> dict[str, Any] | None:
        """Describe the keeper, and how often and why it has replaced the daemon."""
        history = self.history
        if history is None:
            return None
        return {
            "pid": history.keeper,
            "alive": history.is_alive,
            "outdated": history.record.is_outdated,
            "replaced": history.deaths,
            "last_reason": history.reason,
            "waited_s": round(history.waited_s, 6),
            "waited_total_s": round(history.waited_total_s, 6),
            "replacements": history.described(),
            "upgrades": history.upgrades,
            "version_before": history.version_before,
            "not_upgraded": history.not_upgraded,
        }

    def _upgrade(self, client: socket.socket) -> None:
        """Answer `refused` with a reason; or `upgrades`, the number so far, and leave the mount to the daemon of
        the other version, whose `stats` show whether the number has grown. With `again` the parent of mounts has only
        given the mount to a keeper of its own: the client must send the request to the next daemon again."""
        history, leave = self.history, self.leave
        why = self.no_upgrade
        if history is None or leave is None:
            why = why or "it has no keeper"
        elif history.record.is_outdated:
            why = "its branches were changed while it was mounted, and its keeper does not know them"
        elif history.record.is_changing:
            why = "its branches are being changed"
        if history is None or leave is None or why:
            _send(client, {"refused": why})
            return
        if not self.upgrading.acquire(blocking=False):
            _send(client, {"refused": "an upgrade is under way"})
            return
        if self.branches is not None and not self.branches.lock.acquire(blocking=False):
            self.upgrading.release()
            _send(client, {"refused": "its branches are being changed"})
            return
        upgrades = history.upgrades
        history.not_upgraded = history.ask_for_upgrade()
        if history.not_upgraded:
            if self.branches is not None:
                self.branches.lock.release()
            self.upgrading.release()
            _send(client, {"refused": history.not_upgraded})
            return
        with suppress(OSError):  # also when the client has gone
            _send(client, {"upgrades": upgrades, **({"again": True} if history.is_parent else {})})
        leave()

    def _watch(self) -> dict[str, int] | None:
        watched = self.union.watched
        return None if watched is None else {"directories": watched[0], "unwatched": watched[1]}

    def serve(self, fd: int, connection: int) -> None:
        """Answer requests until the mount has ended, in threads that end with the process. `fd` is from
        `listening.open_listening`."""
        server = socket.socket(fileno=fd)
        if not _bind(server, connection):
            return
        ours, strangers = threading.Semaphore(_CLIENTS), threading.Semaphore(_STRANGERS)
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                if self.has_ended():
                    server.detach()  # the daemon closes it
                    return
                time.sleep(_TRACE_CHECK_S)  # no descriptors left, most likely
                continue
            may_ask = peers.is_trusted(peers.peer_of(client).uid)
            place = ours if may_ask else strangers
            if place.acquire(blocking=may_ask):
                answer = (client, place, may_ask)
                try:
                    threading.Thread(target=self._answer, args=answer, name="report", daemon=True).start()
                except RuntimeError:  # RLIMIT_NPROC, memory
                    place.release()
                    client.close()
            else:
                client.close()

    def _answer(self, client: socket.socket, place: threading.Semaphore, may_ask: bool) -> None:
        fds: list[int] = []
        try:
            with client, suppress(OSError, ValueError):
                client.settimeout(_QUESTION_TIMEOUT_S)
                client.recv(1, socket.MSG_PEEK)
                if self.has_ended():
                    # The question may be for a new mount, which has the number of this one's connection. Closing with
                    # unread data resets the connection, and control.client then sends the question again.
                    return
                # Read before a refusal, too.
                line, fds = _question(client)
                question = json.loads(line)
                client.settimeout(_TIMEOUT_S)
                if not may_ask:
                    _send(client, {"error": "only its own user and root may ask this daemon"})
                    return
                wanted = question.get("ask") if isinstance(question, dict) else None
                if wanted == "stats":
                    _send(client, self.stats())
                elif wanted == "trace":
                    self._trace(client)
                elif wanted == "activity":
                    activity_server.serve(client, question, self.union, self.traffic, _send)
                elif wanted in ("branches", "change") and self.branches is not None:
                    self._branches(self.branches, client, question, fds)
                elif wanted == "upgrade":
                    self._upgrade(client)
                else:
                    _send(client, {"error": f"unknown question {wanted!r}"})
        finally:
            for fd in fds:
                os.close(fd)
            place.release()

    @staticmethod
    def _branches(control: BranchControl, client: socket.socket, question: dict[str, Any], fds: list[int]) -> None:
        """Make the change that the question names, if any; then list the branches."""
        try:
            if question["ask"] == "change":
                control.change(question, fds)
        except RefusedError as refused:
            found = [{"kind": each.kind, "path": _text(each.path)} for each in refused.pointers]
            _send(client, {"refused": str(refused), "pointers": found})
            return
        _send(client, {"branches": control.described()})

    def _trace(self, client: socket.socket) -> None:
        waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        missed = 0

        def receive(entry: CopiedUp) -> None:
            nonlocal missed
            if waiting.qsize() < _BACKLOG_MAX:
                waiting.put(_as_json(entry))
            else:
                missed += 1

        ledger = self.union.ledger
        ledger.listeners = (*ledger.listeners, receive)
        try:
            _send(client, {"listening": True})
            while True:
                try:
                    _send(client, waiting.get(timeout=_TRACE_CHECK_S))
                except queue.Empty:
                    if select.select([client], [], [], 0)[0] and not client.recv(_QUESTION_MAX):
                        return
                if missed and waiting.empty():
                    missed, lost = 0, missed
                    _send(client, {"missed": lost})
        finally:
            ledger.listeners = tuple(each for each in ledger.listeners if each is not receive)


def _bind(server: socket.socket, connection: int) -> bool:
    """Bind and listen if that is not done yet; an ending daemon that had the same connection number may have the name.
    Returns False after _TIMEOUT_S."""
    import logging  # late: most daemons never need it

    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            if not server.getsockname():
                server.bind(listening.address(connection))
                server.listen(listening.BACKLOG)
            return True
        except OSError as exc:
            if time.monotonic() > deadline:
                logging.getLogger(__name__).warning(
                    "cannot listen on the control socket of FUSE connection %d: %s", connection, exc.strerror
                )
                return False
            time.sleep(0.02)


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return _text(comm.read().rstrip(b"\n"))  # any process may give itself any bytes as a name
    except OSError:
        return ""


def _question(end: socket.socket) -> tuple[bytes, list[int]]:
    """Read one line, which must arrive within _QUESTION_TIMEOUT_S, in any number of pieces, and one descriptor at most.
    TimeoutError."""
    data = b""
    fds: list[int] = []
    deadline = time.monotonic() + _QUESTION_TIMEOUT_S
    try:
        while b"\n" not in data and len(data) < _QUESTION_MAX:
            end.settimeout(max(deadline - time.monotonic(), 0.001))
            if fds:
                more = end.recv(_QUESTION_MAX)
            else:
                more, fds, _, _ = socket.recv_fds(end, _QUESTION_MAX, 1, socket.MSG_CMSG_CLOEXEC)
            if not more:
                break
            data += more
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return data, fds


def _send(end: socket.socket, value: dict[str, Any]) -> None:
    end.sendall(json.dumps(value).encode() + b"\n")


def _as_json(entry: CopiedUp) -> dict[str, Any]:
    return {
        "time": round(time.time(), 6),
        "path": "/" + _text(entry.path),
        "branch": _text(os.fsencode(entry.branch)),
        "kind": entry.kind,
        "size": entry.size,
        "bytes": entry.copied,
        "reflinked": entry.reflinked,
        "ms": round(entry.seconds * 1000, 3),
        "request": entry.cause.request,
        "pid": entry.cause.pid,
        "command": _name_of(entry.cause.pid) if entry.cause.pid else "",
    }


def _text(name: bytes) -> str:
    return name.decode(errors="replace")


def _memory() -> dict[str, int] | None:
    """Return the memory of this process in bytes, by smaps_rollup (proc_pid_smaps(5)); None if the kernel lacks it."""
    try:
        with open("/proc/self/smaps_rollup", "rb") as rollup:
            lines = rollup.read().splitlines()[1:]
    except OSError:
        return None
    kilobytes = {name: int(amount) for name, amount, *_ in map(bytes.split, lines)}
    return {
        "resident": 1024 * kilobytes[b"Rss:"],
        "pss": 1024 * kilobytes[b"Pss:"],
        "shared": 1024 * (kilobytes[b"Shared_Clean:"] + kilobytes[b"Shared_Dirty:"]),
        "own": 1024 * (kilobytes[b"Private_Clean:"] + kilobytes[b"Private_Dirty:"]),
    }
