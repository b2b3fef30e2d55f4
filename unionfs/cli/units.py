"""Format sizes and durations for people."""

from __future__ import annotations


def human_size(size: int) -> str:
    """A size in at most four digits, with its unit: `999 B`, `12.1 KiB`, `3.4 GiB`."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} PiB"


def human_duration(seconds: float) -> str:
    """A duration in one unit, as docker prints it: `42 seconds`, `About a minute`, `3 weeks`."""
    whole = max(int(seconds), 0)
    if whole < 60:
        return "Less than a second" if not whole else "1 second" if whole == 1 else f"{whole} seconds"
    minutes, hours = whole // 60, int(whole / 3600 + 0.5)
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    days = hours // 24
    for unit, length in (("year", 365), ("month", 30), ("week", 7)):
        if days >= 2 * length:
            return f"{days // length} {unit}s"
    return f"{days} days"
