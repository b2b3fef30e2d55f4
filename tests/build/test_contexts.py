"""Contexts: directories with traps, tars and Containerfiles from a pipe, and what is printed."""

from __future__ import annotations

import http.server
import io
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.build.conftest import Builder
from tests.support.timing import limit


def test_odd_names_links_sockets_and_fifos(builder: Builder) -> None:
    files = {"plain": "p", "dir/inner": "i", "a/x": "first", "b/x": "second", "c/": ""}
    context = builder.context("FROM tiny:1\nCOPY . /c/\nCOPY a/x b/x c/y /d/\n", files)
    odd = [b"new\nline", b"tab\there", "ümläut".encode(), b"\xff\xfe not utf-8", b"-dash", b"*star", b" space ", b"$A"]
    for name in odd:
        (Path(os.fsdecode(os.fsencode(context) + b"/" + name))).write_text("x")
    (context / "absolute").symlink_to("/etc/passwd")
    (context / "out").symlink_to("../../../etc")
    (context / "dangling").symlink_to("nowhere")
    os.mkfifo(context / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(context / "sock"))
    os.link(context / "plain", context / "same")
    os.link(context / "a/x", context / "c/y")
    builder.user.own(context)
    builder("build", "-t", "t:1", context)
    layer, named = builder.layers()
    assert (named["/d/x"].content, named["/d/y"].content) == ("second", "first"), "the link is not to what replaced it"
    assert {f"/c/{os.fsdecode(name).strip('./')}" for name in odd} <= set(layer)
    assert layer["/c/absolute"].content == "/etc/passwd"
    assert layer["/c/out"].content == "../../../etc"
    assert layer["/c/dangling"].kind == "link"
    assert "/c/fifo" in layer
    assert "/c/sock" not in layer
    assert layer["/c/same"].content == "c/plain"
    assert all(found.owner == (0, 0) for found in layer.values())
    assert builder.is_clean()


def test_ignore_files(user_builder: Builder) -> None:
    build = user_builder
    files = {"a.log": "", "keep.log": "", "d/x": "", "d/y": "", "e/f/g": "", "secret": ""}
    text = "FROM tiny:1\nCOPY . /c/\n"
    ignored = "# comment\n*.log\n!keep.log\nd\n!d/y\nsecret\ne/**\n"
    build.build(text, files={**files, ".dockerignore": ignored})
    (layer,) = build.layers()
    assert set(layer) == {"/", "/c", "/c/keep.log", "/c/d", "/c/d/y", "/c/e", "/c/Containerfile", "/c/.dockerignore"}
    build.build(text, files={**files, ".dockerignore": "*", ".containerignore": "*\n!secret\n"})
    (layer,) = build.layers()
    assert set(layer) == {"/", "/c", "/c/secret"}, ".containerignore comes first"
    context = build.context(text, {**files, "other": "d\n", ".dockerignore": "*"})
    build("build", "-t", "t:1", "--ignorefile", context / "other", context)
    (layer,) = build.layers()
    assert "/c/secret" in layer
    assert "/c/d" not in layer


@pytest.mark.parametrize("builder", ["ordinary", "one-id"], indirect=True)
def test_a_tar_from_a_pipe(builder: Builder, scratch: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for name, text, mode in (("sub/File", "FROM tiny:1\nCOPY x /\n", 0o644), ("x", "of the tar", 0o751)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.uid, entry.mode = len(text), 1234, mode
            tar.addfile(entry, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("Containerfile")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (scratch / "tar").write_bytes(data.getvalue())
    builder.user.own(scratch)
    script = '"$@" < ' + os.fspath(scratch / "tar")
    words = [*builder.user.unionfs_cmd, "build", "-t", "t:1", "-f", "sub/File", "-"]
    builder.user.run(["sh", "-c", script, "sh", *words], env={"UNIONFS_ROOT": os.fspath(builder.root)}, timeout_s=100)
    (layer,) = builder.layers()
    assert (layer["/x"].content, layer["/x"].mode, layer["/x"].owner) == ("of the tar", 0o751, (0, 0))
    words = [*builder.user.unionfs_cmd, "build", "-"]
    env = {"UNIONFS_ROOT": os.fspath(builder.root)}
    refused = builder.user.run(["sh", "-c", script, "sh", *words], env=env, timeout_s=100, check=False)
    assert "there is no Containerfile in the context" in refused.stderr, "a link leads nowhere outside of the tar"
    assert builder.is_clean()


def test_a_containerfile_from_a_pipe(user_builder: Builder) -> None:
    build = user_builder
    build("build", "-t", "t:1", "-", stdin="FROM tiny:1\nRUN touch /piped\n")
    assert build.sh("ls /piped") == "/piped\n"
    context = build.context("FROM nosuch\n", {"one": "1"})
    build("build", "-t", "t:1", "-f", "-", context, stdin="FROM tiny:1\nCOPY one /\n")
    assert build.sh("cat /one") == "1"
    refused = build("build", "-", stdin="FROM tiny:1\nCOPY one /\n", check=False)
    assert "-:2: one: not in the context" in refused.stderr
    assert "cannot be both" in build("build", "-f", "-", "-", stdin="x", check=False).stderr


@pytest.fixture
def server(scratch: Path) -> Iterator[str]:
    """A web server for the files of `scratch`/www."""
    (scratch / "www").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=scratch / "www")) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_urls(user_builder: Builder, scratch: Path, server: str) -> None:
    build = user_builder
    (scratch / "www/file").write_text("fetched")
    os.utime(scratch / "www/file", (1_000_000_000, 1_000_000_000))
    (scratch / "www/Containerfile").write_text("FROM tiny:1\nRUN echo of the web > /web\n")
    with tarfile.open(scratch / "www/archive.tar.gz", "w:gz") as tar:
        tar.add(scratch / "www/file", "in/file")
        tar.add(scratch / "www/Containerfile", "Containerfile")
    digest = subprocess.run(["sha256sum", scratch / "www/file"], capture_output=True, text=True, check=True).stdout[:64]
    text = f"FROM tiny:1\nADD --checksum=sha256:{digest} {server}/file /a/\nADD --unpack {server}/archive.tar.gz /b/\n"
    build.build(text + f"ADD --chmod=644 {server}/archive.tar.gz /c\n")
    first, second, third = build.layers()
    assert (first["/a/file"].content, first["/a/file"].mode) == ("fetched", 0o600)
    assert second["/b/in/file"].content == "fetched"
    assert build.sh("stat -c %Y /a/file") == "1000000000\n", "the time that the server says"
    assert third["/c"].mode == 0o644
    (scratch / "www/file").unlink()
    done = build.build(f"FROM tiny:1\nADD --checksum=sha256:{digest} {server}/file /a/\n")
    assert "--> Using cache" in done.stdout, "what has this checksum is known"
    assert "404" in build.refused(f"FROM tiny:1\nADD {server}/file /a/\n")
    wrong = build.refused(f"FROM tiny:1\nADD --checksum=sha256:{'0' * 64} {server}/archive.tar.gz /a/\n")
    assert "has the checksum sha256:" in wrong
    build("build", "-t", "t:1", f"{server}/Containerfile")
    assert build.sh("cat /web") == "of the web\n"
    build("build", "-t", "t:1", f"{server}/archive.tar.gz")
    assert build.sh("cat /web") == "of the web\n"


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def git_server(scratch: Path) -> Iterator[tuple[str, Path]]:
    """The address of a git server, and the repository `repo` that it serves."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    repository = scratch / "served/repo.git"
    repository.mkdir(parents=True)
    _git(repository, "init", "-q", "-b", "main")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = ["git", "daemon", "--listen=127.0.0.1", f"--port={port}", "--export-all", f"--base-path={scratch}/served"]
    daemon = subprocess.Popen([*argv, "--reuseaddr", os.fspath(scratch / "served")], start_new_session=True)
    deadline = time.monotonic() + limit(30)
    while not _answers(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    yield f"git://127.0.0.1:{port}/repo.git", repository
    os.killpg(daemon.pid, signal.SIGKILL)
    daemon.wait()


def _git(repository: Path, *words: str) -> None:
    name = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run(["git", "-C", repository, *name, *words], check=True, capture_output=True)


def test_git_repositories(user_builder: Builder, git_server: tuple[str, Path]) -> None:
    build, (url, repository) = user_builder, git_server
    (repository / "sub").mkdir()
    (repository / "sub/Containerfile").write_text("FROM tiny:1\nCOPY . /c/\n")
    (repository / "sub/one").write_text("first")
    (repository / "Containerfile").symlink_to("/etc/passwd")
    _git(repository, "add", "-A")
    _git(repository, "commit", "-q", "-m", "one")
    _git(repository, "tag", "v1")
    (repository / "sub/one").write_text("second")
    _git(repository, "commit", "-q", "-a", "-m", "two")
    build("build", "-t", "t:1", f"{url}#main:sub")
    assert build.sh("cat /c/one; ls -a /c") == "second.\n..\nContainerfile\none\n"
    build("build", "-t", "t:1", f"{url}#v1:sub")
    assert build.sh("cat /c/one") == "first"
    for fragment, said in (
        ("", "there is no Containerfile in the context"),
        ("#--upload-pack=touch", "is no branch, tag or commit"),
        ("#main:../../etc", "is not in the repository"),
        ("#nosuch", "find remote ref nosuch"),
    ):
        refused = build("build", f"{url}{fragment}", check=False)
        assert (refused.returncode, said in refused.stderr) == (125, True), refused
    assert not list((build.root / "aside").iterdir())


def test_many_files(user_builder: Builder) -> None:
    build = user_builder
    context = build.context("FROM tiny:1\nCOPY many /m\n")
    for number in range(10):
        directory = context / f"many/{number}"
        directory.mkdir(parents=True)
        for name in range(500):
            (directory / str(name)).touch()
    build.user.own(context)
    build("build", "-t", "t:1", "--compression", "none", context)
    assert build.sh("ls /m/7 | wc -l; ls /m | wc -l") == "500\n10\n"
    assert "--> Using cache" in build("build", "--compression", "none", context).stdout


def test_what_is_printed(user_builder: Builder, scratch: Path) -> None:
    """On a pipe as podman prints it; with -q the id alone."""
    build = user_builder
    context = build.context("FROM tiny:1\nRUN echo out; echo err >&2\n")
    done = build("build", "-t", "a:1", "-t", "b:2", "--iidfile", scratch / "iid", context)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["STEP 1/2: FROM tiny:1", "STEP 2/2: RUN echo out; echo err >&2", "out"]
    assert lines[3].startswith("--> ")
    assert lines[4:6] == ["Successfully tagged docker.io/library/a:1", "Successfully tagged docker.io/library/b:2"]
    assert lines[6] == (scratch / "iid").read_text() == build("build", "-q", context).stdout.strip()
    assert done.stderr == "err\n"
    quiet = build("build", "-q", "--no-cache", context)
    assert (quiet.stdout.count("\n"), quiet.stdout[:7], quiet.stderr) == (1, "sha256:", "")
    warned = build("build", "--build-arg", "NOSUCH=1", context)
    assert "no ARG declares NOSUCH" in warned.stderr
    for words in (("--nosuch",), ("--network", "some"), ("--timestamp", "now"), ("--jobs=-1",), ()):
        assert build("build", *words, check=False).returncode == 125
    missing = build("build", scratch / "nosuch", check=False)
    assert (missing.returncode, "opening the context failed" in missing.stderr) == (125, True)
    (scratch / "empty").mkdir()
    build.user.own(scratch)
    assert "there is no Containerfile in" in build("build", scratch / "empty", check=False).stderr


def test_stages_are_built_at_the_same_time(user_builder: Builder) -> None:
    """Each of two stages waits for the other, through a cache that both have mounted."""
    wait = "i=0; while ! test -e /c/{other}; do i=$((i+1)); test $i -lt 600; sleep 0.1; done"
    stage = (
        "FROM tiny:1 AS {name}\nRUN --mount=type=cache,target=/c,id={id} touch /c/{name}; " + wait + "; touch /{name}\n"
    )
    shared = os.urandom(4).hex()
    text = stage.format(name="a", other="b", id=shared) + stage.format(name="b", other="a", id=shared)
    done = user_builder.build(text + "FROM tiny:1\nCOPY --from=a /a /\nCOPY --from=b /b /\n", "--jobs", "2")
    assert user_builder.sh("ls /a /b") == "/a\n/b\n"
    assert "[1/3] STEP 2/2" in done.stdout
    assert limit(1) >= 1
