"""The transports, as far as they can be tested without the behaviour suite of `tests/mounted`."""
