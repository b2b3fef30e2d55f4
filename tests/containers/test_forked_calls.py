"""Work in forked children: its exit code comes back, and its failure is raised here as it was raised there."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

import pytest

from unionfs.containers import background, forked_calls, record
from unionfs.containers.config import ContainerConfig, RootFilesystem
from unionfs.containers.errors import ContainerError
from unionfs.containers.store import ContainerStore
from unionfs.launcher import userns
from unionfs.launcher.errors import LaunchError
from unionfs.launcher.spec import Process


def run(body: Callable[[], int]) -> int:
    return forked_calls.run(body, lambda child: userns.fork(None, 0, child))


def _raise(error: BaseException) -> int:
    raise error


def _kill_itself() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


@pytest.mark.parametrize(("body", "code"), [(lambda: 0, 0), (lambda: 7, 7), (_kill_itself, 137)])
def test_the_exit_code(body: Callable[[], int], code: int) -> None:
    assert run(body) == code


@pytest.mark.parametrize(
    "error",
    [
        ContainerError("copying", "/a\udcff", "no room", hint="make room\nor not", status=5),
        LaunchError("executing", "/b", "no such file", hint="see", status=127),
        ContainerError("", "", "a whole sentence"),
    ],
)
def test_a_failure_of_the_child_is_raised(error: ContainerError | LaunchError) -> None:
    with pytest.raises(ContainerError) as caught:
        run(lambda: _raise(error))
    assert (str(caught.value), caught.value.hint, caught.value.status) == (str(error), error.hint, error.status)


def test_an_oserror_keeps_its_number_and_its_file() -> None:
    with pytest.raises(PermissionError) as caught:
        run(lambda: _raise(OSError(errno.EPERM, "not allowed", "/x\udcff")))
    error = caught.value
    assert (error.errno, error.strerror, error.filename) == (errno.EPERM, "not allowed", "/x\udcff")


def test_a_failure_in_the_background_before_the_start_is_raised_in_the_caller(tmp_path: os.PathLike[str]) -> None:
    store = ContainerStore(os.path.join(tmp_path, "root"))
    config = ContainerConfig(Process(("true",)), RootFilesystem(("/",)))
    container = store.add(record.new(store.root, config))

    def start(ready: Callable[[], None]) -> int:
        os.write(1, b"said\n")
        ready()
        return 0

    background.run(container, start)
    with open(container.daemon_log, encoding="utf-8") as log:
        assert log.read() == "said\n"
    with pytest.raises(ContainerError, match=r"^executing failed: /b: no such file$"):
        background.run(container, lambda _: _raise(LaunchError("executing", "/b", "no such file")))
    with pytest.raises(ContainerError, match="its process ended unexpectedly"):
        background.run(container, lambda _: 0)
