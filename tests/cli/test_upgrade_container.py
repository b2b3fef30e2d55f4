"""The union of a running container continues in another version, and the container does not notice."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.cli.conftest import Box
from tests.support.timing import limit
from tests.support.users import User

_BUSY = """
exec 5> /count
i=0
while [ ! -e /stop ]; do
    i=$((i + 1))
    echo $i >&5 || exit 9
    ls /etc > /dev/null || exit 8
    echo $i > /file && [ "$(cat /file)" = $i ] && mv /file /moved && rm /moved || exit 7
done
tail -n 1 /count > /last
[ "$(cat /last)" = $i ] || exit 6
"""

_ASK = """
import sys
from unionfs.control.client import NoAnswerError, ask
from unionfs.control.upgrade_client import own_targets, request

for target in own_targets():
    try:
        before = next(ask(target.connection, "stats", target.owner))
    except (NoAnswerError, StopIteration):
        continue
    if sys.argv[1] in before["mountpoint"]:
        print(request(target).why or "upgraded", before["keeper"]["pid"], before["pid"])
"""


def test_a_running_container_continues_in_another_version(box: Box, user: User) -> None:
    """Only its union is upgraded: `--all` would be all unions that root has on this machine."""
    container = box("run", "-d", "--name", "to-be-upgraded", "debian:1", "sh", "-c", _BUSY).stdout.strip()
    keepers, daemons = [], []
    for _ in range(3):
        said, keeper, daemon = user.run([sys.executable, "-c", _ASK, container]).stdout.split()
        assert said == "upgraded"
        keepers.append(keeper)
        daemons.append(daemon)
        assert box("exec", "to-be-upgraded", "echo", "here").stdout == "here\n"
    assert (len(set(keepers[1:])), len(set(daemons))) == (1, 3)  # the first may be the parent of mounts
    box("exec", "to-be-upgraded", "touch", "/stop")
    assert box("wait", "to-be-upgraded").stdout == "0\n"
    box("rm", "to-be-upgraded")
    deadline = time.monotonic() + limit(10)
    ended = Path(f"/proc/{keepers[-1]}")
    while ended.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
