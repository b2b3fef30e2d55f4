"""Make names and messages safe for a terminal: without control characters, newlines and bidirectional overrides.

Names of files, containers, images, processes and servers are untrusted. Every text for people that contains them is
converted here; JSON has its own escapes. Imports nothing of ours.
"""

from __future__ import annotations


def printable(name: str | bytes) -> str:
    r"""Convert a name: `\xNN` for every byte that is not printable or not UTF-8, and `\\` for a backslash, so that no
    two names look the same. Text has surrogates for such bytes, as os.fsdecode(3) gives it."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if text.isprintable() and "\\" not in text:
        return text
    return "".join("\\\\" if char == "\\" else _escaped(char) for char in text)


def printable_line(text: str) -> str:
    """Convert a message that may contain names to one line: like `printable`, but backslashes stay, so it can be
    applied to text that is already printable."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
