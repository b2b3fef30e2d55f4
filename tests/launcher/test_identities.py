"""The emulated ids of a process: the rules of setuid(2) and the like, and of chown(2), without any process."""

from __future__ import annotations

import pytest

from unionfs.launcher import emulated_ids
from unionfs.launcher.emulated_ids import ROOT, UNCHANGED, Identity, Ids

WWW = Identity(Ids(33, 33, 33), Ids(33, 33, 33), (50,))


def test_root_may_become_any_user_and_no_user_may_become_root() -> None:
    assert emulated_ids.set_id(Ids(), 33, privileged=True) == Ids(33, 33, 33)
    assert emulated_ids.set_id(Ids(33, 33, 0), 0, privileged=False) == Ids(33, 0, 0)
    for change in (
        lambda: emulated_ids.set_id(WWW.user, 0, privileged=False),
        lambda: emulated_ids.set_res(WWW.user, 0, UNCHANGED, UNCHANGED, privileged=False),
        lambda: emulated_ids.set_re(WWW.user, UNCHANGED, 0, privileged=False),
        lambda: emulated_ids.set_groups(WWW, (0,), privileged=False),
    ):
        with pytest.raises(PermissionError):
            change()
    with pytest.raises(OSError, match="Invalid argument"):
        emulated_ids.set_id(Ids(), UNCHANGED, privileged=True)


@pytest.mark.parametrize(
    ("real", "effective", "wanted"),
    [
        (UNCHANGED, 33, Ids(0, 33, 33)),
        (33, UNCHANGED, Ids(33, 0, 0)),
        (UNCHANGED, 0, Ids(0, 0, 0)),
        (33, 44, Ids(33, 44, 44)),
    ],
)
def test_the_saved_id_follows_as_setreuid_has_it(real: int, effective: int, wanted: Ids) -> None:
    assert emulated_ids.set_re(Ids(), real, effective, privileged=True) == wanted


def test_all_three_at_once() -> None:
    assert emulated_ids.set_res(Ids(), 1, 2, 3, privileged=True) == Ids(1, 2, 3)
    assert emulated_ids.set_res(Ids(1, 2, 3), 3, UNCHANGED, 1, privileged=False) == Ids(3, 2, 1)
    assert emulated_ids.set_groups(ROOT, (1, 2), privileged=True).groups == (1, 2)


@pytest.mark.parametrize(
    ("who", "uid", "gid", "may"),
    [
        (ROOT, 5, 6, True),
        (WWW, UNCHANGED, UNCHANGED, True),
        (WWW, 33, 50, True),
        (WWW, UNCHANGED, 33, True),
        (WWW, UNCHANGED, 7, False),
        (WWW, 34, UNCHANGED, False),
    ],
)
def test_who_may_chown_a_file_away(who: Identity, uid: int, gid: int, may: bool) -> None:
    assert emulated_ids.may_chown(who, (33, 8), uid, gid) is may
    assert emulated_ids.may_chown(who, (1, 8), uid, gid) is (may and who is ROOT)
