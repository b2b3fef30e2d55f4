"""The screen, driven by textual's pilot: what the panes show after keys and clicks, in small and large terminals."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Checkbox, DataTable, Input, Static

from layers import gc
from layers.cli import stacks
from layers.explore.indexes import open_tree
from layers.explore.model import BY_NAME
from layers.screen.app import ExplorerApp, Side
from layers.screen.dialogs import FilterDialog, Lines, WasteDialog
from layers.screen.tree_pane import TreePane
from layers.store import Store
from tests.layers import images, trees
from tests.layers.explore.building import Member, of_tars, tree_of

SMALL, LARGE = (80, 24), (200, 60)

BASE: tuple[Member, ...] = (
    ("etc", {"type": b"5"}, b""),
    ("etc/kept", {}, b"12345"),
    ("etc/changed", {}, b"first\nsecond\nthird\n"),
    ("etc/touched", {}, b"123"),
    ("old/a", {}, b"1" * 3000),
    ("bin/su", {"mode": 0o4755}, b"\x7fELF" + b"x" * 100),
    ("bad\x1b[31mname", {}, b"\x1b[2J"),
    ("caf\udce9", {}, b"x"),
)
TOP: tuple[Member, ...] = (
    ("etc/changed", {}, b"first\n2nd\nthird\n"),
    ("etc/touched", {"mode": 0o600}, b"123"),
    (".wh.old", {}, b""),
    ("new/deep/er/file", {}, b"y" * 50),
)

Body = Callable[[ExplorerApp, Pilot[None]], Awaitable[None]]


def drive(
    body: Body, *images_: tuple[tuple[Member, ...], ...], size: tuple[int, int] = SMALL, title: str = "image"
) -> None:
    """Run `body` with the app of these images, each of layers bottom first."""

    async def run() -> None:
        app = ExplorerApp(sides)
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await body(app, pilot)

    with ExitStack() as keep:
        sides = []
        for number, members in enumerate(images_ or ((BASE, TOP),)):
            layers = of_tars(*members)
            for at, layer in enumerate(layers):
                layer.created_by = f"RUN step {at}"
            sides.append(Side(f"{title} {number}", keep.enter_context(tree_of(layers)), layers))
        asyncio.run(run())


def rows(app: ExplorerApp, number: int = 0) -> list[str]:
    """The lines of a tree pane as they are drawn."""
    pane = app.query_one(f"#tree{number}", TreePane)
    return [pane.render_line(y).text.rstrip() for y in range(len(pane.explorer))]


def names(app: ExplorerApp, number: int = 0) -> list[str]:
    return [line.split(" B ")[-1].split(" kB ")[-1].strip(" ▸▾") for line in rows(app, number)]


def told(app: ExplorerApp) -> str:
    return str(app.query_one("#text", Static).render())


async def keys(pilot: Pilot[Any], *pressed: str) -> None:
    await pilot.press(*pressed)
    await pilot.pause()
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_tree_has_marks_sizes_and_names_that_are_safe(size: tuple[int, int]) -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        assert names(app) == ["old/", "bin/", "new/", "etc/", r"bad\x1b[31mname", r"caf\xe9"]
        assert [line[:2] for line in rows(app)] == [">-", "  ", " +", " .", "  ", "  "]
        await keys(pilot, "j", "j", "j", "space")
        assert names(app)[3:7] == ["etc/", "changed", "kept", "touched"]
        assert [line[1] for line in rows(app)[3:7]] == [".", "~", " ", "m"]
        await keys(pilot, "end")
        assert "caf\\xe9" in told(app)
        assert "\x1b" not in told(app) + "".join(rows(app))
        assert len(rows(app)[0]) <= size[0]

    drive(body, size=size)


def test_the_details_say_what_each_layer_has_and_the_step_that_made_it() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        await keys(pilot, "slash", *"touched", "enter")
        text = told(app)
        assert text.startswith("/etc/touched\nonly owner, mode, time or attributes changed\nfile  -rw------- 0:0 3 B")
        assert "=> layer 1: -rw------- 0:0 3 B\n   RUN step 1" in text
        assert "-  layer 0: -rw-r--r-- 0:0 3 B\n   hidden: layer 1 has the same data with another mode" in text
        await keys(pilot, "slash", *"old", "enter")
        assert "x  layer 1 has a whiteout of /old (oci)" in told(app)

    drive(body)


def test_layers_are_chosen_and_shown_alone_or_whole() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        pane = app.query_one(TreePane)
        table = app.query_one("#layers", DataTable)
        assert [str(cell) for cell in table.get_row("1")][2:5] == ["1", "2", "1"]
        await keys(pilot, "ctrl+l")
        assert "what layer 1 changes" in str(pane.border_title)
        table.focus()
        await keys(pilot, "down")
        assert pane.explorer.level == 0
        assert "layer 0: a layer\nRUN step 0\n" in told(app)
        assert "old/" in names(app)
        assert "new/" not in names(app)
        await keys(pilot, "up", "ctrl+a")
        assert "layers 0 to 1" in str(pane.border_title)
        assert "new/" in names(app)

    drive(body)


def test_next_and_previous_match() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        pane = app.query_one(TreePane)
        found = []
        await keys(pilot, "slash", "e", "enter")
        for key in ("n", "n", "N"):
            found.append(pane.explorer.tree.path(pane.node))
            await keys(pilot, key)
        assert found == [b"bad\x1b[31mname", b"etc", b"new"]
        assert pane.explorer.tree.path(pane.node) == b"etc"
        assert pane.border_subtitle == "2 of 9"
        await keys(pilot, "slash", *"nowhere", "enter")
        assert pane.explorer.tree.path(pane.node) == b"etc"

    drive(body)


def test_filters_hide_paths() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        await keys(pilot, "ctrl+u")
        assert names(app) == ["old/", "new/", "etc/"]
        await keys(pilot, "ctrl+r")
        assert names(app) == ["new/", "etc/"]
        await keys(pilot, "ctrl+u", "ctrl+r")
        assert len(names(app)) == 6
        await keys(pilot, "ctrl+f")
        assert isinstance(app.screen, FilterDialog)
        app.screen.query_one("#filter-set-id", Checkbox).value = True
        app.screen.query_one("#filter-size", Input).value = "a lot"
        app.screen.query_one("#filter-size", Input).focus()
        await keys(pilot, "enter")
        assert isinstance(app.screen, FilterDialog), "a number that is none is refused"
        app.screen.query_one("#filter-size", Input).value = "50"
        await pilot.click("#apply")
        await keys(pilot)
        assert names(app) == ["bin/"]
        assert "filtered" in str(app.query_one(TreePane).border_title)

    drive(body, size=LARGE)


def test_rows_open_close_and_sort() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        pane = app.query_one(TreePane)
        await keys(pilot, "slash", *"er", "enter")
        assert pane.explorer.tree.path(pane.node) == b"new/deep/er"
        await keys(pilot, "l", "down")
        assert pane.explorer.tree.path(pane.node) == b"new/deep/er/file"
        await keys(pilot, "h", "h")
        assert pane.explorer.tree.path(pane.node) == b"new/deep/er"
        await keys(pilot, "C")
        assert len(rows(app)) == 6
        await keys(pilot, "ctrl+o")
        assert pane.explorer.order == BY_NAME
        assert names(app)[:4] == ["bin/", "etc/", "new/", "old/"]
        await keys(pilot, "ctrl+b")
        assert "drw-r--r-- 0:0" in rows(app)[1]
        await keys(pilot, "G", "j", "f")
        assert pane.cursor == 5
        await keys(pilot, "g", "k", "b")
        assert pane.cursor == 0

    drive(body)


def test_a_click_moves_and_a_second_opens() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        pane = app.query_one(TreePane)
        await pilot.click(TreePane, offset=(20, 2))
        await pilot.pause()
        assert pane.cursor == 1
        await pilot.click(TreePane, offset=(20, 2))
        await pilot.pause()
        assert names(app)[1:3] == ["bin/", "su"]

    drive(body)


def test_what_is_wasted_leads_to_its_path() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        await keys(pilot, "w")
        assert isinstance(app.screen, WasteDialog)
        sums = str(app.screen.query_one("#sums", Static).render())
        assert "3.0 kB in 1 files, removed later" in sums
        assert "3 B in 1 files, chown or chmod alone" in sums
        table = app.screen.query_one(DataTable)
        first = [str(cell) for cell in table.get_row_at(0)]
        assert first == ["   3.0 kB", "0", "/old/a", "removed by layer 1", "RUN step 1"]
        await keys(pilot, "enter")
        pane = app.query_one(TreePane)
        assert pane.explorer.tree.path(pane.node) == b"old/a"

    drive(body)


def test_versions_are_compared_as_text() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        await keys(pilot, "slash", *"changed", "enter", "v")
        assert isinstance(app.screen, Lines)
        text = "\n".join(app.screen._lines)
        assert "-second\n+2nd" in text
        await keys(pilot, "escape", "slash", *"touched", "enter", "v")
        assert isinstance(app.screen, Lines)
        assert app.screen._lines == ["The data is the same."]

    drive(body)


def test_a_file_is_extracted_and_nothing_is_overwritten(scratch: Path) -> None:
    target = scratch / "out"

    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        for _ in range(2):
            await keys(pilot, "slash", *"changed", "enter", "ctrl+e")
            app.screen.query_one(Input).value = os.fspath(target)
            await keys(pilot, "enter")
            assert target.read_bytes() == b"first\n2nd\nthird\n"
            target.write_bytes(b"first\n2nd\nthird\n")
        assert any("it is left as it is" in one.message for one in app._notifications)

        await keys(pilot, "slash", *"deep", "enter", "e")
        app.screen.query_one(Input).value = os.fspath(scratch / "directory")
        await keys(pilot, "enter")
        assert (scratch / "directory/er/file").read_bytes() == b"y" * 50
        assert any("50 B in 1 files written to" in one.message for one in app._notifications)

    drive(body)
    assert sorted(os.listdir(scratch)) == ["directory", "out"]


def test_two_images_are_beside_each_other() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        assert "new/" in names(app, 0)
        assert "new/" not in names(app, 1)
        app.query_one("#tree1", TreePane).focus()
        await pilot.pause()
        assert app.query_one("#layers", DataTable).row_count == 1
        await keys(pilot, "slash", *"su", "enter")
        assert told(app).startswith("/bin/su\n")

    drive(body, (BASE, TOP), (BASE,), size=LARGE)


def test_a_terminal_that_is_too_small_shows_a_message() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        small = app.query_one("#small", Static)
        shown = [small.display]
        await pilot.resize_terminal(40, 10)
        await pilot.pause()
        shown.append(small.display)
        assert "too small: 40x10; 60x16 are needed" in str(small.render())
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        assert [*shown, small.display] == [False, True, False]
        assert rows(app)[0].startswith(">-")

    drive(body)


def test_an_empty_layer_and_help_are_shown() -> None:
    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        assert rows(app) == []
        await keys(pilot, "j", "space", "l", "h", "v", "e", "y", "n", "w", "escape", "ctrl+b", "question_mark")
        assert isinstance(app.screen, Lines)
        assert any("Ctrl-F  filter" in line for line in app.screen._lines)
        await keys(pilot, "q")
        assert type(app.screen).__name__ != "Lines"

    drive(body, ((),))


def test_names_with_brackets_are_no_markup() -> None:
    name = "[/x] [@click=app.quit]y[bold"

    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        await keys(pilot, "slash", *"click", "enter", "y")
        assert [one.message for one in app._notifications] == [f"copied: /d/{name}"]
        await keys(pilot, "v")
        assert isinstance(app.screen, Lines)
        await keys(pilot, "escape", "slash", *"[/]x", "enter")
        assert any(one.message == "no name has [/]x in it" for one in app._notifications)
        assert not any(one.markup for one in app._notifications)
        assert "[/] [red]title 0" in app.screen._compositor.render_strips()[0].text
        assert app.is_running

    image: tuple[tuple[Member, ...], ...] = tuple(((f"d/{name}", {}, data),) for data in (b"old", b"new"))
    drive(body, image, size=LARGE, title="[/] [red]title")


def test_an_image_that_is_removed_meanwhile_is_still_shown(scratch: Path) -> None:
    images.layout(scratch / "images", [trees.tar_of(list(one)) for one in (BASE, TOP)], name="docker.io/library/t:1")
    store = Store(os.fspath(scratch))

    async def body(app: ExplorerApp, pilot: Pilot[None]) -> None:
        store.untag("docker.io/library/t:1")
        gc.collect(store)
        assert os.listdir(store.indexes) == []
        await keys(pilot, "slash", *"changed", "enter")
        assert "=> layer 1" in told(app)
        await keys(pilot, "v")
        assert type(app.screen).__name__ != "Lines"
        await keys(pilot, "e")
        app.screen.query_one(Input).value = os.fspath(scratch / "out")
        await keys(pilot, "enter")
        assert len([one for one in app._notifications if "blob" in one.message]) == 2
        assert not (scratch / "out").exists()
        await keys(pilot, "g", "w")
        assert isinstance(app.screen, WasteDialog)

    async def run(side: Side) -> None:
        app = ExplorerApp([side])
        async with app.run_test(size=SMALL) as pilot:
            await pilot.pause()
            await body(app, pilot)

    with ExitStack() as keep:
        stack = stacks.of_image(store, store.find("t:1"))
        asyncio.run(run(Side("t", open_tree(stack.layers, store, keep), stack.layers)))
