"""The terminal program: panes for layers, details and one or two trees, and the actions of its keys."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Protocol

from rich.cells import cell_len
from rich.text import Text
from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal, Vertical, VerticalScroll
from textual.notifications import SeverityLevel
from textual.widgets import DataTable, Footer, Static
from textual.worker import get_current_worker

from layers.cli.showing import human
from layers.entry import FILE, LINK
from layers.errors import LayerError
from layers.explore import data, details, extract
from layers.explore.data import Readable
from layers.explore.filters import CHANGES, Filter
from layers.explore.model import BY_NAME, BY_SIZE, Explorer
from layers.explore.tree_index import REMOVED_HERE, SAME_HERE, TreeIndex
from layers.screen import words
from layers.screen.dialogs import Ask, Dialog, FilterDialog, Lines, WasteDialog, help_lines
from layers.screen.tree_pane import TreePane, key
from unionfs.output_file import OutputFile
from unionfs.printable import printable, printable_line

LEAST_WIDTH: Final = 60
LEAST_HEIGHT: Final = 16
TERMINATED: Final = 128 + signal.SIGTERM
"""The return code after SIGTERM, as of a program that it has ended."""


class Layer(words.Layer, Readable, Protocol):
    """A layer that is listed and can be read."""


@dataclass(slots=True)
class Side:
    """One image or stack; two of them are shown beside each other."""

    title: str
    tree: TreeIndex
    layers: Sequence[Layer]
    shell: Callable[[int], None] | None = None
    """Runs a shell on the merged layers up to a level; raises LayerError, OSError, CalledProcessError."""
    explorer: Explorer = field(init=False)

    def __post_init__(self) -> None:
        self.explorer = Explorer(self.tree)


class ExplorerApp(App[None]):
    """The explorer of one or two sides."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "layers explore"
    CSS = """
    #left { width: 42%; max-width: 76; }
    #layers { height: 40%; border: round $surface-lighten-2; }
    #layers:focus { border: round $accent; }
    #details { height: 1fr; border: round $surface-lighten-2; }
    #details:focus { border: round $accent; }
    #text { min-height: 100%; }
    #small { display: none; height: 1fr; }
    .too-small #panes, .too-small Footer { display: none; }
    .too-small #small { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        key("question_mark", "help", "Help", key_display="?"),
        key("q", "quit", "Quit"),
        key("ctrl+c", "interrupt"),  # in a line of input Ctrl-C would copy
        key("ctrl+z", "suspend_process"),
        key("tab", "app.focus_next"),
        key("slash", "find", "Find", key_display="/"),
        key("n", "found(1)"),
        key("N", "found(-1)"),
        key("ctrl+f,F", "filter", "Filter"),
        key("ctrl+a", "whole", "Whole"),
        key("ctrl+l", "alone", "Layer"),
        key("ctrl+u", "without('same')"),
        key("ctrl+r", "without('removed')"),
        key("ctrl+b,a", "attributes"),
        key("ctrl+o,o", "order"),
        key("w", "wasted", "Wasted"),
        key("v", "compare", "Compare"),
        key("y", "copy_path"),
        key("ctrl+e,e", "extract", "Extract"),
        key("s", "shell"),
    ]

    def __init__(self, sides: Sequence[Side]) -> None:
        super().__init__()
        self.sides = sides  # immutable
        self._at = 0  # the side that has the focus
        self._matches: list[int] = []
        self._match = -1
        self._fits = False  # whether the details have needed no more rows than their pane has

    # -- panes --

    def compose(self) -> ComposeResult:
        yield Static(id="small")
        with Container(id="panes"), Horizontal():
            with Vertical(id="left"):
                yield DataTable(id="layers", cursor_type="row")
                with VerticalScroll(id="details") as pane:
                    pane.can_focus = True
                    yield Static(id="text")
            for number, side in enumerate(self.sides):
                yield TreePane(side.explorer, Text(printable_line(side.title)), number)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        self._fill_layers()
        self.pane.focus()
        self.app_resume_signal.subscribe(self, lambda _: self.refresh(layout=True))  # after Ctrl-Z
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.exit, None, TERMINATED)

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = False,
    ) -> None:
        """Show a message, never as markup: it may have a name with brackets in it."""
        super().notify(message, title=title, severity=severity, timeout=timeout, markup=False)

    @property
    def side(self) -> Side:
        return self.sides[self._at]

    @property
    def pane(self) -> TreePane:
        return self.query_one(f"#tree{self._at}", TreePane)

    def on_resize(self, event: events.Resize) -> None:
        width, height = event.size
        self.set_class(width < LEAST_WIDTH or height < LEAST_HEIGHT, "too-small")
        self.query_one("#small", Static).update(
            f"The terminal is too small: {width}x{height}; {LEAST_WIDTH}x{LEAST_HEIGHT} are needed. q quits."
        )

    def _fill_layers(self) -> None:
        side = self.side
        table = self.query_one("#layers", DataTable)
        table.clear(columns=True)
        table.border_title = "layers"
        table.add_columns("#", "SIZE", "+", "~", "-", "WASTED", "MADE BY")
        wasted = side.tree.hidden_in
        for number in reversed(range(len(side.layers))):
            added, changed, removed = side.tree.effects(number)
            name = words.command(side.layers[number]) or printable(side.layers[number].name)
            cells = (
                str(number), human(side.tree.layers[number].about["stored"]).rjust(8), str(added), str(changed),
                str(removed), human(wasted[number]) if wasted[number] else "-", name,
            )  # fmt: skip
            table.add_row(*(Text(cell) for cell in cells), key=str(number))
        table.move_cursor(row=side.tree.top - side.explorer.level)

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if event.data_table.id != "layers" or event.row_key.value is None:
            return
        level = int(event.row_key.value)
        if self.focused is not None and self.focused.id == "layers":
            if level != self.side.explorer.level:
                self._view(level)
            self._show_lines(words.layer(self.side.tree, self.side.layers, level))

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        if isinstance(event.widget, TreePane):
            at = int((event.widget.id or "tree0").removeprefix("tree"))
            if at != self._at:
                self._at = at
                self._matches = []
                self._fill_layers()
            self._show_entry()
        elif event.widget.id == "layers":
            self._show_lines(words.layer(self.side.tree, self.side.layers, self.side.explorer.level))

    def on_tree_pane_moved(self, event: TreePane.Moved) -> None:
        if event.pane is self.pane and event.pane.has_focus:
            self._show_entry()

    def _show_entry(self) -> None:
        side, node = self.side, self.pane.node
        if node < 0:
            self._show_lines(["nothing to show"])
            return
        explorer = side.explorer
        self._show_lines(words.entry(side.tree, side.layers, node, explorer.level, explorer.base))

    def _show_lines(self, lines: Sequence[str]) -> None:
        """Show lines in the pane of details. The screen is laid out again, which takes 9 ms, only if these lines, or
        the former ones, need more rows than the pane has: two rows together have more cells than one is wide."""
        size = self.query_one("#details").size
        fits = sum(1 + 2 * cell_len(line) // max(size.width, 1) for line in lines) <= size.height
        self.query_one("#text", Static).update(Text("\n".join(lines)), layout=not (fits and self._fits))
        self._fits = fits

    def _view(self, level: int | None = None, *, whole: bool | None = None, wanted: Filter | None = None) -> None:
        """Show another level, the changes from another base, or another filter. A filter is applied in a thread."""
        explorer = self.side.explorer
        if (explorer.filter if wanted is None else wanted).is_open:
            self._viewed(self._at, level, whole, wanted, None)
        else:
            self._filter(self._at, level, whole, wanted)

    @work(thread=True, exclusive=True, group="filter")
    def _filter(self, at: int, level: int | None, whole: bool | None, wanted: Filter | None) -> None:
        let_through = self.sides[at].explorer.filtered(level, whole=whole, wanted=wanted)
        if not get_current_worker().is_cancelled:
            self.call_from_thread(self._viewed, at, level, whole, wanted, let_through)

    def _viewed(
        self, at: int, level: int | None, whole: bool | None, wanted: Filter | None, let_through: set[int] | None
    ) -> None:
        """Show the result, with the cursor on the same path as before if it is still visible."""
        explorer, pane = self.sides[at].explorer, self.query_one(f"#tree{at}", TreePane)
        node = pane.node
        explorer.show(level, whole=whole, wanted=wanted, let_through=let_through)
        pane.rows_changed()
        if node >= 0:
            pane.go_to(node)
        self._title()

    def _title(self) -> None:
        side, explorer = self.side, self.side.explorer
        said = f"layers 0 to {explorer.level}" if explorer.whole else f"what layer {explorer.level} changes"
        said += "" if explorer.filter.is_open else ", filtered"
        self.pane.border_title = Text(f"{printable_line(side.title)}: {said}")

    # -- what the keys do --

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The keys of the panes do nothing while a dialog is open, Ctrl-C excepted."""
        return True if action == "interrupt" or not isinstance(self.screen, Dialog) else None  # None: shown as disabled

    def action_interrupt(self) -> None:
        self.exit()

    def action_help(self) -> None:
        self.push_screen(Lines("keys", help_lines()))

    def action_whole(self) -> None:
        self._view(whole=True)

    def action_alone(self) -> None:
        self._view(whole=False)

    def action_attributes(self) -> None:
        self.pane.with_attributes = not self.pane.with_attributes
        self.pane.refresh()

    def action_order(self) -> None:
        explorer, node = self.side.explorer, self.pane.node
        explorer.sort(BY_NAME if explorer.order == BY_SIZE else BY_SIZE)
        self.pane.rows_changed()
        if node >= 0:
            self.pane.go_to(node)

    def action_without(self, what: str) -> None:
        """Hide or show unchanged or removed paths."""
        now = self.side.explorer.filter
        change = {"same": SAME_HERE, "removed": REMOVED_HERE}[what]
        changes = now.changes ^ {change}
        self._view(wanted=replace(now, changes=changes or frozenset(CHANGES)))

    def action_filter(self) -> None:
        self.push_screen(FilterDialog(self.side.explorer.filter), self._take_filter)

    def _take_filter(self, wanted: Filter | None) -> None:
        if wanted is not None:
            self._view(wanted=wanted)

    def action_find(self) -> None:
        self.push_screen(Ask("find a name"), self._find)

    def _find(self, wanted: str | None) -> None:
        if wanted:
            self._look_for(self._at, wanted)

    @work(thread=True, exclusive=True, group="find")
    def _look_for(self, at: int, wanted: str) -> None:
        worker = get_current_worker()
        matches: list[int] = []
        for node in self.sides[at].explorer.find(wanted.encode("utf-8", "surrogateescape")):
            matches.append(node)
            if worker.is_cancelled or len(matches) == _MATCHES_MAX:
                break
        if not worker.is_cancelled:
            self.call_from_thread(self._found, at, wanted, matches)

    def _found(self, at: int, wanted: str, matches: list[int]) -> None:
        if at != self._at:  # the numbers are of the other tree
            return
        self._matches, self._match = matches, -1
        if matches:
            self.action_found(1)
        else:
            self.notify(f"no name has {printable(wanted)} in it", severity="warning")

    def action_found(self, step: int) -> None:
        if not self._matches:
            self.notify("nothing was looked for: /")
            return
        self._match = (self._match + step) % len(self._matches)
        many = f"{len(self._matches)}{'+' if len(self._matches) == _MATCHES_MAX else ''}"
        if self.pane.go_to(self._matches[self._match]):
            self.pane.border_subtitle = f"{self._match + 1} of {many}"
        self.pane.focus()

    def action_wasted(self) -> None:
        self.push_screen(WasteDialog(self.side.tree, self.side.layers), self._go_to)

    def _go_to(self, node: int | None) -> None:
        if node is None:
            return
        if not self.pane.go_to(node):
            self.notify("it does not show in this view: choose its layer, then Ctrl-L")
            self._show_lines(words.entry(self.side.tree, self.side.layers, node, self.side.tree.top, -1))
        self.pane.focus()

    def action_copy_path(self) -> None:
        if self.pane.node < 0:
            return
        path = "/" + os.fsdecode(self.side.tree.path(self.pane.node))
        self.copy_to_clipboard(path.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
        self.notify(f"copied: {printable(path)}")

    # -- data of files --

    def _record(self, entry: int) -> tuple[Layer, int, int]:
        layer = self.side.tree.layer_of[entry]
        return self.side.layers[layer], layer, self.side.tree.record_of[entry]

    def _file(self, entry: int) -> bool:
        """Whether an entry has data. Shows a message if it has none."""
        if entry >= 0 and self.side.tree.layer_entry(entry).kind in (FILE, LINK):
            return True
        self.notify("only files can be compared, and files and directories extracted", severity="warning")
        return False

    def action_compare(self) -> None:
        side, node = self.side, self.pane.node
        shown = [one for one in details.versions(side.tree, node, side.explorer.level) if one.state != details.MARK]
        if node < 0 or not shown or not self._file(shown[0].entry):
            return
        if len(shown) < 2:
            self.notify("no other layer has this path")
        elif self._file(shown[1].entry):
            self._compare(shown[1].entry, shown[0].entry)

    @work(thread=True, exclusive=True, group="data")
    def _compare(self, old: int, new: int) -> None:
        tree = self.side.tree
        contents, digests = [], []
        try:
            for entry in (old, new):
                layer, number, record = self._record(entry)
                index = tree.layers[number]
                record = data.first_name(index, record)
                contents.append(data.beginning(layer, index, record, details.DIFF_MAX + 1))
                digests.append(index.content(record))
        except (LayerError, OSError) as error:
            self._say(error)
            return
        lines = words.difference(contents[0], contents[1], digests[0], digests[1])
        title = f"{words.path(tree, tree.node_of[new])}: layer {tree.layer_of[old]} and layer {tree.layer_of[new]}"
        self.call_from_thread(self.push_screen, Lines(title, lines))

    def action_extract(self) -> None:
        node, explorer = self.pane.node, self.side.explorer
        if node < 0:
            return
        entry = self.side.tree.shown(node, explorer.level)
        if entry < 0:
            entry = self.side.tree.shown(node, explorer.base)
        if self.side.tree.is_directory(entry) or self._file(entry):
            name = os.fsdecode(self.side.tree.name(node))
            start = name if name.isprintable() else ""
            self.push_screen(Ask("extract to", f"./{start}"), lambda path: self._take_path(entry, path))

    def _take_path(self, entry: int, path: str | None) -> None:
        if path:
            self._extract(entry, path)

    @work(thread=True, group="data")
    def _extract(self, entry: int, path: str) -> None:
        if os.path.lexists(path):
            self.call_from_thread(self.notify, f"{printable(path)} exists; it is left as it is", severity="error")
            return
        side = self.side
        if side.tree.is_directory(entry):
            self._extract_directory(side, entry, path)
            return
        layer, number, record = self._record(entry)
        size = 0
        try:
            with OutputFile(path) as output:
                for part in data.parts(layer, self.side.tree.layers[number], record):
                    size += len(part)
                    output.file.write(part)
        except (LayerError, OSError) as error:
            self._say(error)
            return
        self.call_from_thread(self.notify, f"{human(size)} written to {printable(path)}")

    def _extract_directory(self, side: Side, entry: int, path: str) -> None:
        """In a thread: extract a directory, and show a message with what was written."""
        tree = side.tree
        level = side.explorer.level if tree.by[entry] > side.explorer.level else side.explorer.base
        try:
            found = extract.extract(tree, side.layers, tree.node_of[entry], level, path)
        except (LayerError, OSError) as error:
            self._say(error)
            return
        left = f"; {found.left_out} devices, fifos and sockets are left out" if found.left_out else ""
        self.call_from_thread(
            self.notify, f"{human(found.size)} in {found.files} files written to {printable(path)}{left}"
        )

    def _say(self, error: LayerError | OSError) -> None:
        """In a thread: show an error to the user."""
        text = str(error) if isinstance(error, LayerError) else printable_line(str(error))
        self.call_from_thread(self.notify, text, severity="error", timeout=10)

    def action_shell(self) -> None:
        if self.side.shell is None:
            self.notify("there is no shell for this", severity="warning")
            return
        try:
            with self.suspend():
                self.side.shell(self.side.explorer.level)
        except (LayerError, OSError, subprocess.CalledProcessError) as error:
            self.notify(printable_line(str(error)), severity="error", timeout=10)
        self.refresh(layout=True)


_MATCHES_MAX: Final = 10_000
