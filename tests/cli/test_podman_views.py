"""Podman's diffs through views of containers equal its diffs between ordinary mounts."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support import share
from tests.support.podmans import BASE, Podman, debian_store
from tests.support.users import User

pytestmark = [pytest.mark.transport("kernel"), pytest.mark.runs_as("ordinary")]

_FEW: Final = 1000
"""Messages: a walk through a Debian takes 50,000."""
_GIVEN: Final = "is given the view of the lowers"

_CHANGES: Final = """
echo more >> /etc/passwd; chmod 600 /etc/group; chown 5:6 /etc/hostname /etc/shells
rm -r /usr/share/doc/apt; mkdir /usr/share/doc/apt; echo > /usr/share/doc/apt/new
mv /usr/share/doc /usr/share/docs; mkdir /usr/share/doc; mv /usr/share/docs/bash /usr/share/doc/
mv /etc/skel /etc/moved; mv /etc/moved/.profile /etc/skel
touch -d 2020-01-01 /etc/fstab /etc/issue; rm /etc/issue.net; ln -s x /etc/issue.net
ln /etc/profile /etc/hard; echo >> /etc/hard; mkfifo /srv/fifo
rm -r /opt /srv; echo > /opt; mkdir -p /srv/a/b; cp -a /etc/apt /srv/a/b/
cp -a /bin/bash /bin/bash2; mv /bin/bash2 /bin/bash; echo x >> /usr/bin/perl
mv /etc/apt /etc/apt2; mkdir /etc/apt; mv /etc/apt2/* /etc/apt; rmdir /etc/apt2
find /usr/share/doc -name copyright | head -40 | xargs rm
find /var/lib/dpkg -name '*.list' | head -20 | xargs touch
""".strip().splitlines()


class Store:
    """Podman with one image, and whether its read-only mounts may be views."""

    def __init__(self, podman: Podman, where: Path, program: Path) -> None:
        self.podman = podman
        self.program = program
        self._switch = where / "no-views"
        self._log = where / "daemon.log"

    @contextmanager
    def without_views(self) -> Iterator[None]:
        """In this context, read-only mounts are ordinary ones."""
        self._switch.touch()
        try:
            yield
        finally:
            self._switch.unlink()

    def given(self) -> int:
        """The number of views mounted so far."""
        return self._log.read_text().count(_GIVEN)


@pytest.fixture(scope="module")
def store(ordinary_user: User, run_dir: Path, debian_tar: Path, fuse_device: Path) -> Iterator[Store]:
    """A store with one image, a Debian."""
    del fuse_device
    where = run_dir / "views"
    switch = f'[ -e "{where}/no-views" ] && set -- -o view=off "$@"; export UNIONFS_LOG="{where}/daemon.log"'
    with debian_store(ordinary_user, where, debian_tar, then=switch) as podman:
        yield Store(podman, where, podman.program)


def _layers(podman: Podman, image: str) -> list[str]:
    """The digests of an image's layers, uncompressed."""
    return podman("inspect", "--format", "{{range .RootFS.Layers}}{{.}} {{end}}", image).split()


def test_diff_and_commit_of_a_running_container(store: Store) -> None:
    podman, chosen = store.podman, random.Random(share.NUMBER)
    podman("run", "-d", "--name", "changing", "--network=none", BASE, "sleep", "600")
    try:
        for change in chosen.sample(_CHANGES, 3):
            podman("exec", "changing", "sh", "-c", change, check=False)
            before = store.given()
            through_view = podman("diff", "changing")
            assert store.given() == before + 1
            with store.without_views():
                assert sorted(podman("diff", "changing").splitlines()) == sorted(through_view.splitlines())
            assert store.given() == before + 1
        podman("commit", "-q", "changing", "localhost/one:1")
        with store.without_views():
            podman("commit", "-q", "changing", "localhost/other:1")
        assert _layers(podman, "localhost/one:1") == _layers(podman, "localhost/other:1")
    finally:
        podman("rm", "-f", "-t", "0", "changing")
        podman("rmi", "-f", "localhost/one:1", "localhost/other:1", check=False)


def test_diff_of_a_stopped_container_and_of_two(store: Store) -> None:
    podman = store.podman
    for name in ("first", "second"):
        podman("run", "--name", name, "--network=none", BASE, "sh", "-c", f"echo {name} > /{name}; rm /etc/issue")
    try:
        podman("start", "second")
        for name in ("first", "second"):
            changes = podman("diff", name).splitlines()
            assert {f"A /{name}", "D /etc/issue"} <= set(changes)
            with store.without_views():
                assert sorted(podman("diff", name).splitlines()) == sorted(changes)
    finally:
        podman("rm", "-f", "-t", "0", "first", "second")


def test_diffs_of_two_running_containers_skip_equal_files(store: Store) -> None:
    podman = store.podman
    names = ("first", "second")
    for name in names:
        podman("run", "-d", "--name", name, "--network=none", BASE, "sleep", "600")
        podman("exec", name, "sh", "-c", f"echo {name} > /{name}")
    try:
        for name in (*names, *names):
            before = _asked_about(store, name)
            assert f"A /{name}" in podman("diff", name).splitlines()
            assert _asked_about(store, name) - before < _FEW
    finally:
        podman("rm", "-f", "-t", "0", *names)


def _asked_about(store: Store, name: str) -> int:
    """How many attributes of files podman has asked the union of a container for."""
    merged = store.podman("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", name).strip()
    said = store.podman("unshare", store.program, "stats", "--json", merged)
    messages = json.loads(said)["messages"]
    return sum(messages.get(kind, 0) for kind in ("LOOKUP", "GETATTR", "GETXATTR", "LISTXATTR"))


def test_a_build_in_steps_makes_the_same_layers(store: Store, run_dir: Path) -> None:
    podman, context = store.podman, run_dir / "views/context"
    context.mkdir()
    steps = [f"RUN {change} || true" for change in share.of(_CHANGES[:4], one_in=2)]
    (context / "Containerfile").write_text("\n".join([f"FROM {BASE}", *steps]) + "\n")
    build = ("build", "-q", "--layers", "--no-cache", "--timestamp=1000000000", "--network=none")
    before = store.given()
    podman(*build, "-t", "localhost/one:1", context)
    assert store.given() > before
    with store.without_views():
        podman(*build, "-t", "localhost/other:1", context)
    one, other = (_layers(podman, f"localhost/{name}:1") for name in ("one", "other"))
    assert len(one) == 1 + len(steps)
    assert one == other
    podman("rmi", "-f", "localhost/one:1", "localhost/other:1")
