"""Each screen as text, in a small and a large terminal, compared with pictures/. UPDATE_PICTURES=1 draws them anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual.pilot import Pilot

from layers.screen.app import ExplorerApp
from tests.layers.explore.test_screen import BASE, LARGE, SMALL, TOP, drive, keys

PICTURES = Path(__file__).with_name("pictures")
SCREENS: dict[str, tuple[str, ...]] = {
    "start": ("j",),
    "details": ("slash", *"tou", "enter"),
    "attributes": ("ctrl+b",),
    "layer alone": ("ctrl+b", "ctrl+l"),
    "find": ("ctrl+a", "slash", *"ch"),
    "compare": ("enter", "v"),
    "filter": ("escape", "ctrl+f"),
    "wasted": ("escape", "w"),
    "help": ("escape", "question_mark"),
}
"""The keys that lead from each screen to the next."""
LARGE_SCREENS = {name: SCREENS[name] for name in ("start", "details", "filter")}


def picture(app: ExplorerApp) -> str:
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips) + "\n"


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_each_screen_looks_as_in_its_picture(size: tuple[int, int]) -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        app.clear_notifications()
        for name, pressed in (LARGE_SCREENS if size == LARGE else SCREENS).items():
            await keys(pilot, *pressed)
            found = picture(app)
            path = PICTURES / f"{name} {size[0]}x{size[1]}.txt"
            if os.environ.get("UPDATE_PICTURES"):
                PICTURES.mkdir(exist_ok=True)
                path.write_text(found, encoding="utf-8")
            assert found == path.read_text(encoding="utf-8"), path.name

    drive(body, (BASE, TOP), size=size)
