"""Random changes of a directory, for tests in which programs change both sides of a union at once."""

from __future__ import annotations

import os
import random
from pathlib import Path


def change_at_random(place: Path, draw: random.Random) -> None:
    """Write, remove or rename one of six files of `place`, or list it. Raises: OSError."""
    one, other = place / str(draw.randrange(6)), place / str(draw.randrange(6))
    match draw.randrange(4):
        case 0:
            one.write_bytes(bytes(draw.randrange(9000)))
        case 1:
            one.unlink()
        case 2:
            one.rename(other)
        case 3:
            os.listdir(place)
