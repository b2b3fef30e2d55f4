"""Access the files of a container, running or not, by its root directory, in a process that has its ids."""

from __future__ import annotations

from collections.abc import Callable

from unionfs.containers import forked_calls, running
from unionfs.containers.errors import ContainerError, NotRunningError
from unionfs.containers.ids import my_ids
from unionfs.containers.record import Container
from unionfs.containers.rootfs import OWN_MOUNTS, mounted
from unionfs.containers.store import ContainerStore
from unionfs.launcher import userns


def reach(container: Container, body: Callable[[int], None], what: str, warn: Callable[[str], None]) -> None:
    """Call `body` with the container's root directory, in a child that has the container's ids. `what`: the verb.

    Raises: ContainerError and OSError of `body`; ContainerError, LaunchError if the directory cannot be opened.
    """
    store = ContainerStore(container.root)
    if container.status == "running":
        try:
            in_running(container, body, what)
            return
        except NotRunningError:  # it has ended meanwhile
            running.wait(store, container)
    with store.claimed(container):
        _in_stopped(container, body, warn)


def in_running(container: Container, body: Callable[[int], None], what: str) -> None:
    """`reach` for a running container."""
    namespaces = running.enter(container, what)

    def work() -> int:
        namespaces.enter_user_namespace()
        body(namespaces.root_fd)
        return 0

    try:
        _check(forked_calls.run(work, lambda child: userns.fork(None, 0, child)), container)
    finally:
        namespaces.close()


def _in_stopped(container: Container, body: Callable[[int], None], warn: Callable[[str], None]) -> None:
    def work() -> int:
        with mounted(container, warn) as root_fd:
            body(root_fd)
        return 0

    _check(forked_calls.run(work, lambda child: userns.fork(my_ids(), OWN_MOUNTS, child)), container)


def _check(status: int, container: Container) -> None:
    if status:
        raise ContainerError("reaching the files", container.name, f"its helper process ended with status {status}")
