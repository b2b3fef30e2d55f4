"""The way out of a network namespace of our own, for which a program must be installed: pasta or slirp4netns.

Both carry connections between a device inside and ordinary sockets outside, so no privileges are needed. The program
runs in the host's network, in the container's user namespace and in a pid namespace of its own whose first process ends
with the monitor: however that ends, the program does, although it changes its credentials and so forgets whose child
it is.

Sources: passt(1), slirp4netns(1) and its API ("add_hostfwd").
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import time
from typing import Final

from unionfs.launcher.errors import LaunchError
from unionfs.launcher.mapped import reset_signals
from unionfs.launcher.spec import PASTA, SLIRP, Port, Uplink
from unionfs.syscalls.mounts import MNT_DETACH, MS_BIND, mount, umount2
from unionfs.syscalls.namespaces import (
    CLONE_NEWPID,
    set_command_line,
    set_parent_death_signal,
    set_process_name,
    unshare,
)

NAME: Final = "unionfs-net"
NAMESERVERS: Final = {PASTA: "169.254.1.1", SLIRP: "10.0.2.3"}
"""Where the container's questions go; the program passes them on to this machine's own resolver."""

_PATIENCE_S: Final = 20.0
_LOOK_AGAIN_S: Final = 0.01
_WHAT: Final = "connecting the network"
_DEVICE: Final = "tap0"


def find(program: str) -> str:
    """The program to use: that one, or for any other word whichever is installed.

    Raises: LaunchError naming the packages when there is none.
    """
    wanted = (program,) if program in NAMESERVERS else (PASTA, SLIRP)
    for name in wanted:
        if shutil.which(name):
            return name
    why = f"{program} is not installed" if program in NAMESERVERS else "neither pasta nor slirp4netns is installed"
    hint = "install the package passt (for pasta) or slirp4netns, or use --network host"
    raise LaunchError(_WHAT, "", why, hint=hint)


class Connection:
    """One uplink. Made in the host's network namespace; `connect` is called in the new one."""

    def __init__(self, uplink: Uplink) -> None:
        """Fork the process that will run the program. Raises: LaunchError, OSError."""
        self._uplink: Final = uplink
        self._place: Final = os.path.join(uplink.directory, "netns")
        self._socket: Final = os.path.join(uplink.directory, "slirp")
        self._said_fd: Final = os.memfd_create("said", os.MFD_CLOEXEC)
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            why = "it may not be opened, or is not there"
            raise LaunchError(_WHAT, "/dev/net/tun", why, hint="as root: modprobe tun; chmod 666 /dev/net/tun")
        with contextlib.suppress(FileNotFoundError):  # of a monitor that was killed: it would be taken for the new one
            os.unlink(self._socket)
        read_fd, self._go_fd = os.pipe()
        self._pid: Final = os.fork()
        if self._pid == 0:
            os.close(self._go_fd)
            _hold(read_fd, self._said_fd, self._command(), uplink.directory)
        os.close(read_fd)

    def connect(self) -> None:
        """Have the program join our network namespace, and wait until there is a way out. Raises: LaunchError."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        mount("/proc/self/ns/net", self._place, None, MS_BIND)  # /proc/PID/ns would ask for rights that are given up
        os.write(self._go_fd, b"g")
        self._wait()
        if self._uplink.program == SLIRP:
            for port in self._uplink.ports:
                self._forward(port)

    def close(self) -> None:
        """End the program."""
        os.close(self._go_fd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        with contextlib.suppress(OSError):
            umount2(self._place, MNT_DETACH)
        for path in (self._place, self._socket):
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(self._said_fd)

    def _wait(self) -> None:
        holder_fd = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(holder_fd, select.POLLIN)
            deadline = time.monotonic() + _PATIENCE_S
            while not _has_way_out() or not self._answers():
                if poll.poll(_LOOK_AGAIN_S * 1000):
                    raise LaunchError(_WHAT, self._uplink.program, self._said() or "it ended at once")
                if time.monotonic() > deadline:
                    raise LaunchError(_WHAT, self._uplink.program, self._said() or "there is no device after 20 s")
        finally:
            os.close(holder_fd)

    def _answers(self) -> bool:
        return self._uplink.program == PASTA or not self._uplink.ports or os.path.exists(self._socket)

    def _said(self) -> str:
        lines = os.pread(self._said_fd, 4096, 0).decode(errors="replace").splitlines()
        return "; ".join(line for line in lines if line and "syslog" not in line)

    def _command(self) -> list[str]:
        ports = self._uplink.ports
        if self._uplink.program == SLIRP:
            api = ["--api-socket", os.path.basename(self._socket)] if ports else []
            quiet = ["--configure", "--mtu=65520", "--disable-host-loopback", *api]
            return [SLIRP, *quiet, "--netns-type=path", self._place, _DEVICE]
        words = [PASTA, "--foreground", "--quiet", "--stderr", "--config-net", "--no-map-gw", "--runas", "0:0"]
        words += ["--dns-forward", NAMESERVERS[PASTA], "-T", "none", "-U", "none"]
        for flag, protocol in (("-t", "tcp"), ("-u", "udp")):
            specs = [_pasta_spec(port) for port in ports if port.protocol == protocol]
            for spec in specs or ["none"]:
                words += [flag, spec]
        return [*words, "--netns", self._place]

    def _forward(self, port: Port) -> None:
        forwarding = {
            "proto": port.protocol,
            "host_addr": port.address or "0.0.0.0",
            "host_port": port.outside,
            "guest_port": port.inside,
        }
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as api:
                api.settimeout(_PATIENCE_S)
                dir_fd = os.open(self._uplink.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:  # the address of a socket has no room for a long path (unix(7))
                    _connect(api, f"/proc/self/fd/{dir_fd}/{os.path.basename(self._socket)}")
                finally:
                    os.close(dir_fd)
                api.sendall(json.dumps({"execute": "add_hostfwd", "arguments": forwarding}).encode())
                api.shutdown(socket.SHUT_WR)
                answer = json.loads(api.recv(65536))
        except (OSError, ValueError) as error:
            raise LaunchError("publishing a port", str(port), str(error)) from error
        if "error" in answer:
            raise LaunchError("publishing a port", str(port), str(answer["error"].get("desc", "refused")))


def _connect(api: socket.socket, address: str) -> None:
    """Connect, once the program listens: its socket has a name before that. Raises: OSError."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return api.connect(address)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_AGAIN_S)


def _pasta_spec(port: Port) -> str:
    return f"{port.address}/{port.outside}:{port.inside}" if port.address else f"{port.outside}:{port.inside}"


def _has_way_out() -> bool:
    """Whether our network namespace has a device besides the loopback, with a default route."""
    with open("/proc/self/net/route", encoding="ascii") as file:
        if any(line.split()[1:2] == ["00000000"] for line in file):
            return True
    with contextlib.suppress(OSError), open("/proc/self/net/ipv6_route", encoding="ascii") as file:
        return any(line.split()[:2] == ["0" * 32, "00"] and line.split()[-1] != "lo" for line in file)
    return False


def _hold(go_fd: int, said_fd: int, command: list[str], directory: str) -> None:
    """The life of the process between the monitor and the program's pid namespace. Never returns."""
    status = 1
    try:
        set_parent_death_signal(signal.SIGKILL)
        set_process_name(NAME)
        set_command_line(NAME)
        reset_signals()
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in (go_fd, said_fd):
                with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed already
                    os.close(fd)
        unshare(CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            _be_first(go_fd, said_fd, command, directory)
        poll = select.poll()
        poll.register(os.pidfd_open(pid), select.POLLIN)
        poll.register(go_fd, 0)  # POLLHUP: the monitor wants no more of it
        poll.poll()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os._exit(status)


def _be_first(go_fd: int, said_fd: int, command: list[str], directory: str) -> None:
    """Process 1 around the program: the kernel ends everything beside it when it ends."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        if os.read(go_fd, 1):
            os.chdir(directory)  # a path there may be too long for the address of a socket
            null_fd = os.open(os.devnull, os.O_RDWR)
            actions = [(os.POSIX_SPAWN_DUP2, null_fd, 0), (os.POSIX_SPAWN_DUP2, said_fd, 1)]
            program = os.posix_spawnp(
                command[0], command, os.environ, file_actions=[*actions, (os.POSIX_SPAWN_DUP2, said_fd, 2)]
            )
            while os.waitpid(-1, 0)[0] != program:
                pass
    finally:
        os._exit(1)
