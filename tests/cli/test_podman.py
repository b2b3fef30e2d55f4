"""Podman without root with `unionfs` as its mount program: the daily commands of its users."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.podmans import BASE, Podman, debian_store
from tests.support.users import User

pytestmark = [pytest.mark.transport("kernel"), pytest.mark.runs_as("ordinary")]


@pytest.fixture(scope="module")
def podman(ordinary_user: User, run_dir: Path, debian_tar: Path, fuse_device: Path) -> Iterator[Podman]:
    """A store with one image, a Debian."""
    del fuse_device
    with debian_store(ordinary_user, run_dir / "podman", debian_tar) as made:
        yield made


@pytest.fixture
def container(podman: Podman) -> Iterator[str]:
    """A container that runs and does nothing."""
    name = f"c{os.urandom(4).hex()}"
    podman("run", "-d", "--name", name, "--network=none", BASE, "sleep", "600")
    yield name
    podman("rm", "-f", "-t", "0", name)


def test_the_root_is_ours(podman: Podman) -> None:
    line = podman("run", "--rm", "--network=none", BASE, "grep", " / / ", "/proc/self/mountinfo")
    assert "fuse.unionfs" in line


def test_commands_change_files_and_diff_lists_them(podman: Podman, container: str) -> None:
    podman.sh(
        container, "echo new > /etc/motd; rm /etc/issue; mkdir /d; echo > /d/f; chown 33:33 /d/f; chmod 4755 /d/f"
    )
    assert podman.sh(container, "stat -c '%a %u %g' /d/f") == "4755 33 33"
    changes = podman("diff", container).splitlines()
    assert {"C /etc/motd", "D /etc/issue", "A /d", "A /d/f", "C /etc"} <= set(changes)
    assert not [line for line in changes if ".wh." in line]


def test_users_are_made_and_packages_removed(podman: Podman, container: str) -> None:
    podman.sh(container, "useradd -m bob; dpkg --configure -a; dpkg -r --force-all e2fsprogs")
    assert podman("exec", "-u", "bob", container, "sh", "-c", "cd; id -un; touch mine; stat -c %U mine").split() == [
        "bob",
        "bob",
    ]


def test_a_commit_has_the_files_that_the_container_showed(podman: Podman, container: str) -> None:
    see = (
        "find /usr/share/docs /etc /d -printf '%p %y %m %U %G %s %l\\n'"
        " | sort | grep -v -e ' /etc d' -e hostname -e resolv -e hosts"
    )
    podman.sh(
        container,
        "mv /usr/share/doc /usr/share/docs; rm -r /etc/apt; mkdir /d; mkfifo /d/p; ln -s x /d/l; rm /etc/motd",
    )
    seen = podman.sh(container, see)
    podman("commit", "-q", container, "localhost/committed:1")
    assert podman("run", "--rm", "--network=none", "localhost/committed:1", "sh", "-ec", see) == seen
    assert podman.sh(container, "ls -d /usr/share/doc /etc/apt 2>&1 | wc -l") == "2"
    podman("rmi", "-f", "localhost/committed:1")


def test_images_are_built_in_steps(podman: Podman, tmp_path_factory: pytest.TempPathFactory, run_dir: Path) -> None:
    del tmp_path_factory
    context = run_dir / "podman/context"
    context.mkdir()
    (context / "file").write_text("from outside\n")
    (context / "Dockerfile").write_text(
        f"FROM {BASE}\nCOPY file /file\nRUN echo inside >> /file && rm -rf /usr/share/doc\n"
        "RUN mv /file /moved\nCMD cat /moved\n"
    )
    podman("build", "-q", "--network=none", "-t", "localhost/built:1", context)
    assert podman("run", "--rm", "--network=none", "localhost/built:1") == "from outside\ninside"
    podman("rmi", "-f", "localhost/built:1")


def test_a_container_starts_again_with_its_changes(podman: Podman, container: str, run_dir: Path) -> None:
    podman.sh(container, "echo kept > /kept")
    podman("stop", "-t", "0", container)
    podman("start", container)
    assert podman.sh(container, "cat /kept") == "kept"
    podman("cp", f"{container}:/kept", run_dir / "podman/kept")
    assert (run_dir / "podman/kept").read_text() == "kept\n"


@pytest.mark.parametrize("mode", ["keep-id", "nomap", "auto"])
def test_owners_in_user_namespaces_of_podmans_own(mode: str, podman: Podman) -> None:
    """Podman hands over its mapping (uidmapping=, gidmapping=), and the container's files belong to its own users."""
    script = "stat -c '%u %g' /etc/passwd /etc/shadow; touch /tmp/mine; stat -c '%u' /tmp/mine; id -u"
    root, shadow, mine, me = podman(
        "run", "--rm", "--network=none", f"--userns={mode}", BASE, "sh", "-ec", script
    ).splitlines()
    assert (root, shadow) == ("0 0", "0 42")
    assert mine == me == (str(podman.user.uid) if mode == "keep-id" else "0")
