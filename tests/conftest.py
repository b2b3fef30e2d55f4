"""Fixtures for all tests: users, scratch directories, and the machine's set-up.

    scratch        a directory of the test on a real disk filesystem, which every user can enter; removed afterwards
    ordinary_user  a user without privileges, with a home, a runtime directory and subordinate ids
    root_user      root; skips when the tests do not run as root
    user           both of the above, one after the other (parameter "root", "ordinary")
    transport      each transport, one after the other (parameter "pyfuse3", "kernel")
    as_user        runs one command as the ordinary user
    expect_log     announces a warning in the log, which otherwise fails the test (tests.support.logcheck)
    readable_code  for other users' PYTHONPATH: the checkout, or a copy of it when it is below a closed directory
    debian         `debian(user)`: a Debian root filesystem for that user's containers, unpacked once per run

`tests.support.mounts.mounted` mounts a union; `tests.support.process.run` runs a child process that cannot hang.
"""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

import unionfs.core.union  # noqa: F401 - now, so that the tests' own process has Python, of which they replace parts
from tests.mounted.agent import Agent
from tests.support import dispositions, machine, mounts, rootfs, share, timing, users
from tests.support import scratch as scratch_dirs

dispositions.reset_ignored()  # before anything is started
os.environ.setdefault("UNIONFS_LINGER", "1")  # parents of mounts end soon after the tests (unionfs.mount_parent)
pytest_plugins = [
    "tests.support.kernel_caches",
    "tests.support.logcheck",
    "tests.support.report",
    "tests.support.turns",
    "tests.support.without_mounts",
]

# A shared machine may be slow at any moment: no test is judged by its time (see the guard in pyproject.toml). A failure
# is made small but not explained: explaining traces every line, which takes longer than the guard allows.
# The same cases every time, so that a change is judged by itself: HYPOTHESIS_PROFILE=deep looks for new ones.
hypothesis.settings.register_profile(
    "unionfs",
    derandomize=os.environ.get("HYPOTHESIS_PROFILE") != "deep",
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    phases=[phase for phase in hypothesis.Phase if phase is not hypothesis.Phase.explain],
)
hypothesis.settings.load_profile("unionfs")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the long tests first, so that the workers end together: containers and mounts before all else."""
    from tests.support import without_mounts  # not before pytest has registered it as a plugin

    items.sort(key=lambda item: without_mounts.is_without_mounts(item.path.relative_to(config.rootpath).as_posix()))


_TOGETHER = "tests/bench/"
"""The files of this directory share a run of all benchmarks."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With --dist=loadfile: a file's tests stay on one worker, and so do all of `_TOGETHER`."""
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _TOGETHER if nodeid.startswith(_TOGETHER) else str(super()._split_scope(nodeid))

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """Freeze the collected objects: garbage collections need not visit them, and forked processes need not copy
    them."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    """Print which part of the long series this run takes."""
    return share.told()


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    """A union sets the umask of its process to that of each caller: restore it, so that no test affects another."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """SIGTERM (as of timeout(1)) is an interrupt: fixtures clean up. pytest-timeout's limit gets the factor."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if config.getoption("timeout", None) is None and timing.FACTOR != 1:
        config.option.timeout = timing.limit(float(config.getini("timeout")))


@pytest.fixture(scope="session")
def run_dir() -> Iterator[Path]:
    """The directory of this run of the tests. The remains of dead runs, also mounts, are removed first."""
    for swept in scratch_dirs.sweep_dead_runs():
        print(f"removed what an aborted run left: {swept}")
    with scratch_dirs.run_dir() as run:
        yield run
        users.end_servers()
        left = users.left_after(lambda: scratch_dirs.processes_below(run))
        assert left == {}, "the tests are over, but commands that they started still run"


@pytest.fixture(scope="session")
def readable_code(run_dir: Path) -> Path:
    """The directory with our packages and the tests that every user can read: the checkout, or a copy of it."""
    return users.readable_code(run_dir)


@pytest.fixture(scope="session")
def small_process(run_dir: Path) -> Iterator[Agent]:
    """A process for thousands of forks: it forks ten times as fast as this one, since it has not collected the
    tests."""
    agent = Agent((), run_dir / "small-process.log", {**os.environ, "PYTHONPATH": os.fspath(users.CHECKOUT)})
    yield agent
    agent.close()


@pytest.fixture
def scratch(run_dir: Path) -> Iterator[Path]:
    """An empty directory for this test. Mounts below it are detached before it is removed."""
    directory = Path(tempfile.mkdtemp(prefix="test-", dir=run_dir))
    directory.chmod(0o755)
    yield directory
    scratch_dirs.remove(directory)


@pytest.fixture(scope="session")
def fuse_device() -> Path:
    """/dev/fuse, open to all users; if it is not, root mends that (tests.support.machine)."""
    try:
        return machine.open_fuse_device()
    except machine.NoFuseError as why:
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def root_user(run_dir: Path) -> users.User:
    """Root itself."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    home = run_dir / "root-home"
    home.mkdir(mode=0o700)
    return users.current_user(home)


@pytest.fixture(scope="session")
def ordinary_user(run_dir: Path) -> Iterator[users.User]:
    """A user made for this run; or, when the tests do not run as root, the user who runs them."""
    if os.geteuid() != 0:
        home = run_dir / "home"
        home.mkdir(mode=0o755)
        yield users.current_user(home)
        return
    try:
        with users.new_ordinary_user(run_dir) as made:
            yield made
            made.end_servers()
            left = users.left_after(lambda: users.processes_of(made.name))
            assert left == {}, "the tests are over, but commands of their ordinary user still run"
    except users.CannotMakeUserError as why:
        pytest.skip(str(why))


@pytest.fixture(params=["root", "ordinary"])
def user(request: pytest.FixtureRequest) -> users.User:
    """Root, then an ordinary user."""
    chosen: users.User = request.getfixturevalue("root_user" if request.param == "root" else "ordinary_user")
    return chosen


@pytest.fixture(params=mounts.TRANSPORTS)
def transport(request: pytest.FixtureRequest, fuse_device: Path) -> str:
    """Each transport by name. Preconditions of its tests: /dev/fuse can be used."""
    name = str(request.param)
    if not mounts.has_transport(name):
        pytest.skip(f"the {name} transport is not part of this version")
    return name


@pytest.fixture(scope="session")
def debian_tar() -> Path:
    """The tar of a minimal Debian with python3, apt, dpkg, useradd and su; made once per machine."""
    try:
        return rootfs.debian_tar()
    except rootfs.NoRootfsError as why:
        pytest.skip(str(why))


@pytest.fixture(scope="session")
def debian(run_dir: Path, debian_tar: Path) -> Callable[[users.User], Path]:
    """`debian(user)`: a Debian root filesystem owned as that user's containers need it.

    One per user and run: treat it as a read-only layer. A test that wants to write to a tree of its own unpacks one
    with tests.support.rootfs.unpack, or better, puts an upper over this one.
    """
    trees: dict[str, Path] = {}

    def tree_of(user: users.User) -> Path:
        if user.name not in trees:
            try:
                trees[user.name] = rootfs.unpack(debian_tar, run_dir / f"debian-of-{user.name}", user)
            except rootfs.NoRootfsError as why:
                pytest.skip(str(why))
        return trees[user.name]

    return tree_of


@pytest.fixture
def as_user(ordinary_user: users.User) -> Callable[..., object]:
    """`as_user(argv, ...)`: see users.User.run."""
    return ordinary_user.run
