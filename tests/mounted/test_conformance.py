"""The behaviour suite: every check on every subject, then a remount, then the lowers.

For each subject, in this order: all checks; the tree must be the same after a remount; what checks wanted to see after
the remount; the lowers must be untouched.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mounted import agent, trees
from tests.mounted.checking import REGISTRY
from tests.mounted.expected import expected
from tests.mounted.mounted_subject import MountedSubject
from tests.mounted.subjects import Subject, all_subjects, unavailable
from tests.support.users import User

agent.load_checks()
_SUBJECTS = all_subjects()
_LATER_STAGES = max(len(check.stages) for check in REGISTRY.values()) - 1


class Session:
    """A stand and what the checks left for their next stages."""

    def __init__(self, stand: MountedSubject) -> None:
        self.stand = stand
        self.states: dict[str, object] = {}  # what the last stage of a check returned; changed by run only
        self.failed: set[str] = set()  # checks that must not go on; changed by run only

    def run(self, name: str, stage: int) -> None:
        """Run one stage of one check, in its directory."""
        if name in self.failed:
            pytest.fail("an earlier stage failed", pytrace=False)
        state = self.states.pop(name, None)
        outcome = self.stand.try_run(
            agent.run_stage, name, stage, state, below=name, timeout_s=REGISTRY[name].timeout_s
        )
        if outcome.kind == "missing":
            pytest.skip(outcome.story)
        if outcome.kind != "done":
            self.failed.add(name)
            pytest.fail(outcome.story, pytrace=False)
        self.states[name] = outcome.value


def _marks(subject: Subject) -> list[pytest.MarkDecorator]:
    return [pytest.mark.transport(subject.transport), pytest.mark.runs_as(subject.runs_as)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "name" not in metafunc.fixturenames:
        params = [pytest.param(subject, id=str(subject), marks=_marks(subject)) for subject in _SUBJECTS]
        metafunc.parametrize("subject", params)
        return
    later = metafunc.function.__name__ == "test_after_remount"
    cases = []
    for subject in _SUBJECTS:
        for name, check in REGISTRY.items():
            if not subject.can_run(check) or (later and len(check.stages) < 2):
                continue
            marks = _marks(subject)
            if reason := expected(subject, name):
                marks.append(pytest.mark.xfail(reason=reason, strict=True))
            cases.append(pytest.param(subject, name, id=f"{subject}-{name}", marks=marks))
    metafunc.parametrize(("subject", "name"), cases)


@pytest.fixture(scope="module")
def stands(request: pytest.FixtureRequest, run_dir: Path) -> Iterator[Callable[[Subject], Session]]:
    """Gives the session of a subject. There is one at a time: asking for another subject ends the one before."""
    now: dict[Subject, Session] = {}
    with ExitStack() as stack:

        def session_of(subject: Subject) -> Session:
            if subject in now:
                return now[subject]
            now.clear()
            stack.close()
            if not subject.is_native:
                request.getfixturevalue("fuse_device")
            user: User = request.getfixturevalue("root_user" if subject.who == "root" else "ordinary_user")
            names = [name for name, check in REGISTRY.items() if subject.can_run(check)]
            base = Path(tempfile.mkdtemp(prefix="mounted-", dir=run_dir))
            base.chmod(0o755)
            now[subject] = Session(stack.enter_context(MountedSubject(subject, user, base / str(subject), names=names)))
            return now[subject]

        yield session_of


@pytest.fixture
def session(subject: Subject, stands: Callable[[Subject], Session]) -> Session:
    """The mounted stand of the subject. conftest.py sorts the tests by subject, so each is mounted once."""
    if reason := unavailable(subject):
        pytest.skip(reason)
    return stands(subject)


def test_check(session: Session, name: str) -> None:
    session.run(name, 0)


@pytest.mark.no_turns
def test_tree_is_the_same_after_a_remount(session: Session) -> None:
    """What the mount shows is on disk and nowhere else: inode numbers, link groups and change times included.

    Nobody can set a change time, so a directory that was copied up with something below it has that of its copy once
    the kernel has forgotten what it knew; and so has what a daemon without privilege must make readable to look at it.
    A file with several names gets those that the upper lacks when the union ends, which moves its change time.
    """
    stand = session.stand
    before = stand.run(trees.snapshot, b".", timeout_s=120)
    stand.remount()
    after = stand.run(trees.snapshot, b".", timeout_s=120)
    assert len(before) > 1
    told = trees.differences(before, after, ignore=_is_unknowable)
    assert not told, "\n".join(told)


def _is_unknowable(field: str, line: trees.Line) -> bool:
    return field == "ctime_ns" and (stat.S_ISDIR(line.mode) or line.nlink > 1 or not line.mode & stat.S_IRUSR)


def test_after_remount(session: Session, name: str) -> None:
    for stage in range(1, len(REGISTRY[name].stages)):
        if session.stand.stage < stage:
            session.stand.remount()
        if name not in session.states and name not in session.failed:
            session.run(name, stage - 1)
            session.stand.remount()
        session.run(name, stage)


@pytest.mark.no_turns
def test_lowers_are_untouched(session: Session) -> None:
    """Whatever was done on the mount, no bit of a lower changed, nor its change time."""
    told = session.stand.lowers_changed()
    assert not told, "\n".join(told)


@pytest.mark.no_turns
def test_the_log_has_no_warning(session: Session) -> None:
    """Nothing that programs do is a reason for the daemon to warn."""
    told = session.stand.complaints()
    assert not told, "\n".join(told)
