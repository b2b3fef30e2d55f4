"""Connect a container's network namespace to the host's network through a helper program: pasta or slirp4netns.

Both forward connections between a tap device inside and ordinary sockets outside, so no privileges are needed. The
program runs in the host's network namespace, in the container's user namespace, and in a pid namespace of its own whose
process 1 is killed when the monitor ends. So the program ends, too: it could not rely on its own parent death signal,
which the kernel clears when it changes its credentials.

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
from unionfs.launcher.spec import PASTA, SLIRP, NetworkHelper, Port
from unionfs.launcher.userns import reset_signals
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
"""Program -> address of the container's nameserver. The program forwards queries to this machine's resolver."""

_TIMEOUT_S: Final = 20.0
_POLL_INTERVAL_S: Final = 0.01
_WHAT: Final = "connecting the network"
_DEVICE: Final = "tap0"


def find(program: str) -> str:
    """Return the program to use: `program` if it is pasta or slirp4netns, else the first of them that is installed.

    Raises: LaunchError naming the packages if it is not installed.
    """
    wanted = (program,) if program in NAMESERVERS else (PASTA, SLIRP)
    for name in wanted:
        if shutil.which(name):
            return name
    why = f"{program} is not installed" if program in NAMESERVERS else "neither pasta nor slirp4netns is installed"
    hint = "install the package passt (for pasta) or slirp4netns, or use --network host"
    raise LaunchError(_WHAT, "", why, hint=hint)


class HelperProcess:
    """One helper program. Made in the host's network namespace; `connect` is called in the new one."""

    def __init__(self, helper: NetworkHelper) -> None:
        """Fork the process that will start the program. Raises: LaunchError, OSError."""
        self._helper: Final = helper
        self._netns_path: Final = os.path.join(helper.directory, "netns")
        self._socket: Final = os.path.join(helper.directory, "slirp")
        self._output_fd: Final = os.memfd_create("said", os.MFD_CLOEXEC)
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            why = "it is missing, or this user may not open it"
            raise LaunchError(_WHAT, "/dev/net/tun", why, hint="as root: modprobe tun; chmod 666 /dev/net/tun")
        for port in helper.ports:
            _check_free(port)
        with contextlib.suppress(FileNotFoundError):  # left by a killed monitor: it would be taken for the new one
            os.unlink(self._socket)
        read_fd, self._start_fd = os.pipe()
        self._pid: Final = os.fork()
        if self._pid == 0:
            os.close(self._start_fd)
            _run_holder(read_fd, self._output_fd, self._command(), helper.directory)
        os.close(read_fd)

    def connect(self) -> None:
        """Have the program join our network namespace, and wait until that has a default route. Raises: LaunchError."""
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self._netns_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        mount("/proc/self/ns/net", self._netns_path, None, MS_BIND)  # the program may not open our /proc/PID/ns
        os.write(self._start_fd, b"g")
        self._wait()
        if self._helper.program == SLIRP:
            for port in self._helper.ports:
                self._forward(port)

    def close(self) -> None:
        """End the program."""
        os.close(self._start_fd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        with contextlib.suppress(OSError):
            umount2(self._netns_path, MNT_DETACH)
        for path in (self._netns_path, self._socket):
            with contextlib.suppress(OSError):
                os.unlink(path)
        os.close(self._output_fd)

    def _wait(self) -> None:
        holder_fd = os.pidfd_open(self._pid)
        try:
            poll = select.poll()
            poll.register(holder_fd, select.POLLIN)
            deadline = time.monotonic() + _TIMEOUT_S
            while not _has_default_route() or not self._is_api_ready():
                if poll.poll(_POLL_INTERVAL_S * 1000):
                    raise LaunchError(_WHAT, self._helper.program, self._read_output() or "it ended without a message")
                if time.monotonic() > deadline:
                    raise LaunchError(
                        _WHAT, self._helper.program, self._read_output() or "there is no default route after 20 s"
                    )
        finally:
            os.close(holder_fd)

    def _is_api_ready(self) -> bool:
        return self._helper.program == PASTA or not self._helper.ports or os.path.exists(self._socket)

    def _read_output(self) -> str:
        lines = os.pread(self._output_fd, 4096, 0).decode(errors="replace").splitlines()
        return "; ".join(line for line in lines if line and "syslog" not in line)

    def _command(self) -> list[str]:
        ports = self._helper.ports
        if self._helper.program == SLIRP:
            api = ["--api-socket", os.path.basename(self._socket)] if ports else []
            quiet = ["--configure", "--mtu=65520", "--disable-host-loopback", *api]
            return [SLIRP, *quiet, "--netns-type=path", self._netns_path, _DEVICE]
        words = [PASTA, "--foreground", "--quiet", "--stderr", "--config-net", "--no-map-gw", "--runas", "0:0"]
        words += ["--dns-forward", NAMESERVERS[PASTA], "-T", "none", "-U", "none"]
        for flag, protocol in (("-t", "tcp"), ("-u", "udp")):
            specs = [_pasta_spec(port) for port in ports if port.protocol == protocol]
            for spec in specs or ["none"]:
                words += [flag, spec]
        return [*words, "--netns", self._netns_path]

    def _forward(self, port: Port) -> None:
        forwarding = {
            "proto": port.protocol,
            "host_addr": port.address or "0.0.0.0",
            "host_port": port.outside,
            "guest_port": port.inside,
        }
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as api:
                api.settimeout(_TIMEOUT_S)
                dir_fd = os.open(self._helper.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:  # the path may be too long for a socket address (unix(7))
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


def _check_free(port: Port) -> None:
    """Raise LaunchError if the port is in use: pasta reports no error if it can use the port for IPv6 only."""
    address = port.address or "0.0.0.0"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM if port.protocol == "udp" else socket.SOCK_STREAM) as probe:
            if port.protocol != "udp":  # connections of an earlier listener may still be closing
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port.outside))
            if port.protocol != "udp":
                probe.listen()
    except OSError as error:
        raise LaunchError("publishing a port", str(port), error.strerror or str(error)) from error


def _connect(api: socket.socket, address: str) -> None:
    """Connect, retrying while the program does not listen yet: its socket exists before that. Raises: OSError."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return api.connect(address)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_INTERVAL_S)


def _pasta_spec(port: Port) -> str:
    return f"{port.address}/{port.outside}:{port.inside}" if port.address else f"{port.outside}:{port.inside}"


def _has_default_route() -> bool:
    """Whether our network namespace has a device besides the loopback, with a default route."""
    with open("/proc/self/net/route", encoding="ascii") as file:
        if any(line.split()[1:2] == ["00000000"] for line in file):
            return True
    with contextlib.suppress(OSError), open("/proc/self/net/ipv6_route", encoding="ascii") as file:
        return any(line.split()[:2] == ["0" * 32, "00"] and line.split()[-1] != "lo" for line in file)
    return False


def _run_holder(start_fd: int, output_fd: int, command: list[str], directory: str) -> None:
    """Fork process 1 of the program's pid namespace, and kill it once `start_fd` is closed by the monitor. Never
    returns."""
    status = 1
    try:
        set_parent_death_signal(signal.SIGKILL)
        set_process_name(NAME)
        set_command_line(NAME)
        reset_signals()
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in (start_fd, output_fd):
                with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed already
                    os.close(fd)
        unshare(CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            _run_pid1(start_fd, output_fd, command, directory)
        poll = select.poll()
        poll.register(os.pidfd_open(pid), select.POLLIN)
        poll.register(start_fd, 0)  # POLLHUP: the monitor has called `close` or has ended
        poll.poll()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os._exit(status)


def _run_pid1(start_fd: int, output_fd: int, command: list[str], directory: str) -> None:
    """Run as process 1 of the pid namespace: start the program, end with it. The kernel then kills the others."""
    try:
        set_parent_death_signal(signal.SIGKILL)
        if os.read(start_fd, 1):
            os.chdir(directory)  # slirp4netns gets its socket by name: a path may be too long
            null_fd = os.open(os.devnull, os.O_RDWR)
            actions = [(os.POSIX_SPAWN_DUP2, null_fd, 0), (os.POSIX_SPAWN_DUP2, output_fd, 1)]
            program = os.posix_spawnp(
                command[0], command, os.environ, file_actions=[*actions, (os.POSIX_SPAWN_DUP2, output_fd, 2)]
            )
            while os.waitpid(-1, 0)[0] != program:
                pass
    finally:
        os._exit(1)
