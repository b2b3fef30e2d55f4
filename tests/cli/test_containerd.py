"""Debian's containerd with `unionfs snapshotter`, as root: images of several layers, a registry, kill -9 of either."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.layers.images import layout
from tests.layers.registries import Registry
from tests.snapshotter.serving import Snapshotter, grpc
from tests.support import process, share
from tests.support.process import ChildError
from tests.support.timing import limit
from tests.support.users import User

pytestmark = [pytest.mark.transport("kernel"), pytest.mark.runs_as("root")]

_NEEDED: Final = {"containerd": "containerd", "ctr": "containerd", "runc": "runc", "mount.fuse3": "fuse3"}
_IMAGE: Final = "docker.io/library/tested:3"
_SMALL: Final = "docker.io/library/small"
_PATIENCE_S: Final = 120.0
_LOST_RACES: Final = 3
"""How often a container is started again. On a busy machine a thread of containerd's shim that waits for any child gets
the exit code of the mount helper before the thread that has started it: after ten times the shim gives up."""

_CONFIG: Final = """\
version = 2
root = "{where}/root"
state = "{where}/state"
[grpc]
  address = "{where}/c.sock"
[ttrpc]
  address = "{where}/c.ttrpc"
[proxy_plugins.unionfs]
  type = "snapshot"
  address = "{snapshotter}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  stream_server_port = "0"
  disable_apparmor = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "unionfs"
"""

_LAYERS: Final = (
    "rm -rf /usr/share/bug; echo two > /two; mv /usr/share/base-files /usr/share/moved; chmod 711 /home; "
    "echo > /both; ln /both /other",
    "rm /two; echo three > /three; rm -r /etc/apt; mkdir /etc/apt; echo > /etc/apt/new; cp /bin/true /bin/set-id; "
    "chmod 4755 /bin/set-id; ln -s three /link; chown 33:34 /three",
)
"""What is done in each layer of the image on top of a Debian."""

_SEEN: Final = """
cat /three; ls /two /usr/share/bug 2>/dev/null; ls /etc/apt; stat -c '%a %u:%g %h' /bin/set-id /three /home /both
ls /usr/share/moved | wc -l; readlink /link; grep ' / / ' /proc/self/mountinfo | cut -d' ' -f9
"""
_EXPECTED: Final = "three\nnew\n4755 0:0 1\n644 33:34 1\n711 0:0 2\n644 0:0 2\n"


class Containerd:
    """containerd and its snapshotter, each of which can be killed and started again."""

    def __init__(self, where: Path, user: User) -> None:
        program = where / "mount-program"
        self.no_views = where / "no-views"  # while this file is there, read-only mounts are ordinary ones
        self.log = where / "daemon.log"
        program.write_text(
            f'#!/bin/sh\n[ -e "{self.no_views}" ] && set -- "$@" -o view=off\nexport UNIONFS_LOG="{self.log}"\n'
            f'PYTHONPATH="{user.env["PYTHONPATH"]}" exec {user.unionfs_cmd[0]} -m unionfs "$@"\n'
        )
        program.chmod(0o755)
        self.where = where
        self.snapshotter = Snapshotter(where, "--mount-program", os.fspath(program))
        self._config = where / "config.toml"
        self._config.write_text(_CONFIG.format(where=where, snapshotter=self.snapshotter.address, image=_IMAGE))
        self._process: subprocess.Popen[bytes] | None = None
        self.others: set[str] = set()  # snapshots of the image that is there from the beginning

    def start(self) -> None:
        with (self.where / "containerd.log").open("ab") as log:
            argv = ["containerd", "-c", os.fspath(self._config)]
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.until_it_works("version")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __call__(self, *words: str | Path, check: bool = True) -> str:
        """`ctr WORDS`."""
        return self.run(*words, check=check).stdout

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        """`ctr WORDS`, begun."""
        argv = ["ctr", "-a", f"{self.where}/c.sock", *words]
        environment = {**os.environ, "CONTAINERD_SNAPSHOTTER": "unionfs"}
        return subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def run(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "CONTAINERD_SNAPSHOTTER": "unionfs"}
        argv = ["ctr", "-a", f"{self.where}/c.sock", *(os.fspath(word) for word in words)]

        def once() -> subprocess.CompletedProcess[str]:
            return process.run(argv, env=environment, timeout_s=_PATIENCE_S, check=False)

        done, lost = once(), 0
        while words[0] == "run" and "failed with ECHILD" in done.stderr and lost < _LOST_RACES:
            for name in self("container", "ls", "-q").split():
                self("container", "rm", name, check=False)  # refused for those that run
            done, lost = once(), lost + 1
        if check and done.returncode:
            raise ChildError(process.story(argv, f"ended with {done.returncode}", done.stdout, done.stderr))
        return done

    @contextmanager
    def mounted(self, key: str, target: Path) -> Iterator[None]:
        """A snapshot, mounted as containerd does it."""
        program = f"{self.where}/mount-program"
        mount = self("snapshot", "mounts", target, key).split()
        assert mount[:5] == ["mount", "-t", f"fuse3.{program}", "overlay", os.fspath(target)]
        process.run(["mount.fuse3", *mount[3:], "-t", program])
        try:
            yield
        finally:
            process.run(["umount", target])

    def until_it_works(self, *words: str | Path) -> None:
        """The same, as often as it takes while somebody restarts what it needs."""
        deadline = time.monotonic() + limit(_PATIENCE_S)
        while (done := self.run(*words, check=False)).returncode != 0:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.1)

    def snapshots(self) -> set[str]:
        """The keys of all snapshots."""
        return {line.split()[0] for line in self("snapshot", "ls").splitlines()[1:]}

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what containerd does by and by."""
        deadline = time.monotonic() + limit(_PATIENCE_S)
        while not holds():
            assert time.monotonic() < deadline, self("snapshot", "ls")
            time.sleep(0.1)


@pytest.fixture(scope="module")
def archive(root_user: User, run_dir: Path, debian_tar: Path, fuse_device: Path) -> Path:
    """An image of three layers, made by ourselves."""
    del fuse_device
    missing = {package for program, package in _NEEDED.items() if shutil.which(program) is None}
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)} (names of Debian packages)")
    store = run_dir / "containerd-images"

    def unionfs(*words: str | Path) -> None:
        root_user.run([*root_user.unionfs_cmd, *words], env={"UNIONFS_ROOT": os.fspath(store)}, timeout_s=_PATIENCE_S)

    settings = ("-c", 'CMD ["sleep", "1000"]', "-c", "ENV PATH=/usr/bin:/bin")
    unionfs("import", "-q", "--compression", "none", debian_tar, "tested:1")
    for number, script in enumerate(_LAYERS, 1):
        unionfs("run", "--name", "made", f"tested:{number}", "sh", "-ec", script)
        unionfs("commit", "-q", *settings, "made", f"tested:{number + 1}")
        unionfs("rm", "made")
    unionfs("save", "-q", "-o", run_dir / "tested.tar", _IMAGE)
    shutil.rmtree(store)
    return run_dir / "tested.tar"


@pytest.fixture(scope="module")
def ctr(archive: Path, root_user: User, run_dir: Path) -> Iterator[Containerd]:
    """containerd, with the image imported."""
    where = run_dir / "ctrd"
    where.mkdir()
    made = Containerd(where, root_user)
    with made.snapshotter:
        made.start()
        try:
            made("image", "import", archive)
            made.others = made.snapshots()
            yield made
        finally:
            for name in made("container", "ls", "-q").split():
                made("task", "kill", "-s", "KILL", name, check=False)
                made("task", "rm", "-f", name, check=False)
                made("container", "rm", name, check=False)
            made.kill()


@pytest.fixture
def container(ctr: Containerd) -> Iterator[str]:
    """A container that runs and does nothing."""
    name = f"c{os.urandom(4).hex()}"
    ctr("run", "-d", _IMAGE, name, "sleep", "1000")
    yield name
    ctr("task", "rm", "-f", name, check=False)
    ctr("container", "rm", name, check=False)


def _exec(ctr: Containerd, name: str, script: str) -> str:
    return ctr("task", "exec", "--exec-id", os.urandom(4).hex(), name, "sh", "-ec", script)


def test_a_container_sees_all_layers(ctr: Containerd) -> None:
    before = ctr.snapshots()
    said = ctr("run", "--rm", _IMAGE, "seeing", "sh", "-c", _SEEN)
    assert said.startswith(_EXPECTED)
    *_, names, link, source = said.splitlines()
    assert (int(names) > 0, link, source) == (True, "three", "unionfs")
    assert ctr.snapshots() == before


def test_a_terminal(ctr: Containerd) -> None:
    # ctr passes the size on after it has started the command.
    script = 'tty; while [ "$(stty size)" = "0 0" ]; do sleep 0.1; done; stty size'
    command = f"ctr -a {ctr.where}/c.sock run --snapshotter unionfs --rm -t {_IMAGE} tty sh -c '{script}'"
    done = process.run(["script", "-qec", f"stty rows 33 cols 77; {command}", "/dev/null"], timeout_s=_PATIENCE_S)
    terminal, *size = done.stdout.split()[-3:]
    assert terminal.endswith("/dev/pts/0")
    assert size == ["33", "77"]


def test_a_user_namespace(ctr: Containerd) -> None:
    """--remap-labels: the layers stay as they are, and the union shows their files as the container's own."""
    words = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536", "--remap-labels"]
    script = "cat /proc/self/uid_map; id -u; stat -c %u:%g /etc/passwd /three; touch /mine; stat -c %u /mine"
    said = ctr("run", "--rm", *words, _IMAGE, "mapped", "sh", "-ec", script)
    assert said.split() == ["0", "100000", "65536", "0", "0:0", "33:34", "0"]


def test_the_difference_of_a_running_container(ctr: Containerd, container: str) -> None:
    script = "echo new > /new; rm /etc/issue; mkdir /d; chown 5:6 /d; echo x >> /etc/passwd; rm -r /usr/share/moved"
    _exec(ctr, container, script)
    with _difference(ctr, container) as opened:
        members = {member.name.rstrip("/"): member for member in opened.getmembers()}
    assert {"new", "etc/.wh.issue", "d", "etc/passwd", "usr/share/.wh.moved"} <= members.keys()
    assert (members["d"].uid, members["d"].gid, members["new"].size) == (5, 6, 4)
    files = {name for name, member in members.items() if not member.isdir()}
    assert files == {"new", "etc/.wh.issue", "etc/passwd", "usr/share/.wh.moved"}
    usage = ctr("snapshot", "usage", container).split()
    assert usage[-1] == str(_inodes_of(ctr, container))


def _difference(ctr: Containerd, container: str) -> tarfile.TarFile:
    """What containerd says that a container changed. It mounts the layers below, then the container once more."""
    argv = ["ctr", "-a", f"{ctr.where}/c.sock", "snapshot", "--snapshotter", "unionfs", "diff", container]
    tar = subprocess.run(argv, stdout=subprocess.PIPE, check=True, timeout=limit(_PATIENCE_S)).stdout
    return tarfile.open(fileobj=io.BytesIO(tar))


_CHANGES: Final = """
echo more >> /both; chmod 600 /etc/group; chown 5:6 /etc/hostname /three
mv /usr/share/moved /usr/share/again; mkdir /usr/share/moved; echo > /usr/share/moved/x
touch -d 2020-01-01 /etc/fstab; rm /etc/issue; ln -s x /etc/issue; mkfifo /srv/fifo
ln /etc/profile /etc/hard; echo >> /etc/hard; rm -r /etc/apt; mkdir /etc/apt
rm -r /opt; echo > /opt; mkdir -p /srv/a/b; cp -a /etc/default /srv/a/b/
cp -a /bin/bash /bin/bash2; mv /bin/bash2 /bin/bash; rm /other
mv /etc/skel /etc/skel2; mkdir /etc/skel; mv /etc/skel2/.profile /etc/skel
""".strip().splitlines()


def test_the_difference_is_the_same_through_a_view(ctr: Containerd, container: str) -> None:
    for script in random.Random(17).sample(_CHANGES, 2):
        _exec(ctr, container, script)
        before = _views_given(ctr)
        through_view = _members(_difference(ctr, container))
        assert _views_given(ctr) == before + 1
        ctr.no_views.touch()
        try:
            assert _members(_difference(ctr, container)) == through_view
        finally:
            ctr.no_views.unlink()
        assert _views_given(ctr) == before + 1


def _views_given(ctr: Containerd) -> int:
    return ctr.log.read_text().count("is given the view of the lowers")


def _members(opened: tarfile.TarFile) -> dict[str, tuple[object, ...]]:
    """Everything that a tar says, by name; whiteouts are of the moment when they are written."""
    with opened:
        return {
            member.name: (
                *(member.type, member.mode, member.uid, member.gid, member.size, member.linkname),
                0 if os.path.basename(member.name).startswith(".wh.") else member.mtime,
                data.read() if member.isreg() and (data := opened.extractfile(member)) else b"",
            )
            for member in opened
        }


def _inodes_of(ctr: Containerd, container: str) -> int:
    """How many inodes the upper of a container has, as find(1) counts them."""
    text = ctr("snapshot", "mounts", "/target", container)
    upper = next(word for word in text.replace(",", " ").split() if word.startswith("upperdir="))[9:]
    found = process.run(["find", upper, "-printf", "%i\\n"]).stdout.split()
    return len(set(found))


def test_what_was_changed_becomes_a_layer(ctr: Containerd, container: str) -> None:
    """Commit, then a container on the result: its lowers were our upper, in our marks."""
    _exec(
        ctr, container, "rm /three; echo four > /four; mv /usr/share/moved /usr/share/again; rm -r /home; mkdir /home"
    )
    ctr("task", "kill", "-s", "KILL", container)
    ctr.until(lambda: "STOPPED" in ctr("task", "ls"))
    ctr("task", "rm", container)
    ctr("snapshot", "commit", "committed", container)
    ctr("snapshot", "prepare", "again", "committed")
    target = ctr.where / "target"
    target.mkdir()
    with ctr.mounted("again", target):
        assert (target / "four").read_text() == "four\n"
        assert not (target / "three").exists()
        assert os.listdir(target / "home") == []
        assert os.listdir(target / "usr/share/again")
        assert not (target / "usr/share/moved").exists()
        (target / "five").write_text("five")
    with pytest.raises(ChildError, match="failed precondition"):
        ctr("snapshot", "rm", "committed")
    ctr("snapshot", "rm", "again")
    ctr("snapshot", "rm", "committed")


def test_through_a_registry(ctr: Containerd, run_dir: Path) -> None:
    with Registry(run_dir / "containerd-registry") as registry:
        name = f"{registry.host}/tests/tested:3"
        ctr("image", "tag", _IMAGE, name)
        ctr("image", "push", "--plain-http", name)
        ctr("image", "rm", name)
        ctr("image", "pull", "--plain-http", name)
        assert ctr("run", "--rm", name, "pulled", "sh", "-c", _SEEN).startswith(_EXPECTED)
        ctr("image", "rm", name)


def test_restarts_disturb_no_container(ctr: Containerd, container: str) -> None:
    _exec(ctr, container, "echo kept > /kept")
    ctr.snapshotter.kill()
    assert _exec(ctr, container, "cat /kept /three") == "kept\nthree\n"
    ctr.kill()
    ctr.snapshotter.start()
    ctr.start()
    ctr.until_it_works("snapshot", "info", container)
    assert _exec(ctr, container, "cat /kept; echo more >> /kept; wc -l < /kept") == "kept\n2\n"
    assert ctr("run", "--rm", _IMAGE, "after", "cat", "/three") == "three\n"


def test_killed_in_the_middle_of_an_import(ctr: Containerd, run_dir: Path) -> None:
    """Whenever the snapshotter is killed: the import succeeds when it is tried again, and no garbage stays."""
    small = run_dir / "small"
    layout(small, [_tar({"a": "1", "b": "1"}), _tar({"b": "2", ".wh.a": ""}), _tar({"c": "3"})], name="1")
    archive = f"{small}.tar"
    process.run(["tar", "-cf", archive, "-C", small, "."])
    words = ("image", "import", "--base-name", _SMALL, archive)
    for steps in share.of(range(1, 7), one_in=2):  # preparing and committing three layers
        seen = _confirmed(ctr)
        with ctr.popen(*words) as importing:
            while importing.poll() is None and _confirmed(ctr) < seen + steps:
                time.sleep(0.002)
            ctr.snapshotter.kill()
            ctr.snapshotter.start()
            importing.wait(limit(_PATIENCE_S))
        ctr.until_it_works(*words)
        assert _files_of(ctr, steps) == {"b": "2", "c": "3"}
        ctr("image", "rm", "--sync", f"{_SMALL}:1")
        ctr.until(lambda: len(ctr.snapshotter.directories) == len(ctr.others))


def _confirmed(ctr: Containerd) -> int:
    return sum(ctr.snapshotter.log.read_text().count(f" {word} ") for word in ("Prepare", "Commit"))


def _tar(files: dict[str, str]) -> bytes:
    """A layer."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return made.getvalue()


def _files_of(ctr: Containerd, number: int) -> dict[str, str]:
    """The files of the small image: of a snapshot on the one that is nobody's parent."""
    listed = (line.split() for line in ctr("snapshot", "ls").splitlines()[1:])
    lines = [line for line in listed if line[-1] == "Committed"]  # an attempt that failed may have left active ones
    parents = {line[1] for line in lines if len(line) == 3}
    (top,) = (line[0] for line in lines if line[0] not in parents | ctr.others)
    key = f"look{number}"
    target = ctr.where / key
    target.mkdir()
    ctr("snapshot", "prepare", key, top)
    with ctr.mounted(key, target):
        found = {path.name: path.read_text() for path in target.iterdir()}
    ctr("snapshot", "rm", key)
    return found


def _message(fields: dict[int, Any]) -> bytes:
    """A message of protocol buffers: texts, small numbers and messages by the numbers of their fields."""
    encoded = b""
    for number, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                encoded += bytes([number << 3, one])
            else:
                data = one.encode() if isinstance(one, str) else _message(one)
                size = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
                encoded += bytes([number << 3 | 2]) + size + data
    return encoded


def test_a_pod(ctr: Containerd, archive: Path) -> None:
    """What a kubelet asks of the CRI plugin: a sandbox in the host's network, a container, a command in it, removal."""
    ctr("-n", "k8s.io", "image", "import", archive)
    node = 2  # runtime.v1, NamespaceMode
    sandbox = {1: {1: "pod", 2: "uid", 3: "default"}, 8: {2: {1: {1: node}}}}

    def ask(call: str, request: dict[int, Any]) -> bytes:
        with grpc.insecure_channel(f"unix:{ctr.where}/c.sock") as channel:
            answer: bytes = channel.unary_unary(f"/runtime.v1.{call}")(_message(request), timeout=limit(_PATIENCE_S))
            return answer

    def id_in(answer: bytes) -> str:
        return answer[2:66].decode()  # field 1, 64 characters

    pod = id_in(ask("RuntimeService/RunPodSandbox", {1: sandbox}))
    config = {1: {1: "box"}, 2: {1: _IMAGE}, 3: ["sleep", "1000"]}
    box = id_in(ask("RuntimeService/CreateContainer", {1: pod, 2: config, 3: sandbox}))
    ask("RuntimeService/StartContainer", {1: box})
    said = ask("RuntimeService/ExecSync", {1: box, 2: ["sh", "-c", _SEEN], 3: 60})
    assert _EXPECTED.encode() in said
    assert f"{ctr.where}/root/io.containerd.snapshotter.v1.unionfs".encode() in ask("ImageService/ImageFsInfo", {})
    ask("RuntimeService/StopPodSandbox", {1: pod})
    ask("RuntimeService/RemovePodSandbox", {1: pod})
    ctr("-n", "k8s.io", "image", "rm", "--sync", *ctr("-n", "k8s.io", "image", "ls", "-q").split())
    ctr.until(lambda: len(ctr.snapshotter.directories) == len(ctr.others))


def test_nothing_is_left(ctr: Containerd) -> None:
    """Without containers there are the image's layers, a directory for each, and no daemon."""
    assert ctr("container", "ls", "-q") == ""
    ctr.until(lambda: len(ctr.snapshots()) == 3)
    ctr.until(lambda: len(ctr.snapshotter.directories) == 3)
    mounts = Path("/proc/self/mountinfo").read_text()
    assert os.fspath(ctr.where) not in mounts
    ctr.until(lambda: not _daemons(ctr.where))


def _daemons(where: Path) -> list[str]:
    """Command lines of daemons that serve a union of containerd's."""
    found = process.run(["ps", "-eo", "args"]).stdout.splitlines()
    return [line for line in found if f"{where}/" in line and "lowerdir=" in line]
