"""Networks of containers: a private one has a way out and published ports, and nothing of it outlives the container."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Box
from tests.support.marks import as_ordinary_user
from tests.support.timing import limit
from unionfs.cli.errors import CommandError
from unionfs.cli.network_flags import port_from
from unionfs.launcher import private_network
from unionfs.launcher.errors import LaunchError

_SERVER = """
import socket, sys
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("0.0.0.0", 80)); s.listen()
open("/ready", "w").close()
while True:
    c, _ = s.accept(); c.sendall(b"hello\\n"); c.close()
"""


@pytest.fixture
def tun() -> None:
    device = Path("/dev/net/tun")
    if os.geteuid() == 0 and device.exists():
        device.chmod(0o666)
    if not os.access(device, os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun cannot be opened (as root: modprobe tun; chmod 666 /dev/net/tun)")


@pytest.fixture(params=["pasta", "slirp4netns"])
def program(request: pytest.FixtureRequest, tun: None) -> str:
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


def _programs() -> set[int]:
    told = subprocess.run(["pgrep", "-x", "pasta|pasta.avx2|slirp4netns"], capture_output=True, text=True, check=False)
    return set(map(int, told.stdout.split()))


def _ask(port: int) -> bytes:
    deadline = time.monotonic() + limit(30)
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as client:
                if said := client.recv(100):
                    return said
        except OSError:
            pass
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_private_network_with_a_published_port(box: Box, program: str) -> None:
    before = _programs()
    box("run", "-d", "--name", "net", "--network", program, "-p", "127.0.0.1::80", "debian:1", "python3", "-c", _SERVER)
    (shown,) = json.loads(box("inspect", "net").stdout)
    assert shown["HostConfig"]["NetworkMode"] == "private"
    (binding,) = shown["HostConfig"]["PortBindings"]["80/tcp"]
    assert _ask(int(binding["HostPort"])) == b"hello\n"
    resolver = box("exec", "net", "cat", "/etc/resolv.conf").stdout
    assert {"pasta": "nameserver 169.254.1.1", "slirp4netns": "nameserver 10.0.2.3"}[program] in resolver
    assert "00000000" in box("exec", "net", "cat", "/proc/net/route").stdout
    record = json.loads((Path(shown["LogPath"]).parent / "container.json").read_text())
    os.kill(record["state"]["monitor"], signal.SIGKILL)
    box("wait", "net")
    deadline = time.monotonic() + limit(20)
    while _programs() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _programs() - before
    box("start", "net")
    assert _ask(int(binding["HostPort"])) == b"hello\n"
    box("rm", "-f", "net")


@as_ordinary_user
def test_what_cannot_be(box: Box, tun: None) -> None:
    refused = box("run", "--rm", "-p", "80:80", "debian:1", "true", check=False)
    assert (refused.returncode, "--publish is not possible" in refused.stderr) == (125, True)


@as_ordinary_user
@pytest.mark.parametrize("address", ["127.0.0.1", ""], ids=["loopback", "all addresses"])
def test_a_port_that_is_taken(box: Box, program: str, address: str) -> None:
    with socket.socket() as taken:
        taken.bind((address, 0))
        taken.listen()
        number = taken.getsockname()[1]
        port = f"{address}:{number}:80" if address else f"{number}:80"
        done = box("run", "--rm", "--network", program, "-p", port, "debian:1", "true", check=False)
    told = f"unionfs: publishing a port failed: {address or '0.0.0.0'}:{number}->80/tcp: Address already in use\n"
    assert (done.returncode, done.stderr) == (125, told)
    assert box("ps", "-aq").stdout == ""


@as_ordinary_user
def test_names_and_name_servers(box: Box) -> None:
    words = ("--add-host", "there:10.1.2.3", "--dns", "10.9.9.9", "--dns", "10.9.9.8")
    told = box("run", "--rm", *words, "debian:1", "sh", "-c", "getent hosts there; grep nameserver /etc/resolv.conf")
    assert told.stdout.split() == ["10.1.2.3", "there", "nameserver", "10.9.9.9", "nameserver", "10.9.9.8"]
    for wrong in (("--add-host", "there:nowhere"), ("--dns", "x")):
        assert box("run", "--rm", *wrong, "debian:1", "true", check=False).returncode == 125


def test_nothing_to_connect_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError, match="neither pasta nor slirp4netns is installed") as told:
        private_network.find("private")
    assert "passt" in told.value.hint


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("8080:80", ("", 8080, 80, "tcp")),
        ("127.0.0.1:1:2/udp", ("127.0.0.1", 1, 2, "udp")),
        ("[::1]:1:2", ("::1", 1, 2, "tcp")),
    ],
)
def test_ports_as_docker_has_them(text: str, meant: tuple[object, ...]) -> None:
    assert tuple(port_from(text)) == meant
    assert port_from("80").inside == 80


@pytest.mark.parametrize("text", ["", "x", "80:x", "0:80", "80:70000", "nowhere:1:2", "1:2/sctp", "80:80:80:80"])
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(CommandError, match=r"bad (port|address)"):
        port_from(text)
