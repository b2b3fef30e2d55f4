"""The whole way: an image from a registry, changed in a container at a terminal, committed, and back through it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.launcher.terminals import terminal
from tests.layers.registries import NAME, PASSWORD, Registry
from tests.support.timing import limit
from tests.support.users import User

pytestmark = pytest.mark.usefixtures("fuse_device")


@pytest.fixture
def package(scratch: Path) -> Path:
    """A Debian package built here, which gives a file to another user."""
    tree = scratch / "greeting"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
        "Description: a text\n"
    )
    (tree / "DEBIAN/postinst").write_text("#!/bin/sh\nchown games:games /usr/share/greeting/text\n")
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / "usr/share/greeting").mkdir(parents=True)
    (tree / "usr/share/greeting/text").write_text("hello\n")
    shared = scratch / "shared"
    shared.mkdir()
    built = shared / "greeting.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", tree, built], check=True, capture_output=True, timeout=limit(60)
    )
    return built


def test_pull_change_commit_push_pull_run(ordinary_user: User, debian_tar: Path, package: Path, scratch: Path) -> None:
    user = ordinary_user
    environment = {
        "UNIONFS_ROOT": os.fspath(user.home / "story"),
        "UNIONFS_CERT_DIR": os.fspath(scratch / "registry/certs/ca"),
        "DOCKER_CONFIG": os.fspath(user.home / "docker"),
    }

    def unionfs(*words: str | os.PathLike[str], **options: object) -> str:
        argv = [*user.unionfs_cmd, *words]
        return user.run(argv, env=environment, timeout_s=200, **options).stdout  # type: ignore[arg-type]

    with Registry(scratch / "registry", password=True, tls=True) as registry:
        base, ours = f"{registry.host}/library/base:1", f"{registry.host}/{NAME}/greeting:v0.1"
        unionfs("login", "-u", NAME, "--password-stdin", registry.host, stdin=PASSWORD)
        tar = scratch / "base.tar"
        os.link(debian_tar, tar) if os.stat(debian_tar).st_dev == os.stat(scratch).st_dev else tar.write_bytes(
            debian_tar.read_bytes()
        )
        unionfs("import", "--compression", "none", tar, base, "-c", 'CMD ["bash"]')
        unionfs("push", base)
        unionfs("rmi", base)

        unionfs("pull", base)
        line = [*user.unionfs_cmd, "run", "-it", "--name", "box", "-v", f"{package.parent}:/mnt:ro", base]
        with terminal(user, ["env", *(f"{name}={value}" for name, value in environment.items()), *line]) as screen:
            screen.expect("# ")
            screen.type("dpkg -i /mnt/greeting.deb\n")
            screen.expect("Setting up greeting")
            screen.expect("# ")
            screen.type("stat -c %U /usr/share/greeting/text\n")
            screen.expect(r"games\r")
            committed = unionfs("commit", "-p", "-m", "with a greeting", "box", "greeting").strip()
            screen.type("exit 5\n")
            assert screen.end() == 5
        unionfs("tag", "greeting", ours)
        unionfs("push", ours)
        unionfs("rm", "box")
        unionfs("rmi", "greeting", ours, base)
        assert unionfs("images", "-q") == ""

        unionfs("pull", ours)
        told = unionfs(
            "run", "--rm", ours, "sh", "-c", "cat /usr/share/greeting/text; stat -c %U /usr/share/greeting/text"
        )
        assert told == "hello\ngames\n"
        assert committed in unionfs("inspect", ours)
        unionfs("rmi", ours)
        assert os.listdir(user.home / "story/layers") == []
