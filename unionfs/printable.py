"""Names and messages as text that is safe on a terminal: nothing moves its cursor, starts a line or turns it around.

Files, containers, images, processes and servers are named by strangers. Whatever is printed of them for people goes
through here; JSON escapes by itself. Imports nothing of ours.
"""

from __future__ import annotations


def printable(name: str | bytes) -> str:
    r"""A name: `\xNN` for every byte of what is not printable or not UTF-8, and `\\` for a backslash, so that no two
    names look the same. Text has surrogates for such bytes, as os.fsdecode(3) gives it."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if text.isprintable() and "\\" not in text:
        return text
    return "".join("\\\\" if char == "\\" else _escaped(char) for char in text)


def printable_line(text: str) -> str:
    """A message that may have names in it, on one line: as `printable`, but backslashes stay, so that it can be applied
    again to what has been made printable."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(char: str) -> str:
    if char.isprintable():
        return char
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogatepass"))
