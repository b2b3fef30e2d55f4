"""Messages between the container's processes and the one that waits for them."""

from __future__ import annotations

from unionfs.launcher import channel
from unionfs.launcher.channel import FAILED, INIT, Message, failure_in
from unionfs.launcher.errors import LaunchError


def test_messages_arrive_one_by_one() -> None:
    receiver, sender = channel.make()
    assert receiver.receive() is None
    sender.send(INIT, "42")
    sender.send("strange", "\udcff", "", "ä")
    assert receiver.receive() == Message(INIT, ("42",))
    assert receiver.receive() == Message("strange", ("\udcff", "", "ä"))
    assert receiver.receive() is None
    sender.close()
    assert receiver.receive() is None
    receiver.close()


def test_a_failure_arrives_unchanged() -> None:
    receiver, sender = channel.make()
    sender.send_failure(LaunchError("mounting", "/a\0b", "no", hint="try\nmore", status=127))
    message = receiver.receive()
    assert message is not None
    assert message.kind == FAILED
    told = failure_in(message)
    assert (str(told), told.hint, told.status) == ("mounting failed: /a?b: no", "try\nmore", 127)
    sender.close()
    receiver.close()


def test_the_longest_failure_is_shortened_and_stays_whole() -> None:
    receiver, sender = channel.make()
    sender.send_failure(LaunchError("w" * 5000, "/" + "ü" * 5000, "y" * 5000, hint="h" * 5000, status=126))
    sender.send(INIT, "1")
    message = receiver.receive()
    assert message is not None
    told = failure_in(message)
    assert told.status == 126
    assert told.why.startswith("yyyy")
    assert receiver.receive() == Message(INIT, ("1",))
    sender.close()
    receiver.close()


def test_the_receiver_has_ended() -> None:
    receiver, sender = channel.make()
    receiver.close()
    sender.send(INIT, "1")
    sender.close()
